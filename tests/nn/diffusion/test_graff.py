"""GRAFF: a gradient flow of its energy, in every form of its matrices."""

import pytest
import torch
from graph_examples import dense, graphs, permuted, states, symmetric_graphs
from tolerances import TOLERANCE
from torch.autograd import gradcheck

from eqflow.edges import Edges, difference_dot
from eqflow.errors import UsageError
from eqflow.flows import Solver
from eqflow.flows.ode import integrate
from eqflow.nn.diffusion import GRAFF, Coefficients, SymmetricMatrix
from eqflow.nn.diffusion.symmetric_matrices import FORMS
from eqflow.nn.graph_convolution import GraphConvolution, symmetric_weights

CLOSE = TOLERANCE[torch.float64]
C = 3
START = torch.zeros((), dtype=torch.float64)
every_form = pytest.mark.parametrize("form", FORMS)
every_symmetric = pytest.mark.parametrize(
    ("graph", "edges"), list(symmetric_graphs()), ids=lambda x: str(x)
)


def graff(**options: object) -> GRAFF:
    field = GRAFF(C, **options).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return field


@every_form
def test_every_form_is_symmetric(form: str) -> None:
    matrix = SymmetricMatrix(5, form).double()
    found = matrix.dense()
    torch.testing.assert_close(found, found.t(), rtol=0, atol=1e-15)
    if form == "spectral":
        spectrum = torch.linalg.eigvalsh(found)
        torch.testing.assert_close(spectrum, matrix.diagonal.sort().values)
    if form == "diagonal_dominant":
        with torch.no_grad():
            matrix.slope.fill_(1.5)
            matrix.diagonal.fill_(0.1)
        assert (torch.linalg.eigvalsh(matrix.dense()) > 0).all()  # Gershgorin
    signs = {"positive": 1, "negative": -1}
    if form in signs:
        assert (signs[form] * torch.linalg.eigvalsh(found) > -1e-12).all()


@every_symmetric
@every_form
def test_velocity_is_minus_the_gradient_of_the_energy(graph: str, edges: Edges, form: str) -> None:
    field = graff(mixing=form, damping="symmetric")
    x, x0 = states(edges, C, graph).requires_grad_(), states(edges, C, graph, "start")
    energy = field.energy(x, edges, x0)
    (gradient,) = torch.autograd.grad(energy.sum(), x)
    torch.testing.assert_close(field(START, x, edges, x0), -gradient, rtol=CLOSE, atol=CLOSE)


@every_symmetric
def test_energy_is_that_of_attraction_and_repulsion_along_edges(graph: str, edges: Edges) -> None:
    """`½ Σ ⟨x, (Ω − W) x⟩ + ¼ Σ_ordered ‖Θ₊ ∇x‖² − ¼ Σ_ordered ‖Θ₋ ∇x‖²`, without a source."""
    if (edges.incoming.lengths == 0).any():
        pytest.skip("the identity counts W once for each node, which has edges")
    field = graff(source=False, damping="symmetric")
    x = states(edges, C, graph)
    w, omega = field.mixing[0].dense(), field.damping[0].dense()
    mu, q = torch.linalg.eigh(w)
    theta = {sign: (q * (sign * mu).clamp(min=0).sqrt()) @ q.t() for sign in (1, -1)}
    scaled = x / edges.incoming.lengths.double().sqrt().unsqueeze(1)
    expected = (x * (x @ (omega - w))).sum(1) / 2
    expected = edges.clouds.sum(expected)
    for sign, root in theta.items():
        step = (scaled @ root)[edges.sender] - (scaled @ root)[edges.receiver]
        expected = expected + sign * edges.clouds.sum(edges.incoming.sum(step.square().sum(1))) / 4
    torch.testing.assert_close(field.energy(x, edges), expected, rtol=CLOSE, atol=CLOSE)


def test_energy_falls_along_the_flow() -> None:
    field = graff()
    for name, edges in symmetric_graphs():
        x = states(edges, C, name)
        times = torch.linspace(0, 2, 9, dtype=torch.float64)
        (path,) = integrate(
            lambda t, state, edges=edges, x=x: (field(t, state[0], edges, x),),
            (x,),
            times,
            Solver(rtol=1e-9, atol=1e-9),
        ).require()
        energies = torch.stack([field.energy(state, edges, x) for state in path])
        assert (energies.diff(dim=0) <= 1e-9).all(), name


def test_one_step_with_the_identity_as_damping_is_gcn() -> None:
    edges = dict(graphs())["self loops"]
    field = graff(source=False, damping="identity")
    x = states(edges, C, "gcn")
    convolution = GraphConvolution(C, C, bias=False).double()
    with torch.no_grad():
        convolution.weight.copy_(field.mixing[0].dense())
    torch.testing.assert_close(x + field(START, x, edges), convolution(x, edges))


def test_each_step_has_matrices_of_its_own() -> None:
    edges = dict(graphs())["irregular"]
    field = graff(steps=4, time=2.0, source=False)
    x = states(edges, C, "steps")
    a = dense(symmetric_weights(edges, torch.float64), edges)
    for place, t in ((0, 0.0), (1, 0.5), (1, 0.99), (3, 1.5), (3, 2.0)):
        expected = a @ x @ field.mixing[place].dense() - x * field.damping[place]()
        found = field(torch.tensor(t, dtype=torch.float64), x, edges)
        torch.testing.assert_close(found, expected)
    assert not field.is_linear
    assert graff().is_linear
    assert not graff(nonlinear=True).is_linear


def test_nonlinear_velocity_is_never_negative() -> None:
    edges = dict(graphs())["ring"]
    x = states(edges, C, "relu")
    field = graff(nonlinear=True, source=False)
    assert torch.equal(
        field(START, x, edges), field.coefficients(START, x, edges).velocity(x).relu()
    )


def test_velocity_follows_a_permutation_and_has_derivatives() -> None:
    edges = dict(graphs())["irregular"]
    field = graff(mixing="diagonal_dominant")
    x, x0 = states(edges, C, "x"), states(edges, C, "x0")
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(
        field(START, x[order], permuted(edges, order), x0[order]),
        field(START, x, edges, x0)[order],
        rtol=CLOSE,
        atol=CLOSE,
    )
    assert gradcheck(
        lambda x, x0: field(START, x, edges, x0), (x.requires_grad_(), x0.requires_grad_())
    )


def test_symmetric_weights_of_a_difference_conserve_the_centroid() -> None:
    for name, edges in symmetric_graphs():
        x = states(edges, C, name)
        weight = symmetric_weights(edges, torch.float64)
        total = edges.clouds.sum(Coefficients(edges, weight).velocity(x))
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=CLOSE)
        assert (
            edges.clouds.sum(edges.incoming.sum(weight * difference_dot(x, x, edges))) <= 0
        ).all()


def test_an_unknown_form_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="diagonal_dominant"):
        GRAFF(C, mixing="diagonaly_dominant")
