r"""`MaskedMolecularFlow`: whole molecules whose types of atoms are revealed as positions flow.

Positions follow the ODE of the continuous flow and types of atoms the jump process of `Masking`,
both from noise at `t = 1` to data at `t = 0`, in turns (`revealing`). How likely a molecule is has
no formula that can be computed: there is no score.

Reference: Generative Flows on Discrete State-Spaces: Enabling Multimodal Flows with Applications to
Protein Co-Design (Campbell et al., 2024), arXiv:2402.04997, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.atom_types import AtomTypes
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.groups import groups
from eqflow.flows.inpainting import Fixed
from eqflow.flows.masking import Masking
from eqflow.flows.objectives import Batch
from eqflow.flows.ode import Solver
from eqflow.flows.properties import Asked, Properties
from eqflow.flows.results import Drawn
from eqflow.flows.revealing import revealed
from eqflow.flows.sizes import Sizes
from eqflow.flows.trace import AbstractDivergence
from eqflow.flows.whole_molecules import AbstractMolecularFlow
from eqflow.geometry import Clouds, Segments, centred
from eqflow.nn import AbstractMaskedField

NO_LIKELIHOOD = (
    "score: found a model whose atoms are masked and revealed (model=masked_egnn), which has no "
    "log-likelihood that can be computed. Train model=categorical_egnn or joint_egnn for whole "
    "molecules, or egnn for positions given the elements."
)
NOTHING_FIXED = (
    "fixed: found a model whose atoms are masked and revealed (model=masked_egnn), which grows "
    "nothing around a fragment. Use a run of model=categorical_egnn, joint_egnn or egnn."
)


class MaskedMolecularFlow(AbstractMolecularFlow):
    """A model of molecules that can be drawn but not scored.

    Args:
        continuous: The flow of positions in standardised units; its field predicts types.
        sizes: How many atoms there are.
        elements: Atomic number of each type of atoms, rising.
        scale: Length that one unit of the flow stands for, in the unit of the data.
        dimension: Number of coordinates of an atom.
        solver: How positions are integrated; `solver.steps` is the number T of stretches after
            which types are revealed, each one step of a fixed-step method.
        charges: Formal charge of each type, see `AtomTypes`.
        properties: What molecules are conditioned on, or None.

    Raises:
        UsageError: If the parts do not fit each other.
    """

    def __init__(
        self,
        continuous: ContinuousFlow,
        sizes: Sizes,
        elements: Sequence[int],
        scale: float = 1.0,
        dimension: int = 3,
        solver: Solver | None = None,
        charges: Sequence[int] | None = None,
        properties: Properties | None = None,
    ) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise UsageError(f"MaskedMolecularFlow: found scale {scale}, expected positive.")
        self.types = AtomTypes(tuple(elements), None if charges is None else tuple(charges))
        field = continuous.field
        found = field.categories if isinstance(field, AbstractMaskedField) else None
        if found != len(self.types):
            raise UsageError(
                f"MaskedMolecularFlow: found a field that predicts {found or 'no'} categories, "
                f"expected one a type of atoms, {len(self.types)}."
            )
        self.continuous = continuous
        self.sizes = sizes
        self.elements = self.types.elements
        self.scale = scale
        self.dimension = dimension
        self.solver = Solver() if solver is None else solver
        self.properties = properties

    def encode(self, clouds: Clouds) -> Batch:
        """Molecules as the flow takes them; `kinds` are types, `context` has the properties alone.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an atom is not of one of the model's types, or there are no elements.
        """
        x, segments = self._positions(clouds)
        kinds = self.types.kinds(clouds).to(x.device)
        return Batch(x / self.scale, segments, self._context(clouds, segments, x), kinds=kinds)

    def batch(self, clouds: Clouds, source: torch.Generator) -> Batch:
        """What a training step takes, as `encode` makes it; nothing is drawn."""
        return self.encode(clouds)

    def score(
        self,
        clouds: Clouds,
        *,
        divergence: AbstractDivergence | str = "exact",
        seed: int = 0,
        solver: Solver | None = None,
        fallback: bool = True,
        check_convergence: bool = False,
    ) -> NoReturn:
        """There is none.

        Raises:
            UsageError: Always; it says which models have one.
        """
        raise UsageError(NO_LIKELIHOOD)

    @torch.no_grad()
    def draw(
        self,
        count: int,
        *,
        seed: int = 0,
        sizes: int | Sequence[int] | None = None,
        properties: Asked | None = None,
        guidance: float = 1.0,
        fixed: Clouds | Fixed | None = None,
        solver: Solver | None = None,
        fallback: bool = True,
        temperature: float = 1.0,
        remasking: float = 0.0,
    ) -> Drawn:
        """Draw molecules; one whose integration failed is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes, properties: As in `AbstractFlow`.
            guidance: As in `AbstractFlow`; logits of types are weighted as velocities are.
            fixed: Nothing can be.
            solver: How to integrate, and how often types are revealed; the flow's own where None.
            fallback: As in `AbstractFlow`, on each stretch between two times.
            temperature, remasking: As in `Masking`.

        Raises:
            UsageError: If there is nothing to draw, or options do not fit the flow.
        """
        if fixed is not None:
            raise UsageError(NOTHING_FIXED)
        asked, continuous = self.conditions(count, properties, guidance)
        path = Masking(len(self.types), temperature, remasking)
        template = self._template(count, seed, sizes, asked, None)
        like = next(self.parameters())
        parts = []
        for start, group in groups(template):
            clouds = Segments(group.ptr.to(like.device))
            source = rng.generator(seed, "sample", "noise", start, device=like.device)
            z = continuous.base.sample(clouds, self.dimension, like, source)
            there, kinds = revealed(
                continuous,
                z,
                clouds,
                self._context(group, clouds, like),
                path=path,
                solver=solver or self.solver,
                seed=rng.derived_seed(seed, "sample", "types", start),
                fallback=fallback,
            )
            x = centred(there.x, clouds).cpu() * self.scale
            molecules = self._filled(group, x, kinds)
            parts.append(Drawn(molecules, None, **there.ending()))
        return Drawn.join(parts)
