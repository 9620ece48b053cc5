"""Curves of what features on a graph do along the depth of a network or the time of a diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from scipy.special import stdtrit
from torch import Tensor

from eqflow.errors import EmptyData, ShapeError
from eqflow.view.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    new_figure,
    plain,
    save,
)

COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK, GREY)
STYLES = ("-", "--", ":", "-.")
# Quantiles of nodes or runs that a band spans beside its median.
BAND = (0.1, 0.9)
# A logarithmic axis reaches so many decades up and down from where curves start at most: what is
# beyond has collapsed or exploded, and its further way says no more.
MOST_DECADES = 15

Curve = tuple[Tensor, Tensor]


def along_depth(
    quantities: Mapping[str, Mapping[str, Curve]],
    path: str | Path,
    *,
    title: str = "What is left of the features as layers follow each other",
    across: str = "depth (layers)",
) -> Path:
    """Quantities of several models against depth or time, a panel each, both axes logarithmic.

    Values of 0 have no place on the axis: a curve ends before the first of them, at a cross.

    Args:
        quantities: Name of each quantity (with its unit, if any) to curves by model: where, shape
            (T,), positive, and values, shape (T,), or (R, T) for R runs or nodes, whose median is
            drawn with a band of 80 % of them.
        path: PNG file to write.
        title: What one sees.
        across: What the curves run along.

    Raises:
        EmptyData: If there is no positive finite value of a quantity.
        ShapeError: If a curve has not one value for each place.
        StorageError: If the file cannot be written.
    """
    if not quantities or not all(quantities.values()):
        raise EmptyData(f"{path}: found no curves, expected at least one for each quantity.")
    figure = new_figure(0.8 + 4.4 * len(quantities), 4.4, title)
    panels = figure.subplots(1, len(quantities), squeeze=False).ravel()
    models = list(dict.fromkeys(name for curves in quantities.values() for name in curves))
    looks = {name: _look(place) for place, name in enumerate(models)}
    # The first are the widest, so that a curve over another does not hide it.
    widths = torch.linspace(3.2, 1.2, len(models)).tolist() if len(models) > 1 else [1.6]
    wide = dict(zip(models, widths, strict=True))
    for panel, (quantity, curves) in zip(panels, quantities.items(), strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_autoscaley_on(False)  # what it finds around 1e300 is infinite
        shown = []
        for name, (places, values) in curves.items():
            places, values = _rows(places, values, f"{path}: {quantity} of {name}")
            shown.append(_draw(panel, places, values, name, looks[name], wide[name]))
        _set_decades(panel, shown, f"{path}: {quantity}")
        plain(panel, across, quantity)
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower left",
        ncols=min(4, len(handles)),
        fontsize=8,
        frameon=False,
    )
    return save(figure, path)


def accuracy_by_depth(
    measured: Mapping[str, Mapping[int, Tensor | Sequence[float]]],
    path: str | Path,
    *,
    published: Mapping[str, Mapping[int, float]] | None = None,
    title: str = "Test accuracy by depth",
) -> Path:
    """Accuracy of several models by depth, mean of the runs and its 95 % interval.

    Args:
        measured: Model to depth to the accuracy of each run, between 0 and 1.
        path: PNG file to write.
        published: The same from a paper, one value each; drawn hollow, in the model's colour.
        title: What one sees.

    Raises:
        EmptyData: If there is no model, or a depth without a run.
        StorageError: If the file cannot be written.
    """
    published = published or {}
    runs = {
        name: {depth: torch.as_tensor(values).double() for depth, values in by_depth.items()}
        for name, by_depth in measured.items()
    }
    counts = [values.numel() for by_depth in runs.values() for values in by_depth.values()]
    if not counts or not all(counts):
        raise EmptyData(f"{path}: found no runs for a model or a depth, expected at least one.")
    figure = new_figure(6.8, 4.2, title)
    panel = figure.subplots()
    for place, (name, by_depth) in enumerate(runs.items()):
        depths = sorted(by_depth)
        means = [float(by_depth[depth].mean()) for depth in depths]
        errors = [_half_width(by_depth[depth]) for depth in depths]
        look = _look(place)
        panel.errorbar(
            depths,
            means,
            errors,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.6,
            label=name,
            **look,
        )
        if name in published:
            known = sorted(published[name].items())
            panel.plot(
                *zip(*known, strict=True),
                marker="o",
                markersize=6,
                linestyle="none",
                markerfacecolor="none",
                color=look["color"],
            )
    if published:
        panel.plot(
            [],
            [],
            marker="o",
            markersize=6,
            linestyle="none",
            markerfacecolor="none",
            color=GREY,
            label="published",
        )
    depths = sorted({depth for by_depth in runs.values() for depth in by_depth})
    panel.set_xscale("log", base=2)
    panel.set_xticks(depths, [str(depth) for depth in depths])
    panel.minorticks_off()
    plain(panel, "depth (layers)", "accuracy")
    figure.legend(loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    return save(figure, path)


def dominance(
    measured: Mapping[str, Curve],
    limits: Mapping[str, float],
    path: str | Path,
    *,
    title: str = "Normalised Dirichlet energy: measured, and predicted from the spectra (dashed)",
    across: str = "time",
) -> Path:
    """Normalised Dirichlet energy of diffusions along time, and where the spectra say they end.

    Args:
        measured: Name of each diffusion to times, shape (T,), and energies, shape (T,).
        limits: The predicted limit of each by the same name; none is drawn where it is NaN.
        path: PNG file to write.
        title: What one sees.
        across: What the curves run along.

    Raises:
        EmptyData: If there is nothing to draw.
        ShapeError: If a curve has not one value for each place.
        StorageError: If the file cannot be written.
    """
    if not measured:
        raise EmptyData(f"{path}: found no curves, expected at least one diffusion.")
    figure = new_figure(6.8, 4.2, title)
    panel = figure.subplots()
    for place, (name, (times, energies)) in enumerate(measured.items()):
        times, energies = _rows(times, energies, f"{path}: {name}")
        colour = COLOURS[place % len(COLOURS)]
        panel.plot(times, energies[0], color=colour, linewidth=1.8, label=name)
        limit = limits.get(name, math.nan)
        if math.isfinite(limit):
            panel.axhline(limit, color=colour, linestyle="--", linewidth=1.0)
    plain(panel, across, "½ tr(xᵀΔx) / ‖x‖²")
    figure.legend(loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    return save(figure, path)


def _look(place: int) -> dict[str, Any]:
    """Colour and dash of a model, no two of the first 32 alike."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": STYLES[place // len(COLOURS) % len(STYLES)],
    }


def _rows(places: Tensor, values: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Places (T,) and values (R, T) in float64.

    Raises:
        ShapeError: If they do not fit.
    """
    places, values = (part.detach().cpu().double() for part in (places, values))
    rows = values.unsqueeze(0) if values.dim() == 1 else values
    if rows.dim() != 2 or places.dim() != 1 or rows.shape[1] != len(places) or not rows.numel():
        raise ShapeError(
            f"{where}: found places {tuple(places.shape)} and values {tuple(values.shape)}, "
            "expected (T,) and (T,) or (R, T), at least one."
        )
    return places, rows


def _draw(
    panel: Axes,
    places: Tensor,
    values: Tensor,
    name: str,
    look: Mapping[str, Any],
    width: float,
) -> Tensor:
    """Median and band as far as they are positive and finite; returns the medians drawn."""
    median = values.quantile(0.5, dim=0)
    good = (median > 0) & median.isfinite() & (places > 0)
    stop = len(median) if bool(good.all()) else int((~good).long().argmax())
    panel.plot(places[:stop], median[:stop], linewidth=width, label=name, **look)
    if 0 < stop < len(median):
        panel.plot(places[stop - 1], median[stop - 1], marker="x", color=look["color"])
    if len(values) > 1 and stop:
        low, high = values[:, :stop].quantile(torch.tensor(BAND).double(), dim=0)
        low = low.clamp(min=torch.finfo(low.dtype).tiny)
        panel.fill_between(places[:stop], low, high, color=look["color"], alpha=0.15, linewidth=0)
    return median[:stop]


def _set_decades(panel: Axes, curves: list[Tensor], where: str) -> None:
    """A logarithmic axis that holds the curves, as far as they stay near their starts.

    Raises:
        EmptyData: If they hold no values.
    """
    values = torch.cat(curves).log10()
    if not values.numel():
        raise EmptyData(f"{where}: found no positive finite values, expected some to draw.")
    start = torch.stack([curve[0] for curve in curves if len(curve)]).log10().median()
    low = float(values.min().clamp(min=start - MOST_DECADES))
    high = float(values.max().clamp(max=start + MOST_DECADES))
    margin = max(0.04 * (high - low), 0.1)
    panel.set_ylim(10 ** max(low - margin, -300), 10 ** min(high + margin, 300))


def _half_width(values: Tensor) -> float:
    """Half of the 95 % interval of the mean, by Student's law; 0 for one run."""
    count = len(values)
    if count < 2:
        return 0.0
    return float(stdtrit(count - 1, 0.975)) * float(values.std()) / math.sqrt(count)
