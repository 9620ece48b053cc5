"""What every kernel of a message pass is called with: tensors by name, and a launch for its width.

Kernels take `None` for what a network does not have (a gate, a range, an envelope): Triton compiles
one without it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eqflow.edges.backend import Precision
from eqflow.edges.graph import Edges
from eqflow.edges.kernels.device import INTERPRETED
from eqflow.edges.kernels.operands import to_tf32
from eqflow.edges.kernels.schedule import ends_of
from eqflow.edges.kernels.tiles import Tiles, tiles_of
from eqflow.edges.network import EdgeNetwork, MessageInputs

# The approximate tangent of the hardware is as good as these operands.
ROUNDED = ("tf32", "bf16")


class Launch(NamedTuple):
    """How a kernel is laid out on the device.

    Attributes:
        edges: `M`, edges a tile.
        chunk: Features of a layer at once, where the kernel goes over them in chunks.
        warps: Warps a program.
        stages: Depth of the pipeline of loads over chunks.
    """

    edges: int
    chunk: int
    warps: int
    stages: int


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments that the kernels of a message pass share.

    Attributes:
        inputs: Contiguous; as in `MessageInputs`.
        network: Contiguous weights, of a width that is a power of two.
        edges: The graph.
        precision: Of the operands of matrix products.
        launch: How the kernel is laid out.
    """

    inputs: MessageInputs
    network: EdgeNetwork
    edges: Edges
    precision: Precision
    launch: Launch

    @property
    def tiles(self) -> Tiles:
        """The table of tiles, one program each."""
        return tiles_of(self.edges, self.launch.edges)

    @property
    def width(self) -> int:
        """F."""
        return self.inputs.receiver.shape[1]

    def named(self) -> dict[str, Any]:
        """Every shared argument under its name in the kernels."""
        network, tiles = self.network, self.tiles
        receiver, sender = ends_of(self.edges)
        return {
            "x": self.inputs.x,
            "receiver_part": self.inputs.receiver,
            "sender_part": self.inputs.sender,
            "scalars": self.inputs.scalars,
            "envelope": self.inputs.envelope,
            "scalar_weight": network.scalar_weight,
            "message_weight": self.operand(network.message_weight),
            "message_bias": network.message_bias,
            "coordinate_weight": self.operand(network.coordinate_weight),
            "coordinate_bias": network.coordinate_bias,
            "coordinate_out": network.coordinate_out,
            "attention_weight": network.attention and network.attention.weight,
            "attention_bias": network.attention and network.attention.bias,
            "inference_weight": network.inference and network.inference.weight,
            "inference_bias": network.inference and network.inference.bias,
            "coordinate_range": network.coordinate_range,
            "receiver": receiver,
            "sender": sender,
            "receiver_ptr": self.edges.incoming.ptr,
            "row_of_edge": tiles.row_of_edge,
            "row_ptr": tiles.rows.ptr,
            "tile_ptr": tiles.tile_ptr,
            "R": tiles.rows_per_tile,
            "num_warps": self.launch.warps,
            **constants(
                self.width,
                self.inputs.x.shape[1],
                network.scalar_weight.shape[1] - 1,
                network.stabilized,
                self.precision,
                self.launch,
            ),
        }

    @property
    def operand_dtype(self) -> torch.dtype:
        """Type in which operands of matrix products are best kept."""
        is_rounded = self.precision == "bf16" and not INTERPRETED
        return torch.bfloat16 if is_rounded else self.inputs.x.dtype

    def operand(self, weight: Tensor) -> Tensor:
        """A weight as products take it."""
        if self.precision == "tf32" and weight.dtype == torch.float32:
            return to_tf32(weight)
        return weight.to(self.operand_dtype)


def constants(
    width: int, dimension: int, scalars: int, stabilized: bool, precision: str, launch: Launch
) -> dict[str, Any]:
    """What a kernel is compiled for.

    The interpreter multiplies operands in the type of the inputs, whatever the precision; those of
    "tf32" are rounded there too, while its arithmetic on bf16 is wrong.
    """
    return {
        "F": width,
        "D": dimension,
        "K": scalars,
        "M": launch.edges,
        "CHUNK": launch.chunk,
        "STABILIZED": stabilized,
        "PRECISION": "ieee" if INTERPRETED and precision != "tf32" else precision,
        "FAST": precision in ROUNDED and not INTERPRETED,
        "STAGES": launch.stages,
    }


# Types of the shared arguments that are not float32 tensors, in Triton's words.
_INDICES = dict.fromkeys(("receiver", "sender", "row_of_edge"), "*i32")
_INDICES |= dict.fromkeys(("receiver_ptr", "row_ptr", "tile_ptr"), "*i64")
_OPERANDS = ("message_weight", "coordinate_weight")
OPTIONAL = (
    "envelope",
    "attention_weight",
    "attention_bias",
    "inference_weight",
    "inference_bias",
    "coordinate_range",
)


def signature_of(
    kernel: Any, constants: dict[str, Any], scalars: dict[str, str], absent: Collection[str]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Type of each argument of a kernel, and the constants with None for those it does without.

    Args:
        kernel: One whose shared arguments are named as in `Arguments.named`.
        constants: What it is compiled for.
        scalars: Types of arguments that are numbers.
        absent: Arguments that are None.
    """
    signature = {}
    for name in kernel.arg_names:
        if name in constants or name in absent:
            signature[name] = "constexpr"
        else:
            is_operand = constants["PRECISION"] == "bf16" and name in _OPERANDS
            floats = "*bf16" if is_operand else "*fp32"
            signature[name] = scalars.get(name) or _INDICES.get(name, floats)
    return signature, {**constants, **dict.fromkeys(absent)}
