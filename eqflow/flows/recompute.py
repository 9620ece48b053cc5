r"""Each evaluation of the right-hand side forgotten after use, and repeated in the backward pass.

The state of a flow is tiny against what one evaluation of its field keeps for the derivative. Kept
are therefore only `(t, y)` of each evaluation: the memory is that of one evaluation and the states,
the gradient exactly that of the steps taken, unlike the adjoint's, which is that of the limit of
small steps. `torch.utils.checkpoint` does not serve: a field may itself call `torch.autograd.grad`,
for the trace of its Jacobian, in a graph of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eqflow.edges.backend import as_chosen, current_choice
from eqflow.errors import UsageError
from eqflow.flows.evaluation import VectorField


def recomputed(field: VectorField, parameters: tuple[Tensor, ...]) -> VectorField:
    """`field`, differentiable once by the state and by those parameters that ask for it.

    Args:
        field: Takes a time and a packed state, shape (M,); draws no random numbers.
        parameters: What its value depends on besides.
    """
    wanted = tuple(parameter for parameter in parameters if parameter.requires_grad)

    def evaluate(t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = _Recomputed.apply(field, t, y, *wanted)
        return derivative

    return evaluate


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: VectorField, t: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        ctx.field, ctx.choice = field, current_choice()
        # Saved, parameters are watched: changed before the backward pass, they raise.
        ctx.save_for_backward(t, y, *parameters)
        return field(t, y)

    @staticmethod
    def backward(ctx: Any, covector: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UsageError(
                "solver.gradient: found a second derivative asked of 'checkpoint', which gives the "
                "first alone. Pass solver.gradient=direct."
            )
        t, y, *parameters = ctx.saved_tensors
        # A state of its own: the one of the step before depends on the parameters as well.
        y = y.detach().requires_grad_()
        with torch.enable_grad(), as_chosen(ctx.choice):
            derivative = ctx.field(t, y)
        inputs = [y, *parameters]
        if not derivative.requires_grad:
            return (None,) * (2 + len(inputs))
        return None, None, *torch.autograd.grad(derivative, inputs, covector, allow_unused=True)
