"""The ceiling of the metrics is measured on any molecules, and ends as plain JSON."""

import gzip
import json

import molecule_metrics
import pytest

from eqflow.chem import load_g2


def test_the_benchmark_measures_and_writes_what_json_has(monkeypatch, tmp_path, capsys):
    written = {}
    few = load_g2(["H", "C", "O"], min_atoms=3)
    smiles = tmp_path / "smiles.csv.gz"
    smiles.write_bytes(gzip.compress(b"smiles\nC\nCO\nnot one\n"))
    monkeypatch.setattr(molecule_metrics, "load_qm9", lambda path: few)
    monkeypatch.setattr(
        molecule_metrics, "write_results", lambda name, found: written.update({name: found})
    )
    monkeypatch.setattr("sys.argv", ["", "qm9", "10", "--smiles", str(smiles)])
    molecule_metrics.main()
    found = written["molecule_metrics"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["stability"]["molecules"] == len(few)
    assert (found["training_smiles"], found["training_smiles_refused"]) == (2, 1)
    assert found["metrics"]["perceived: valid"]["drawn"]["count"] == 10
    assert set(found["cpu_seconds_per_1000"]) >= {"perception", "strain"}
    assert "atoms stable (%)" in capsys.readouterr().out


def test_smiles_are_read_with_and_without_compression(tmp_path):
    plain = tmp_path / "smiles.csv"
    plain.write_text("smiles\nOC\n", encoding="utf-8")
    assert molecule_metrics.read_smiles(plain) == ({"CO"}, 0)
    assert molecule_metrics.read_smiles(None) == (None, 0)
    with pytest.raises(FileNotFoundError):
        molecule_metrics.read_smiles(tmp_path / "none.csv")
