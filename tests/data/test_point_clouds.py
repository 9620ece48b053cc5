"""Images, voxels and synthetic surfaces as clouds."""

import gzip

import numpy as np
import pytest
import torch

from eqflow.data import read_images, read_voxels, surfaces
from eqflow.errors import DataError, EmptyData, UsageError


def idx(images: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, images.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in images.shape) + images.tobytes()


@pytest.fixture
def digits(tmp_path):
    images = np.zeros((3, 28, 28), np.uint8)
    images[0, 0, 27] = 200  # Top right.
    images[0, 27, 0] = 200
    images[0, 5, 5] = 100
    images[2] = 255
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(idx(images))
    return path


def test_bright_pixels_become_upright_points_about_the_centre(digits):
    clouds, skipped = read_images(digits)
    assert clouds.sizes.tolist() == [2, 784]
    corner = 27 / 28
    torch.testing.assert_close(clouds[0].x, torch.tensor([[corner, corner], [-corner, -corner]]))
    assert clouds[1].x.mean(0).abs().max() < 1e-6
    assert clouds.source == (f"{digits}#0", f"{digits}#2")
    assert len(skipped) == 1
    assert "#1: found 0 points" in skipped[0]


def test_a_cap_takes_a_subset_that_is_a_function_of_the_seed(digits):
    full = {tuple(point) for point in read_images(digits).clouds[1].x.tolist()}
    capped = [read_images(digits, max_points=50, seed=seed).clouds for seed in (0, 0, 1)]
    assert capped[0].sizes.tolist() == [2, 50]
    assert torch.equal(capped[0].x, capped[1].x)
    assert not torch.equal(capped[0].x, capped[2].x)
    assert {tuple(point) for point in capped[0][1].x.tolist()} <= full


def test_gzipped_images_are_the_same_and_limit_takes_the_first(digits, tmp_path):
    packed = tmp_path / "images.gz"
    packed.write_bytes(gzip.compress(digits.read_bytes()))
    assert torch.equal(read_images(packed).clouds.x, read_images(digits).clouds.x)
    assert len(read_images(packed, limit=1).clouds) == 1


def test_files_that_are_no_images_are_refused(digits, tmp_path):
    content = digits.read_bytes()
    path = tmp_path / "bad"
    for bad, words in (
        (content[:-1], "cut off"),
        (content[:3], "starts with"),
        (content + b"0", "found more bytes of values, expected 2,352 for"),
        (b"\0\0\x0d" + content[3:], "IDX file of bytes"),
        (gzip.compress(content)[:-20], "damaged gzip"),
        (idx(np.zeros(9, np.uint8)), "Labels"),
        (b"", "0 bytes"),
        (b"<html>", "web page"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=words):
            read_images(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_images(tmp_path / "absent")


def test_settings_of_images_are_checked(digits):
    for wrong in ({"threshold": 0}, {"threshold": 256}, {"max_points": 0}, {"limit": 0}):
        with pytest.raises(UsageError):
            read_images(digits, **wrong)
    digits.write_bytes(idx(np.zeros((1, 4, 4), np.uint8)))
    with pytest.raises(EmptyData, match="1 records, none"):
        read_images(digits)


def packed(path, grids):
    rows = np.packbits(grids.reshape(len(grids), -1), axis=1)
    np.savez(path, packed=rows, shape=np.array(grids.shape))
    return path


def test_voxels_become_the_centres_of_the_surface_or_of_all(tmp_path):
    grids = np.zeros((3, 5, 5, 5), bool)
    grids[0, 1:4, 1:4, 1:4] = True
    grids[2] = True
    path = packed(tmp_path / "a.npz", grids)
    clouds, skipped = read_voxels(path)
    assert clouds.sizes.tolist() == [26, 125 - 27]
    assert read_voxels(path, interior=True).clouds.sizes.tolist() == [27, 125]
    assert clouds.x.abs().max() == pytest.approx(0.8)
    assert clouds[0].x.abs().max() == pytest.approx(0.4)
    assert clouds[0].x.square().sum(1).min() > 0.1
    assert clouds.source == (f"{path}#0", f"{path}#2")
    assert len(skipped) == 1
    assert "#1" in skipped[0]


def test_voxels_are_capped_by_a_function_of_the_seed(tmp_path):
    path = packed(tmp_path / "a.npz", np.ones((2, 6, 5, 4), bool))
    capped = [read_voxels(path, points=20, seed=seed).clouds.x for seed in (0, 0, 1)]
    assert capped[0].shape == (40, 3)
    assert torch.equal(capped[0], capped[1])
    assert not torch.equal(capped[0], capped[2])
    assert not torch.equal(capped[0][:20], capped[0][20:])


def test_voxels_of_another_layout_are_refused(tmp_path):
    rows, shape = np.zeros((2, 8), np.uint8), np.array([2, 4, 4, 4])
    for arrays in (
        {"packed": rows},
        {"packed": rows, "shape": np.array([3, 4, 4, 4])},
        {"packed": rows, "shape": np.array([2, 4, 4, 5])},
        {"packed": rows.astype(int), "shape": shape},
        {"packed": rows, "shape": np.array([2, 64])},
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match="expected"):
            read_voxels(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", packed=rows, shape=shape)
    with pytest.raises(EmptyData, match="2 records, none"):
        read_voxels(tmp_path / "a.npz")


def test_real_images_and_voxels_are_read(shared_data):
    digits, none = read_images(shared_data / "point_clouds" / "t10k-images-idx3-ubyte.gz")
    assert len(digits) == 10_000
    assert none == []
    assert 80 < digits.sizes.double().mean() < 130
    chairs, empty = read_voxels(shared_data / "point_clouds" / "chair_32.npz", points=512)
    assert len(chairs) == 889
    assert len(empty) == 1
    assert int(chairs.sizes.max()) == 512


ON_SURFACE = {
    "sphere": lambda x: x.norm(dim=1) - 1,
    "torus": lambda x: (x[:, :2].norm(dim=1) - 0.75).square() + x[:, 2].square() - 0.25**2,
    "cube": lambda x: x.abs().amax(1) - 1,
    "cylinder": lambda x: torch.maximum(x[:, :2].norm(dim=1), x[:, 2].abs()) - 1,
}


@pytest.mark.parametrize("kind", ON_SURFACE)
def test_unstretched_points_lie_on_the_surface_uniformly(kind):
    clouds = surfaces(1, 40_000, seed=0, kinds=[kind], stretch=1.0)
    x = clouds.x
    assert ON_SURFACE[kind](x).abs().max() < 1e-12
    # By symmetry the mean is 0; the second moments are those of the surface.
    assert x.mean(0).abs().max() < 0.02
    radius2 = {
        "sphere": 2 / 3,
        "torus": 0.75**2 + 3 / 2 * 0.25**2,
        "cube": 10 / 9,
        "cylinder": 5 / 6,
    }
    assert float(x[:, :2].square().sum(1).mean()) == pytest.approx(radius2[kind], abs=0.01)


def test_a_cloud_is_a_function_of_the_seed_and_its_index():
    many, few, other = surfaces(9, 20, seed=0), surfaces(5, 20, seed=0), surfaces(5, 20, seed=1)
    assert torch.equal(many[:5].x, few.x)
    assert not torch.equal(few.x, other.x)
    assert many.source[4] == "sphere#4"
    assert many.x.dtype == torch.float64
    assert surfaces(1, 5, seed=0, dtype=torch.float32).x.dtype == torch.float32


def test_stretching_is_within_its_bounds_and_anisotropic():
    extent = torch.stack([c.x.abs().amax(0) for c in surfaces(50, 500, 0, kinds=["cube"])])
    assert extent.max() <= 1.5
    assert extent.min() >= 1 / 1.5
    assert (extent.amax(1) / extent.amin(1)).mean() > 1.2


def test_senseless_surfaces_are_refused():
    for wrong in ({"kinds": ["cone"]}, {"kinds": []}, {"stretch": 0.5}, {"count": 0}):
        with pytest.raises(UsageError):
            surfaces(**{"count": 1, "points": 5, "seed": 0, **wrong})
