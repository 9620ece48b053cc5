"""Bars of the ratios in `peers.json`, one panel a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from eqflow.view.canvas import BLUE, GREY, INK, ORANGE, PALE, SKY, new_figure, save

COLOURS = {
    "forward": SKY,
    "forward + backward": BLUE,
    "peak memory": ORANGE,
    "transport plan": SKY,
    "path and loss": GREY,
    "training step": BLUE,
}
BAR = 0.26  # of the space between two groups, of three bars at most


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Draw all panels; EGNN stacks only at the depth whose memory was measured.

    Args:
        results: What `peers.json` holds.
        path: PNG file to write.
    """
    deep = {row["case"] for row in results["memory"]}
    egnn = [row for row in results["egnn"] if row["case"] in deep] + list(results["memory"])
    panels = {
        "EGNN stacks": egnn,
        "attention on graphs": results["attention"],
        "flow matching": results["matching"],
    }
    figure = new_figure(9.5, 12.5, "eqflow against its peers, one CPU thread (peer ÷ eqflow)")
    heights = [len(_groups(rows)) for rows in panels.values()]
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
    for panel, (title, rows) in zip(axes, panels.items(), strict=True):
        _bars(panel, title, rows)
    axes[-1].set_xlabel(
        "ratio, logarithmic: right of 1 eqflow needs less. Pale: not the same function.",
        fontsize=9,
        color=INK,
    )
    return save(figure, path)


def _bars(panel: Axes, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    groups = _groups(rows)
    works = list(dict.fromkeys(row["work"] for row in rows))
    for place, members in enumerate(groups.values()):
        for k, row in enumerate(members):
            up = place + (k - (len(members) - 1) / 2) * BAR
            panel.barh(
                up,
                row["ratio"] - 1,
                BAR * 0.9,
                left=1,
                color=COLOURS[row["work"]],
                alpha=1 if row["same_function"] else 0.4,
            )
            wins = row["ratio"] >= 1
            panel.annotate(
                f"{row['ratio']:.2f}",
                (row["ratio"], up),
                (3 if wins else -3, 0),
                textcoords="offset points",
                ha="left" if wins else "right",
                va="center",
                fontsize=6.5,
                color=INK,
            )
    for work in works:
        panel.barh(0, 0, color=COLOURS[work], label=work)
    panel.set_yticks(range(len(groups)), [f"{peer} · {case}" for case, peer in groups])
    panel.set_ylim(len(groups) - 0.4, -0.6)
    panel.set_xscale("log")
    panel.set_xlim(0.4, 16)
    ticks = (0.5, 1, 2, 4, 8, 16)
    panel.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    panel.minorticks_off()
    panel.axvline(1, color=INK, linewidth=0.8)
    panel.tick_params(labelsize=7.5, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color=PALE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_title(title, loc="left", fontsize=9.5, color=INK)
    panel.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(works),
        fontsize=7.5,
        frameon=False,
        borderaxespad=0.1,
    )


def _groups(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Rows of one case and peer together."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["peer"]), []).append(row)
    return groups
