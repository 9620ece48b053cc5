"""The door of diffusions: every method, every kind of field, one answer or a clear refusal."""

import math
from typing import Any

import pytest
import torch
from example_diffusions import (
    Quasilinear,
    dense_solution,
    irregular_graph,
    relative_error,
    state_of,
    symmetric_graph,
)
from scipy.integrate import simpson
from tolerances import TOLERANCE
from torch import Tensor, nn

from eqflow import rng
from eqflow.edges import Edges
from eqflow.errors import ShapeError, SolverFailed, UsageError
from eqflow.flows import Solver, Status, diffuse, integrate
from eqflow.flows.solver import ADAPTIVE, DIFFUSION, FIXED
from eqflow.geometry import Segments
from eqflow.nn import AbstractField
from eqflow.nn.diffusion import GRAFF, GRAND, AbstractDiffusion, Coefficients

EXACT = TOLERANCE[torch.float64]
EDGES = irregular_graph()
WIDTH = 4
TIGHT = Solver(rtol=1e-11, atol=1e-11)


def field_of(kind: str) -> AbstractDiffusion:
    """A field with a source, the same for each call."""
    settings = {"heads": 2, "attention_width": 4}
    fields = {
        "grand_l": lambda: GRAND(WIDTH, **settings),
        "grand_nl": lambda: GRAND(WIDTH, **settings, nonlinear=True),
        "columns": lambda: GRAND(WIDTH, **settings, over="columns"),
        "graff": lambda: GRAFF(WIDTH),
    }
    with rng.seeded(0, "weights"):
        field = fields[kind]().double()
    with torch.no_grad():
        for parameter in field.parameters():
            if parameter.dim() == 0:
                parameter.fill_(0.4)
            else:
                parameter.mul_(0.7)
    return field


class Bare(AbstractField):
    """A field that is no diffusion."""

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        return -x


class Counted(GRAND):
    """Counts how often it is asked for coefficients."""

    asked = 0

    def coefficients(self, *given: Tensor) -> Coefficients:
        self.asked += 1
        return super().coefficients(*given)


@pytest.mark.parametrize("kind", ["grand_l", "columns", "graff"])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, *DIFFUSION])
def test_every_method_comes_near_the_dense_solution_of_a_linear_field(
    kind: str, method: str
) -> None:
    field, x = field_of(kind), state_of(EDGES, WIDTH)
    constant = field.coefficients(torch.tensor(0.0), x, EDGES, x)
    expected = dense_solution(constant, x, 1.0)
    errors = {"euler": 0.1, "implicit": 0.2, "exponential": 1e-6, "exponential_euler": 1e-6}
    solved = diffuse(field, x, EDGES, 1.0, Solver(method, 1e-6, 1e-6, steps=20))
    assert relative_error(solved.final(), expected) < errors.get(method, 1e-2)
    assert solved.evaluations == 1
    assert solved.products > 1


@pytest.mark.parametrize("method", ["dopri5", "rk4", "exponential", "implicit"])
def test_a_linear_field_is_asked_once(method: str) -> None:
    field = Counted(WIDTH, heads=2, attention_width=4).double()
    diffuse(field, state_of(EDGES, WIDTH), EDGES, 1.0, Solver(method, steps=3))
    assert field.asked == 1


@pytest.mark.parametrize("method", ["dopri5", "rk4", "exponential", "exponential_euler"])
def test_methods_agree_on_a_nonlinear_field(method: str) -> None:
    field, x = field_of("grand_nl"), state_of(EDGES, WIDTH)
    expected = diffuse(field, x, EDGES, 2.0, TIGHT)
    found = diffuse(field, x, EDGES, 2.0, Solver(method, 1e-8, 1e-8, steps=40))
    assert relative_error(found.final(), expected.final()) < 1e-3
    assert found.evaluations > 1


@pytest.mark.parametrize("kind", ["grand_l", "grand_nl"])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "exponential", "implicit"])
def test_states_on_the_way_are_those_of_shorter_solves(kind: str, method: str) -> None:
    field, x = field_of(kind), state_of(EDGES, WIDTH)
    times = torch.tensor([0.0, 0.5, 1.5, 2.0])
    found = diffuse(field, x, EDGES, 2.0, Solver(method, 1e-10, 1e-10, steps=8), times=times)
    states = found.require()
    assert torch.equal(states[0], x)
    for t, state in zip(times[1:].tolist(), states[1:], strict=True):
        steps = round(t / 0.25)
        alone = diffuse(
            field, x, EDGES, t, Solver(method, 1e-10, 1e-10, steps=steps), context=x
        ).final()
        assert relative_error(state, alone) < 1e-7


def gradients(kind: str, solver: Solver) -> Tensor:
    """By what is before the diffusion and what is in it; `x` is state and context at once."""
    field, x = field_of(kind), state_of(EDGES, WIDTH).requires_grad_()
    encoder = nn.Linear(WIDTH, WIDTH, bias=False).double()
    nn.init.eye_(encoder.weight)
    found = diffuse(field, encoder(x), EDGES, 1.5, solver).final().square().sum()
    inputs = [x, encoder.weight, *field.parameters()]
    given = torch.autograd.grad(found, inputs, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(part).reshape(-1) if g is None else g.reshape(-1)
            for part, g in zip(inputs, given, strict=True)
        ]
    )


@pytest.mark.parametrize("kind", ["grand_l", "grand_nl", "graff"])
@pytest.mark.parametrize("gradient", ["checkpoint", "adjoint"])
def test_ways_to_the_gradient_agree(kind: str, gradient: str) -> None:
    settings = {"rtol": 1e-10, "atol": 1e-10, "step_limit": 100_000}
    expected = gradients(kind, Solver(**settings))
    assert relative_error(gradients(kind, Solver(**settings, gradient=gradient)), expected) < 1e-7


@pytest.mark.parametrize("kind", ["grand_l", "grand_nl"])
@pytest.mark.parametrize("method", DIFFUSION)
def test_checkpointed_steps_have_the_direct_gradient(kind: str, method: str) -> None:
    direct = gradients(kind, Solver(method, rtol=1e-12, steps=5))
    kept = gradients(kind, Solver(method, rtol=1e-12, steps=5, gradient="checkpoint"))
    assert relative_error(kept, direct) < EXACT


def test_the_exact_gradient_is_that_of_dopri5() -> None:
    expected = gradients("grand_l", TIGHT)
    assert relative_error(gradients("grand_l", Solver("exponential", rtol=1e-12)), expected) < 1e-8


def test_the_time_of_a_linear_diffusion_can_be_learned() -> None:
    field, x = field_of("grand_l"), state_of(EDGES, WIDTH)
    time = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def solve(time: Tensor) -> Tensor:
        return diffuse(field, x, EDGES, time, Solver("exponential", rtol=1e-14)).final()

    assert torch.autograd.gradcheck(solve, time)
    with pytest.raises(UsageError, match="asks for a gradient"):
        diffuse(field, x, EDGES, time, Solver("rk4"))


def test_kinetic_energy_and_jacobian_norm_are_their_integrals() -> None:
    """Of `ẋ = L x`, with the Jacobian `L` everywhere."""
    graph, x = symmetric_graph(), state_of(symmetric_graph())
    field = Quasilinear(graph, strength=0.0)
    field.source.requires_grad_(False).zero_()
    solved = diffuse(
        field,
        x,
        graph,
        1.0,
        Solver(rtol=1e-10, atol=1e-10),
        times=torch.linspace(0, 1, 2001, dtype=torch.float64),
        measure=("kinetic", "jacobian"),
        source=rng.generator(0),
    )
    velocities = [
        field(torch.tensor(0.0), state, graph).square().sum() for state in solved.require()
    ]
    expected = simpson(torch.stack(velocities).detach().numpy(), dx=1 / 2000)
    found = float(solved.measured["kinetic"].detach())
    assert found == pytest.approx(float(expected), rel=1e-8)

    probe = rng.rademacher((9, 3), x, rng.generator(0))
    L = field.coefficients(torch.tensor(0.0), x, graph)
    start = x.clone().requires_grad_()
    (row,) = torch.autograd.grad(L.velocity(start), start, probe)
    norm = float(solved.measured["jacobian"].detach())
    assert norm == pytest.approx(float(row.square().sum()), rel=EXACT)


def test_the_jacobian_norm_is_that_of_frobenius_on_average() -> None:
    graph, x = symmetric_graph(), state_of(symmetric_graph())
    field = Quasilinear(graph)

    def velocity(x: Tensor) -> Tensor:
        return field(torch.tensor(0.0), x, graph)

    J = torch.autograd.functional.jacobian(velocity, x).reshape(27, 27)
    source = rng.generator(1)
    solver = Solver("euler", steps=1)
    drawn = torch.stack(
        [
            diffuse(field, x, graph, 1.0, solver, measure=("jacobian",), source=source)
            .measured["jacobian"]
            .detach()
            for _ in range(400)
        ]
    )
    error = float(drawn.std()) / 20
    assert float(drawn.mean()) == pytest.approx(float(J.square().sum()), abs=5 * error)


def test_what_is_measured_can_be_minimised() -> None:
    """It acts on the weights of the very field that diffuses."""
    field, x = Quasilinear(EDGES), state_of(EDGES)

    def penalty(*parameters: Tensor) -> Tensor:
        measured = diffuse(
            field,
            x,
            EDGES,
            0.5,
            Solver("rk4", steps=3),
            measure=("kinetic", "jacobian"),
            source=rng.generator(0),
        ).measured
        return measured["kinetic"] + measured["jacobian"]

    assert torch.autograd.gradcheck(penalty, tuple(field.parameters()), fast_mode=True)


def test_measuring_changes_no_state_of_a_fixed_step_method() -> None:
    field, x = field_of("grand_nl"), state_of(EDGES, WIDTH)
    solver = Solver("rk4", steps=4)
    measured = diffuse(field, x, EDGES, 1.0, solver, measure=("kinetic",))
    assert relative_error(measured.final(), diffuse(field, x, EDGES, 1.0, solver).final()) < EXACT


def two_graphs() -> tuple[Edges, Tensor]:
    one, other = irregular_graph(), symmetric_graph()
    index = [torch.stack([e.sender, e.receiver]) for e in (one, other)]
    both = torch.cat([index[0], index[1] + 9], 1)
    clouds = Segments(torch.tensor([0, 9, 18]))
    return Edges.from_index(both, 18, clouds), torch.cat([state_of(one, 4), state_of(other, 4)])


@pytest.mark.parametrize("method", ["rk4", "exponential", "implicit"])
@pytest.mark.parametrize("kind", ["grand_l", "grand_nl"])
def test_graphs_of_a_batch_do_not_see_each_other(method: str, kind: str) -> None:
    edges, x = two_graphs()
    solver = Solver(method, rtol=1e-13, steps=4)
    found = diffuse(field_of(kind), x, edges, 1.0, solver).final()
    alone = diffuse(field_of(kind), x[9:], symmetric_graph(), 1.0, solver).final()
    assert relative_error(found[9:], alone) < EXACT


@pytest.mark.parametrize("method", ["dopri5", "rk4", *DIFFUSION])
@pytest.mark.parametrize("kind", ["grand_l", "grand_nl", "graff"])
def test_a_graph_at_fault_is_named_and_the_others_come_to_their_end(method: str, kind: str) -> None:
    edges, x = two_graphs()
    x[3, 1] = math.nan
    field, solver = field_of(kind), Solver(method, steps=4)
    solved = diffuse(field, x, edges, 1.0, solver, times=[0.0, 0.4, 1.0])
    assert (solved.status, solved.at_fault.tolist()) == (Status.NON_FINITE, [0])
    alone = diffuse(field, x[9:], symmetric_graph(), 1.0, solver, times=[0.0, 0.4, 1.0])
    assert solved.states is not None
    assert bool(solved.states[:, :9].isnan().all())
    assert relative_error(solved.states[:, 9:], alone.require()) < EXACT
    assert solved.evaluations >= alone.evaluations
    with pytest.raises(SolverFailed, match=r"graphs at fault: \[0\]"):
        solved.final()


def test_several_graphs_at_fault_are_named_together_and_none_is_left_of_nothing() -> None:
    one = symmetric_graph()
    pairs = torch.stack([one.sender, one.receiver])
    clouds = Segments(torch.tensor([0, 9, 18, 27]))
    edges = Edges.from_index(torch.cat([pairs, pairs + 9, pairs + 18], 1), 27, clouds)
    x = state_of(one, WIDTH).repeat(3, 1)
    x[0, 0] = x[20, 2] = math.inf
    solved = diffuse(field_of("grand_nl"), x, edges, 1.0, TIGHT)
    assert solved.at_fault.tolist() == [0, 2]
    assert solved.states is not None
    finite = solved.states[-1].isfinite().all(1)
    assert finite.tolist() == [False] * 9 + [True] * 9 + [False] * 9
    x[9:18] = math.nan
    assert diffuse(field_of("grand_nl"), x, edges, 1.0, TIGHT).states is None


def test_a_graph_that_grows_without_bounds_is_left_out_of_what_is_measured_and_learned() -> None:
    """It is found on the way, by `ẋ = x³` of a state that is large in one graph."""

    class Cubed(AbstractField):
        def forward(self, t, x, edges, context=None):
            return x**3

    edges, x = two_graphs()
    x = x / x.abs().max()
    x[:9] *= 1e3
    x.requires_grad_()
    solver = Solver("rk4", steps=20)
    solved = diffuse(Cubed(), x, edges, 0.2, solver, measure=("kinetic",))
    assert solved.at_fault.tolist() == [0]
    alone = diffuse(Cubed(), x[9:], symmetric_graph(), 0.2, solver, measure=("kinetic",))
    assert solved.measured["kinetic"].isnan().tolist() == [True, False]
    assert relative_error(solved.measured["kinetic"][1:], alone.measured["kinetic"]) < EXACT
    assert solved.states is not None
    (gradient,) = torch.autograd.grad(solved.states[-1, 9:].sum(), x)
    (expected,) = torch.autograd.grad(alone.final().sum(), x)
    assert relative_error(gradient, expected) < EXACT


@pytest.mark.parametrize("method", ["dopri5", *DIFFUSION])
def test_too_many_products_are_a_status(method: str) -> None:
    solver = Solver(method, step_limit=3)
    solved = diffuse(field_of("grand_nl"), state_of(EDGES, WIDTH), EDGES, 9.0, solver)
    assert solved.status is Status.STEP_LIMIT
    counted = "evaluations than" if method == "dopri5" else "products with its matrix than"
    with pytest.raises(SolverFailed, match=rf"more {counted} solver\.step_limit"):
        solved.require()


@pytest.mark.parametrize("method", DIFFUSION)
def test_what_is_no_diffusion_is_refused_its_methods(method: str) -> None:
    x = state_of(EDGES, WIDTH)
    with pytest.raises(UsageError, match="Bare, which is no diffusion"):
        diffuse(Bare(), x, EDGES, 1.0, Solver(method))
    times = torch.tensor([0.0, 1.0])
    with pytest.raises(UsageError, match=r"solver\.method: found .* no diffusion on a graph"):
        integrate(lambda t, state: state, (x,), times, Solver(method))
    nonlinear = GRAFF(WIDTH, nonlinear=True).double()
    with pytest.raises(UsageError, match="not that of its coefficients"):
        diffuse(nonlinear, x, EDGES, 1.0, Solver(method))


@pytest.mark.parametrize("method", DIFFUSION)
@pytest.mark.parametrize(
    "settings", [{"gradient": "adjoint"}, {"implementation": "torchdiffeq"}, {"capture": True}]
)
def test_settings_that_a_method_does_not_have_are_refused(method: str, settings: dict) -> None:
    with pytest.raises(UsageError, match=r"solver\."):
        Solver(method, **settings)


def test_any_field_diffuses_by_an_explicit_method() -> None:
    x = state_of(EDGES, WIDTH)
    found = diffuse(Bare(), x, EDGES, 1.0, TIGHT).final()
    assert relative_error(found, math.exp(-1) * x) < 1e-9


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_not_positive_is_refused(time: float) -> None:
    with pytest.raises(UsageError, match="found time"):
        diffuse(Bare(), state_of(EDGES), EDGES, time, Solver())


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.5], [0.5, 1.0], [0.0, 0.6, 0.5, 1.0], [[0.0, 1]]])
def test_times_that_do_not_go_from_start_to_end_are_refused(times: list) -> None:
    with pytest.raises(UsageError, match="expected them to rise"):
        diffuse(Bare(), state_of(EDGES), EDGES, 1.0, Solver(), times=times)


def test_what_cannot_be_measured_is_refused() -> None:
    x = state_of(EDGES, WIDTH)
    with pytest.raises(UsageError, match="pass source"):
        diffuse(Bare(), x, EDGES, 1.0, Solver(), measure=("jacobian",))
    with pytest.raises(UsageError, match="'speed'"):
        diffuse(Bare(), x, EDGES, 1.0, Solver(), measure=("speed",))  # type: ignore[arg-type]
    whole: Any = "kinetic"
    with pytest.raises(UsageError, match=r"such as measure=\['kinetic'\]"):
        diffuse(Bare(), x, EDGES, 1.0, Solver(), measure=whole)
    with pytest.raises(UsageError, match="explicit method"):
        diffuse(field_of("grand_l"), x, EDGES, 1.0, Solver("exponential"), measure=("kinetic",))


@pytest.mark.parametrize("shape", [(8, WIDTH), (9,), (9, WIDTH, 1)])
def test_a_state_that_does_not_fit_the_graph_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="N = 9"):
        diffuse(Bare(), torch.zeros(shape), EDGES, 1.0, Solver())


def test_arguments_of_another_kind_are_named() -> None:
    x, field = state_of(EDGES, WIDTH), field_of("grand_l")
    pairs: Any = torch.tensor([[0], [1]])
    method: Any = "dopri5"
    rows: Any = x.tolist()
    with pytest.raises(UsageError, match="edges of type Tensor"):
        diffuse(field, x, pairs, 1.0, Solver())
    with pytest.raises(UsageError, match="solver of type str, expected Solver"):
        diffuse(field, x, EDGES, 1.0, method)
    with pytest.raises(UsageError, match="field of type str, expected AbstractField"):
        diffuse(method, x, EDGES, 1.0, Solver())
    with pytest.raises(ShapeError, match="a state list, expected"):
        diffuse(field, rows, EDGES, 1.0, Solver())
    with pytest.raises(ShapeError, match=r"of torch\.int64, expected"):
        diffuse(field, x.long(), EDGES, 1.0, Solver())
    with pytest.raises(ShapeError, match=r"Pass context\.to\(x\)"):
        diffuse(field, x, EDGES, 1.0, Solver(), x.float())


@pytest.mark.parametrize("method", ["dopri5", "rk4", *DIFFUSION])
@pytest.mark.parametrize("kind", ["grand_l", "grand_nl", "graff"])
def test_a_state_of_another_type_than_the_weights_is_named(method: str, kind: str) -> None:
    with pytest.raises(ShapeError, match=r"x of torch\.float32.*expected torch\.float64"):
        diffuse(field_of(kind), state_of(EDGES, WIDTH).float(), EDGES, 1.0, Solver(method))


@pytest.mark.parametrize("method", ["dopri5", "rk4", *DIFFUSION])
def test_single_precision_stays_single(method: str) -> None:
    field = field_of("grand_nl").float()
    x = state_of(EDGES, WIDTH).float()
    found = diffuse(field, x, EDGES, 1.0, Solver(method, 1e-4, 1e-4)).final()
    assert found.dtype is torch.float32
