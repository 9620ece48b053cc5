import pytest
import torch

from eqflow.edges import Edges
from eqflow.errors import NumericalError, UsageError
from eqflow.nn import rewired
from eqflow.nn.diffusion.blend import BLEND
from eqflow.nn.rewired import AbstractRewiring, KNNRewiring, RadiusRewiring

PTR = torch.tensor([0, 5, 5, 8, 9])


def batch() -> tuple[torch.Tensor, Edges]:
    u = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return u, Edges.complete(PTR)


def pairs(edges: Edges) -> set[tuple[int, int]]:
    return set(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_each_node_hears_from_its_nearest_within_its_graph(k):
    u, edges = batch()
    expected = set()
    for first, last in ((0, 5), (5, 8), (8, 9)):
        d = torch.cdist(u[first:last], u[first:last]).fill_diagonal_(torch.inf)
        for r, row in enumerate(d):
            near = row.argsort()[: min(k, last - first - 1)]
            expected |= {(first + int(c), first + r) for c in near}
    assert pairs(KNNRewiring(k)(u, edges)) == expected


@pytest.mark.parametrize("r", [1e-6, 1.0, 100.0])
def test_all_within_a_radius_and_one_graph_are_joined(r):
    u, edges = batch()
    expected = {(c, i) for c, i in pairs(edges) if (u[c] - u[i]).norm() <= r}
    found = RadiusRewiring(r)(u, edges)
    assert pairs(found) == expected
    assert torch.equal(found.clouds.ptr, PTR)


@pytest.mark.parametrize("rewire", [KNNRewiring(2), RadiusRewiring(1.0)])
def test_edges_do_not_change_with_motions_of_positions(rewire):
    u, edges = batch()
    Q, _ = torch.linalg.qr(u[:2])
    assert pairs(rewire(u @ Q + 3, edges)) == pairs(rewire(u, edges))


def test_blend_recomputes_its_edges_from_its_positions():
    """The velocity is that of a plain field on the edges of the moment, and differentiable."""
    u, _ = batch()
    far = Edges.from_index(torch.tensor([[0], [4]]), 9, PTR)
    z = torch.cat([u, u.cos()], 1).requires_grad_()
    seen = []

    class Watching(AbstractRewiring):
        def __call__(self, u, edges):
            seen.append(u)
            return KNNRewiring(2)(u, edges)

    field = BLEND(2, 2, heads=2, attention_width=4, source=False, rewire=Watching()).double()
    t = torch.zeros((), dtype=torch.float64)
    velocity = field(t, z, far)
    assert torch.equal(seen[0], u)
    field.rewire = None
    torch.testing.assert_close(velocity, field(t, z, Edges.knn(u, 2, PTR)))
    velocity.square().sum().backward()
    assert z.grad.isfinite().all()


def test_a_rewiring_of_ones_own_says_how_it_is_called():
    with pytest.raises(TypeError, match="abstract"):
        AbstractRewiring()
    assert "fixed steps" in rewired.__doc__


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: KNNRewiring(0),
        lambda: KNNRewiring(1.5),
        lambda: RadiusRewiring(0.0),
        lambda: RadiusRewiring(float("inf")),
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=r"found .*expected"):
        wrong()


@pytest.mark.parametrize("rewire", [KNNRewiring(2), RadiusRewiring(1.0)])
def test_positions_that_are_not_finite_are_refused(rewire):
    u, edges = batch()
    u[3, 1] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        rewire(u, edges)
