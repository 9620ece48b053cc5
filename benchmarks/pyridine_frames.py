"""The frames of pyridine, the example of the literature, drawn for `docs/averaging.md`.

    python benchmarks/pyridine_frames.py [PATH=docs/pyridine_frames.png]

Printed as well: its principal moments, with the N coordinate as it was misprinted and as corrected,
and the number of poses of each frame under O(3) and SO(3).
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch
from torch import Tensor

from eqflow.geometry import Clouds, Segments, centred
from eqflow.geometry.frames import AbstractFrame, OrbitFrame, PCAFrame, Poses, WeightedFrame
from eqflow.geometry.frames.pca import second_moments
from eqflow.nn.averaging.features import types_of
from eqflow.testing import clouds
from eqflow.view.atoms import colour_of, radius_of
from eqflow.view.canvas import BLUE, GREY, INK, ORANGE, VERMILLION, new_figure, save

MISPRINTED_N = 1.2901835
MARKED = 2  # a carbon beside the nitrogen, so that mirror images can be told apart
TURNED = 0.5  # radians, so that the molecule does not lie along its axes already
MIRRORED = "mirrored"
REACH = 2.8  # Å, half the width of a panel
FRAMES: dict[str, AbstractFrame] = {
    "pca": PCAFrame(),
    "orbit": OrbitFrame(),
    "weighted": WeightedFrame(),
}


def main(path: str = "docs/pyridine_frames.png") -> None:
    """Print moments and poses, and draw."""
    pyridine = dict(clouds())["pyridine"]
    misprinted = pyridine.x.clone()
    misprinted[3, 1] = MISPRINTED_N
    for what, x in (("corrected", pyridine.x), ("misprinted", misprinted)):
        bond = float((x[3] - x[2]).norm())
        shown = ", ".join(f"{moment:.3f}" for moment in moments(x).tolist())
        print(f"N {what:<11}C–N {bond:.3f} Å   moments {shown} Å²")
    for name in FRAMES:
        poses = [poses_of(pyridine, name, proper).count for proper in (False, True)]
        print(f"{name:<9}{poses[0]:4d} poses under O(3), {poses[1]:4d} under SO(3)")
    print(f"written: {draw(pyridine, Path(path))}")


def moments(x: Tensor) -> Tensor:
    """Principal moments `Σ x xᵀ` about the mean, the largest first, shape (3,)."""
    cloud = Segments.of_lengths(torch.tensor([len(x)]))
    found = torch.linalg.eigvalsh(second_moments(centred(x, cloud), cloud))[0]
    return found.flip(0).clamp(min=0)


def poses_of(molecule: Clouds, name: str, proper: bool) -> Poses:
    """The poses of a molecule at its centre."""
    x = centred(molecule.x, molecule.ptr)
    return FRAMES[name](x, molecule.segments, types_of(molecule.h, molecule.segments), proper)


def draw(molecule: Clouds, path: Path) -> Path:
    """The molecule with its axes, its eight principal poses, and its four orbit poses."""
    turn = torch.eye(3, dtype=torch.float64)
    cos, sin = torch.tensor(TURNED).double().cos(), torch.tensor(TURNED).double().sin()
    turn[:2, :2] = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    molecule = molecule.with_positions(centred(molecule.x, molecule.ptr) @ turn.mT)
    figure = new_figure(11, 6.2, "Pyridine, and the poses that an average over a frame puts it in")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2.1])
    panel = left.subplots()
    _axes_of(panel, molecule)
    grid = right.subplots(3, 4)
    pca = poses_of(molecule, "pca", False).rotation
    # A row for each determinant, in each the poses by how they turn the plane.
    inner = pca[:, :2, :2].flatten(1).sign()
    keys = torch.cat([-torch.linalg.det(pca).unsqueeze(1), inner[:, [1, 0]]], 1).tolist()
    for place, k in enumerate(sorted(range(len(pca)), key=keys.__getitem__)):
        _pose(grid[place // 4, place % 4], molecule, pca[k])
    orbit = poses_of(molecule, "orbit", False).rotation
    for place, k in enumerate(torch.linalg.det(orbit).argsort(descending=True).tolist()):
        _pose(grid[2, place], molecule, orbit[k])
    for row, (name, group) in enumerate(
        (("pca", "the 4 of SO(3)"), ("pca", "4 more of O(3)"), ("orbit", "2 of SO(3), 4 of O(3)"))
    ):
        grid[row, 0].set_ylabel(f"{name}: {group}", fontsize=9, color=INK)
    return save(figure, path)


def _axes_of(panel: Axes, molecule: Clouds) -> None:
    """The molecule as it was given, with its principal axes."""
    _atoms(panel, molecule.x[:, :2], molecule.numbers)
    x = molecule.x
    values, axes = torch.linalg.eigh(x.mT @ x)
    for k, colour in ((2, VERMILLION), (1, BLUE)):
        axis = axes[:2, k] * (values[k] / len(x)).sqrt() * 2.2
        for sign in (1, -1):
            arrow = FancyArrowPatch(
                (0, 0),
                tuple((sign * axis).tolist()),
                arrowstyle="-|>",
                mutation_scale=12,
                color=colour,
                lw=1.8,
                zorder=4,
            )
            panel.add_patch(arrow)
        tip = axis * (1 if axis[1] > 0 else -1)
        panel.annotate(
            f"{values[k]:.3f} Å²",
            tuple(tip.tolist()),
            (0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=colour,
            zorder=5,
        )
    panel.set_title("as given, with its principal moments", fontsize=9, color=INK)
    panel.set_xlabel(
        "One carbon is orange, so that mirror images\ncan be told apart; the third moment is 0.",
        fontsize=9,
        color=INK,
    )
    _bare(panel, 1.2 * REACH)


def _pose(panel: Axes, molecule: Clouds, rotation: Tensor) -> None:
    """The molecule in a pose, and in words how it got there."""
    _atoms(panel, (molecule.x @ rotation)[:, :2], molecule.numbers)
    is_over = float(torch.linalg.det(rotation[:2, :2])) < 0
    words = [MIRRORED] if float(torch.linalg.det(rotation)) < 0 else []
    words += ["turned over" if is_over else "turned"]
    panel.set_title(", ".join(words), fontsize=8, color=INK, pad=2)
    _bare(panel, REACH)


def _atoms(panel: Axes, x: Tensor, numbers: Tensor | None) -> None:
    """Circles and bonds of atoms at (n, 2); the marked one has a ring."""
    assert numbers is not None
    places, kinds = x.tolist(), numbers.tolist()
    for i, j in combinations(range(len(places)), 2):
        bonded = 1.25 * (radius_of(kinds[i]) + radius_of(kinds[j]))
        if float((x[i] - x[j]).norm()) < bonded:
            ends = zip(places[i], places[j], strict=True)
            panel.plot(*ends, color=GREY, lw=1.6, zorder=1, solid_capstyle="round")
    for place, (at, kind) in enumerate(zip(places, kinds, strict=True)):
        marked = place == MARKED
        style: dict[str, Any] = {"fc": ORANGE if marked else colour_of(kind), "ec": INK, "lw": 0.6}
        panel.add_patch(Circle(at, 0.42 * radius_of(kind) + 0.1, zorder=3, **style))


def _bare(panel: Axes, reach: float) -> None:
    panel.set_xlim(-reach, reach)
    panel.set_ylim(-reach, reach)
    panel.set_aspect("equal")
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
