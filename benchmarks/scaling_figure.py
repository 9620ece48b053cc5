"""Lines of `scaling.json`: time, peak memory and fraction of the ceiling over each sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from eqflow.view.canvas import BLUE, GREEN, INK, ORANGE, PALE, VERMILLION, new_figure, save

Row = Mapping[str, Any]

COLOURS = {
    "forward": GREEN,
    "forward + backward": BLUE,
    "value + one probe": ORANGE,
    "exact trace": VERMILLION,
}
STYLES: dict[str, dict[str, Any]] = {
    "eqflow": {"linestyle": "-", "marker": "o", "markersize": 4},
    "port": {"linestyle": "--", "marker": "o", "markersize": 4, "markerfacecolor": "white"},
}
# What each row of panels shows, and of which work.
TIME, MEMORY, FRACTION = (
    "CPU seconds, one batch",
    "peak MiB, forward + backward",
    "counted operations over time,\nof the largest measured rate",
)
SHOWN = {TIME: tuple(COLOURS), MEMORY: ("forward + backward",), FRACTION: tuple(COLOURS)}
VARIABLES = {"points": "points n", "width": "width F", "clouds": "clouds B"}
SMALLEST_PEAK = 1.0  # MiB; less than this are a few pages, more or less


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Draw time, memory and fraction in rows, a column a sweep.

    Args:
        results: What `scaling.json` holds.
        path: PNG file to write.
    """
    sweeps: Mapping[str, Sequence[Row]] = results["sweeps"]
    figure = new_figure(10.5, 10, "An EGNN field of three layers on one CPU thread")
    panels = figure.subplots(len(SHOWN), len(sweeps), sharex="col", sharey="row")
    for across, (variable, rows) in enumerate(sweeps.items()):
        for down, (quantity, works) in enumerate(SHOWN.items()):
            panel = panels[down, across]
            for work in works:
                for who, style in STYLES.items():
                    points = [(row[variable], _value(row, quantity, work, who)) for row in rows]
                    there = [point for point in points if point[1] is not None]
                    panel.plot(*zip(*there, strict=True), color=COLOURS[work], lw=1.4, **style)
            _plain(panel, [row[variable] for row in rows])
        panels[0, across].set_title(_title(variable, rows), loc="left", fontsize=9, color=INK)
        panels[-1, across].set_xlabel(VARIABLES[variable], fontsize=9, color=INK)
    for panel, quantity in zip(panels[:, 0], SHOWN, strict=True):
        panel.set_ylabel(quantity, fontsize=9, color=INK)
    panels[-1, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles = [Line2D([], [], color=colour, label=work) for work, colour in COLOURS.items()]
    names = {"eqflow": "eqflow", "port": "per-edge port"}
    handles += [Line2D([], [], color=INK, label=names[who], **STYLES[who]) for who in STYLES]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
    )
    return save(figure, path)


def _value(row: Row, quantity: str, work: str, who: str) -> float | None:
    if quantity == MEMORY:
        peak = row["peak_mebibytes"][who]
        return peak if peak >= SMALLEST_PEAK else None
    of_work = row["work"][work]
    if who not in of_work["seconds"]:
        return None
    if quantity == TIME:
        return of_work["seconds"][who]
    return of_work["roofline"][who]["fraction"]


def _title(variable: str, rows: Sequence[Row]) -> str:
    first = rows[0]
    if variable == "points":
        return f"F = {first['width']}, about {max(row['edges'] for row in rows):,} edges"
    if variable == "width":
        return f"B = {first['clouds']}, n = {first['points']}"
    return f"n = {first['points']}, F = {first['width']}"


def _plain(panel: Axes, ticks: Sequence[int]) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=PALE, linewidth=0.6)
    panel.set_axisbelow(True)
