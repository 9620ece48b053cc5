"""Every picture is a whole PNG, is the same when drawn again, and is not drawn of nothing."""

import struct
import sys
import zlib

import pytest
import torch

from eqflow import rng, view
from eqflow.chem import load_g2
from eqflow.errors import DataError, EmptyData, ShapeError, StorageError
from eqflow.evaluate.distances import bond_lengths, bonded_pairs
from eqflow.geometry import Clouds
from eqflow.view.atoms import colour_of, radius_of

METRICS = "step,seconds,loss,val_loss\n" + "".join(
    f"{step},{step / 10},{1 / step},{1 / step if step % 5 == 0 else ''}\n" for step in range(1, 21)
)


def draws(count, seed=0):
    return torch.randn(count, generator=rng.generator(seed, "pictures"), dtype=torch.float64)


def way(count=2, frames=4, dimension=2):
    """Clouds of three points that shrink."""
    x = draws(count * 3 * dimension).reshape(count, 3, dimension)
    return [Clouds.from_dense(x / (1 + place)) for place in range(frames)]


def molecules_on_their_way(frames=3):
    end = load_g2(["H", "C", "O"], min_atoms=5)[:2]
    noise = draws(end.x.numel()).reshape(end.x.shape)
    return [
        end.with_positions(noise + (end.x - noise) * place / (frames - 1))
        for place in range(frames)
    ]


def metrics(folder):
    path = folder / "metrics.csv"
    path.write_text(METRICS, encoding="utf-8")
    return path


def bonds_of_g2():
    return bond_lengths(load_g2(["H", "C", "N", "O", "F"], min_atoms=2))


def molecular(folder, path):
    frames = molecules_on_their_way()
    return view.trajectory(frames, path, bonds=[bonded_pairs(frame) for frame in frames])


PICTURES = {
    "energies": lambda folder, path: view.energies(draws(200), draws(100, 1), path),
    "distances": lambda folder, path: view.distances(
        draws(200).abs(), draws(99, 1).abs(), path, unit=""
    ),
    "bonds": lambda folder, path: view.bonds(bonds_of_g2(), bonds_of_g2(), path),
    "losses": lambda folder, path: view.losses(metrics(folder), path, unit="nats"),
    "plane": lambda folder, path: view.trajectory(way(dimension=2), path, unit=""),
    "space": lambda folder, path: view.trajectory(way(dimension=3), path),
    "molecules": molecular,
}


def size_of(path):
    """Width and height of a PNG, each of its chunks checked."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, kinds = 8, []
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (check,) = struct.unpack(">I", content[place + 8 + length : place + 12 + length])
        assert check == zlib.crc32(kind + body)
        kinds.append(kind)
        place += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_whole_png_where_it_was_asked_for(name, tmp_path):
    asked = tmp_path / "a folder made for it" / f"{name} ü.png"
    assert PICTURES[name](tmp_path, asked) == asked
    width, height = size_of(asked)
    assert width > 400
    assert height > 300


@pytest.mark.parametrize("name", ["energies", "molecules"])
def test_a_picture_drawn_again_is_the_same_file(name, tmp_path):
    first, second = (PICTURES[name](tmp_path, tmp_path / f"{i}.png") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_drawing_needs_neither_a_screen_nor_the_global_state_of_pyplot(tmp_path):
    already = "matplotlib.pyplot" in sys.modules
    PICTURES["energies"](tmp_path, tmp_path / "e.png")
    assert ("matplotlib.pyplot" in sys.modules) == already


@pytest.mark.parametrize("picture", [view.energies, view.distances])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("nothing", [torch.empty(0), torch.full((3,), torch.nan)])
def test_a_histogram_of_nothing_is_refused(picture, side, nothing, tmp_path):
    values = [draws(5), draws(5)]
    values[side] = nothing
    with pytest.raises(EmptyData, match="no finite values of the " + ("data", "samples")[side]):
        picture(*values, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        (torch.zeros(5), torch.zeros(5)),
        (torch.zeros(1), torch.full((3,), 1e30)),
        (draws(50), torch.tensor([1e12, 3.0, torch.inf, torch.nan])),
        (draws(50).float(), draws(50)),
    ],
    ids=["all equal", "far off", "some not finite", "two types"],
)
def test_awkward_values_still_make_a_picture(data, samples, tmp_path):
    size_of(view.energies(data, samples, tmp_path / "x.png"))


def test_bonds_without_data_are_refused_and_without_samples_are_drawn(tmp_path):
    with pytest.raises(EmptyData, match="no bonds in the data"):
        view.bonds({}, bonds_of_g2(), tmp_path / "x.png")
    size_of(view.bonds(bonds_of_g2(), {}, tmp_path / "x.png"))


def test_a_missing_or_strange_metrics_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file; expected the metrics\.csv"):
        view.losses(tmp_path / "metrics.csv", tmp_path / "x.png")
    strange = tmp_path / "strange.csv"
    strange.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column step"):
        view.losses(strange, tmp_path / "x.png")


@pytest.mark.parametrize("rows", ["", "1,nan,\n", "1,,inf\n", "1,wrong,\n"])
def test_metrics_without_a_finite_loss_are_refused(rows, tmp_path):
    empty = tmp_path / "metrics.csv"
    empty.write_text(f"step,loss,val_loss\n{rows}", encoding="utf-8")
    with pytest.raises(EmptyData, match="no finite loss"):
        view.losses(empty, tmp_path / "x.png")


def test_one_logged_step_is_enough(tmp_path):
    one = tmp_path / "metrics.csv"
    one.write_text("step,loss\n1,0.5\n", encoding="utf-8")
    size_of(view.losses(one, tmp_path / "x.png"))


@pytest.mark.parametrize("frames", [[], way()[:1], [frame[:0] for frame in way()]])
def test_a_trajectory_of_nothing_is_refused(frames, tmp_path):
    with pytest.raises(EmptyData, match="expected two or more with structures"):
        view.trajectory(frames, tmp_path / "x.png")


def test_a_trajectory_that_is_neither_plane_nor_space_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="4 dimensions"):
        view.trajectory(way(dimension=4), tmp_path / "x.png")
    with pytest.raises(ShapeError, match="bonds of 1 frames"):
        view.trajectory(way(), tmp_path / "x.png", bonds=[torch.empty(0, 2)])


def test_single_and_coincident_points_make_a_trajectory(tmp_path):
    one = Clouds.from_dense(torch.zeros(1, 1, 3), torch.tensor([6]))
    size_of(view.trajectory([one, one], tmp_path / "one.png"))
    together = Clouds.from_dense(torch.ones(1, 3, 2))
    size_of(view.trajectory([together] * 3, tmp_path / "together.png"))


def test_a_picture_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be written"):
        view.energies(draws(9), draws(9), tmp_path / "file" / "x.png")


def test_every_element_has_a_colour_and_a_radius():
    for number in range(1, 97):
        assert len(colour_of(number)) == 7
        assert radius_of(number) > 0
    assert len({colour_of(number) for number in (1, 6, 7, 8, 9, 15, 16, 17)}) == 8


@pytest.mark.parametrize(
    "name", ["$x_{$", "$\\input{/etc/passwd}$", "a$b", "%s {0} \\n", "$\\frac$"]
)
def test_names_and_titles_are_drawn_as_they_are(tmp_path, name):
    """Dollars begin no TeX, which would fail on it or show something else."""
    from eqflow.view.canvas import new_figure, save

    figure = new_figure(3, 2, name)
    panel = figure.subplots()
    panel.plot([1, 10], [1, 100], label=name)
    panel.set(xlabel=name, ylabel=name, xscale="log", yscale="log")
    panel.legend()
    save(figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert figure.get_suptitle() == name
    # Powers of ten at the ticks still are.
    assert any("mathdefault" in tick.get_text() for tick in panel.get_xticklabels())
    assert all(tick.get_parse_math() for tick in panel.get_xticklabels())
