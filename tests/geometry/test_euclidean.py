import pytest

from eqflow.errors import UsageError
from eqflow.geometry.euclidean import FAMILIES, EuclideanGroup, euclidean_group


@pytest.mark.parametrize(
    ("name", "translates", "rotates", "is_proper"),
    [
        ("E(3)", True, True, False),
        ("SE(3)", True, True, True),
        ("O(2)", False, True, False),
        ("SO(10)", False, True, True),
        ("T(1)", True, False, True),
    ],
)
def test_a_name_says_what_a_group_is_made_of(name, translates, rotates, is_proper) -> None:
    group = euclidean_group(name)
    assert (group.translates, group.rotates, group.is_proper) == (translates, rotates, is_proper)
    assert str(group) == name
    assert euclidean_group(str(group)) == group


def test_every_family_exists_in_every_dimension() -> None:
    for family in FAMILIES:
        for dimension in (1, 2, 3, 7, 12):
            assert euclidean_group(f"{family}({dimension})") == EuclideanGroup(family, dimension)


@pytest.mark.parametrize(
    "name", ["E3", "e(3)", "E(0)", "E(-1)", "E(d)", "SU(2)", "E(3) ", "E(3)×S(n)", "", None, 3]
)
def test_other_names_are_refused_with_those_there_are(name: object) -> None:
    with pytest.raises(UsageError, match=r"E\(d\), SE\(d\), O\(d\), SO\(d\), T\(d\)") as error:
        euclidean_group(name)
    assert repr(name) in str(error.value)


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'SE\(3\)'"):
        euclidean_group("SE3")
