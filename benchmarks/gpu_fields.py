"""EGNN fields at the shape of QM9 by every way there is, and their traces.

All ways compute the same function with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from gpu_bench import Bench, Result
from gpu_checks import worst_error
from gpu_problems import by_torch, by_triton
from gpu_ways import PADDED, PORT, Problem, Values, Way, eqflow_ways, measure_ways
from torch import Tensor

from eqflow import rng
from eqflow.flows import Exact, ExactForward, Hutchinson
from eqflow.flows.field_at import FieldAt

COMPILED = "torch, bf16 autocast, compiled"


def time_velocity(bench: Bench) -> None:
    """The velocity, and a step of training on it."""
    problem = Problem.made(bench.scale.chemistry, bench.device)
    t, x, port = problem.at.t, problem.x, problem.port

    def velocity(at: FieldAt, moved: Tensor) -> Values:
        return [at(moved)]

    ways = [
        *eqflow_ways(problem, bench.scale.precisions, velocity),
        Way(PORT, port, lambda: [problem.published(t, x)], by_torch, "ieee"),
        Way(PADDED, port, lambda: [problem.published_padded(t, x)], by_torch, "ieee"),
        compiled(bench, problem),
    ]
    kinds = ("forward", "forward + backward")
    measure_ways(bench, problem, ways, velocity, ["velocity"], kinds)


def compile_ahead(bench: Bench) -> None:
    """Fill the compiler's cache, beside the checks, with what `time_velocity` asks for."""
    way = compiled(bench, Problem.made(bench.scale.chemistry, bench.device))

    def once(run: Callable[[], None]) -> Result:
        run()
        return {}

    bench.case("forward", lambda: once(way.run))
    bench.case("forward + backward", lambda: once(way.step))


def compiled(bench: Bench, problem: Problem) -> Way:
    """The torch backend as a compiler makes it, products in bf16."""
    with torch.no_grad(), by_torch():
        problem.at(problem.x)  # what a graph makes at first use cannot be traced
    velocity = torch.compile(
        problem.at, fullgraph=True, dynamic=False, backend=bench.scale.compiler
    )

    @contextmanager
    def setting() -> Iterator[None]:
        with by_torch(), torch.autocast(bench.device.type, torch.bfloat16):
            yield

    return Way(COMPILED, problem.field, lambda: [velocity(problem.x)], setting, "bf16")


def time_likelihood(bench: Bench) -> None:
    """The velocity with one probe of its trace, and a step of training on both."""
    problem = Problem.made(bench.scale.likelihood, bench.device)
    x, clouds = problem.x, problem.clouds
    probe = Hutchinson().probes(x, clouds, rng.generator(0, "probe", device=x.device))

    def values(at: FieldAt, moved: Tensor) -> Values:
        trace = Hutchinson()(at, moved, clouds, probe.to(moved.dtype))
        return [trace.velocity, trace.estimates.squeeze(1)]

    def published() -> Values:
        with torch.enable_grad():
            moved = x.clone().requires_grad_()
            velocity = problem.published(problem.at.t, moved)
            (row,) = torch.autograd.grad(velocity, moved, probe[0], create_graph=True)
        return [velocity, clouds.sum((row * probe[0]).sum(-1))]

    ways = [
        *eqflow_ways(problem, bench.scale.precisions, values),
        Way(PORT, problem.port, published, by_torch, "ieee"),
    ]
    kinds = ("value + trace", "its gradient")
    measure_ways(bench, problem, ways, values, ["velocity", "trace"], kinds)


def time_exact(bench: Bench) -> None:
    """The exact divergence by the field's own way, reverse mode, forward mode and as published."""
    for name, shape in bench.scale.exact.items():
        _time_exact(bench, name, Problem.made(shape, bench.device))


def _time_exact(bench: Bench, name: str, problem: Problem) -> None:
    x, clouds, at = problem.x, problem.clouds, problem.at
    count, n, d = clouds.count, problem.of.size, problem.of.dimension

    def traced(method: Exact | ExactForward, velocity: Callable[[Tensor], Tensor]) -> Tensor:
        return method(velocity, x, clouds, x.new_zeros(0)).estimates.squeeze(1)

    def published() -> Tensor:
        """A graph of the graph for each of `n d` directions."""
        with torch.enable_grad():
            flat = x.reshape(count, n * d).clone().requires_grad_()
            velocity = problem.published(at.t, flat.reshape(-1, d)).reshape(count, n * d)
            columns = [
                torch.autograd.grad(velocity[:, k].sum(), flat, create_graph=True)[0][:, k]
                for k in range(n * d)
            ]
        return torch.stack(columns).sum(0).detach()

    def unknown(moved: Tensor) -> Tensor:
        """The velocity as any function: no way of its own is seen."""
        return at(moved)

    own, backward = partial(traced, Exact(), at), partial(traced, Exact(), unknown)
    forward = partial(traced, ExactForward(chunk=(n - 1) * d), unknown)
    ways: list[tuple[str, Callable[[], Tensor], Callable[[], AbstractContextManager]]] = [
        ("own way, fp32", own, by_torch),
        ("own way, tf32", own, partial(by_torch, "high")),
        ("reverse mode, torch, fp32", backward, by_torch),
        ("reverse mode, Triton, tf32x3", backward, partial(by_triton, "tf32x3")),
        ("forward mode, Triton, tf32x3", forward, partial(by_triton, "tf32x3")),
        ("forward mode, Triton, tf32", forward, partial(by_triton, "tf32")),
        (PORT, published, by_torch),
    ]

    def measure(run: Callable[[], Tensor], setting: Callable[[], AbstractContextManager]) -> Result:
        with torch.no_grad():
            with by_torch():
                trace = Exact()(problem.at_exactly, x.double(), clouds, x.new_zeros(0))
            with setting():
                timing, found = bench.time(run), run()
        return timing | {"errors": {"trace": worst_error([found], [trace.estimates.squeeze(1)])}}

    def evaluation() -> Result:
        with torch.no_grad(), by_triton("tf32x3"):
            return bench.time(lambda: at(x))

    for way, run, setting in ways:
        bench.case(f"{way}: {name}", partial(measure, run, setting))
    bench.case(f"one evaluation, Triton, tf32x3: {name}", evaluation)
