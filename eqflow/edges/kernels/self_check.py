"""A kernel is believed on a device only after it gave there what torch gives.

The first time an operation is asked for on a GPU, with a type, width and precision, its value and
first derivatives on one small graph in three dimensions are compared with those of the torch
backend in float64. Where they differ, or the kernel does not even run, torch does that operation
from then on, and a warning says why. It is a guard against a kernel that fails on a device as a
whole, not a proof of every shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from eqflow import rng
from eqflow.edges import reference
from eqflow.edges.backend import Precision, use_backend
from eqflow.edges.graph import Edges
from eqflow.edges.network import EdgeNetwork, Gate, MessageInputs, MessageTangents

NODES, PAIRS = 40, 300

# Largest error of an output, relative to its largest entry: by precision, and by type.
ALLOWED: dict[Precision, float] = {"ieee": 1e-4, "tf32x3": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
ALLOWED_OF = {torch.float64: 1e-9, torch.float16: 1e-2, torch.bfloat16: 5e-2}

Operation = Callable[..., Any]


@cache
def failing(
    operation: Operation,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    precision: Precision,
) -> str | None:
    """Why a kernel cannot be believed on a device, or None where it can.

    Args:
        operation: A function of this backend, named as that of the torch backend.
        device, dtype: Of the tensors it is wanted for.
        width: Of its widest rows.
        precision: Of its matrix products.
    """
    name = operation.__name__
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        inputs, apply = _problem(name, device, width)
        with use_backend("torch"):
            expected = _value_and_gradients(getattr(reference, name), apply, inputs)
        try:
            with use_backend("triton", precision=precision):
                found = _value_and_gradients(operation, apply, [v.to(dtype) for v in inputs])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            raise  # says nothing about the kernel
        except Exception as error:  # whatever a launch raises: torch still can
            return f"its self-check on {device} raised {type(error).__name__}: {str(error)[:200]}"
    worst = max(_error(one, other) for one, other in zip(found, expected, strict=True))
    allowed = max(ALLOWED_OF.get(dtype, 0.0), 0.0 if dtype == torch.float64 else ALLOWED[precision])
    if worst <= allowed:
        return None
    return f"its self-check on {device} is {worst:.1e} off, allowed {allowed:.0e}"


def _value_and_gradients(
    operation: Operation, apply: Callable[..., Any], inputs: list[Tensor]
) -> list[Tensor]:
    inputs = [value.detach().requires_grad_() for value in inputs]
    found = apply(operation, *inputs)
    values = [found] if isinstance(found, Tensor) else list(found)
    covectors = [torch.linspace(-1, 1, v.numel()).to(v).reshape(v.shape) for v in values]
    return [*values, *torch.autograd.grad(values, inputs, covectors)]


def _error(found: Tensor, expected: Tensor) -> float:
    off = (found.detach().double() - expected.detach()).abs().max()
    # NaN fails every comparison, and so the check.
    return float(torch.nan_to_num(off / expected.detach().abs().max(), nan=torch.inf))


def _problem(
    name: str, device: torch.device, width: int
) -> tuple[list[Tensor], Callable[..., Any]]:
    """Inputs in float64, and how the operation is applied to them."""
    source = rng.generator(0, "self-check", name)
    pairs = torch.stack([rng.permutation(PAIRS, source) % NODES for _ in range(2)])
    edges = Edges.from_index(pairs.to(device), NODES)
    n, e, f = NODES, PAIRS, width

    def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
        like = torch.zeros((), dtype=torch.float64)
        return [rng.normal(shape, like, source).to(device) for shape in shapes]

    if name.startswith("egcl_messages"):
        return _message_problem(name, edges, draw, f)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "gather_receiver": [(n, f)],
        "gather_sender": [(n, f)],
        "sum_receiver": [(e, f)],
        "sum_sender": [(e, f)],
        "edge_dot": [(n, 2, f), (n, 2, f)],
        "weighted_sum": [(e, 2), (n, f)],
        "weighted_difference": [(e, 2), (n, f)],
        "difference_dot": [(n, 2, f), (n, f)],
        "squared_distance": [(n, f)],
        "segment_softmax": [(e, 2)],
        "normalised": [(e, 2)],
        "edge_linear": [(n, f), (n, f), (e, 2), (f, 2)],
        "attention_diffusion": [(n, 2, f), (n, 2, f), (n, f)],
    }
    rest = {"attention_diffusion": ["softmax"], "normalised": ["squareplus", "sender"]}.get(
        name, []
    )
    return draw(*shapes[name]), lambda operation, *inputs: operation(*inputs, edges, *rest)


def _message_problem(
    name: str, edges: Edges, draw: Callable[..., list[Tensor]], f: int
) -> tuple[list[Tensor], Callable[..., Any]]:
    n, e = edges.nodes, edges.count
    weights = draw((f, 2), (f, f), (f,), (f, f), (f,), (1, f), (1, f), (1,))
    weights = [value / f**0.5 for value in weights]
    inputs = draw((n, 3), (n, f), (n, f), (e, 1), (e,))
    network = EdgeNetwork(
        scalar_weight=weights[0],
        message_weight=weights[1],
        message_bias=weights[2],
        coordinate_weight=weights[3],
        coordinate_bias=weights[4],
        coordinate_out=weights[5],
        attention=Gate(weights[6], weights[7]),
        inference=None,
        coordinate_range=3.0,
        stabilized=True,
    )
    if name == "egcl_messages":

        def value(operation: Operation, *parts: Tensor) -> Any:
            x, receiver, sender, scalars, envelope = parts[:5]
            net = network.with_tensors(parts[5:])
            return operation(x, receiver, sender, scalars, net, edges, envelope)

        return [*inputs, *weights], value
    tangents = draw((n, 1, 3), (n, 1, f), (n, 1, f), (e, 1, 1), (e, 1))

    def dual(operation: Operation, *parts: Tensor) -> Any:
        primal, tangent = MessageInputs(*parts[:5]), MessageTangents(*parts[5:10])
        return operation(primal, tangent, network.with_tensors(parts[10:]), edges)

    return [*inputs, *tangents, *weights], dual
