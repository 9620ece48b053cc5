"""Distances of the Poincaré ball across edges."""

import torch
from graph_examples import graphs, states
from tolerances import TOLERANCE
from torch.autograd import gradcheck, gradgradcheck

from eqflow.edges import Edges
from eqflow.nn.diffusion import squared_hyperbolic_distance
from eqflow.nn.diffusion.hyperbolic import squared_arcosh_of_one_plus

CLOSE = TOLERANCE[torch.float64]


def inside(edges: Edges, width: int, name: str) -> torch.Tensor:
    u = states(edges, width, name)
    return 0.9 * u / (1 + u.norm(dim=1, keepdim=True))


def moebius_sum(a: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """`a ⊕ u`: moves of the ball that keep its distances."""
    dot, aa, uu = (u @ a).unsqueeze(1), a @ a, u.square().sum(1, keepdim=True)
    above = (1 + 2 * dot + uu) * a + (1 - aa) * u
    return above / (1 + 2 * dot + aa * uu)


def test_distance_is_that_of_the_formula_and_zero_where_points_coincide() -> None:
    edges = dict(graphs())["irregular"]
    u = inside(edges, 2, "formula")
    r, c = u[edges.receiver], u[edges.sender]
    y = 2 * (r - c).square().sum(1) / ((1 - r.square().sum(1)) * (1 - c.square().sum(1)))
    torch.testing.assert_close(
        squared_hyperbolic_distance(u, edges), torch.acosh(1 + y).square(), rtol=CLOSE, atol=CLOSE
    )
    assert not squared_hyperbolic_distance(u[:1].expand(7, 2), edges).any()


def test_distance_does_not_change_with_a_translation_of_the_ball() -> None:
    edges = dict(graphs())["complete"]
    u = inside(edges, 3, "isometry")
    a = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
    torch.testing.assert_close(
        squared_hyperbolic_distance(moebius_sum(a, u), edges),
        squared_hyperbolic_distance(u, edges),
        rtol=CLOSE,
        atol=CLOSE,
    )


def test_the_series_at_small_arguments_meets_the_closed_form() -> None:
    y = torch.tensor([0.999e-4, 1.001e-4], dtype=torch.float64)
    exact = torch.log1p(y + (y * (y + 2)).sqrt()).square()
    torch.testing.assert_close(squared_arcosh_of_one_plus(y), exact, rtol=1e-12, atol=0)


def test_derivatives_are_finite_where_points_coincide_or_lie_on_the_rim() -> None:
    edges = dict(graphs())["complete"]
    u = inside(edges, 2, "derivatives")
    u[1] = u[0]
    u = u.requires_grad_()
    assert gradcheck(lambda u: squared_hyperbolic_distance(u, edges), (u,))
    assert gradgradcheck(lambda u: squared_hyperbolic_distance(u, edges), (u,))
    far = (3 * u.detach()).requires_grad_()
    found = squared_hyperbolic_distance(far, edges)
    found.sum().backward()
    assert found.isfinite().all()
    assert far.grad.isfinite().all()
