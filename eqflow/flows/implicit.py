r"""Linearly implicit Euler: a step of diffusion that is stable however long it is.

With the coefficients of the start of the step,

.. math::
    (I - h L(x_n)) (x_{n+1} - x_n) = h (L(x_n) x_n + s)

which damps what an explicit step of :math:`h > 2 / \lambda_\max` would blow up. Of order 1. SciPy
solves the equations by sparse products alone: conjugate gradients where `L` is symmetric and
`I − hL` surely positive, else BiCGStab, and GMRES where that fails, all scaled by the diagonal.

The derivative is that of the solution, not of the iterations: with
:math:`\lambda = (I - h L^T)^{-1} \bar\delta`, one more solve, that by the right-hand side is `λ`
and that by a coefficient :math:`h \lambda^T (\partial L) \delta`.

References: Solving Ordinary Differential Equations II (Hairer, Wanner, 1996), section IV.7, for the
step; Efficient and reliable schemes for nonlinear diffusion filtering (Weickert et al., 1998), for
it on diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, bicgstab, cg, gmres
from torch import Tensor

from eqflow import rng
from eqflow.edges import segment_sum
from eqflow.errors import UsageError
from eqflow.flows.effort import Effort
from eqflow.flows.evaluation import NonFinite, Stopped, is_finite
from eqflow.flows.exponential import CoefficientsAt
from eqflow.flows.operator_bound import bound
from eqflow.flows.solver import Status
from eqflow.nn.diffusion.operator import Coefficients

Linear = Callable[[Tensor], Tensor]

ITERATIONS = 1000
# GMRES keeps so many states.
RESTART = 30
# Residuals of the recurrences in BiCGStab drift from the true ones.
SLACK = 10.0


class NotConverged(Stopped):
    """The linear equations of a step were not solved.

    Attributes:
        residual: What is left of the right-hand side, relative.
    """

    def __init__(self, time: float, residual: float, tolerance: float) -> None:
        super().__init__(Status.NOT_CONVERGED, time)
        self.residual = residual
        self.detail = f"residual {residual:.1e}, expected {tolerance:.1e}"
        self.args = (
            f"implicit step at t = {time:.4g}: {Status.NOT_CONVERGED.value}: {self.detail}. Try "
            "more solver.steps or a larger solver.rtol.",
        )


def implicit_euler_step(
    coefficients_at: CoefficientsAt,
    start: float,
    end: float,
    x: Tensor,
    tolerance: float,
    effort: Effort,
) -> Tensor:
    """The state at `end` from that at `start`, by coefficients of the start.

    It can be differentiated once, by the state and everything in the coefficients.

    Args:
        coefficients_at: Takes a time and a state (N, C).
        start, end: Times.
        x: State at `start`, shape (N, C).
        tolerance: Of the residual of the equations, relative; below a few times the resolution of
            the type of `x` it is that.
        effort: Where products are counted.

    Raises:
        NotConverged: If the equations were not solved; raised during `backward` as well.
        NonFinite: If a value is not finite.
        Stopped: If there were too many products.
    """
    coefficients = coefficients_at(start, x)
    v = coefficients.velocity(x)
    effort.spend(1)
    if not is_finite(v):
        raise NonFinite(start, v)
    tolerance = max(tolerance, 4 * torch.finfo(x.dtype).eps)
    setting = coefficients, end - start, tolerance, effort
    parts = coefficients.weight, coefficients.gain, coefficients.mixing, coefficients.damping
    moved: Tensor = _Solve.apply(setting, (end - start) * v, *parts)
    effort.time = end
    return x + moved


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setting: tuple[Coefficients, float, float, Effort],
        right: Tensor,
        *parts: Tensor | None,
    ) -> Tensor:
        coefficients, h, tolerance, effort = setting
        frozen = _with_parts(coefficients, [None if p is None else p.detach() for p in parts])
        equations = _Equations(frozen, h, right)
        found = equations.solve(frozen.linear, right, tolerance, effort)
        ctx.equations, ctx.setting = equations, (frozen, h, tolerance, effort)
        ctx.save_for_backward(found, *parts)
        return found

    @staticmethod
    def backward(ctx: Any, covector: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UsageError(
                "solver.method: found a second derivative asked of 'implicit', which gives the "
                "first alone. Pass solver.method=exponential."
            )
        frozen, h, tolerance, effort = ctx.setting
        found, *parts = ctx.saved_tensors
        back = _transposed(frozen.linear, found)
        # What a backward pass may cost is not what the limit was set for.
        unlimited = Effort(time=effort.time)
        adjoint = ctx.equations.solve(back, covector, tolerance, unlimited)
        wanted = ctx.needs_input_grad[2:]
        leaves = [
            None if part is None else part.detach().requires_grad_(asked)
            for part, asked in zip(parts, wanted, strict=True)
        ]
        gradients: list[Tensor | None] = [None] * len(leaves)
        if any(wanted):
            with torch.enable_grad():
                moved = h * _with_parts(frozen, leaves).linear(found)
            asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
            given = iter(torch.autograd.grad(moved, asked, adjoint, allow_unused=True))
            gradients = [next(given) if w else None for w in wanted]
        return None, adjoint, *gradients


class _Equations:
    """`(I − hL) δ = b` and its transpose, as SciPy sees them."""

    def __init__(self, coefficients: Coefficients, h: float, like: Tensor) -> None:
        self.h = h
        self.shape = like.shape
        self.is_definite = _is_symmetric(coefficients, like) and self._is_positive(coefficients)
        self.scale = _scale(coefficients, h, like)

    def _is_positive(self, coefficients: Coefficients) -> bool:
        limits = bound(coefficients)
        return self.h * (limits.shift + limits.norm) < 1

    def solve(self, linear: Linear, right: Tensor, tolerance: float, effort: Effort) -> Tensor:
        """`δ`, shape (N, C), for `linear` either `L` or its transpose."""
        b = _vector(right)
        size = float(np.linalg.norm(b))
        if size == 0:
            return torch.zeros_like(right)

        def matvec(vector: np.ndarray) -> np.ndarray:
            effort.spend(1)
            x = self._tensor(vector, right)
            return _vector(torch.sub(x, linear(x), alpha=self.h))

        square = len(b), len(b)
        operator = LinearOperator(square, matvec, dtype=b.dtype)
        scale = None
        if self.scale is not None:
            flat = _vector(self.scale.expand(self.shape))
            scale = LinearOperator(square, lambda v: flat * v.reshape(-1), dtype=b.dtype)
        least, residual = b * 0, np.inf
        for method in (cg, bicgstab, gmres) if self.is_definite else (bicgstab, gmres):
            more = {"restart": RESTART, "maxiter": ITERATIONS // RESTART}
            more = more if method is gmres else {"maxiter": ITERATIONS}
            with np.errstate(all="ignore"):
                found, _ = method(operator, b, least, rtol=tolerance, atol=0.0, M=scale, **more)
                left = float(np.linalg.norm(b - matvec(found))) / size
            if left < residual:
                least, residual = found, left
            if residual <= SLACK * tolerance:
                return self._tensor(least, right)
        raise NotConverged(effort.time, residual, tolerance)

    def _tensor(self, vector: np.ndarray, like: Tensor) -> Tensor:
        return torch.as_tensor(vector, dtype=like.dtype, device=like.device).reshape(self.shape)


def _vector(x: Tensor) -> np.ndarray:
    x = x.detach()
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to("cpu", kind).reshape(-1).numpy()


def _with_parts(coefficients: Coefficients, parts: list[Tensor | None]) -> Coefficients:
    weight, gain, mixing, damping = parts
    return Coefficients(
        coefficients.edges,
        coefficients.weight if weight is None else weight,
        gain,
        mixing,
        damping,
    )


def _is_symmetric(coefficients: Coefficients, like: Tensor) -> bool:
    """Whether `⟨u, L v⟩ = ⟨v, L u⟩` for two random states: surely not, or almost surely."""
    source = rng.generator(0, "symmetry", device=like.device)
    u, v = (rng.normal(tuple(like.shape), like, source) for _ in range(2))
    Lu, Lv = coefficients.linear(u), coefficients.linear(v)
    difference = float((u * Lv - v * Lu).sum().abs())
    size = float((u * Lv).norm() + (v * Lu).norm())
    return difference <= 100 * torch.finfo(like.dtype).eps * size


def _scale(coefficients: Coefficients, h: float, like: Tensor) -> Tensor | None:
    """The inverse of the diagonal of `I − hL`, which is that of its transpose, or None."""
    damping = coefficients.damping
    if coefficients.mixing is not None or (damping is not None and damping.dim() == 2):
        return None
    edges = coefficients.edges
    others = coefficients.weight * (edges.sender != edges.receiver)
    diagonal = -segment_sum(others, edges)
    if coefficients.gain is not None:
        diagonal = diagonal + coefficients.gain
    diagonal = diagonal.unsqueeze(1)
    if damping is not None:
        diagonal = diagonal - damping
    scale = 1 - h * diagonal
    return 1 / scale if (scale > 0).all() else None


def _transposed(linear: Linear, like: Tensor) -> Linear:
    """`λ ↦ Lᵀ λ` of a linear function `v ↦ L v` of `v` like `like`: its derivative."""
    with torch.enable_grad():
        v = torch.zeros_like(like, requires_grad=True)
        moved = linear(v)

    def back(covector: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(moved, v, covector, retain_graph=True)
        return found

    return back
