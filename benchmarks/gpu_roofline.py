"""What a device can do at most, measured, and how near to it a measured case comes.

A case needs so many operations and must move so many bytes; over the measured rate of products and
the measured bandwidth of a copy these are two times, and the longer is its floor. Counted is what
the function needs at least, whoever computes it: recomputation, padding and traffic of temporaries
are not, so they show as a smaller fraction. Activations and index arithmetic are not counted.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from gpu_bench import Bench
from gpu_problems import matrix_products
from gpu_scale import Diffusion, Molecules

# Products of matrices an edge of a message pass needs: two layers forward; a tangent doubles them,
# and each has a gradient by its input and one by its weight.
PRODUCTS = {"forward": 2, "forward + backward": 6, "value + trace": 4, "its gradient": 12}
# Which measured rate the products of a precision run at, and how many of them it takes.
RATES = {"ieee": ("fp32", 1), "tf32x3": ("tf32", 3), "tf32": ("tf32", 1), "bf16": ("bf16", 1)}


class Work(NamedTuple):
    """What a case needs.

    Attributes:
        operations: Multiplications and additions of its products.
        bytes: Read and written, each tensor once.
        precision: One of `RATES`.
    """

    operations: float
    bytes: float
    precision: str


def message_work(
    nodes: int, edges: int, width: int, dimension: int, kind: str, precision: str
) -> Work:
    """One message pass with one scalar an edge, of a `kind` of `PRODUCTS`."""
    passes = PRODUCTS[kind] / 2
    rows = nodes * (2 * dimension + 3 * width) + edges  # x, p, q, both sums; scalars
    indices = 2 * edges
    return Work(4 * width**2 * edges * passes, 4 * (rows + indices) * passes, precision)


def field_work(nodes: int, edges: int, of: Molecules, kind: str, precision: str) -> Work:
    """All layers of a field: message passes, and the products at nodes."""
    one = message_work(nodes, edges, of.width, of.dimension, kind, precision)
    passes = PRODUCTS[kind] / 2
    # Both parts of the first layer, then the update: two rows of features in, hidden, one out. The
    # last layer has none.
    products = 2 * of.layers + 3 * (of.layers - 1)
    at_nodes = 2 * of.width**2 * nodes * products * passes
    through_nodes = 4 * of.width * nodes * 2 * products * passes
    return Work(
        of.layers * one.operations + at_nodes, of.layers * one.bytes + through_nodes, precision
    )


def attention_work(of: Diffusion, kind: str, size: int) -> Work:
    """Attention diffusion on values of `size` bytes; rows of senders count for every edge.

    A graph whose rows stay in the cache may beat this floor.
    """
    passes = PRODUCTS[kind] / 2
    at_edges = of.edges * (2 * of.channels * size + 4)
    at_nodes = of.nodes * 3 * of.channels * size
    return Work(4 * of.channels * of.edges * passes, (at_edges + at_nodes) * passes, "ieee")


def roofline(result: Mapping[str, Any], ceilings: Mapping[str, float]) -> dict[str, Any]:
    """Floor of a case with `work` and `ms`, what sets it, and the fraction of it that was reached.

    Args:
        result: Of the case.
        ceilings: Operations a second of "fp32", "tf32" and "bf16" products, bytes of "copy".
    """
    work = result["work"]
    rate, times = RATES[work["precision"]]
    floors = {
        rate: 1e3 * times * work["operations"] / ceilings[rate],
        "copy": 1e3 * work["bytes"] / ceilings["copy"],
    }
    bound = max(floors, key=floors.__getitem__)
    return {"floor_ms": floors[bound], "bound": bound, "fraction": floors[bound] / result["ms"]}


def measure_ceilings(bench: Bench) -> None:
    """What the machine is; a large copy, and large products in three types, on random numbers."""
    bench.case("machine", lambda: machine(bench))

    def copy() -> dict[str, Any]:
        source = torch.randn(bench.scale.copied, device=bench.device)
        target = torch.empty_like(source)
        timing = bench.time(lambda: target.copy_(source))
        return timing | {"ceiling": 2e3 * source.nbytes / timing["ms"]}

    def product(dtype: torch.dtype, setting: str) -> dict[str, Any]:
        n = bench.scale.product
        a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
        with matrix_products(setting):
            timing = bench.time(lambda: a @ b)
        return timing | {"ceiling": 2e3 * n**3 / timing["ms"]}

    bench.case("copy", copy)
    bench.case("bf16", lambda: product(torch.bfloat16, "highest"))
    bench.case("tf32", lambda: product(torch.float32, "high"))
    bench.case("fp32", lambda: product(torch.float32, "highest"))


def machine(bench: Bench) -> dict[str, Any]:
    """Versions, and the device as it is named."""
    found: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in ("torch", "triton", "torchdiffeq", "numpy", "scipy", "torch-geometric"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    found["pyg"] = importlib.util.find_spec("torch_geometric") is not None
    if bench.device.type != "cuda":
        return found | {"device": "rehearsal on a CPU, kernels interpreted"}
    properties = torch.cuda.get_device_properties(bench.device)
    return found | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30,
        "cache_mib": properties.L2_cache_size / 2**20,
    }
