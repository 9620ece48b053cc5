"""All metrics together: of good, bad and impossible molecules, beside those of held-out data."""

import math

import torch
from known_molecules import apart, g2, nowhere

from eqflow.chem import load_g2
from eqflow.evaluate.bonds import bonds_of
from eqflow.evaluate.distributions import distribution_distances
from eqflow.evaluate.estimates import Estimate
from eqflow.evaluate.molecules import Compared, metrics_table, molecule_metrics
from eqflow.geometry import Clouds

REFERENCE = load_g2(["H", "C", "N", "O"], min_atoms=3)
IMPOSSIBLE = [nowhere([6, 1]), nowhere([26, 8], 0.0), nowhere([]), nowhere([6] * 300, 0.0)]


def test_data_has_the_metrics_of_data():
    found = molecule_metrics(REFERENCE, REFERENCE, {"C", "O"}, perceived=False)
    for name, metric in found.items():
        if metric.unit == "%":
            assert metric.drawn == metric.held_out, name
        else:
            assert abs(metric.drawn.value) < 1e-12, name
    assert found["connected"].drawn.value == 1
    assert found["novel"].drawn.value > 0.9
    assert found["length C–H"].unit == "Å"


def test_impossible_molecules_are_counted_and_nothing_breaks():
    drawn = Clouds.join([*IMPOSSIBLE, g2("CH4"), apart(g2("CH4"), g2("H2O"))])
    found = molecule_metrics(drawn, REFERENCE[:20], relaxed=20)
    valid = found["valid"].drawn
    assert (valid.value, valid.count, valid.not_computable) == (2 / 6, 6, 4)
    assert found["connected"].drawn.value == 1 / 6
    perceived = found["perceived: valid and connected"].drawn
    assert (perceived.value, perceived.count) == (1 / 6, 6)
    assert found["strain, median"].drawn.count == 2
    assert found["angles"].drawn.not_computable == 4
    assert "novel" not in found
    assert "PoseBusters" not in found


def test_no_molecules_at_all_have_no_metrics_and_no_error():
    nothing = Clouds(torch.zeros(0, 3), torch.tensor([0]), torch.zeros(0, dtype=torch.int64))
    found = molecule_metrics(nothing, REFERENCE, set(), perceived=False)
    assert all(math.isnan(metric.drawn.value) for metric in found.values())
    assert not math.isnan(found["valid"].held_out.value)
    other_way = molecule_metrics(REFERENCE[:3], nothing, perceived=False)
    assert all(math.isnan(metric.held_out.value) for metric in other_way.values())
    assert metrics_table(other_way)


def test_another_make_up_is_found():
    hydrocarbons = load_g2(["H", "C"], min_atoms=3)
    both = bonds_of(REFERENCE), bonds_of(hydrocarbons)
    found = distribution_distances(*both)
    assert found["elements"].value > 0.02
    assert found["bonds"].value > 0.02
    assert set(found) >= {"angles", "torsions", "pairs", "sizes"}


def test_a_kind_of_bond_that_was_never_drawn_has_no_length():
    found = distribution_distances(bonds_of(g2("CH4", "C2H6")), bonds_of(REFERENCE), ["C–H", "C=O"])
    assert found["length C–H"].value < 0.02
    assert math.isnan(found["length C=O"].value)


def test_metrics_are_a_function_of_the_seed_and_of_no_order_of_molecules():
    some = REFERENCE[: len(REFERENCE) // 2]
    back = some[list(range(len(some)))[::-1]]
    one, again = (molecule_metrics(some, REFERENCE, perceived=False, seed=3) for _ in range(2))
    assert one == again
    for name, metric in molecule_metrics(back, REFERENCE, perceived=False, seed=3).items():
        assert abs(metric.drawn.value - one[name].drawn.value) < 1e-9, name


def test_the_table_has_a_line_for_each_metric():
    metrics = {
        "valid": Compared(Estimate(0.5, 0.4, 0.6, 10, 1), Estimate(0.9, 0.8, 1.0, 20), "%"),
        "angles": Compared(Estimate(1.25, 1, 2, 9), Estimate(0.125, 0, 1, 20), "°"),
    }
    *lines, note = metrics_table(metrics).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert note.startswith("Intervals of distances")
    assert len(metrics_table({"valid": metrics["valid"]}).splitlines()) == 2
    assert lines[1].split("  ")[0] == "valid (%)"
    assert "50.0 [40.0, 60.0]" in lines[1]
    assert "90.0 [80.0, 100.0]" in lines[1]
    assert "1.25 [1, 2]" in lines[2]
    assert metrics_table({})
