import torch
from torch import Tensor

from eqflow.geometry import Segments
from eqflow.geometry.frames.ties import classes, ranks, rarest


def in_words(values: list[float], owner: list[int], tolerance: float) -> list[int]:
    """The definition: sort those of an owner, and count the steps that are large."""
    found = [0] * len(values)
    for own in set(owner):
        rows = sorted((i for i in range(len(values)) if owner[i] == own), key=lambda i: values[i])
        level = 0
        for before, row in zip([None, *rows], rows, strict=False):
            level += before is not None and values[row] - values[before] > tolerance
            found[row] = level
    return found


def test_classes_are_told_apart_by_large_steps_within_each_owner() -> None:
    source = torch.Generator().manual_seed(0)
    values = torch.rand(300, generator=source, dtype=torch.float64) * 2 - 1
    owner = torch.randint(0, 9, (300,), generator=source).sort()[0]
    for tolerance in (1e-9, 3e-3, 3e-2, 3.0):
        expected = in_words(values.tolist(), owner.tolist(), tolerance)
        assert classes(values, owner, tolerance).tolist() == expected


def test_classes_do_not_depend_on_rounding_nor_on_the_order() -> None:
    source = torch.Generator().manual_seed(1)
    values = torch.tensor([-1.0, 0.25, 0.25, 0.5, 1.0, 1.0, 0.0, 0.25]).double()
    owner = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    noise = 1e-14 * torch.randn(8, generator=source, dtype=torch.float64)
    assert classes(values + noise, owner, 1e-9).tolist() == [0, 1, 1, 2, 3, 3, 0, 1]
    order = torch.tensor([5, 2, 0, 4, 1, 3, 7, 6])
    assert classes(values[order], owner, 1e-9).tolist() == [3, 1, 0, 3, 1, 2, 1, 0]
    assert classes(values[:0], owner[:0], 1e-9).shape == (0,)


def rarest_in_words(keys: list[Tensor], owner: Tensor) -> list[bool]:
    rows = [tuple(key[i].item() for key in keys) for i in range(len(owner))]
    kept = []
    for i, own in enumerate(owner.tolist()):
        mine = [row for row, other in zip(rows, owner.tolist(), strict=True) if other == own]
        best = min((mine.count(row), row) for row in mine)[1]
        kept.append(rows[i] == best)
    return kept


def test_the_rarest_key_is_kept_and_the_least_of_several() -> None:
    source = torch.Generator().manual_seed(2)
    owner = torch.randint(0, 12, (200,), generator=source).sort()[0]
    keys = [torch.randint(0, 3, (200,), generator=source) for _ in range(3)]
    assert rarest(keys, owner, 12).tolist() == rarest_in_words(keys, owner)
    large = [key * 2**31 for key in keys]  # too large to be packed into 64 bits as they are
    assert rarest(large, owner, 12).tolist() == rarest_in_words(keys, owner)
    assert rarest([owner[:0]], owner[:0], 3).shape == (0,)
    assert rarest([torch.tensor([4, 4, 5])], torch.tensor([1, 1, 3]), 5).tolist() == [True] * 3


def test_types_are_numbered_within_each_cloud() -> None:
    clouds = Segments(torch.tensor([0, 3, 3, 7]))
    types = torch.tensor([8, 1, 8, 92, 6, 1, 6])
    assert ranks(types, clouds).tolist() == [1, 0, 1, 2, 1, 0, 1]
    assert ranks(types[3:], Segments(torch.tensor([0, 4]))).tolist() == [2, 1, 0, 1]
    assert ranks(types[:0], Segments(torch.tensor([0, 0]))).shape == (0,)
