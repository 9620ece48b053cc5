r"""Distances within structures: of all pairs of points, and along bonds per pair of elements.

Two atoms count as bonded where :math:`d_{ij} < 1.3 \, (r_i + r_j)`, with `r` the covalent radii: a
rule of geometry alone, the same for drawn structures and data.

Reference: Covalent radii revisited (Cordero et al., 2008), doi:10.1039/b801115j.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from eqflow.chem.elements import symbol
from eqflow.errors import EmptyData, UnknownElement, UsageError
from eqflow.geometry import Clouds

# A bond may be this much longer than the sum of its covalent radii.
BOND_FACTOR = 1.3


def pairs(clouds: Clouds) -> Tensor:
    """Every pair of different points of each cloud once, rows of `clouds.x`, shape (P, 2).

    >>> pairs(Clouds(torch.zeros(5, 3), torch.tensor([0, 2, 5]))).tolist()
    [[0, 1], [2, 3], [2, 4], [3, 4]]
    """
    segments = clouds.segments
    # Point `i` pairs with the points of its cloud that come after it.
    after = segments.expand(segments.ptr[1:]) - 1 - torch.arange(segments.rows)
    first = torch.arange(segments.rows).repeat_interleave(after)
    start = torch.cumsum(after, 0) - after
    second = first + 1 + torch.arange(len(first)) - start[first]
    return torch.stack([first, second], 1)


def pair_distances(clouds: Clouds) -> Tensor:
    """Distance of every pair of points within each cloud, in the unit of the data, shape (P,).

    Raises:
        EmptyData: If no cloud has two points.
    """
    found = _distances(clouds, pairs(clouds))
    if not found.numel():
        raise EmptyData(
            f"pair_distances: found {len(clouds)} structures without a single pair of points; "
            "expected one of at least two points."
        )
    return found


def bonded_pairs(clouds: Clouds, factor: float = BOND_FACTOR) -> Tensor:
    """Pairs of atoms nearer than `factor` times the sum of their covalent radii, shape (P, 2).

    Args:
        clouds: Molecules, positions in Å.
        factor: How much longer than the sum of the radii a bond may be.

    Raises:
        UnknownElement: If the clouds have no elements, or a point has none.
        UsageError: If `factor` is not positive.
    """
    if not factor > 0:
        raise UsageError(f"bonds: found factor={factor}, expected above 0.")
    if clouds.numbers is None or (clouds.numbers < 1).any():
        raise UnknownElement("bonds: found points without an element; expected atoms only.")
    every = pairs(clouds)
    reach = _covalent_radii().to(clouds.x)[clouds.numbers][every].sum(1)
    return every[_distances(clouds, every) < factor * reach]


def bond_lengths(clouds: Clouds, factor: float = BOND_FACTOR) -> dict[str, Tensor]:
    """Lengths in Å of all bonds by pair of elements, the most frequent pair first.

    Args:
        clouds: Molecules, positions in Å.
        factor: How much longer than the sum of the radii a bond may be.

    Raises:
        UnknownElement: If the clouds have no elements.

    >>> water = Clouds(
    ...     torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]),
    ...     torch.tensor([0, 3]),
    ...     torch.tensor([8, 1, 1]),
    ... )
    >>> {pair: len(lengths) for pair, lengths in bond_lengths(water).items()}
    {'O–H': 2}
    """
    bonded = bonded_pairs(clouds, factor)
    lengths = _distances(clouds, bonded)
    if clouds.numbers is None or not len(bonded):
        return {}
    kinds, kind = clouds.numbers[bonded].sort(1).values.unique(dim=0, return_inverse=True)
    by_pair = {_name(a, b): lengths[kind == place] for place, (a, b) in enumerate(kinds.tolist())}
    return dict(sorted(by_pair.items(), key=lambda item: -len(item[1])))


def wasserstein(first: Tensor, second: Tensor) -> float:
    r"""Wasserstein-1 distance of two sets of numbers, :math:`\int |F_1 - F_2|`, in their unit.

    Args:
        first, second: Values, shapes (A,) and (B,).

    Raises:
        EmptyData: If one of them is empty.

    >>> wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([3.0]))
    2.5
    """
    if not (first.numel() and second.numel()):
        raise EmptyData(
            f"wasserstein: found {first.numel()} and {second.numel()} values, "
            "expected some of each."
        )
    from scipy.stats import wasserstein_distance  # slow to import

    one, other = (values.detach().double().cpu().numpy() for values in (first, second))
    return float(wasserstein_distance(one, other))


def _distances(clouds: Clouds, between: Tensor) -> Tensor:
    return (clouds.x[between[:, 0]] - clouds.x[between[:, 1]]).norm(dim=1)


def _name(first: int, second: int) -> str:
    """`C–H`, `O–H`: hydrogen last, the rest by symbol."""
    names = [symbol(number) for number in (first, second)]
    return "–".join(sorted(names, key=lambda name: (name == "H", name)))


@cache
def _covalent_radii() -> Tensor:
    """Covalent radius of each atomic number in Å; 0.2 where none is known."""
    from ase.data import covalent_radii

    return torch.tensor(covalent_radii, dtype=torch.float64)
