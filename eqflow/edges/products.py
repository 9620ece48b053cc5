"""Products of matrices without a graph for autograd, by the faster of a CPU's two libraries.

Torch multiplies float32 matrices on a CPU with its BLAS, and convolutions with oneDNN. Where the
processor has AVX-512 and the BLAS makes no use of it, as MKL does not on AMD's, oneDNN is twice as
fast on products of many rows; on few, what a call costs outweighs that. On Intel's the BLAS is the
faster at every size. Which of them runs depends on shapes and processor alone, so that a run
repeated gives the same bits. Both sum in float32; every other type and device goes to torch's own
product.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

# From these sizes on oneDNN was faster: factors in a product, columns in each of its matrices.
LARGE = 2**20
COLUMNS = 32
COLUMNS_OF_OUTER = 64


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`, not differentiable where it is large.

    Args:
        x: Shape (..., K).
        weight: `W`, shape (M, K).
        bias: `b`, shape (M,), or None for 0.

    Returns:
        Shape (..., M).
    """
    if _is_for_onednn(x, weight, COLUMNS):
        # Rows of more axes and weights with gaps would go a way that is a hundred times slower, and
        # a bias with gaps would be read as if it had none.
        rows = x.reshape(-1, x.shape[-1])
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return found.view(*x.shape[:-1], -1)
    return linear(x, weight, bias)


def add_product(found: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add `x Wᵀ` to `found`, (..., M), which is contiguous."""
    if _is_for_onednn(x, weight, COLUMNS):
        found += product(x, weight)
    else:
        found.view(-1, found.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())


def outer_product(g: Tensor, x: Tensor) -> Tensor:
    """`gᵀ x`, a sum over rows: (R, M) and (R, K) to (M, K)."""
    if _is_for_onednn(x, g.t(), COLUMNS_OF_OUTER):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(g.t(), x.t(), None, "none", [], "")
        return found
    return g.t() @ x


def _is_for_onednn(x: Tensor, weight: Tensor, columns: int) -> bool:
    return bool(
        _HAS_ONEDNN
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.shape[-1] >= columns
        and weight.shape[0] >= columns
        and x.numel() * weight.shape[0] >= LARGE
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.enabled
    )


def _maker_of_processor() -> str:
    """As the processor names it, such as AuthenticAMD; another description where it cannot say."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")[:4096]
    except OSError:
        return platform.processor()


_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and "AuthenticAMD" in _maker_of_processor()
)
