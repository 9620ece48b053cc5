"""Importing the published flow: what is read, what is refused, and that nothing is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from enf_files import archive, folder, published

from eqflow.errors import CheckpointError
from eqflow.train.enf import QM9_SIZES, load_enf


def test_an_archive_and_the_original_files_give_one_flow(tmp_path) -> None:
    one = load_enf(archive(tmp_path / "weights.npz", published()))
    other = load_enf(folder(tmp_path, published()))
    assert list(one.state_dict()) == list(other.state_dict())
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert one.sizes.sizes.tolist() == list(QM9_SIZES)


def test_names_of_several_gpus_are_understood(tmp_path) -> None:
    folder(tmp_path, published())
    state = torch.load(tmp_path / "flow.npy", weights_only=True)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "flow.npy")
    assert float(load_enf(tmp_path).actnorm.position_log_scale.detach()) == 0.5


def test_the_first_layer_is_cut_into_receiver_sender_and_scalars(tmp_path) -> None:
    tensors = published()
    layer = load_enf(folder(tmp_path, tensors)).continuous.field.egnn.layers[1]
    whole = tensors["flow.transformations.1.odefunc.dynamics.egnn.gcl_1.edge_mlp.0.weight"]
    parts = layer.receiver.weight, layer.sender.weight, layer.scalars.weight
    assert torch.equal(torch.cat(parts, 1), whole)


def test_sizes_of_the_archive_are_taken(tmp_path) -> None:
    more = {"n_nodes.keys": np.array([4, 2]), "n_nodes.prob": np.array([0.25, 0.75], np.float32)}
    flow = load_enf(archive(tmp_path / "weights.npz", published(), **more))
    assert flow.sizes.sizes.tolist() == [2, 4]
    assert flow.sizes.log_probs.exp().tolist() == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("dequantizer.net_fn.egnn.embedding.bias"), "missing .*embedding.bias"),
        (lambda t: t.pop("flow.transformations.0.h_t"), "missing flow.transformations.0.h_t"),
        (lambda t: t.update({"flow.more": torch.ones(1)}), "unexpected flow.more"),
        (lambda t: t.update({"flow.transformations.0.x_log_s": torch.ones(())}), "axes"),
        (lambda t: t.update({"flow.transformations.0.h_t": torch.ones(1, 9)}), "found 9 features"),
        (
            lambda t: t.update({"dequantizer.net_fn.egnn.embedding_out.bias": torch.ones(5)}),
            "has shape",
        ),
    ],
)
def test_keys_and_shapes_that_do_not_fit_are_named(tmp_path, change, message) -> None:
    tensors = published()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_enf(archive(tmp_path / "weights.npz", tensors))


def test_settings_of_another_model_are_refused(tmp_path) -> None:
    path = archive(tmp_path / "weights.npz", published(), **{"args.dequantization": "uniform"})
    with pytest.raises(CheckpointError, match="found dequantization=uniform"):
        load_enf(path)


def test_files_that_are_none_are_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_enf(tmp_path / "nowhere.npz")
    with pytest.raises(CheckpointError, match=r"flow\.npy: no such file"):
        load_enf(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(CheckpointError, match="Expected are plain arrays"):
        load_enf(tmp_path / "text.npz")
    torch.save([1, 2], tmp_path / "flow.npy")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_enf(tmp_path)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(tmp_path) -> None:
    touched = tmp_path / "touched"
    torch.save({"x": Touch(touched)}, tmp_path / "flow.npy")
    with pytest.raises(CheckpointError, match="would run code"):
        load_enf(tmp_path)
    (tmp_path / "flow.npy").write_bytes(pickle.dumps({"x": Touch(touched)}, protocol=2))
    with pytest.raises(CheckpointError, match="would run code"):
        load_enf(tmp_path)
    np.savez(tmp_path / "weights.npz", **{"flow.x": np.array([Touch(touched)], dtype=object)})
    with pytest.raises(CheckpointError, match="would have to be unpickled and never are"):
        load_enf(tmp_path / "weights.npz")
    assert not touched.exists()
