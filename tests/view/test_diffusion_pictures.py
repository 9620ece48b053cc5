"""Pictures of curves along depth: whole files, awkward values, and nothing to draw."""

import math

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from eqflow import view
from eqflow.errors import EmptyData, ShapeError, StorageError
from eqflow.view import diffusion

DEPTHS = torch.arange(1, 21)


def decays():
    return {
        "energy": {
            "GCN": (DEPTHS, 10.0 ** (-DEPTHS.double())),
            "residual": (DEPTHS, torch.rand(5, 20) * DEPTHS),
        },
        "entropy (nats)": {"GCN": (DEPTHS, 1.0 / DEPTHS)},
    }


def accuracies():
    return {"GCN": {4: [0.8, 0.82], 8: torch.tensor([0.7]), 64: [0.2, 0.3, 0.1]}, "G²": {4: [0.7]}}


def quotients():
    t = torch.linspace(0, 5, 30)
    return {"low": (t, (-t).exp()), "high": (t, 1 - (-t).exp())}


PICTURES = {
    "along depth": lambda path: view.along_depth(decays(), path),
    "accuracy": lambda path: view.accuracy_by_depth(
        accuracies(), path, published={"GCN": {4: 0.82, 8: 0.79}}
    ),
    "dominance": lambda path: view.dominance(quotients(), {"low": 0.0, "high": 1.0}, path),
}
every_picture = pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, as well as saved."""
    drawn: list[Figure] = []

    def keep(figure, path, save=diffusion.save):
        drawn.append(figure)
        return save(figure, path)

    monkeypatch.setattr(diffusion, "save", keep)
    return drawn


@every_picture
def test_a_picture_is_a_png_where_it_was_asked_for(draw, tmp_path):
    path = tmp_path / "new folder" / "x.png"
    assert draw(path) == path
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


def test_a_picture_drawn_again_is_the_same_file(tmp_path):
    torch.manual_seed(1)
    curves = decays()
    first, second = (view.along_depth(curves, tmp_path / f"{i}.png") for i in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_a_model_has_one_colour_in_all_panels_and_others_another(figures, tmp_path):
    view.along_depth(decays(), tmp_path / "x.png")
    left, right = figures[0].axes
    looks = {line.get_label(): to_hex(line.get_color()) for line in left.lines}
    assert len(set(looks.values())) == 2
    assert to_hex(right.lines[0].get_color()) == looks["GCN"]
    assert [axes.get_yscale() for axes in (left, right)] == ["log", "log"]
    assert len({tuple(diffusion._look(i).values()) for i in range(32)}) == 32


def test_curves_are_the_values_and_bands_their_spread(figures, tmp_path):
    values = torch.arange(1.0, 12.0).double().unsqueeze(1) * torch.ones(1, 20)
    view.along_depth({"e": {"a": (DEPTHS, values)}}, tmp_path / "x.png")
    (panel,) = figures[0].axes
    assert panel.lines[0].get_ydata() == pytest.approx([6.0] * 20)
    band = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((2.0, 10.0))


def test_a_curve_that_reaches_zero_or_infinity_ends_there_with_a_cross(figures, tmp_path):
    values = torch.ones(20)
    for end in (0.0, torch.inf, torch.nan):
        values[7:] = end
        view.along_depth({"e": {"a": (DEPTHS, values)}}, tmp_path / "x.png")
        curve, cross = figures[-1].axes[0].lines
        assert len(curve.get_xdata()) == 7
        assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [7.0])


@pytest.mark.parametrize("sign", [-1, 1])
def test_one_curve_that_goes_far_leaves_room_for_the_others(sign, figures, tmp_path):
    far = 10.0 ** (sign * 15.0 * DEPTHS.double())
    curves = {"far": (DEPTHS, far), "a": (DEPTHS, DEPTHS), "b": (DEPTHS, DEPTHS / 2)}
    view.along_depth({"e": curves}, tmp_path / "x.png")
    low, high = (math.log10(limit) for limit in figures[0].axes[0].get_ylim())
    assert low < 0
    assert high > math.log10(20)
    assert high - low < 30


def test_intervals_of_accuracy_are_those_of_the_mean(figures, tmp_path):
    view.accuracy_by_depth({"a": {4: [0.5, 0.7, 0.6, 0.8], 8: [0.4]}}, tmp_path / "x.png")
    (container,) = figures[0].axes[0].containers
    _, _, (bars,) = container.lines
    (_, low), (_, high) = bars.get_segments()[0]
    half = 3.182446 * torch.tensor([0.5, 0.7, 0.6, 0.8]).std().item() / 2
    # 3.182446 is the quantile of Student's law with three degrees of freedom.
    assert (low, high) == pytest.approx((0.65 - half, 0.65 + half))
    (_, low), (_, high) = bars.get_segments()[1]
    assert low == high == pytest.approx(0.4)


def test_predicted_limits_are_drawn_where_there_are_any(figures, tmp_path):
    view.dominance(quotients(), {"low": math.nan, "high": 0.9}, tmp_path / "x.png")
    dashed = [line for line in figures[0].axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in dashed] == [0.9]


def test_nothing_to_draw_is_refused(tmp_path):
    path = tmp_path / "x.png"
    for nothing in (
        lambda: view.along_depth({}, path),
        lambda: view.along_depth({"energy": {}}, path),
        lambda: view.along_depth({"energy": {"a": (DEPTHS, torch.zeros(20))}}, path),
        lambda: view.accuracy_by_depth({}, path),
        lambda: view.accuracy_by_depth({"a": {4: []}}, path),
        lambda: view.dominance({}, {}, path),
    ):
        with pytest.raises(EmptyData, match="found no"):
            nothing()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(19,), (2, 19), (0, 20), (2, 2, 20), ()])
def test_curves_of_another_length_are_refused(shape, tmp_path):
    with pytest.raises(ShapeError, match="expected \\(T,\\)"):
        view.along_depth({"e": {"a": (DEPTHS, torch.ones(shape))}}, tmp_path / "x.png")
    with pytest.raises(ShapeError, match="expected \\(T,\\)"):
        view.dominance({"a": (DEPTHS, torch.ones(shape))}, {}, tmp_path / "x.png")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="file"):
        view.along_depth(decays(), tmp_path / "file" / "x.png")
