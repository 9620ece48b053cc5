"""Point clouds told apart however they are turned: plain networks against their frame averages.

    python benchmarks/rotated_clouds.py DATA [seeds=3] [backbones=pointnet,dgcnn]

Half of the chairs of ModelNet10 (`chair_32.npz`, voxels) stay as they are. The others are cut at
half their height, and the two parts change places: legs above the back. What is asked is which one
a cloud is. All chairs stand upright; a network is trained on them as they stand, or turned at
random in each step, or as a frame average, and tested on chairs as they stand and on the same
turned by random elements of O(3). Frame averages are trained on one pose drawn for each cloud in
each step, so that a step is one call of the backbone in all ways, and tested with all poses, in
float64. Rows of backbones that are not asked for are kept from an earlier run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write_results
from torch import Tensor, nn

from eqflow import rng
from eqflow.data import duplicates, read_voxels
from eqflow.geometry import Clouds, centred, random_orthogonal, rotate
from eqflow.geometry.frames import AbstractFrame, OrbitFrame, PCAFrame, StochasticFrame
from eqflow.nn.averaging.frame_average import FrameAverage
from eqflow.nn.backbones import AbstractBackbone, DGCNNBackbone, PointNetBackbone

POINTS = 128
TEST = 0.3
BATCH = 32
RATE = 3e-3
UP = 2  # the axis that chairs stand along

# The backbone, and how many times it sees all clouds.
BACKBONES: dict[str, tuple[Callable[[], AbstractBackbone], int]] = {
    "pointnet": (lambda: PointNetBackbone(3, 0, 2, width=64, layers=3, pooled=True), 60),
    "dgcnn": (
        lambda: DGCNNBackbone(
            3, 0, 2, width=32, layers=2, neighbours=8, dynamic=False, pooled=True
        ),
        12,
    ),
}
# How a network gets to know of rotations: the frame of its average, and whether clouds are turned.
PRINCIPAL = PCAFrame(on_degenerate="orbit")
WAYS: dict[str, tuple[AbstractFrame | None, bool]] = {
    "plain": (None, False),
    "plain, turned in training": (None, True),
    "frame average, pca": (PRINCIPAL, False),
    "frame average, orbit": (OrbitFrame(), False),
}


def main(data: str, seeds: int = 3, backbones: str = ",".join(BACKBONES)) -> None:
    """Train all, print and write accuracies."""
    torch.set_num_threads(1)
    table = []
    for name in backbones.split(","):
        make, epochs = BACKBONES[name]
        for way, (frame, turned) in WAYS.items():
            started = time.process_time()
            runs = []
            for seed in range(seeds):
                train, test = chairs(Path(data), seed)
                model = trained(make, frame, turned, train, epochs, seed)
                runs.append(tested(model, test, seed))
            seconds = (time.process_time() - started) / seeds
            table.append(row(name, way, runs, seconds))
    settings = {"points": POINTS, "batch": BATCH, "rate": RATE, "train": len(train)}
    settings |= {
        "test": len(test),
        "epochs": {name: epochs for name, (_, epochs) in BACKBONES.items()},
    }
    write_results("rotated_clouds", settings | {"rows": kept(backbones.split(",")) + table})


def kept(made: list[str]) -> list[dict[str, Any]]:
    """Rows of earlier runs of other backbones than those made now."""
    path = RESULTS / "rotated_clouds.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    return [row for row in before if row["backbone"] not in made]


@dataclass(frozen=True)
class Labelled:
    """Clouds of `POINTS` points each, and which ones have their halves exchanged, (B,), 0 or 1."""

    x: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Positions, where clouds start, labels."""
        for chosen in order.split(BATCH):
            ptr = torch.arange(len(chosen) + 1) * POINTS
            yield self.x[chosen].reshape(-1, 3), ptr, self.label[chosen]


def chairs(path: Path, seed: int) -> tuple[Labelled, Labelled]:
    """Chairs to train on and to test on, different ones, half of each changed."""
    group = duplicates(read_voxels(path).clouds)  # numbered by first appearance
    before = torch.cat([group.new_tensor([-1]), group.cummax(0)[0][:-1]])
    clouds = read_voxels(path, points=POINTS, seed=seed, dequantize=True).clouds
    x = clouds.x.reshape(len(clouds), POINTS, 3)[group > before]
    source = rng.generator(seed, "rotated clouds", "split")
    x = x[rng.permutation(len(x), source)]
    label = torch.arange(len(x)) % 2
    x = torch.where(label[:, None, None] == 1, exchanged(x), x)
    clouds = Clouds.from_dense(x)
    x = centred(clouds.x, clouds.ptr).reshape(x.shape)
    held = round(TEST * len(x))
    return Labelled(x[held:], label[held:]), Labelled(x[:held], label[:held])


def exchanged(x: Tensor) -> Tensor:
    """Clouds (B, n, 3) whose parts above and below half their height have changed places."""
    height = x[..., UP]
    low, high = height.amin(1, keepdim=True), height.amax(1, keepdim=True)
    half = (high - low) / 2
    moved = torch.where(height < low + half, height + half, height - half)
    return torch.cat([x[..., :UP], moved.unsqueeze(-1)], -1)


def trained(
    make: Callable[[], AbstractBackbone],
    frame: AbstractFrame | None,
    turned: bool,
    train: Labelled,
    epochs: int,
    seed: int,
) -> nn.Module:
    """A network after its epochs of Adam, the rate going down as a cosine."""
    with rng.seeded(seed, "rotated clouds", "training"):
        backbone = make()
        model = backbone if frame is None else FrameAverage(backbone, "E(3)", frame, "scalar")
        one_pose = {} if frame is None else {"frame": StochasticFrame(frame)}
        source = rng.generator(seed, "rotated clouds", "order")
        optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
        steps = epochs * -(-len(train) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(epochs):
            for x, ptr, label in train.batches(rng.permutation(len(train), source)):
                x = turn(x, ptr, source) if turned else x
                loss = nn.functional.cross_entropy(model(x, ptr, None, **one_pose), label)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return model.eval()


def turn(x: Tensor, ptr: Tensor, source: torch.Generator) -> Tensor:
    """Each cloud turned or mirrored by a random element of O(3)."""
    return rotate(x, random_orthogonal(len(ptr) - 1, 3, x, source), ptr)


@torch.no_grad()
def tested(model: nn.Module, test: Labelled, seed: int) -> dict[str, float]:
    """Accuracy on clouds as they stand and turned, and how far the logits differ."""
    source = rng.generator(seed, "rotated clouds", "turned")
    model = model.double()
    upright, elsewhere = [], []
    for x, ptr, _ in test.batches(torch.arange(len(test))):
        upright.append(model(x.double(), ptr, None))
        elsewhere.append(model(turn(x.double(), ptr, source), ptr, None))
    logits, of_turned = torch.cat(upright), torch.cat(elsewhere)
    said, of_turned_said = logits.argmax(1), of_turned.argmax(1)
    return {
        "upright": float((said == test.label).double().mean()),
        "turned": float((of_turned_said == test.label).double().mean()),
        "changed_answers": int((said != of_turned_said).sum()),
        "logit_difference": float((logits - of_turned).abs().max() / logits.abs().max()),
    }


def row(backbone: str, way: str, runs: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    """Means and standard deviations over seeds, printed."""
    found: dict[str, Any] = {"backbone": backbone, "way": way, "cpu_seconds_a_seed": seconds}
    for what in ("upright", "turned"):
        values = [run[what] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[what] = {"mean": statistics.mean(values), "sd": spread, "runs": values}
    found["changed_answers"] = [run["changed_answers"] for run in runs]
    found["logit_difference"] = max(run["logit_difference"] for run in runs)
    cells = [
        f"{100 * found[w]['mean']:6.1f} ± {100 * found[w]['sd']:.1f} %"
        for w in ("upright", "turned")
    ]
    print(
        f"{backbone:<10}{way:<28}upright {cells[0]}   turned {cells[1]}   "
        f"answers changed {found['changed_answers']}, logits by {found['logit_difference']:.0e}   "
        f"{seconds:.0f} CPU-s",
        flush=True,
    )
    return found


if __name__ == "__main__":
    words = dict(word.split("=") for word in sys.argv[2:])
    options = {name: int(v) if name == "seeds" else v for name, v in words.items()}
    main(sys.argv[1], **options)
