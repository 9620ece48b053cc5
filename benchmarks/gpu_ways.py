"""One problem computed in several ways that are to agree: their times, memory and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from gpu_bench import Bench, Result
from gpu_checks import worst_error
from gpu_problems import by_torch, by_triton, sizes_of
from gpu_published import Padding, velocity_on_edges, velocity_padded
from gpu_roofline import field_work
from gpu_scale import Molecules
from published_port import PublishedField
from torch import Tensor, nn

from eqflow import rng
from eqflow.edges import Edges
from eqflow.flows import ContinuousFlow
from eqflow.flows.field_at import FieldAt
from eqflow.geometry import Segments, centred
from eqflow.nn import EGNNField

PORT, PADDED = "per-edge port, fp32", "padded port, fp32"
TIME = 0.3
# A new network moves points by almost nothing; this much more and it is as after training.
COORDINATE_WEIGHTS = 100.0

Values = Sequence[Tensor]


@dataclass
class Problem:
    """One batch, eqflow's field and the port with the same weights.

    Attributes:
        of: The shape.
        field, port: The networks.
        x, clouds: The batch.
    """

    of: Molecules
    field: EGNNField
    port: PublishedField
    x: Tensor
    clouds: Segments

    @classmethod
    def made(cls, of: Molecules, device: torch.device) -> Problem:
        """Weights and positions that are a function of the shape."""
        with rng.seeded(0, "weights"):
            field = EGNNField(width=of.width, layers=of.layers)
            port = PublishedField(of.width, of.layers)
        with torch.no_grad():
            for layer in field.egnn.layers:
                layer.get_parameter("coordinate_out.weight").mul_(COORDINATE_WEIGHTS)
        port.copy_from(field)
        clouds = Segments.of_lengths(sizes_of(of, device))
        source = rng.generator(0, "positions")
        x = rng.normal((clouds.rows, of.dimension), torch.zeros(()), source).to(device)
        return cls(of, field.to(device), port.to(device), centred(x, clouds), clouds)

    @cached_property
    def at(self) -> FieldAt:
        """The field at one time, on complete graphs."""
        return ContinuousFlow(self.field).dynamics(self.clouds)(self.x.new_tensor(TIME), self.x)

    @property
    def edges(self) -> Edges:
        """The complete graphs."""
        return self.at.edges

    @cached_property
    def at_exactly(self) -> FieldAt:
        """The field in float64."""
        return FieldAt(deepcopy(self.field).double(), self.at.t.double(), self.edges)

    @cached_property
    def padding(self) -> Padding:
        """For the padded form."""
        return Padding.of(self.clouds)

    def published(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity of the port on the same edges."""
        row, col = self.edges.receiver, self.edges.sender
        return velocity_on_edges(self.port, t, x, row, col, self.clouds)

    def published_padded(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity of the port in its padded form."""
        return velocity_padded(self.port, t, x, self.padding)


@dataclass(frozen=True)
class Way:
    """One way to compute some values.

    Attributes:
        name: As in the results.
        model: Whose parameters there are gradients of.
        evaluate: The values.
        setting: What it runs under.
        precision: Whose rate its floor is taken at.
    """

    name: str
    model: nn.Module
    evaluate: Callable[[], Values]
    setting: Callable[[], AbstractContextManager[object]]
    precision: str

    def run(self) -> None:
        """Once, without gradients."""
        with torch.no_grad(), self.setting():
            self.evaluate()

    def loss(self) -> Tensor:
        """Sum of the squares of all values."""
        self.model.zero_grad(set_to_none=True)
        return torch.stack([value.square().sum() for value in self.evaluate()]).sum()

    def step(self) -> None:
        """The loss and its gradient."""
        with self.setting():
            self.loss().backward()


def eqflow_ways(
    problem: Problem, precisions: Sequence[str], evaluate: Callable[[FieldAt, Tensor], Values]
) -> list[Way]:
    """The Triton backend in each precision, then torch's eager one in two."""
    run = partial(evaluate, problem.at, problem.x)
    field = problem.field
    kernels = [Way(f"Triton, {p}", field, run, partial(by_triton, p), p) for p in precisions]
    return [
        *kernels,
        Way("torch, fp32", field, run, by_torch, "ieee"),
        Way("torch, tf32", field, run, partial(by_torch, "high"), "tf32"),
    ]


def measure_ways(
    bench: Bench,
    problem: Problem,
    ways: Sequence[Way],
    evaluate: Callable[[FieldAt, Tensor], Values],
    names: Sequence[str],
    kinds: tuple[str, str],
) -> None:
    """Values without gradients, gradients with their memory, and errors of every way.

    Args:
        bench: Where.
        problem: Of which.
        ways: How.
        evaluate: The values in float64, given the field and positions of that type.
        names: Of the values.
        kinds: Of `gpu_roofline.PRODUCTS`: of the values, and of the gradients with them.
    """
    nodes, edges = len(problem.x), problem.edges.count
    values, training = kinds
    truth: list[Tensor] = []

    def timed(way: Way, kind: str) -> Result:
        timing = bench.time(way.run if kind == values else way.step)
        if kind == training:
            with way.setting():
                timing |= bench.memory(way.loss)
        work = field_work(nodes, edges, problem.of, kind, way.precision)
        return timing | {"work": work._asdict()}

    def error(way: Way) -> Result:
        if not truth:
            at = problem.at_exactly
            with by_torch():
                truth.extend(_with_gradients(at.field, partial(evaluate, at, problem.x.double())))
        with way.setting():
            found = _with_gradients(way.model, way.evaluate)
        count = len(names)
        errors = {name: worst_error([found[k]], [truth[k]]) for k, name in enumerate(names)}
        if way.model is problem.field:
            # As one vector: some of the gradients are zero but for rounding.
            joined = [torch.cat([g.flatten().double() for g in p[count:]]) for p in (found, truth)]
            errors["gradient"] = worst_error(joined[:1], joined[1:])
        return {"errors": errors}

    for way in ways:
        for kind in kinds:
            bench.case(f"{way.name}: {kind}", partial(timed, way, kind))
        bench.case(f"{way.name}: error", partial(error, way))


def _with_gradients(model: nn.Module, evaluate: Callable[[], Values]) -> list[Tensor]:
    """Values, then the gradients of the sum of their squares by all parameters."""
    values = evaluate()
    total = torch.stack([value.square().sum() for value in values]).sum()
    gradients = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)
    return [value.detach() for value in (*values, *gradients)]
