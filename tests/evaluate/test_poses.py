"""PoseBusters, where it is installed: a good molecule passes, a clash does not, absence is said."""

import importlib.util

import pytest
from known_molecules import embedded, nowhere

from eqflow.errors import UsageError
from eqflow.evaluate import poses
from eqflow.evaluate.perception import perceive
from eqflow.evaluate.poses import bust
from eqflow.geometry import Clouds

needs_posebusters = pytest.mark.skipif(
    importlib.util.find_spec("posebusters") is None, reason="needs posebusters"
)


@needs_posebusters
def test_a_good_molecule_passes_and_a_stretched_one_does_not():
    good = embedded("CC(=O)OC")
    bad = good.with_positions(1.25 * good.x)
    found = bust(perceive(Clouds.join([good, bad, nowhere([6, 1])])))
    assert all(found[0].values())
    assert len(found[0]) > 5
    assert not found[1]["bond_lengths"]
    assert found[2] == {}


def test_where_posebusters_is_missing_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr(poses, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'eqflow\[metrics\]'"):
        bust([])
