"""How much of everything `gpu.py` runs: at full size on a GPU, or a rehearsal on a CPU.

A rehearsal runs the same lines on graphs of a few nodes, the kernels in Triton's interpreter. It
shows that the script works, and nothing about speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eqflow.edges.backend import PRECISIONS


@dataclass(frozen=True)
class Molecules:
    """A batch of clouds, and the network on it.

    Attributes:
        count: Number of clouds.
        size: Points in each on average.
        spread: Standard deviation of the number of points, clamped to 9 … 29 unless it is 0.
        width, layers: Of the network.
        dimension: Of space.
    """

    count: int
    size: int
    spread: float
    width: int
    layers: int
    dimension: int = 3


@dataclass(frozen=True)
class Diffusion:
    """A random graph with attention on it.

    Attributes:
        nodes, edges: How many.
        channels: Of query, key and values, one head.
    """

    nodes: int
    edges: int
    channels: int


@dataclass(frozen=True)
class Scale:
    """Sizes of all sections.

    Attributes:
        device: Where tensors are.
        compiler: Backend of `torch.compile`.
        workers: Checks that run at the same time, each in a process of its own.
        copied: Numbers in the buffer that is copied to measure the bandwidth.
        product: Rows and columns of the matrices that are multiplied to measure rates.
        channels: Of primitives.
        types: Of primitives and attention at one width; at others float32.
        widths: Of messages and attention, F.
        precisions: Of message passes.
        clouds: Number of points of each cloud of a check.
        pairs: Number of clouds of two to four points in a check.
        neighbours: Of one node, in the check of a skewed graph.
        chemistry: The shape of QM9.
        likelihood: Fewer molecules of that shape, for what needs more memory.
        exact: Clouds whose exact divergence is taken, by name.
        particles: Clouds to sample, by name.
        steps: Two numbers of steps to sample in; their difference is free of what starting costs.
        diffusions: Graphs with attention, by name.
    """

    device: str
    compiler: str
    workers: int
    copied: int
    product: int
    channels: tuple[int, ...]
    types: tuple[torch.dtype, ...]
    widths: tuple[int, ...]
    precisions: tuple[str, ...]
    clouds: tuple[int, ...]
    pairs: int
    neighbours: int
    chemistry: Molecules
    likelihood: Molecules
    exact: dict[str, Molecules]
    particles: dict[str, Molecules]
    steps: tuple[int, int]
    diffusions: dict[str, Diffusion]

    @property
    def is_rehearsal(self) -> bool:
        """Whether nothing of what is timed means anything."""
        return self.device == "cpu"


FULL = Scale(
    device="cuda",
    compiler="inductor",
    workers=8,
    copied=2**29,
    product=8192,
    channels=(3, 32, 256),
    types=(torch.float32, torch.float64, torch.bfloat16),
    widths=(32, 64, 128, 256),
    precisions=PRECISIONS,
    clouds=(2, 3, 4, 5, 13, 18, 29, 55, 128, 512),
    pairs=3000,
    neighbours=100_000,
    chemistry=Molecules(1024, 18, 3.0, 256, 9),
    likelihood=Molecules(512, 18, 3.0, 256, 9),
    exact={
        "LJ13, B = 256": Molecules(256, 13, 0.0, 32, 3),
        "18 atoms, B = 64": Molecules(64, 18, 0.0, 64, 6),
    },
    particles={
        "DW4, B = 1,000": Molecules(1000, 4, 0.0, 32, 3, dimension=2),
        "LJ13, B = 256": Molecules(256, 13, 0.0, 32, 3),
    },
    steps=(20, 100),
    diffusions={
        "Cora's size": Diffusion(2708, 13_264, 64),
        "1 M edges": Diffusion(20_000, 1_000_000, 64),
        "arXiv's size": Diffusion(169_343, 2_484_941, 128),
        "20 M edges": Diffusion(170_000, 20_000_000, 64),
    },
)

REHEARSAL = Scale(
    device="cpu",
    compiler="aot_eager",
    workers=2,
    copied=2**12,
    product=16,
    channels=(3,),
    types=(torch.float32,),
    widths=(32,),
    precisions=("tf32",),
    clouds=(1, 2, 5),
    pairs=3,
    neighbours=66,
    chemistry=Molecules(1, 9, 3.0, 32, 2),
    likelihood=Molecules(1, 9, 3.0, 32, 2),
    exact={"3 points": Molecules(2, 3, 0.0, 32, 2)},
    particles={"DW4, B = 2": Molecules(2, 4, 0.0, 32, 2, dimension=2)},
    steps=(1, 2),
    diffusions={"20 nodes": Diffusion(20, 60, 16)},
)
