"""Histograms of samples against data: energies, pair distances, bond lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from eqflow.errors import EmptyData
from eqflow.view.canvas import DATA_COLOUR, SAMPLE_COLOUR, above, finite, new_figure, plain, save

MOST_BINS, FEWEST_BINS = 80, 12
# Bonds of one kind differ by hundredths of an Å; an axis of at least this many Å shows more.
BOND_SPAN, BOND_BINS = 0.6, 30
QUANTILE_LIMIT = 1_000_000  # torch.quantile takes no more than 16 million values
# Panels of element pairs in one picture, and the fewest bonds of the data that make a histogram.
MOST_PANELS = 6
FEWEST_BONDS = 8


def energies(
    data: Tensor,
    samples: Tensor,
    path: str | Path,
    *,
    title: str = "Energy: samples of the flow against data",
    unit: str = "kT",
) -> Path:
    """Energies of samples over those of data, each a density.

    The axis spans the data and most samples; how many are beyond it, the legend says.

    Args:
        data, samples: Energies, shapes (A,) and (B,), in `unit`.
        path: PNG file to write.
        title, unit: What one sees.

    Raises:
        EmptyData: If one of them has no finite value.
        StorageError: If the file cannot be written.
    """
    return _one_panel(data, samples, path, title, f"energy U ({unit})", f"density (1/{unit})")


def distances(
    data: Tensor,
    samples: Tensor,
    path: str | Path,
    *,
    title: str = "Distances of all pairs of points: samples of the flow against data",
    unit: str = "Å",
) -> Path:
    """Pair distances of samples over those of data; see `energies`.

    Args:
        data, samples: Distances, shapes (A,) and (B,).
        path: PNG file to write.
        title: What one sees.
        unit: Of the distances; empty for a plain number.

    Raises:
        EmptyData: If one of them has no finite value.
        StorageError: If the file cannot be written.
    """
    across = f"pair distance ({unit})" if unit else "pair distance"
    return _one_panel(
        data, samples, path, title, across, f"density (1/{unit})" if unit else "density"
    )


def bonds(
    data: Mapping[str, Tensor],
    samples: Mapping[str, Tensor],
    path: str | Path,
    *,
    title: str = "Bond lengths: molecules drawn from the flow against data",
) -> Path:
    """Bond lengths in Å of samples over those of data, a panel for each frequent pair of elements.

    Args:
        data, samples: Pair of elements to lengths, as `evaluate.distances.bond_lengths` gives.
        path: PNG file to write.
        title: What one sees.

    Raises:
        EmptyData: If the data have no bonds.
        StorageError: If the file cannot be written.
    """
    frequent = [pair for pair, lengths in data.items() if len(lengths) >= FEWEST_BONDS]
    shown = (frequent or list(data))[:MOST_PANELS]
    if not shown:
        raise EmptyData(f"{path}: found no bonds in the data, expected some to draw.")
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(0.6 + 3.1 * columns, 0.6 + 2.5 * rows, title)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, pair in zip(panels, shown, strict=False):
        drawn = samples.get(pair, torch.empty(0))
        known = finite(data[pair], path, f"{pair} bonds of the data")
        drawn = finite(drawn, path, "samples") if len(drawn) else drawn
        edges = _edges(known, drawn, least_span=BOND_SPAN)
        _compare(panel, known, drawn, edges, font=7)
        plain(panel, f"{pair} length (Å)", "density (1/Å)")
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    return save(figure, path)


def _one_panel(
    data: Tensor, samples: Tensor, path: str | Path, title: str, across: str, up: str
) -> Path:
    data, samples = finite(data, path, "data"), finite(samples, path, "samples")
    figure = new_figure(6.4, 3.8, title)
    panel = figure.subplots()
    _compare(panel, data, samples, _edges(data, samples), font=9)
    plain(panel, across, up)
    return save(figure, path)


def _compare(panel: Axes, data: Tensor, samples: Tensor, edges: Tensor, font: int) -> None:
    """Data filled, samples as an outline, the legend above them."""
    panel.stairs(
        _density(data, edges),
        edges,
        fill=True,
        color=DATA_COLOUR,
        alpha=0.55,
        label=f"data ({len(data):,})",
    )
    outside = int(((samples < edges[0]) | (samples > edges[-1])).sum())
    beyond = f"; {_percent(outside / len(samples))} off the axis" if outside else ""
    panel.stairs(
        _density(samples, edges),
        edges,
        color=SAMPLE_COLOUR,
        linewidth=1.8,
        label=f"samples ({len(samples):,}{beyond})",
    )
    panel.set_xlim(float(edges[0]), float(edges[-1]))
    above(panel, font, lines=2 if font < 9 else 1)


def _edges(data: Tensor, samples: Tensor, least_span: float = 0.0) -> Tensor:
    """Edges of the bins: all data, and most samples unless these are far off."""
    low, high = float(data.min()), float(data.max())
    reach = max(high - low, least_span) or 1.0
    if len(samples):
        most = torch.quantile(samples[:QUANTILE_LIMIT], samples.new_tensor([0.01, 0.99]))
        low = min(low, max(float(most[0]), low - reach))
        high = max(high, min(float(most[1]), high + reach))
    margin = max(0.04 * (high - low), 0.5 * (least_span - (high - low)), 1e-3 * reach)
    low, high = low - margin, high + margin
    if least_span:
        return torch.linspace(low, high, BOND_BINS + 1, dtype=torch.float64)
    # Half the width of the Freedman–Diaconis rule, which is made for a single hump.
    quartiles = torch.quantile(data[:QUANTILE_LIMIT], data.new_tensor([0.25, 0.75]))
    fewest = min(len(data), len(samples) or len(data))
    width = float(quartiles[1] - quartiles[0]) / fewest ** (1 / 3)
    bins = MOST_BINS if width <= 0 else min(MOST_BINS, math.ceil((high - low) / width))
    return torch.linspace(low, high, max(FEWEST_BINS, bins) + 1, dtype=torch.float64)


def _density(values: Tensor, edges: Tensor) -> Tensor:
    """Share of all values, also of those beyond the axis, per unit of the axis, shape (bins,)."""
    width = float(edges[1] - edges[0])
    return torch.histogram(values.double(), edges).hist / (max(len(values), 1) * width)


def _percent(fraction: float) -> str:
    return "<1 %" if fraction < 0.01 else f"{100 * fraction:.0f} %"
