"""Numpy files: the layouts, what does not fit, and that nothing is unpickled."""

import pickle

import numpy as np
import pytest
import torch

from eqflow.data import read, read_report
from eqflow.errors import DataError, EmptyData, UnknownElement, UsageError

X = np.arange(24.0).reshape(2, 4, 3) ** 1.5


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_the_three_layouts_are_the_same_structures(tmp_path):
    flat, numbers = X.reshape(8, 3), np.array([6, 1, 1, 8] * 2)
    files = [
        saved(tmp_path / "own.npz", x=flat, ptr=np.array([0, 4, 8]), numbers=numbers),
        saved(
            tmp_path / "qm9.npz",
            num_atoms=np.array([4, 4], np.int8),
            charges=numbers.astype(np.int8),
            positions=flat,
            index=np.array([1, 2]),
        ),
        saved(tmp_path / "dense.npz", positions=X, numbers=numbers[:4]),
        saved(tmp_path / "dense2.npz", positions=X, numbers=numbers.reshape(2, 4), more=np.ones(3)),
    ]
    for file in files:
        clouds = read(file)
        assert torch.equal(clouds.x, torch.as_tensor(flat))
        assert clouds.ptr.tolist() == [0, 4, 8]
        assert clouds.numbers.tolist() == numbers.tolist()
        assert clouds.source == (f"{file}#0", f"{file}#1")


def test_formal_charges_stand_beside_any_layout_and_the_charges_of_qm9_are_its_elements(tmp_path):
    flat, numbers = X.reshape(8, 3), np.array([6, 1, 1, 8] * 2)
    formal = np.array([1, 0, 0, -1], np.int8)
    twice = np.tile(formal, 2)
    own = {"x": flat, "ptr": np.array([0, 4, 8]), "numbers": numbers}
    qm9 = {"num_atoms": np.array([4, 4]), "charges": numbers, "positions": flat}
    dense = {"positions": X, "numbers": numbers[:4]}
    for name, arrays, charges in [
        ("own", own, twice),
        ("qm9", qm9, twice),
        ("dense", dense, formal),
        ("dense2", dense, twice.reshape(2, 4)),
    ]:
        clouds = read(saved(tmp_path / f"{name}.npz", **arrays, formal_charges=charges))
        assert clouds.charges.tolist() == [1, 0, 0, -1] * 2
        assert clouds.numbers.tolist() == numbers.tolist()
        assert read(saved(tmp_path / f"{name}.npz", **arrays)).charges is None
        assert read(saved(tmp_path / "a.npz", **arrays, formal_charges=0 * charges)).charges is None


def test_a_charge_no_atom_can_have_is_named_and_can_be_skipped(tmp_path):
    arrays = {"positions": X, "numbers": np.array([6, 1, 1, 8])}
    charges = np.zeros((2, 4), np.int64)
    charges[1, 2] = 2
    path = saved(tmp_path / "a.npz", **arrays, formal_charges=charges)
    with pytest.raises(DataError, match=r"a\.npz#1: point 2: .*H of charge 2, expected .*-15 to 1"):
        read(path)
    clouds, skipped = read_report(path, on_problem="skip")
    assert (len(clouds), len(skipped), clouds.charges.tolist()) == (1, 1, [0] * 4)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("float32", torch.float32),
        ("float64", torch.float64),
        (">f8", torch.float64),
        (">f4", torch.float32),
        ("float16", torch.float32),
        ("int32", torch.float64),
        ("uint8", torch.float64),
    ],
)
def test_floats_keep_their_type_and_integers_become_float64(tmp_path, stored, expected):
    np.save(tmp_path / "a.npy", np.arange(12).reshape(2, 2, 3).astype(stored))
    clouds = read(tmp_path / "a.npy")
    assert clouds.x.dtype == expected
    assert clouds.x.flatten().tolist() == list(range(12))


def test_a_flat_array_needs_the_dimension(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(16.0).reshape(2, 8))
    clouds = read(path, dimension=2)
    assert clouds.sizes.tolist() == [4, 4]
    assert clouds.x[4].tolist() == [8, 9]
    with pytest.raises(UsageError, match=r"dimension=2 or dimension=3"):
        read(path)
    with pytest.raises(UsageError, match="divides 8"):
        read(path, dimension=3)
    with pytest.raises(UsageError, match="divides 8"):
        read(path, dimension=0)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_an_array_of_objects_is_never_unpickled(tmp_path, ending):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    objects = np.array([Trap(), Trap()], dtype=object)
    path = tmp_path / f"a{ending}"
    if ending == ".npy":
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, x=objects, ptr=np.array([0, 2]))
    with pytest.raises(DataError, match="unpickled"):
        read(path)


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_a_pickle_is_refused(tmp_path, ending):
    (tmp_path / f"a{ending}").write_bytes(pickle.dumps({"x": X}))
    with pytest.raises(DataError, match="expected"):
        read(tmp_path / f"a{ending}")


def test_an_unknown_layout_lists_what_is_there_and_what_may_be(tmp_path):
    path = saved(tmp_path / "a.npz", R=X, z=np.ones(4))
    with pytest.raises(DataError, match=r"R \(2, 4, 3\), z \(4,\), expected x and ptr.*num_atoms"):
        read(path)


FLAT = X.reshape(8, 3)
MISFITS = {
    "ptr end": ({"x": FLAT, "ptr": np.array([0, 9])}, DataError, "add up"),
    "ptr falls": ({"x": FLAT, "ptr": np.array([0, 5, 4, 8])}, DataError, "falls"),
    "ptr start": ({"x": FLAT, "ptr": np.array([1, 8])}, DataError, "start at 0"),
    "ptr floats": ({"x": FLAT, "ptr": np.array([0.0, 8.0])}, DataError, "integers"),
    "ptr empty": ({"x": FLAT, "ptr": np.zeros(0, int)}, DataError, "ptr"),
    "x text": ({"x": np.array([["a"]]), "ptr": np.array([0, 1])}, DataError, "real numbers"),
    "x complex": ({"x": FLAT * 1j, "ptr": np.array([0, 8])}, DataError, "real numbers"),
    "x flat": ({"x": FLAT.ravel(), "ptr": np.array([0, 24])}, DataError, "real numbers"),
    "numbers": (
        {"x": FLAT, "ptr": np.array([0, 8]), "numbers": np.ones(7, int)},
        DataError,
        r"\(8,\)",
    ),
    "numbers floats": (
        {"x": FLAT, "ptr": np.array([0, 8]), "numbers": np.ones(8)},
        DataError,
        "integers",
    ),
    "charges": (
        {"x": FLAT, "ptr": np.array([0, 8]), "formal_charges": np.ones(7, int)},
        DataError,
        r"formal charges \(7,\)",
    ),
    "charges floats": (
        {"x": FLAT, "ptr": np.array([0, 8]), "formal_charges": np.ones(8)},
        DataError,
        "integers",
    ),
    "charges of points": (
        {"x": FLAT, "ptr": np.array([0, 8]), "formal_charges": np.ones(8, int)},
        DataError,
        "X of charge 1, expected a charge of 0",
    ),
    "dense charges": (
        {"positions": X, "formal_charges": np.ones(3, int)},
        DataError,
        r"\(4,\) or \(2, 4\)",
    ),
    "element": (
        {"x": FLAT, "ptr": np.array([0, 8]), "numbers": np.full(8, 119)},
        UnknownElement,
        "119 at row 0",
    ),
    "num_atoms": (
        {"num_atoms": np.array([4, 5]), "charges": np.ones(8, int), "positions": FLAT},
        DataError,
        "add up",
    ),
    "negative": (
        {"num_atoms": np.array([9, -1]), "charges": np.ones(8, int), "positions": FLAT},
        DataError,
        "counts|ints",
    ),
    "dense": ({"positions": X, "numbers": np.ones(3, int)}, DataError, r"\(4,\) or \(2, 4\)"),
    "none": ({"x": np.zeros((0, 3)), "ptr": np.array([0])}, EmptyData, "0 structures"),
    "no points": ({"x": np.zeros((0, 3)), "ptr": np.array([0, 0])}, DataError, "#0.*0 points"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_arrays_that_do_not_fit_are_named(tmp_path, case):
    arrays, error, words = MISFITS[case]
    path = saved(tmp_path / "a.npz", **arrays)
    with pytest.raises(error, match=words) as caught:
        read(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(str(path))


def test_positions_that_are_not_finite_are_named_by_index_and_can_be_skipped(tmp_path):
    x = np.ones((5, 4, 2), np.float32)
    x[1, 2, 0], x[3, 0, 1] = np.nan, np.inf
    path = tmp_path / "a.npy"
    np.save(path, x)
    with pytest.raises(DataError, match=r"a\.npy#1: point 2: .*nan"):
        read(path)
    clouds, skipped = read_report(path, on_problem="skip")
    assert [source.rsplit("#", 1)[1] for source in clouds.source] == ["0", "2", "4"]
    assert len(skipped) == 2
    assert "#3: point 0" in skipped[1]
    assert clouds.x.shape == (12, 2)


def test_points_without_elements_may_coincide_and_be_far_away(tmp_path):
    np.save(tmp_path / "a.npy", np.full((1, 3, 3), 1e9))
    assert len(read(tmp_path / "a.npy")) == 1


def test_coincident_atoms_are_found_wherever_they_are(tmp_path):
    source = np.random.default_rng(0)
    sizes = source.integers(1, 30, 200)
    x = source.normal(size=(sizes.sum(), 3)) * 100
    x[:, 0] = 0
    starts = np.cumsum(sizes) - sizes
    bad = np.flatnonzero(sizes > 4)[::7]
    x[starts[bad]] = x[starts[bad] + 3] + [0, 6e-4, 6e-4]
    x[starts[1]] = x[starts[2]]
    path = saved(
        tmp_path / "a.npz", x=x, ptr=np.append(starts, len(x)), numbers=np.ones(len(x), int)
    )
    clouds, skipped = read_report(path, on_problem="skip")
    assert [line.split(":")[0].rsplit("#")[-1] for line in skipped] == [str(i) for i in bad]
    assert len(clouds) == 200 - len(bad)


def test_real_data_is_read(shared_data):
    clouds = read(shared_data / "qm9" / "qm9_118744.npz")
    assert len(clouds) == 118_744
    assert set(clouds.numbers.unique().tolist()) == {1, 6, 7, 8}
    assert read(shared_data / "particles" / "dw4_train.npy", dimension=2).x.shape == (100_000, 2)
    assert len(read(shared_data / "molecules" / "druglike_conformers.npz")) == 6995
