import pytest
import torch
from e3nn import o3
from tolerances import TOLERANCE
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.geometry.representations import Representation, representation
from eqflow.geometry.rotations import random_orthogonal

EXACT = 1e-12
IN_SPACE = ("vector", "tensor(0)", "tensor(2)", "tensor(3)", "1x0o", "2x0e+1x1e", "1x2e+1x3o", "5o")
like = torch.zeros((), dtype=torch.float64)


def turns(count: int, dimension: int, seed: int = 0) -> Tensor:
    """Of both determinants."""
    source = torch.Generator().manual_seed(seed)
    turned = random_orthogonal(count, dimension, like, source, proper=True)
    turned[1::2, 0] *= -1
    return turned


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize(
    ("output", "dimension"),
    [(output, 3) for output in IN_SPACE]
    + [(output, d) for d in (1, 2, 4) for output in ("vector", "point", "tensor(2)", "tensor(3)")],
)
def test_matrices_are_an_orthogonal_homomorphism(output: str, dimension: int) -> None:
    kind = representation(output, dimension)
    one, other = turns(6, dimension), turns(6, dimension, seed=1).flip(0)
    assert kind.matrices is not None
    first, second, both = kind.matrices(one), kind.matrices(other), kind.matrices(one @ other)
    assert first.shape == (6, kind.columns, kind.columns)
    torch.testing.assert_close(first @ second, both, rtol=0, atol=EXACT)
    unit = torch.eye(kind.columns, dtype=torch.float64).expand_as(first)
    torch.testing.assert_close(first.mT @ first, unit, rtol=0, atol=EXACT)
    identity = torch.eye(dimension, dtype=torch.float64).unsqueeze(0)
    torch.testing.assert_close(kind.matrices(identity)[0], unit[0], rtol=0, atol=EXACT)


def test_tensors_move_like_products_of_vectors_the_last_index_fastest() -> None:
    u, v, w = drawn(3, 5, 4)
    turn, every = turns(5, 4), torch.arange(5)
    vector = representation("vector", 4)
    moved = [vector.act(x, turn, None, every) for x in (u, v, w)]
    for order, product in ((2, "mi,mj->mij"), (3, "mi,mj,mk->mijk")):
        kind = representation(f"tensor({order})", 4)
        before = torch.einsum(product, u, v, w) if order == 3 else torch.einsum(product, u, v)
        after = torch.einsum(product, *moved[:order])
        found = kind.act(before.flatten(1), turn, None, every)
        torch.testing.assert_close(found, after.flatten(1), rtol=0, atol=EXACT)


def test_pseudovectors_move_like_cross_products_and_pseudoscalars_like_volumes() -> None:
    u, v, w = drawn(3, 6, 3)
    turn, every = turns(6, 3), torch.arange(6)
    vector = representation("1o", 3)
    mu, mv, mw = (vector.act(x, turn, None, every) for x in (u, v, w))
    torch.testing.assert_close(mu, torch.einsum("mij,mj->mi", turn, u), rtol=0, atol=EXACT)
    axial = representation("1e", 3).act(torch.linalg.cross(u, v), turn, None, every)
    torch.testing.assert_close(axial, torch.linalg.cross(mu, mv), rtol=0, atol=EXACT)
    volume = torch.linalg.det(torch.stack([u, v, w], 1)).unsqueeze(1)
    moved = torch.linalg.det(torch.stack([mu, mv, mw], 1)).unsqueeze(1)
    found = representation("0o", 3).act(volume, turn, None, every)
    torch.testing.assert_close(found, moved, rtol=0, atol=EXACT)
    assert float((volume - moved).abs().max()) > 0.1


@pytest.mark.parametrize("irreps", ["1x0e+2x1o+1x2e+1x3o", "1x4e", "1x1e+1x2o", "1x8e"])
def test_irreps_move_as_those_of_e3nn_do(irreps: str) -> None:
    turn = turns(4, 3)
    found = representation(irreps, 3).matrices(turn)
    # e3nn's own matrices go through angles, and are right to about 1e-6.
    expected = o3.Irreps(irreps).D_from_matrix(turn)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    u = drawn(4, 3)
    degree = o3.Irreps(irreps).lmax
    both = o3.SphericalHarmonics([degree], normalize=False)
    single = representation(f"{degree}{'e' if degree % 2 == 0 else 'o'}", 3)
    moved = single.act(both(u), turn, None, torch.arange(4))
    torch.testing.assert_close(moved, both(torch.einsum("bij,bj->bi", turn, u)))


def test_points_translate_and_scalars_stay() -> None:
    x, shift = drawn(5, 3), drawn(2, 3)
    turn, owner = turns(2, 3), torch.tensor([0, 0, 1, 1, 1])
    moved = torch.einsum("mij,mj->mi", turn[owner], x)
    point = representation("point", 3)
    torch.testing.assert_close(point.act(x, turn, shift, owner), moved + shift[owner])
    torch.testing.assert_close(point.act(x, turn, None, owner), moved)
    torch.testing.assert_close(representation("vector", 3).act(x, turn, shift, owner), moved)
    scalar = representation("scalar", 3)
    assert scalar.columns is None
    assert torch.equal(scalar.act(x, turn, shift, owner), x)


@pytest.mark.parametrize("output", [name for name in IN_SPACE if name != "tensor(0)"])
def test_outputs_can_be_differentiated_twice_by_rotations(output: str) -> None:
    kind = representation(output, 3)
    turn = turns(2, 3).requires_grad_()
    # Along rotations: matrices that are not orthogonal stand for nothing.
    generator = drawn(2, 3, 3)
    skew = (generator - generator.mT).requires_grad_()

    def moved(skew: Tensor) -> Tensor:
        return kind.matrices(turn.detach() @ torch.linalg.matrix_exp(skew))

    assert torch.autograd.gradcheck(moved, (skew,), fast_mode=True)
    assert torch.autograd.gradgradcheck(moved, (skew,), fast_mode=True)


def test_matrices_in_single_precision_are_right_to_its_tolerance() -> None:
    turn = turns(3, 3)
    for output in IN_SPACE:
        kind = representation(output, 3)
        found = kind.matrices(turn.float())
        assert found.dtype == torch.float32
        bound = TOLERANCE[torch.float32]
        torch.testing.assert_close(found.double(), kind.matrices(turn), rtol=0, atol=bound)


def test_no_rotations_have_no_matrices() -> None:
    for output in IN_SPACE:
        kind = representation(output, 3)
        assert kind.matrices(turns(0, 3)).shape == (0, kind.columns, kind.columns)


def test_irreps_may_be_given_as_such() -> None:
    kind = representation(o3.Irreps("1x0e+1x1o"), 3)
    assert (kind.name, kind.columns) == ("1x0e+1x1o", 4)
    assert isinstance(kind, Representation)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("vectr", "found 'vectr'.*Did you mean 'vector'"),
        ("tensor", r"found 'tensor'.*Did you mean 'tensor\(2\)'"),
        ("tensor(-1)", r"found 'tensor\(-1\)'"),
        ("1x1p", "found '1x1p', expected 'scalar', 'vector', 'point'"),
        ("", "found ''"),
        (None, "found None"),
        (3, "found 3"),
    ],
)
def test_outputs_that_do_not_exist_are_refused(output: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        representation(output, 3)


def test_irreps_are_those_of_space() -> None:
    with pytest.raises(UsageError, match=r"those of O\(3\), but the clouds have dimension 2"):
        representation("1x1o", 2)


def test_a_tensor_of_too_many_columns_is_refused() -> None:
    assert representation("tensor(6)", 3).columns == 729
    with pytest.raises(UsageError, match=r"tensor\(9\) has 3\^9 columns, expected at most 1000"):
        representation("tensor(9)", 3)
