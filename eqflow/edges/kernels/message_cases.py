"""Every message kernel in every width and precision, for compilation ahead of time."""

from __future__ import annotations

from itertools import product
from typing import get_args

from eqflow.edges.backend import Precision
from eqflow.edges.kernels.aot import Case
from eqflow.edges.kernels.message_arguments import OPTIONAL, constants, signature_of
from eqflow.edges.kernels.message_backward_kernel import message_backward_kernel
from eqflow.edges.kernels.messages import MOST_SCALARS
from eqflow.edges.kernels.messages_backward import OPERANDS_FROM, backward_launch
from eqflow.edges.kernels.messages_dual import dual_launch, message_dual_kernel
from eqflow.edges.kernels.messages_forward import forward_launch, message_kernel
from eqflow.edges.kernels.operands import BLOCK, round_kernel
from eqflow.edges.kernels.outer import ROWS, STAGES, WARPS, outer_sum_kernel
from eqflow.edges.kernels.outer import WIDEST as WIDEST_BLOCK
from eqflow.edges.kernels.tiles import FEWEST_ROWS, MOST_ROWS

WIDTHS = (32, 64, 128, 256)
_NUMBERS = {"coordinate_range": "fp32", "tiles": "i32", "first_tile": "i32", "slots": "i32"}


def aot_cases() -> list[Case]:
    """In three dimensions, with one edge scalar and every option, unless the name says otherwise.

    "plain" is without gates, range, envelope and scalars, "few neighbours" with as many receivers a
    tile as there can be, "many scalars" with as many edge scalars, "inputs only" without gradients
    of weights.
    """
    cases = [_round()]
    for F, precision in product(WIDTHS, get_args(Precision)):
        cases += [
            _case("messages", message_kernel, F, precision),
            _case("messages dual", message_dual_kernel, F, precision),
            _case("messages backward", message_backward_kernel, F, precision),
            _case("messages backward", message_backward_kernel, F, precision, "inputs only"),
        ]
        if F >= OPERANDS_FROM:
            cases.append(_outer(F, precision))
    for kind in ("plain", "few neighbours", "many scalars"):
        cases += [
            _case("messages", message_kernel, 64, "tf32", kind),
            _case("messages dual", message_dual_kernel, 64, "tf32", kind),
            _case("messages backward", message_backward_kernel, 64, "tf32", kind),
        ]
    return cases


def _case(name: str, kernel: object, F: int, precision: Precision, kind: str = "") -> Case:
    launch = _LAUNCHES[name](F, precision)
    is_plain = kind == "plain"
    scalars = {"plain": 0, "many scalars": MOST_SCALARS}.get(kind, 1)
    values = constants(F, 3, scalars, True, precision, launch)
    values["R"] = MOST_ROWS if kind == "few neighbours" else FEWEST_ROWS
    absent = {"operands" if F < OPERANDS_FROM else "matrices"}
    if kind == "inputs only":
        absent |= {"operands", "matrices", "vectors", "gate_biases"}
    if is_plain:
        absent |= {*OPTIONAL, "scalars", "scalars_tangent", "envelope_tangent", "envelope_gradient"}
    present = set(kernel.arg_names)  # type: ignore[attr-defined]
    types = _NUMBERS | ({"operands": "*bf16"} if precision == "bf16" else {})
    signature, constexprs = signature_of(kernel, values, types, absent & present)
    return Case(
        " ".join(filter(None, (name, f"F{F}", precision, kind))),
        kernel,
        signature,
        constexprs,
        launch.warps,
    )


def _round() -> Case:
    signature = {"values": "*fp32", "out": "*fp32", "count": "i32", "BLOCK": "constexpr"}
    return Case("round to tf32", round_kernel, signature, {"BLOCK": BLOCK}, 4)


def _outer(F: int, precision: Precision) -> Case:
    operand = "*bf16" if precision == "bf16" else "*fp32"
    values = {"F": F, "WIDTH": min(F, WIDEST_BLOCK), "ROWS": ROWS, "PRECISION": precision}
    values["STAGES"] = STAGES
    signature = {"a": operand, "b": operand, "out": "*fp32", "rows": "i32"}
    signature |= dict.fromkeys(values, "constexpr")
    return Case(f"outer sum F{F} {precision}", outer_sum_kernel, signature, values, WARPS)


_LAUNCHES = {
    "messages": forward_launch,
    "messages dual": dual_launch,
    "messages backward": backward_launch,
}
