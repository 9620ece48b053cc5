"""Whether positions look as if they were in another unit than Å.

No file format says its unit, and nothing else goes wrong where it is another: a flow learns
molecules in bohr as well as in Å, but bonds are then perceived where there are none. In Å, nearest
atoms are about as far apart as their covalent radii add up to; the ratio, the median over atoms, is
0.1 in nanometres, 1.9 in bohr and 100 in picometres. Noble gases are left out: they are twice as
far apart as their radii say.

Reference: Covalent radii revisited (Cordero et al., 2008), doi:10.1039/b801115j; in ASE's table.
"""

from __future__ import annotations

import numpy as np

from eqflow.geometry.clouds import Clouds

# Range of the ratio, the unit it tells, and Å in one of it.
TELLING = (
    (0.06, 0.16, "nanometres", "10"),
    (1.6, 2.3, "bohr", "0.529177"),
    (60.0, 160.0, "picometres", "0.01"),
)
LEAST, MOST = 0.5, 10.0
NOBLE = (2, 10, 18, 36, 54, 86, 118)
# Structures and atoms of a structure that are looked at.
STRUCTURES, POINTS = 200, 500


def unit_doubt(clouds: Clouds) -> str:
    """A line where the distances of atoms are not those of atoms in Å; empty where they are.

    Args:
        clouds: Structures; those without elements tell nothing.

    >>> import torch
    >>> pair = torch.tensor([[0.0, 0, 0], [0, 0, 0.074]])
    >>> unit_doubt(Clouds(pair, torch.tensor([0, 2]), torch.tensor([1, 1])))[:57]
    'the nearest other atom is at 0.074 (median), 0.12 times a'
    """
    found = _nearest(clouds)
    if not len(found):
        return ""
    ratio, distance = np.median(found, 0).tolist()
    if LEAST <= ratio < TELLING[1][0]:
        return ""
    near = f"the nearest other atom is at {distance:.2g} (median), {ratio:.2g} times a bond in Å"
    for low, high, unit, factor in TELLING:
        if low <= ratio <= high:
            return f"{near}: are these {unit}? Positions are taken as Å; multiply them by {factor}"
    if ratio < LEAST or ratio > MOST:
        return f"{near}: is the unit another than Å, or are they scaled?"
    return ""


def charge_doubt(clouds: Clouds) -> str:
    """A line where only some structures can have said which charges their atoms have."""
    if clouds.charges is None or clouds.source is None:
        return ""
    plain = sum(source.rpartition(":")[0].endswith(".xyz") for source in clouds.source)
    if not plain:
        return ""
    return (
        f"{plain:,} structures are of .xyz files, which hold no formal charges: their atoms are "
        "taken for neutral, beside others whose charges are stated. Write them as .extxyz or .sdf"
    )


def _nearest(clouds: Clouds) -> np.ndarray:
    """Of each atom the least ratio of a distance to a sum of radii, and that distance, (n, 2)."""
    if clouds.numbers is None:
        return np.zeros((0, 2))
    from ase.data import covalent_radii

    found = []
    for cloud in clouds[: min(STRUCTURES, len(clouds))]:
        numbers = np.zeros(0, int) if cloud.numbers is None else cloud.numbers.cpu().numpy()
        known = np.flatnonzero((numbers > 0) & ~np.isin(numbers, NOBLE))[:POINTS]
        if len(known) < 2:
            continue
        x, radii = cloud.x.detach().cpu().double().numpy()[known], covalent_radii[numbers[known]]
        distance = np.linalg.norm(x[:, None] - x[None], axis=2)
        ratio = distance / (radii[:, None] + radii[None])
        np.fill_diagonal(ratio, np.inf)
        nearest = ratio.argmin(1)
        rows = np.arange(len(known))
        found.append(np.stack([ratio[rows, nearest], distance[rows, nearest]], 1))
    return np.concatenate(found) if found else np.zeros((0, 2))
