"""The paper every picture is drawn on: sizes, colours that colour-blind readers tell apart, saving.

Figures are made and drawn without pyplot, so nothing global changes and no screen is needed.

Reference: Color Universal Design (Okabe, Ito, 2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from eqflow import storage
from eqflow.errors import EmptyData

BLUE, VERMILLION, GREEN, SKY, ORANGE, PURPLE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#E69F00",
    "#CC79A7",
)
INK, GREY, PALE = "#222222", "#8C8C8C", "#DDDDDD"
# What is known is filled grey, what the model drew is an outline over it.
DATA_COLOUR, SAMPLE_COLOUR = GREY, BLUE
DOTS_PER_INCH = 150


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches, its title on the left above all panels."""
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def plain(axes: Axes, across: str, up: str) -> None:
    """Label both axes and leave away what carries nothing."""
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(up, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)


def above(axes: Axes, font: int = 9, lines: int = 1) -> None:
    """The legend in one or more lines above the panel, where it covers nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=-(-len(axes.get_legend_handles_labels()[0]) // lines),
        fontsize=font,
        frameon=False,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.5,
    )


def finite(values: Tensor, path: str | Path, what: str) -> Tensor:
    """The finite ones of `values` in float64, flat.

    Raises:
        EmptyData: If there is none.
    """
    values = values.detach().cpu().double().reshape(-1)
    values = values[values.isfinite()]
    if not values.numel():
        raise EmptyData(f"{path}: found no finite values of the {what}, expected some to draw.")
    return values


def _take_names_as_they_are(figure: Figure) -> None:
    """Dollars in titles and names are letters, not TeX: names come from elsewhere.

    What matplotlib writes at ticks, powers of ten among them, stays TeX.
    """
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    ticks = [tick for axis in axes for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
    own = {id(text) for tick in ticks for text in (tick.label1, tick.label2)}
    own |= {id(axis.get_offset_text()) for axis in axes}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in own:
            text.set_parse_math(False)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically, and return where.

    Raises:
        StorageError: If the file cannot be written.
    """
    path = Path(path)
    _take_names_as_they_are(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    storage.write_bytes(path, buffer.getvalue())
    return path
