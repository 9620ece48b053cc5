"""The loss of a run over its steps, read from `metrics.csv`."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from eqflow.errors import DataError, EmptyData
from eqflow.view.canvas import BLUE, VERMILLION, above, new_figure, plain, save

# Rows that one point of the smoothed line averages, as a fraction of all.
SMOOTHING = 0.05

Curve = list[tuple[float, float]]


def losses(
    metrics: str | Path,
    path: str | Path,
    *,
    title: str = "Loss over the training run",
    unit: str | None = None,
) -> Path:
    """Training loss (each logged step, and its running mean) and validation loss.

    Args:
        metrics: The `metrics.csv` of a run.
        path: PNG file to write.
        title: What one sees.
        unit: Of the loss, such as nats; none where not given.

    Raises:
        DataError: If there is no such file, or it has no column of steps.
        EmptyData: If it has no finite loss.
        StorageError: If the picture cannot be written.
    """
    curves = _read(Path(metrics))
    train, validation = curves["loss"], curves["val_loss"]
    if not train and not validation:
        raise EmptyData(f"{metrics}: found no finite loss, expected at least one to draw.")
    figure = new_figure(6.4, 3.8, title)
    panel = figure.subplots()
    if train:
        panel.plot(*zip(*train, strict=True), color=BLUE, alpha=0.3, linewidth=0.9, label="train")
        smooth = _running_mean(train, max(1, round(SMOOTHING * len(train))))
        panel.plot(
            *zip(*smooth, strict=True), color=BLUE, linewidth=1.8, label="train, running mean"
        )
    if validation:
        panel.plot(
            *zip(*validation, strict=True),
            color=VERMILLION,
            marker="o",
            markersize=4,
            linewidth=1.2,
            label="validation, averaged weights",
        )
    plain(panel, "step", f"loss ({unit})" if unit else "loss")
    panel.set_ylim(*_limits([value for _, value in train], [value for _, value in validation]))
    above(panel)
    return save(figure, path)


def _read(path: Path) -> dict[str, Curve]:
    """Step and value of each column of losses, where finite."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the metrics.csv of a run.")
    curves: dict[str, Curve] = {"loss": [], "val_loss": []}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "step" not in (reader.fieldnames or []):
            raise DataError(f"{path}: found no column step; expected the metrics.csv of a run.")
        for row in reader:
            for name, curve in curves.items():
                step, value = _number(row["step"]), _number(row.get(name))
                if math.isfinite(step) and math.isfinite(value):
                    curve.append((step, value))
    return curves


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _running_mean(curve: Curve, window: int) -> Curve:
    """Mean over up to `window` points on either side."""
    smooth = []
    for place, (step, _) in enumerate(curve):
        near = [value for _, value in curve[max(0, place - window) : place + window + 1]]
        smooth.append((step, sum(near) / len(near)))
    return smooth


def _limits(train: list[float], validation: list[float]) -> tuple[float, float]:
    """Room for everything but the first outliers, which would hide all that follows."""
    ordered = sorted(train)
    most = [ordered[math.floor(0.97 * (len(ordered) - 1))]] if ordered else []
    low = min(train + validation)
    high = max(most + validation)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin
