"""The fused message pass with its derivatives, as torch's autograd and `torch.func` take them.

Reverse mode is a kernel that recomputes; forward mode is the pass with tangents. What no kernel
does goes through the composition in `eqflow.edges.reference`, recomputed from the inputs, which are
all that is ever kept: derivatives of derivatives, tangents of weights, and reverse mode through the
pass with tangents, there a few receivers at a time so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eqflow.edges import reference
from eqflow.edges.backend import Precision, as_chosen, current_choice
from eqflow.edges.kernels.message_arguments import Arguments, Launch
from eqflow.edges.kernels.message_setting import INPUTS, WEIGHTS, Setting, Slots, weights_of
from eqflow.edges.kernels.messages_backward import backward_launch, messages_backward
from eqflow.edges.kernels.messages_dual import dual_launch, messages_dual
from eqflow.edges.kernels.messages_dual_backward import dual_gradients
from eqflow.edges.kernels.messages_forward import forward_launch, messages
from eqflow.edges.network import MessageDual, MessageInputs, MessageTangents


class _Messages(torch.autograd.Function):
    """`egcl_messages` of the tensors that `setting` says are there: inputs, then weights."""

    @staticmethod
    def forward(setting: Setting, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return messages(_arguments(setting, tensors, forward_launch))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.setting, *tensors = inputs
        ctx.choice = current_choice()
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, shift: Tensor, message: Tensor) -> tuple[Tensor | None, ...]:
        setting, tensors = ctx.setting, ctx.saved_tensors
        if torch.is_grad_enabled():
            with as_chosen(ctx.choice):
                pull = torch.func.vjp(partial(_composed, setting), *tensors)[1]
                return None, *pull((shift, message))
        of_weights = any(setting.slots(ctx.needs_input_grad[1:])[INPUTS:])
        arguments = _arguments(setting, tensors, backward_launch)
        inputs, network = messages_backward(
            arguments, shift.contiguous(), message.contiguous(), of_weights
        )
        weights = [None] * WEIGHTS if network is None else weights_of(network)
        return None, *setting.given([*inputs, *weights])

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        setting, tensors = ctx.setting, ctx.saved_tensors
        slots, moved = setting.slots(tensors), setting.slots(tangents)
        if any(tangent is not None for tangent in moved[INPUTS:]):
            return _push(setting, tensors, tangents)
        along = [None if tangent is None else tangent.unsqueeze(1) for tangent in moved[:INPUTS]]
        if along[0] is None:
            along[0] = torch.zeros_like(tensors[0]).unsqueeze(1)
        dual = apply_dual(setting, slots[:INPUTS], along, slots[INPUTS:])
        return dual.shift_tangent.squeeze(1), dual.message_tangent.squeeze(1)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], setting: Setting, *tensors: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        composed = torch.vmap(partial(_composed, setting), in_dims=dims[1:])
        return composed(*tensors), (0, 0)


class _MessagesDual(torch.autograd.Function):
    """`egcl_messages_dual` of the tensors there are: inputs, tangents, then weights."""

    @staticmethod
    def forward(setting: Setting, *tensors: Tensor) -> tuple[Tensor, ...]:
        slots = setting.slots([value.contiguous() for value in tensors])
        launch = dual_launch(tensors[1].shape[1], setting.precision)
        network = setting.network(slots[-WEIGHTS:])
        inputs = MessageInputs(*slots[:INPUTS])  # type: ignore[arg-type]
        tangents = MessageTangents(*slots[INPUTS:-WEIGHTS])  # type: ignore[arg-type]
        arguments = Arguments(inputs, network, setting.edges, setting.precision, launch)
        return tuple(messages_dual(arguments, tangents))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.setting, *tensors = inputs
        ctx.choice = current_choice()
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            with as_chosen(ctx.choice):
                pull = torch.func.vjp(partial(_composed_dual, ctx.setting), *ctx.saved_tensors)[1]
                return None, *pull(gradients)
        wanted = ctx.needs_input_grad[1:]
        with as_chosen(ctx.choice):
            return None, *dual_gradients(ctx.setting, ctx.saved_tensors, gradients, wanted)

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], setting: Setting, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        is_tangent = setting.given([INPUTS <= k < 2 * INPUTS for k in range(len(setting.present))])
        moved = list(zip(tensors, dims[1:], is_tangent, strict=True))
        if all(dim is None or along for _, dim, along in moved):
            folded = [_fold(v, dim, info.batch_size) if along else v for v, dim, along in moved]
            *values, shift, message = _MessagesDual.apply(setting, *folded)
            split = [v.unflatten(1, (info.batch_size, -1)) for v in (shift, message)]
            return (*values, *split), (None, None, 1, 1)
        each = [
            _MessagesDual.apply(
                setting, *[v if dim is None else v.select(dim, b) for v, dim, _ in moved]
            )
            for b in range(info.batch_size)
        ]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True)), (0, 0, 0, 0)


def apply_messages(setting: Setting, slots: Slots) -> tuple[Tensor, Tensor]:
    """Both sums, of width `F` a power of two.

    Args:
        setting: What the pass depends on besides tensors.
        slots: Inputs, then weights.
    """
    return _Messages.apply(setting, *setting.given(slots))


def apply_dual(setting: Setting, inputs: Slots, tangents: Slots, weights: Slots) -> MessageDual:
    """Values and tangents, for inputs and weights as in a `setting` without tangents."""
    slots = [*inputs, *tangents, *weights]
    setting = replace(setting, present=tuple(value is not None for value in slots))
    return MessageDual(*_MessagesDual.apply(setting, *setting.given(slots)))


def _arguments(
    setting: Setting, tensors: Sequence[Tensor], launch: Callable[[int, Precision], Launch]
) -> Arguments:
    slots = setting.slots([value.contiguous() for value in tensors])
    return Arguments(
        MessageInputs(*slots[:INPUTS]),  # type: ignore[arg-type]
        setting.network(slots[INPUTS:]),
        setting.edges,
        setting.precision,
        launch(tensors[1].shape[1], setting.precision),
    )


def _composed(setting: Setting, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    slots = setting.slots(tensors)
    x, receiver, sender, scalars, envelope = slots[:INPUTS]
    network = setting.network(slots[INPUTS:])
    return reference.egcl_messages(
        x,  # type: ignore[arg-type]
        receiver,  # type: ignore[arg-type]
        sender,  # type: ignore[arg-type]
        scalars,
        network,
        setting.edges,
        envelope,
    )


def _composed_dual(setting: Setting, *tensors: Tensor) -> tuple[Tensor, ...]:
    slots = setting.slots(tensors)
    return tuple(
        reference.egcl_messages_dual(
            MessageInputs(*slots[:INPUTS]),  # type: ignore[arg-type]
            MessageTangents(*slots[INPUTS:-WEIGHTS]),  # type: ignore[arg-type]
            setting.network(slots[-WEIGHTS:]),
            setting.edges,
        )
    )


def _fold(tangent: Tensor, dim: int | None, batch: int) -> Tensor:
    """A batch of tangents as more directions, (N, S, …) each to (N, batch S, …)."""
    if dim is None:
        wide = tangent.unsqueeze(1).expand(-1, batch, *tangent.shape[1:])
    else:
        wide = tangent.movedim(dim, 1)
    return wide.flatten(1, 2)


def _push(
    setting: Setting, tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Forward mode through the composition: the derivative of its pullback by the cotangent."""

    def pullback(shift: Tensor, message: Tensor) -> tuple[Tensor, ...]:
        pull = torch.func.vjp(partial(_composed, setting), *tensors)[1]
        return pull((shift, message))

    push = torch.func.vjp(pullback, *map(torch.zeros_like, tensors[:2]))[1]
    return push(
        tuple(
            torch.zeros_like(value) if tangent is None else tangent
            for value, tangent in zip(tensors, tangents, strict=True)
        )
    )
