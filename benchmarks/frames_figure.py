"""The two pictures of `frames.json`: slopes where an eigenvalue gap closes, and jumps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from eqflow.view.canvas import BLUE, GREEN, GREY, INK, PALE, VERMILLION, new_figure, save

STYLES: dict[str, dict[str, Any]] = {
    "pca": {"color": VERMILLION, "marker": "o"},
    "orbit": {"color": BLUE, "marker": "s"},
    "weighted": {"color": GREEN, "marker": "D"},
}
SUBJECTS = {
    "generic": "a generic cloud, two moments brought together",
    "benzene": "benzene, squeezed along a direction in its plane",
}


def draw_gradients(results: Mapping[str, Any], path: Path) -> Path:
    """`‖∇ vᵀJv‖` over the gap, a panel a cloud.

    Args:
        results: `gradients` of `frames.json`.
        path: PNG file to write.
    """
    figure = new_figure(9, 3.9, "Gradient of vᵀJv of a frame average as two moments become equal")
    panels = figure.subplots(1, len(SUBJECTS), sharey=True)
    for panel, (name, title) in zip(panels, SUBJECTS.items(), strict=True):
        for frame, style in STYLES.items():
            norms = results[name][frame]["norms"]
            panel.plot(results["gaps"], norms, label=frame, lw=1.4, markersize=3, **style)
        place = 8
        near, norm = results["gaps"][place], results[name]["pca"]["norms"][place]
        gaps = [1e-6, 1e-3]
        guide = [8 * norm * (near / gap) ** 2 for gap in gaps]
        panel.plot(gaps, guide, color=GREY, lw=1, ls="--")
        panel.annotate(
            "1 / gap²",
            (1e-5, guide[0] / 100),
            (-8, 2),
            textcoords="offset points",
            color=GREY,
            fontsize=9,
            ha="right",
        )
        panel.set_title(title, loc="left", fontsize=9, color=INK)
        _plain(panel, "gap (λ₁ − λ₂) / λ₁")
        panel.invert_xaxis()
    panels[0].set_ylabel("‖∇ vᵀJv‖", fontsize=9, color=INK)
    _legend(figure, panels[0])
    return save(figure, path)


def draw_jumps(results: Mapping[str, Any], path: Path) -> Path:
    """Change of the output over the size of a perturbation, a panel a cloud.

    Args:
        results: `jumps` of `frames.json`.
        path: PNG file to write.
    """
    title = "How far a frame average moves when a cloud is perturbed by a part of its width"
    figure = new_figure(11, 3.6, title)
    panels = figure.subplots(1, len(results), sharey=True)
    for panel, (name, by_frame) in zip(panels, results.items(), strict=True):
        for frame, style in STYLES.items():
            seen = by_frame[frame]
            panel.plot(seen["sizes"], seen["changes"], label=frame, lw=1.4, markersize=3.5, **style)
        panel.set_title(name, loc="left", fontsize=9, color=INK)
        _plain(panel, "size of the perturbation")
    panels[0].set_ylabel("largest change of the output, relative", fontsize=9, color=INK)
    _legend(figure, panels[0])
    return save(figure, path)


def _legend(figure: Any, panel: Axes) -> None:
    handles, names = panel.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), fontsize=9, frameon=False
    )


def _plain(panel: Axes, across: str) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel(across, fontsize=9, color=INK)
    panel.tick_params(labelsize=8, colors=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=PALE, linewidth=0.6)
    panel.set_axisbelow(True)
