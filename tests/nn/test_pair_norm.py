"""PairNorm: what each of its three forms keeps, on batches and on nodes that are alike."""

import math

import pytest
import torch
from awkward_graphs import GRAPHS, IRREGULAR, adjacency, cloud_matrix, draws
from awkward_graphs import relative as relative_error
from torch import Tensor
from torch_geometric.nn.norm import PairNorm as PyGPairNorm

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.nn import PairNorm, PairNormIndividually, PairNormThenCentre

FORMS = {"PN": PairNorm, "PN-SI": PairNormIndividually, "PN-SCS": PairNormThenCentre}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_graph = pytest.mark.parametrize("edges", GRAPHS.values(), ids=GRAPHS)


def dense(form: type, x: Tensor, edges: Edges, scale: float, epsilon: float) -> Tensor:
    """The formulas, one graph after the other."""
    parts = []
    for part in x.split(edges.clouds.lengths.tolist()):
        centre = part.mean(0)
        if form is PairNorm:
            size = ((part - centre).square().sum() / len(part) + epsilon).sqrt()
            parts.append(scale * (part - centre) / size)
        elif form is PairNormIndividually:
            moved = part - centre
            parts.append(scale * moved / (moved.norm(dim=1, keepdim=True) + epsilon))
        else:
            moved = scale * part / (part.norm(dim=1, keepdim=True) + epsilon)
            parts.append(moved - moved.mean(0))
    return torch.cat(parts)


@every_graph
@every_form
def test_each_form_is_its_formula_graph_by_graph(form: type, edges: Edges) -> None:
    x = 3 + draws(edges.nodes, 4)
    found = form(1.7, 1e-3)(x, edges)
    assert relative_error(found, dense(form, x, edges, 1.7, 1e-3)) < 1e-13


@every_graph
def test_the_total_squared_distance_of_all_pairs_is_what_the_scale_says(edges: Edges) -> None:
    """`Σ_ij ‖x_i − x_j‖² = 2 n² s²`, eq. 9 to 11 of the reference."""
    x = PairNorm(1.3, 1e-14)(7 * draws(edges.nodes, 4), edges)
    squared = (x.unsqueeze(1) - x.unsqueeze(0)).square().sum(-1)
    same = cloud_matrix(edges)
    n = edges.clouds.lengths.double()
    total = ((same @ squared) * same).sum(1)
    expected = torch.where(n > 1, 2 * n**2 * 1.3**2, 0.0)
    assert relative_error(total, expected) < 1e-10


@every_form
def test_means_of_the_forms_that_centre_last_are_zero(form: type) -> None:
    x = form()(5 + draws(12, 4), IRREGULAR)
    if form is PairNormIndividually:
        assert relative_error(x.norm(dim=1), torch.ones(12).double()) < 1e-4
    else:
        assert float(x.mean(0).abs().max()) < 1e-14


@every_form
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_nodes_that_are_alike_become_zero_with_finite_derivatives(form: type, value: float) -> None:
    x = torch.full((12, 4), value, dtype=torch.float64, requires_grad=True)
    y = form()(x, IRREGULAR)
    assert float(y.detach().abs().max()) < 1e-12
    (slope,) = torch.autograd.grad((y * draws(12, 4)).sum(), x)
    assert bool(slope.isfinite().all())


@every_form
def test_graphs_of_a_batch_do_not_see_each_other(form: type) -> None:
    edges, norm = GRAPHS["a batch"], form()
    x = draws(8, 3)
    whole = norm(x, edges)
    x[3:7] = torch.nan
    assert torch.equal(norm(x, edges)[[0, 1, 2, 7]], whole[[0, 1, 2, 7]])


@every_form
def test_derivatives_of_both_orders_are_right(form: type) -> None:
    # A graph of one node is centred to zero, where a length has no derivative.
    clouds, _ = GRAPHS["a batch"].clouds.select(torch.tensor([0, 1]))
    edges = Edges.complete(clouds)
    x = draws(7, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: form()(x, edges), x)
    assert torch.autograd.gradgradcheck(lambda x: form()(x, edges), x)


def test_two_forms_are_those_of_pyg() -> None:
    edges = GRAPHS["a batch"]
    x = draws(8, 3)
    for form, individually in ((PairNorm, False), (PairNormIndividually, True)):
        peer = PyGPairNorm(2.0, individually, 1e-4)
        assert torch.equal(form(2.0, 1e-4)(x, edges), peer(x, edges.clouds.ids, 3))


def test_edges_do_not_matter_and_permuted_nodes_are_permuted() -> None:
    x = draws(12, 3)
    order = torch.randperm(12)
    other = Edges.complete(IRREGULAR.clouds)
    assert not torch.equal(adjacency(other), adjacency(IRREGULAR))
    for form in FORMS.values():
        assert torch.equal(form()(x, other), form()(x, IRREGULAR))
        assert relative_error(form()(x[order], IRREGULAR), form()(x, IRREGULAR)[order]) < 1e-14


@every_form
def test_wrong_arguments_are_refused(form: type) -> None:
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="found scale"):
            form(value)
        with pytest.raises(UsageError, match="found epsilon"):
            form(1.0, value)
    with pytest.raises(ShapeError, match="12 nodes"):
        form()(torch.zeros(11, 3), IRREGULAR)
    with pytest.raises(ShapeError, match="12 nodes"):
        form()(torch.zeros(12), IRREGULAR)
