r"""Ways to write a matrix that stays symmetric while it is learned.

==================  ==========================================================================
symmetric           :math:`(M + M^T) / 2`
diagonal            :math:`\mathrm{diag}(v)`
diagonal_dominant   off the diagonal symmetric with zero diagonal `S`, on it
                    :math:`q_i \sum_j |S_{ij}| + r_i`
positive            :math:`M M^T`
negative            :math:`-M M^T`
spectral            :math:`Q\, \mathrm{diag}(\mu)\, Q^T` with `Q` a product of reflections
zero                0
identity            `I`, nothing to learn
==================  ==========================================================================

Reference: Understanding convolution on graphs via energies (Di Giovanni et al., 2022),
arXiv:2206.10991, section 4 and appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.errors import UsageError
from eqflow.nn.arguments import require_counts
from eqflow.nn.diffusion.operator import free_matrix


class SymmetricMatrix(nn.Module):
    """A symmetric matrix in one of the forms of this module.

    Args:
        width: Rows and columns C.
        form: Which.

    Raises:
        UsageError: If there is no such form, or no channel.
    """

    def __init__(self, width: int, form: str = "symmetric") -> None:
        super().__init__()
        require_counts("SymmetricMatrix", width=width)
        if form not in FORMS:
            raise UsageError(
                f"SymmetricMatrix: found form {form!r}, expected one of {', '.join(FORMS)}."
            )
        self.width = width
        self.form = form
        for name, shape in FORMS[form].items():
            self.register_parameter(name, _initial(name, width, shape))
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self) -> Tensor:
        """The matrix, shape (C, C), or its diagonal, shape (C,), where it has no more."""
        match self.form:
            case "symmetric":
                return (self.free + self.free.t()) / 2
            case "diagonal":
                return self.diagonal
            case "diagonal_dominant":
                off = (self.free + self.free.t()) / 2
                off = off - torch.diag(off.diagonal())
                return off + torch.diag(self.slope * off.abs().sum(1) + self.diagonal)
            case "positive":
                return self.free @ self.free.t()
            case "negative":
                return -self.free @ self.free.t()
            case "spectral":
                q = torch.linalg.householder_product(*_reflections(self.free))
                return (q * self.diagonal) @ q.t()
            case "identity":
                return torch.ones_like(self.like).expand(self.width)
        return torch.zeros_like(self.like).expand(self.width)

    def dense(self) -> Tensor:
        """The matrix, shape (C, C)."""
        matrix = self()
        return torch.diag(matrix) if matrix.dim() == 1 else matrix


FORMS: dict[str, dict[str, str]] = {
    "symmetric": {"free": "matrix"},
    "diagonal": {"diagonal": "vector"},
    "diagonal_dominant": {"free": "matrix", "slope": "vector", "diagonal": "vector"},
    "positive": {"free": "matrix"},
    "negative": {"free": "matrix"},
    "spectral": {"free": "matrix", "diagonal": "vector"},
    "zero": {},
    "identity": {},
}


def _initial(name: str, width: int, shape: str) -> nn.Parameter:
    if shape == "matrix":
        return free_matrix(width, width)
    return nn.Parameter(nn.init.uniform_(torch.empty(width), -1, 1))


def _reflections(free: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors and factors of the reflections that the columns of a matrix name."""
    unit = torch.eye(len(free), dtype=free.dtype, device=free.device)
    vectors = torch.tril(free, -1) + unit
    return vectors, 2 / vectors.square().sum(0)
