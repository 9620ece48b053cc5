"""How far corrupted structures score below the real ones: a row for each corruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from eqflow.errors import EmptyData
from eqflow.view.canvas import BLUE, GREY, INK, PALE, finite, new_figure, plain, save

# Between these the axis is linear, beyond them logarithmic: differences span decades of nats.
LINEAR_NATS = 1.0


def corruptions(
    differences: Mapping[str, Tensor],
    path: str | Path,
    *,
    notes: Mapping[str, str] | None = None,
    title: str = "Scores of corrupted structures against the same ones as they are",
) -> Path:
    """Quantiles of `log p(corrupted) − log p(real)` of each corruption.

    A thin bar spans 5 to 95 % of structures, a thick one 25 to 75 %, a dot is the median.

    Args:
        differences: In nats, shape (B,) each, by the name of the corruption.
        path: PNG file to write.
        notes: What stands at the end of a row, such as its AUROC.
        title: What one sees.

    Raises:
        EmptyData: If no corruption has a finite difference.
        StorageError: If the file cannot be written.
    """
    shown = {name: each for name, each in differences.items() if each.isfinite().any()}
    if not shown:
        raise EmptyData(f"{path}: found no finite differences of scores, expected some to draw.")
    figure = new_figure(7.2, 1.2 + 0.34 * len(shown), title)
    panel = figure.subplots()
    plain(panel, "log p(corrupted) − log p(real)  (nats)", "")
    panel.set_xscale("symlog", linthresh=LINEAR_NATS)
    panel.axvline(0, color=GREY, linewidth=1)
    for row, (name, values) in enumerate(shown.items()):
        known = finite(values, path, name)
        at = torch.quantile(known, known.new_tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
        panel.plot([at[0], at[4]], [row, row], color=BLUE, linewidth=1.2)
        panel.plot([at[1], at[3]], [row, row], color=BLUE, linewidth=5, solid_capstyle="butt")
        panel.plot(at[2], row, "o", color=INK, markersize=4)
        note = (notes or {}).get(name, "")
        panel.annotate(
            note, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    panel.set_yticks(range(len(shown)), list(shown))
    panel.set_ylim(len(shown) - 0.5, -0.5)
    panel.grid(axis="x", color=PALE, linewidth=0.6)
    panel.grid(axis="y", visible=False)
    return save(figure, path)
