"""The first derivative of the message pass: launches of its kernel, and the sums that are left.

Receivers' gradients come from the kernel. Those at senders are summed over outgoing edges, those of
weights over the programs that share the tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eqflow.edges.backend import Precision
from eqflow.edges.kernels.device import on_device, programs_at_once
from eqflow.edges.kernels.message_arguments import Arguments, Launch
from eqflow.edges.kernels.message_backward_kernel import (
    ATTENTION,
    COORDINATE_BIAS,
    COORDINATE_OUT,
    INFERENCE,
    MESSAGE_BIAS,
    SCALARS,
    message_backward_kernel,
)
from eqflow.edges.kernels.outer import outer_sum
from eqflow.edges.kernels.reductions import sum_rows
from eqflow.edges.network import EdgeNetwork, Gate, MessageInputs

# From this width on, sums of F × F a program would not stay in the cache: operands are stored.
OPERANDS_FROM = 128
# Elements of one operand at once, 128 MiB in float32.
ELEMENTS_AT_ONCE = 2**25

# Edges and chunk by width and precision, where 64 and 32 would not fit into the registers.
_SMALLER: dict[tuple[int, Precision], tuple[int, int]] = {
    (128, "ieee"): (32, 32),
    (128, "tf32x3"): (64, 16),
    (256, "ieee"): (16, 16),
    (256, "tf32x3"): (16, 32),
}


def messages_backward(
    arguments: Arguments,
    shift_gradient: Tensor,
    message_gradient: Tensor,
    of_weights: bool = True,
) -> tuple[MessageInputs, EdgeNetwork | None]:
    """Gradients of everything a message pass depends on, from those of its two sums.

    Args:
        arguments: The call.
        shift_gradient: Shape (N, d), contiguous.
        message_gradient: Shape (N, F), contiguous.
        of_weights: Whether those of the network are wanted.

    Returns:
        Gradients of the inputs and of the network, None unless wanted.
    """
    inputs, tiles, edges = arguments.inputs, arguments.tiles, arguments.edges
    x, F, D, rows = inputs.x, arguments.width, inputs.x.shape[1], tiles.rows.count
    sums = _WeightSums.zeros(arguments) if of_weights else None
    x_gradient, receiver_gradient = x.new_empty(rows, D), x.new_empty(rows, F)
    difference_gradient, z_gradient = x.new_empty(edges.count, D), x.new_empty(edges.count, F)
    envelope_gradient = None if inputs.envelope is None else torch.empty_like(inputs.envelope)
    shared = arguments.named() | {
        "shift_gradient": shift_gradient,
        "message_gradient": message_gradient,
        "x_gradient": x_gradient,
        "receiver_gradient": receiver_gradient,
        "difference_gradient": difference_gradient,
        "z_gradient": z_gradient,
        "envelope_gradient": envelope_gradient,
        "matrices": None if sums is None or sums.stores_operands else sums.matrices,
        "vectors": None if sums is None else sums.vectors,
        "gate_biases": None if sums is None else sums.gate_biases,
    }
    for first, last in _parts(arguments, sums):
        operands = None if sums is None else sums.room(arguments, last - first)
        with on_device(x):
            message_backward_kernel[(min(last - first, programs_at_once(x)),)](
                **shared,
                first_tile=first,
                tiles=last,
                operands=operands,
                slots=0 if operands is None else operands.shape[1],
            )
        if sums is not None and operands is not None:
            sums.add(operands, arguments.precision)

    scalars = None
    if inputs.scalars is not None:
        scalars = z_gradient @ arguments.network.scalar_weight[:, 1:]
    gradients = MessageInputs(
        x=tiles.combine(x_gradient) - sum_rows(difference_gradient, edges, "sender"),
        receiver=tiles.combine(receiver_gradient),
        sender=sum_rows(z_gradient, edges, "sender"),
        scalars=scalars,
        envelope=envelope_gradient,
    )
    return gradients, None if sums is None else sums.network(arguments.network)


@dataclass
class _WeightSums:
    """Gradients of the weights, summed by program.

    Attributes:
        vectors: Those that are vectors, shape (programs, 5 + 1 + K, F).
        gate_biases: Attention, inference, shape (programs, 2).
        matrices: Of `W_m` and `W_x`, shape (programs, 2, F, F), or (1, 2, F, F) where it is not the
            programs that sum.
        stores_operands: Whether the kernel stores operands for those two instead.
    """

    vectors: Tensor
    gate_biases: Tensor
    matrices: Tensor
    stores_operands: bool

    @classmethod
    def zeros(cls, arguments: Arguments) -> _WeightSums:
        x, F = arguments.inputs.x, arguments.width
        programs = min(arguments.tiles.count, programs_at_once(x))
        vectors = SCALARS.value + arguments.network.scalar_weight.shape[1]
        stores_operands = F >= OPERANDS_FROM
        return cls(
            x.new_zeros(programs, vectors, F),
            x.new_zeros(programs, 2),
            x.new_zeros(1 if stores_operands else programs, 2, F, F),
            stores_operands,
        )

    def room(self, arguments: Arguments, tiles: int) -> Tensor | None:
        """Room for the operands of some tiles, (4, tiles M, F), or None."""
        if not self.stores_operands:
            return None
        x, slots = arguments.inputs.x, tiles * arguments.launch.edges
        return x.new_empty(4, slots, arguments.width, dtype=arguments.operand_dtype)

    def add(self, operands: Tensor, precision: str) -> None:
        """Multiply operands out and add."""
        hidden, message_gradient, message, coordinate_gradient = operands
        dtype = self.matrices.dtype
        self.matrices[0, 0] += outer_sum(message_gradient, hidden, precision, dtype)
        self.matrices[0, 1] += outer_sum(coordinate_gradient, message, precision, dtype)

    def network(self, like: EdgeNetwork) -> EdgeNetwork:
        """The gradients in the places of the weights."""
        vector, gate_bias = self.vectors.sum(0), self.gate_biases.sum(0)
        W_m, W_x = self.matrices.sum(0)
        return like._replace(
            scalar_weight=vector[SCALARS.value :].t(),
            message_weight=W_m,
            message_bias=vector[MESSAGE_BIAS.value],
            coordinate_weight=W_x,
            coordinate_bias=vector[COORDINATE_BIAS.value],
            coordinate_out=vector[COORDINATE_OUT.value].unsqueeze(0),
            attention=like.attention and Gate(vector[ATTENTION.value, None], gate_bias[:1]),
            inference=like.inference and Gate(vector[INFERENCE.value, None], gate_bias[1:]),
        )


def _parts(arguments: Arguments, sums: _WeightSums | None) -> Iterator[tuple[int, int]]:
    """Ranges of tiles to go over one after the other: all at once unless operands are stored."""
    tiles = arguments.tiles.count
    step = max(tiles, 1)
    if sums is not None and sums.stores_operands:
        step = max(ELEMENTS_AT_ONCE // (arguments.launch.edges * arguments.width), 1)
    for first in range(0, tiles, step):
        yield first, min(first + step, tiles)


def backward_launch(width: int, precision: Precision) -> Launch:
    """How the kernel is laid out, as compiled for (see `benchmarks/kernels_compiled.py`)."""
    edges, chunk = _SMALLER.get((width, precision), (64, 32))
    return Launch(edges, chunk, warps=8, stages=1)
