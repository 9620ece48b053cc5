"""Strain: nothing in a relaxed molecule, something in a stretched one, NaN where there is none."""

import pytest
from known_molecules import embedded, g2, nowhere

from eqflow.evaluate.perception import Perceived, perceive
from eqflow.evaluate.strain import strain_energies
from eqflow.geometry import Clouds


def test_a_relaxed_molecule_has_no_strain_and_a_stretched_one_has():
    relaxed = embedded("CCO")
    stretched = relaxed.with_positions(1.08 * relaxed.x)
    no_parameters = g2("BCl3")
    molecules = Clouds.join([relaxed, stretched, no_parameters, nowhere([6, 1])])
    energies = strain_energies(perceive(molecules))
    assert energies[0] == pytest.approx(0, abs=0.01)
    assert 10 < energies[1] < 200
    assert energies[2:].isnan().all()


def test_no_molecules_have_no_strain():
    assert strain_energies([]).shape == (0,)
    assert strain_energies([Perceived(problem="none")]).isnan().all()
