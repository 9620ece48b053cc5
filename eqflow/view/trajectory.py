"""A strip of pictures from noise to structure: a row for each structure, a column for each time.

Points of the plane leave the line they came along behind them. Points of space are seen from where
the finished structure is widest, atoms as discs of half their covalent radius, near over far.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

from eqflow.chem.elements import symbol
from eqflow.errors import EmptyData, ShapeError
from eqflow.geometry import Clouds
from eqflow.view.atoms import colour_of, radius_of
from eqflow.view.canvas import GREY, INK, PALE, SKY, new_figure, save

CELL = 1.5  # inches
MOST_ROWS = 4
POINT_RADIUS = 0.035  # of the width of a cell, for points without an element
BOND_WIDTH = 2.4


def trajectory(
    frames: Sequence[Clouds],
    path: str | Path,
    *,
    bonds: Sequence[Tensor] | None = None,
    columns: int = 7,
    title: str = "From noise to structure",
    unit: str = "Å",
) -> Path:
    """Draw some frames of the first structures on their way.

    Args:
        frames: The same structures at equally spaced times, noise first: `Flow.trajectory`.
        path: PNG file to write.
        bonds: For each frame, the pairs of points to join by a line, rows of `x`, shape (P, 2), as
            `evaluate.distances.bonded_pairs` gives; none are drawn where not given.
        columns: Most frames to draw; the first and the last are always among them.
        title: What one sees.
        unit: Of positions, for the scale bar; empty for a plain number.

    Raises:
        EmptyData: If there are not two frames, or no structures in them.
        ShapeError: If points are neither in the plane nor in space, or frames and bonds differ in
            number.
        StorageError: If the file cannot be written.
    """
    if len(frames) < 2 or not len(frames[0]):
        raise EmptyData(
            f"{path}: found {len(frames)} frames, expected two or more with structures."
        )
    if frames[0].dimension not in (2, 3):
        raise ShapeError(f"{path}: found {frames[0].dimension} dimensions, expected 2 or 3.")
    if bonds is not None and len(bonds) != len(frames):
        raise ShapeError(f"{path}: found bonds of {len(bonds)} frames, expected {len(frames)}.")
    count = max(2, min(columns, len(frames)))
    chosen = torch.linspace(0, len(frames) - 1, count, dtype=torch.float64).round().long().tolist()
    rows = min(MOST_ROWS, len(frames[0]))
    ways = [_seen([frame[row].x for frame in frames]) for row in range(rows)]
    reach = 1.22 * max(float(way[i][:, :2].abs().max()) for way in ways for i in chosen) or 1.0
    figure = new_figure(CELL * count + 0.2, CELL * rows + 0.9, title)
    cells = figure.subplots(rows, count, squeeze=False)
    for row, way in enumerate(ways):
        numbers = frames[0][row].numbers
        for column, place in enumerate(chosen):
            cell = cells[row, column]
            _prepare(cell, reach)
            if frames[0].dimension == 2:
                _trace(cell, way[: place + 1])
            joined = None if bonds is None else _within(bonds[place], frames[place], row)
            _draw(cell, way[place], numbers, joined, reach)
    for column, place in enumerate(chosen):
        cells[0, column].set_title(_time(place, len(frames)), fontsize=9, color=INK)
    _scale_bar(cells[-1, 0], reach, unit)
    _element_legend(figure, frames[0][:rows].numbers)
    return save(figure, path)


def _time(place: int, count: int) -> str:
    words = {0: "noise, t = 1", count - 1: "structure, t = 0"}
    return words.get(place, f"t = {1 - place / (count - 1):.2f}")


def _seen(x: list[Tensor]) -> list[Tensor]:
    """Frames (n, d) centred; in space, turned to the principal axes of the last one."""
    centred = [frame.double() - frame.double().mean(0) for frame in x]
    if centred[-1].shape[1] == 2:
        return centred
    _, axes = torch.linalg.eigh(centred[-1].T @ centred[-1])
    return [frame @ axes.flip(1) for frame in centred]


def _within(bonds: Tensor, frame: Clouds, row: int) -> Tensor:
    """The bonds of one structure, as places within it."""
    start, end = int(frame.ptr[row]), int(frame.ptr[row + 1])
    return bonds[(bonds[:, 0] >= start) & (bonds[:, 0] < end)] - start


def _prepare(cell: Axes, reach: float) -> None:
    cell.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    for spine in cell.spines.values():
        spine.set_color(PALE)


def _trace(cell: Axes, path: list[Tensor]) -> None:
    """The way each point has come."""
    if len(path) < 2:
        return
    for point in torch.stack(path, 1):
        cell.plot(point[:, 0], point[:, 1], color=GREY, linewidth=0.8, zorder=1)


def _draw(
    cell: Axes, x: Tensor, numbers: Tensor | None, bonds: Tensor | None, reach: float
) -> None:
    """Discs and bonds, the near over the far; the third coordinate points at the reader."""
    depth = x[:, 2] if x.shape[1] == 3 else torch.zeros(len(x))
    span = float(depth.max() - depth.min()) or 1.0
    height = (2 + 10 * (depth - depth.min()) / span).tolist()
    for a, b in [] if bonds is None else bonds.tolist():
        cell.plot(
            x[[a, b], 0],
            x[[a, b], 1],
            color=INK,
            linewidth=BOND_WIDTH,
            solid_capstyle="round",
            zorder=min(height[a], height[b]) - 0.5,
        )
    for i, (across, up) in enumerate(x[:, :2].tolist()):
        number = 0 if numbers is None else int(numbers[i])
        cell.add_patch(
            Circle(
                (across, up),
                0.5 * radius_of(number) if number else 2 * POINT_RADIUS * reach,
                facecolor=colour_of(number) if number else SKY,
                edgecolor=INK,
                linewidth=0.8,
                zorder=height[i],
            )
        )


def _scale_bar(cell: Axes, reach: float, unit: str) -> None:
    """A bar of a round length below the first column; all cells have one scale."""
    round_lengths = [k * 10.0**power for power in range(-3, 4) for k in (1, 2, 5)]
    length = max(n for n in round_lengths if n <= max(reach, round_lengths[0]))
    below = -1.08 * reach
    cell.plot([-reach, length - reach], [below, below], color=INK, linewidth=1.6, clip_on=False)
    cell.text(
        length - 0.95 * reach,
        below,
        f"{length:g} {unit}".strip(),
        fontsize=8,
        color=INK,
        va="center",
    )


def _element_legend(figure: Figure, numbers: Tensor | None) -> None:
    """Which colour is which element, below the strip."""
    known = [] if numbers is None else [n for n in numbers.unique().tolist() if n > 0]
    if not known:
        return
    discs = [
        Line2D([], [], marker="o", linestyle="", markeredgecolor=INK, color=colour_of(number))
        for number in known
    ]
    figure.legend(
        discs,
        [symbol(number) for number in known],
        loc="outside lower right",
        ncols=len(known),
        fontsize=9,
        frameon=False,
        handletextpad=0.1,
    )
