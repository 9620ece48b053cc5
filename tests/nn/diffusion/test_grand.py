"""GRAND and BLEND: the equation, its special cases, and what it conserves."""

import copy

import pytest
import torch
from graph_examples import dense, graphs, permuted, states, symmetric_graphs
from tolerances import TOLERANCE
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.flows import Solver
from eqflow.flows.ode import integrate
from eqflow.nn import AbstractField
from eqflow.nn.diffusion import BLEND, GRAND, Onsager
from eqflow.testing import assert_equivariant, assert_invariant, clouds

CLOSE = TOLERANCE[torch.float64]
C = 4
START = torch.zeros((), dtype=torch.float64)
every_graph = pytest.mark.parametrize(("graph", "edges"), list(graphs()), ids=lambda x: str(x))


def shaken(field: AbstractField) -> AbstractField:
    field = field.double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return field


def grand(**options: object) -> GRAND:
    return shaken(GRAND(C, heads=2, attention_width=6, **options))


def blend(**options: object) -> BLEND:
    return shaken(BLEND(2, 2, heads=2, attention_width=6, **options))


@every_graph
@pytest.mark.parametrize("over", ["rows", "columns"])
@pytest.mark.parametrize("nonlinear", [False, True])
@pytest.mark.parametrize("make", [grand, blend])
def test_velocity_is_attention_less_the_state_plus_the_source(
    graph: str, edges: Edges, over: str, nonlinear: bool, make: type
) -> None:
    field = make(over=over, nonlinear=nonlinear, normaliser="squareplus")
    x, x0 = states(edges, C, graph), states(edges, C, graph, "start")
    a = dense(field.attention(x if nonlinear else x0, edges), edges)
    speed = field.rates.alpha.sigmoid()
    lost = x if over == "columns" else a.sum(1, keepdim=True) * x  # rows without edges rest
    expected = speed * (a @ x - lost) + field.rates.beta * x0
    torch.testing.assert_close(field(START, x, edges, x0), expected, rtol=CLOSE, atol=CLOSE)


def test_constant_states_rest_where_rows_sum_to_one() -> None:
    field = grand(over="rows", source=False, nonlinear=True)
    for _, edges in graphs():
        x = torch.ones(edges.nodes, C, dtype=torch.float64)
        assert not field(START, x, edges).any()


def test_the_sum_of_the_state_rests_where_columns_sum_to_one() -> None:
    field = grand(over="columns", source=False, nonlinear=True)
    for name, edges in graphs():
        if (edges.outgoing.lengths == 0).any():
            continue  # what a node without outgoing edges loses, nobody gets
        total = edges.clouds.sum(field(START, states(edges, C, name), edges))
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=CLOSE)


def test_a_solve_stays_between_the_extremes_of_the_start() -> None:
    field = grand(nonlinear=True, source=False)
    for name, edges in graphs():
        x = states(edges, C, name)
        times = torch.tensor([0.0, 3.0], dtype=torch.float64)
        (end,) = integrate(
            lambda t, state, edges=edges: (field(t, state[0], edges),),
            (x,),
            times,
            Solver(rtol=1e-8, atol=1e-8),
        ).final()
        assert (end <= x.max(0).values + 1e-6).all()
        assert (end >= x.min(0).values - 1e-6).all()


@pytest.mark.parametrize("make", [grand, blend])
def test_velocity_follows_a_permutation_of_the_nodes(make: type) -> None:
    field = make(nonlinear=True, over="columns")
    edges = dict(graphs())["irregular"]
    x, x0 = states(edges, C, "x"), states(edges, C, "x0")
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(
        field(START, x[order], permuted(edges, order), x0[order]),
        field(START, x, edges, x0)[order],
        rtol=CLOSE,
        atol=CLOSE,
    )


@pytest.mark.parametrize("over", ["rows", "columns"])
def test_graphs_of_a_batch_do_not_see_each_other(over: str) -> None:
    field = grand(nonlinear=True, over=over, normaliser="squareplus")
    edges = dict(graphs())["two graphs"]
    x = states(edges, C, "batch")
    other = torch.cat([x[:3], 50 * x[3:] + 7])
    assert torch.equal(field(START, x, edges, x)[:3], field(START, other, edges, other)[:3])


@pytest.mark.parametrize("nonlinear", [False, True])
def test_velocity_has_first_and_second_derivatives(nonlinear: bool) -> None:
    field = grand(nonlinear=nonlinear)
    edges = dict(graphs())["directed"]
    inputs = [states(edges, C, name).requires_grad_() for name in ("x", "x0")]
    assert gradcheck(lambda x, x0: field(START, x, edges, x0), inputs)
    assert gradgradcheck(lambda x, x0: field(START, x, edges, x0), inputs)


def test_linear_is_said_where_the_coefficients_stay_those_of_the_start() -> None:
    assert grand().is_linear
    assert not grand(nonlinear=True).is_linear
    assert blend(nonlinear=False).is_linear
    assert not blend().is_linear
    edges = dict(graphs())["ring"]
    x0 = states(edges, C, "x0")
    field = grand()
    one, other = (field.coefficients(START, states(edges, C, k), edges, x0) for k in ("a", "b"))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.source, other.source)


def test_onsager_mixes_channels_by_a_matrix_that_is_symmetric_and_loses_energy() -> None:
    field = shaken(Onsager(C, heads=1, attention_width=4, nonlinear=True, source=False))
    mixing = field.mixing()
    assert torch.equal(mixing, mixing.t())
    assert (torch.linalg.eigvalsh(mixing) > -CLOSE).all()
    plain = GRAND(C, heads=1, attention_width=4, nonlinear=True, source=False).double()
    state = {k: v for k, v in field.state_dict().items() if not k.startswith("mixing")}
    plain.load_state_dict(state)
    for name, edges in symmetric_graphs():
        x = states(edges, C, name)
        torch.testing.assert_close(field(START, x, edges), plain(START, x, edges) @ mixing)


def test_positions_move_equivariantly_under_a_kernel_of_distances() -> None:
    field = shaken(
        BLEND(3, 2, heads=2, attention_width=4, diffusivity="position_and_feature", source=False)
    )

    def state(x: Tensor, h: Tensor) -> Tensor:
        return torch.cat([x, h.sum(1, keepdim=True), h[:, :1] ** 2], 1)

    def moved(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(START, state(x, h), Edges.complete(ptr))[:, :3]

    def changed(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        return field(START, state(x, h), Edges.complete(ptr))[:, 3:]

    for _, batch in clouds():
        assert_equivariant(moved, batch, group="E(3)", output="vector")
        assert_invariant(changed, batch, group="E(3)")


def test_hyperbolic_positions_act_by_their_distance_in_the_ball() -> None:
    options = {"diffusivity": "position_and_feature", "heads": 2, "attention_width": 4}
    ball = shaken(BLEND(2, 2, space="hyperbolic", **options))
    flat = BLEND(2, 2, **options).double()
    flat.load_state_dict(ball.state_dict())
    edges = dict(graphs())["irregular"]
    z = 0.6 * torch.tanh(states(edges, C, "ball"))
    assert (ball(START, z, edges, z) - flat(START, z, edges, z)).abs().max() > 1e-3
    # A small patch of the ball is flat, at twice the distances; the kernel is as narrow as it.
    near = torch.cat([1e-4 * z[:, :2], z[:, 2:]], 1)
    with torch.no_grad():
        ball.attention.diffusivity.of_positions.length_scale.fill_(1e-4)
        flat.attention.diffusivity.of_positions.length_scale.fill_(1e-4)
    scaled = copy.deepcopy(flat)
    with torch.no_grad():
        scaled.attention.diffusivity.of_positions.length_scale.div_(2)
    curved, plain = ball(START, near, edges, near), flat(START, near, edges, near)
    torch.testing.assert_close(curved, scaled(START, near, edges, near), rtol=1e-6, atol=1e-9)
    assert (plain - curved).abs().max() > 1e-3


def test_edges_that_follow_the_positions_are_those_of_the_state_at_hand() -> None:
    def nearest(u: Tensor, edges: Edges) -> Edges:
        return Edges.knn(u, 2, edges.clouds)

    field = blend(rewire=nearest)
    edges = dict(graphs())["two graphs"]
    z = states(edges, C, "rewired")
    found = field.coefficients(START, z, edges, z).edges
    expected = Edges.knn(z[:, :2], 2, edges.clouds)
    assert torch.equal(found.sender, expected.sender)
    assert torch.equal(found.receiver, expected.receiver)
    assert not field.is_linear


def test_a_state_at_the_start_that_is_missing_or_misshapen_is_refused() -> None:
    edges = dict(graphs())["ring"]
    x = states(edges, C, "x")
    with pytest.raises(ShapeError, match="context"):
        grand()(START, x, edges)
    with pytest.raises(ShapeError, match="context"):
        grand()(START, x, edges, x[:, :2])
    with pytest.raises(ShapeError, match="expected \\(6, 4\\)"):
        grand()(START, x[:, :3], edges, x)
    with pytest.raises(UsageError, match="position_and_feature"):
        BLEND(2, 2, space="hyperbolic")
