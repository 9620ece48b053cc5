r"""Structures grown around atoms that are given.

On the way from noise to data the flow is stopped at `T + 1` times from 1 to 0. At each the rows of
the fixed atoms, as the flow has carried them, are replaced by a draw of the straight path that ends
where they are given, :math:`(1 - t)\, x_0 + t\, z`, and the flow carries all rows on together. What
is given is the place of the fixed atoms to each other: their centre stays where the flow has it, so
that the mean of a state stays zero and the others find their place relative to it.

The others so know of noisy fixed atoms only, which is why this is approximate: at a time `t` they
have come from states in which they fitted another draw. To let them settle, a stretch from `t` to
`s < t` may be travelled several times, going back up in noise in between by

.. math::
    x_t = \alpha x_s + \sqrt{t^2 - \alpha^2 s^2}\; z, \qquad \alpha = \frac{1 - t}{1 - s},

which takes the law of the path at `s` to that at `t`. Both this and the replaced rows have noise
that is independent of the structure: models trained with `objective.coupling=independent` know such
states, while with equivariant OT, the default, states half way are larger, a further error that
rounds repeat. With more rounds draws of a model of independent
noise come closer to the conditional density; they do not become exact. The bias is largest for what
the free atoms decide early and together, where they outvote the noisy fixed ones, such as how many
are of an element.

Reference: RePaint: Inpainting using Denoising Diffusion Probabilistic Models (Lugmayr et al.,
2022), arXiv:2201.09865, algorithm 1, for discrete diffusion; here for straight paths and an ODE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from eqflow.errors import EmptyData, UsageError
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow, Transport
from eqflow.flows.fallback import carry
from eqflow.flows.ode import Solver
from eqflow.flows.results import travelled
from eqflow.geometry import Clouds, Segments, split_state

# How a stretch is integrated unless a call says otherwise: there are many, and they are short.
STRETCH = Solver(method="heun", steps=1)


@dataclass(frozen=True)
class Fixed:
    """Atoms that every structure has, and how the rest is grown around them.

    Attributes:
        fragment: One structure, in the unit of the data.
        times: Number T of stretches between noise and data.
        rounds: How often each stretch is travelled again; each costs as much as the first time.

    Raises:
        EmptyData: If there is no atom.
        UsageError: If there are several structures, or a number is out of range.
    """

    fragment: Clouds
    times: int = 50
    rounds: int = 4

    def __post_init__(self) -> None:
        if not len(self.fragment.x):
            raise EmptyData("fixed: found no atoms, expected at least 1.")
        if len(self.fragment) != 1:
            raise UsageError(
                f"fixed: found {len(self.fragment)} structures, expected one fragment. Give one of "
                "them alone."
            )
        if self.times < 1 or self.rounds < 0:
            raise UsageError(
                f"fixed: found times={self.times} and rounds={self.rounds}, expected at least 1 "
                "and 0."
            )

    def __len__(self) -> int:
        return len(self.fragment.x)

    @classmethod
    def of(cls, fixed: Clouds | Fixed) -> Fixed:
        """A bare fragment with the defaults."""
        return fixed if isinstance(fixed, Fixed) else cls(fixed)

    def repeated(self, count: int) -> Clouds:
        """The fragment, `count` times."""
        return self.fragment[[0] * count]

    def leading(self, template: Clouds) -> Clouds:
        """Structures with their points in such an order that those of the fragment come first.

        Raises:
            UsageError: If a structure does not have them.
        """
        if int(template.sizes.min()) < len(self):
            raise UsageError(
                f"fixed: found a structure of {int(template.sizes.min())} points, expected the "
                f"{len(self)} fixed ones among them. Ask for larger structures."
            )
        if template.numbers is None or self.fragment.numbers is None:
            return template
        first = self.fragment.numbers.tolist()
        numbers = []
        for structure in template.numbers.split(template.sizes.tolist()):
            rest = Counter(structure.tolist())
            rest.subtract(first)
            if lacking := [str(number) for number, count in rest.items() if count < 0]:
                raise UsageError(
                    f"fixed: found fixed atoms of atomic number {', '.join(lacking)} that a "
                    "structure to be drawn does not have; expected its numbers to contain theirs."
                )
            numbers += [*first, *rest.elements()]
        return replace(template, numbers=torch.tensor(numbers))

    def within(self, clouds: Segments) -> Tensor:
        """Which rows of structures are those of the fragment, the first of each, shape (N,)."""
        return clouds.place < len(self)

    def in_place(self, x: Tensor, clouds: Segments) -> Tensor:
        """Structures moved so that their fixed atoms are where they were given, bit for bit.

        Args:
            x: Positions in the unit of the data, shape (N, d), the fixed atoms first.
            clouds: Atoms of each structure.

        Returns:
            Shape (N, d), with the dtype of the fragment.
        """
        is_fixed, given = self.within(clouds), self.repeated(clouds.count)
        x = x.to(given.x.dtype)
        shift = given.segments.mean(given.x - x[is_fixed])
        moved = x + clouds.expand(shift)
        moved[is_fixed] = torch.where(moved[is_fixed].isnan(), moved[is_fixed], given.x)
        return moved


@torch.no_grad()
def inpaint(
    flow: ContinuousFlow,
    known: Tensor,
    is_fixed: Tensor,
    clouds: Segments,
    context: Tensor | None,
    noise: Callable[[], Tensor],
    fixed: Fixed,
    solver: Solver | None = None,
    fallback: bool = True,
) -> Transport:
    """Carry noise to states whose fixed rows are as given, but for where their centre is.

    Args:
        flow: The flow in standardised units.
        known: State of the fixed rows at `t = 0`, shape (F, d + K), in standardised units.
        is_fixed: Which rows they are, shape (N,), bool.
        clouds: Rows of each structure, of which at least one is fixed.
        context: Fixed node features, shape (N, C), or None.
        noise: Gives a fresh draw of the base density, shape (N, d + K), at each call.
        fixed: How many times and rounds.
        solver: How to integrate over a stretch; `STRETCH` where None.
        fallback: Whether other solvers are tried on a stretch where it fails.
    """
    features = flow.field.state_features
    of_fixed = Segments.of_lengths(clouds.sum(is_fixed.long()))

    def clamped(x: Tensor, t: float) -> Tensor:
        path = (1 - t) * known + t * noise()[is_fixed]
        there, _ = split_state(x[is_fixed], features)
        here, rest = split_state(path, features)
        here = here + of_fixed.expand(of_fixed.mean(there - here))
        x = x.clone()
        x[is_fixed] = torch.cat([here, rest], -1)
        return x

    times = torch.linspace(LATENT, DATA, fixed.times + 1, dtype=torch.float64).tolist()
    x = noise()
    so_far: dict[str, Any] | None = None
    for t, s in pairwise(times):
        for again in range(fixed.rounds + 1):
            if again:
                alpha = (1 - t) / (1 - s)
                x = alpha * x + (t**2 - (alpha * s) ** 2) ** 0.5 * noise()
            there = carry(
                flow,
                clamped(x, t),
                clouds,
                context,
                start=t,
                end=s,
                solver=solver or STRETCH,
                fallback=fallback,
            )
            x = there.x
            so_far = travelled(so_far, there)
    return replace(there, x=clamped(x, DATA), **(so_far or {}))
