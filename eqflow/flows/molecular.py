r"""`MolecularFlow`: a density over whole molecules: their size, what atoms they have and where.

Labels of atoms become continuous features `v ~ q(v | labels, x)` beside the positions, and

.. math::
    \log p(\text{molecule}) \ge \mathbb E_q \Big[ \log p(n) + \log p_Z(z)
    + \int \mathrm{tr} J \, dt + \log \Big| \frac{\partial z_0}{\partial (x, v)} \Big| - \log q(v)
    \Big]

with `z_0` the state that `ActNorm` makes of `(x, v)` and `z` where the flow carries it. It is in
nats, of `n` ordered atoms, with positions in the unit of the data on the zero-mean subspace.
Where the flow knows properties, all but `p(n)` is given those that a molecule has.

References: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016, section 5;
Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519, eq. 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UsageError
from eqflow.flows.actnorm import ActNorm
from eqflow.flows.atom_types import INTEGER_FEATURES, AtomTypes
from eqflow.flows.bounds import TERMS, Bound, BoundScores, DrawnMolecules
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow, Transport
from eqflow.flows.convergence import checked
from eqflow.flows.dequantisation import AbstractDequantiser
from eqflow.flows.divergence import divergence_by_name
from eqflow.flows.fallback import carry
from eqflow.flows.groups import groups
from eqflow.flows.inpainting import Fixed, inpaint
from eqflow.flows.joint_states import AbstractJointFlow, Molecules
from eqflow.flows.ode import Solver
from eqflow.flows.properties import Asked, Properties
from eqflow.flows.results import joined_endings
from eqflow.flows.sizes import Sizes
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Clouds, Segments, centred

DRAWS = 8


class MolecularFlow(AbstractJointFlow):
    """A joint density over size, labels and positions.

    Args:
        continuous: The flow of states in standardised units.
        dequantiser: How labels become features.
        actnorm: Standardisation of positions and features.
        sizes: How many atoms there are.
        elements: Atomic number of each category of atoms, rising.
        integer_features: What the integers of an atom are, names of `INTEGER_FEATURES`.
        dimension: Number of coordinates of an atom.
        solver: How to integrate unless a call says otherwise.
        published_actnorm: See `ActNorm.log_det`; what scores count unless a call says otherwise.
        charges: Formal charge of each category, see `AtomTypes`; None where categories are elements
            alone.
        properties: What molecules are conditioned on, or None.

    Raises:
        UsageError: If the parts do not fit each other.
    """

    def __init__(
        self,
        continuous: ContinuousFlow,
        dequantiser: AbstractDequantiser,
        actnorm: ActNorm,
        sizes: Sizes,
        elements: Sequence[int],
        integer_features: Sequence[str] = (),
        dimension: int = 3,
        solver: Solver | None = None,
        published_actnorm: bool = False,
        charges: Sequence[int] | None = None,
        properties: Properties | None = None,
    ) -> None:
        super().__init__()
        widths = continuous.field.state_features, actnorm.features, dequantiser.width
        if len(set(widths)) > 1:
            raise UsageError(
                f"MolecularFlow: found {widths} features of field, actnorm and dequantiser, "
                "expected the same number."
            )
        labels = dequantiser.kinds, dequantiser.integers
        if labels != (len(elements), len(integer_features)):
            raise UsageError(
                f"MolecularFlow: found a dequantiser of {labels} categories and integers, expected "
                f"{(len(elements), len(integer_features))}, one an element and integer feature."
            )
        if unknown := sorted(set(integer_features) - set(INTEGER_FEATURES)):
            raise UsageError(
                f"MolecularFlow: found integer features {unknown}, expected some of "
                f"{', '.join(INTEGER_FEATURES)}."
            )
        self.continuous = continuous
        self.dequantiser = dequantiser
        self.actnorm = actnorm
        self.sizes = sizes
        self.types = AtomTypes(tuple(elements), None if charges is None else tuple(charges))
        self.elements = self.types.elements
        self.integer_features = tuple(integer_features)
        self.dimension = dimension
        self.solver = Solver() if solver is None else solver
        self.published_actnorm = published_actnorm
        self.properties = properties

    def bound(
        self,
        molecules: Molecules,
        noise: Tensor,
        *,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
        source: torch.Generator | None = None,
        published_actnorm: bool | None = None,
        fallback: bool = True,
    ) -> Bound:
        """The bound on the log-likelihood for one draw of features, with its terms.

        Args:
            molecules: As `encode` gives them.
            noise: What the features are made of, as `dequantiser.noise` draws it.
            divergence: "exact", "hutchinson", or a configured estimator.
            solver: How to integrate; the flow's own where None.
            source: Where probes of an estimator come from.
            published_actnorm: See `ActNorm.log_det`; the flow's own where None.
            fallback: As in `AbstractFlow`; nothing is tried where gradients are enabled.
        """
        clouds = molecules.clouds
        published = self.published_actnorm if published_actnorm is None else published_actnorm
        state, log_q = self.state(molecules, noise)
        there = carry(
            self.continuous,
            self.actnorm(state),
            clouds,
            molecules.context,
            start=DATA,
            end=LATENT,
            solver=solver or self.solver,
            divergence=divergence_by_name(divergence),
            source=source,
            fallback=fallback,
        )
        # The centre drifts by rounding only, and belongs to no degree of freedom.
        z = centred(there.x, clouds, self.actnorm.features)
        terms = (
            self.sizes.log_prob(clouds.lengths).to(z.dtype),
            self.continuous.base.log_prob(z, clouds),
            there.log_det.mean(1),
            self.actnorm.log_det(clouds, self.dimension, published=published),
            -log_q,
        )
        return Bound(dict(zip(TERMS, terms, strict=True)), there.x, **there.ending())

    def structure(
        self,
        z: Tensor,
        clouds: Segments,
        solver: Solver | None = None,
        context: Tensor | None = None,
        continuous: ContinuousFlow | None = None,
        fallback: bool = True,
    ) -> Transport:
        """Carry latent states to positions and features in the data's units, (N, d + K) both."""
        there = carry(
            continuous or self.continuous,
            z,
            clouds,
            context,
            start=LATENT,
            end=DATA,
            solver=solver or self.solver,
            fallback=fallback,
        )
        return replace(there, x=self.actnorm.inverse(there.x))

    def score(
        self,
        clouds: Clouds,
        *,
        draws: int = DRAWS,
        divergence: AbstractDivergence | str = "exact",
        seed: int = 0,
        solver: Solver | None = None,
        published_actnorm: bool | None = None,
        fallback: bool = True,
        check_convergence: bool = False,
    ) -> BoundScores:
        """A lower bound on the log-likelihood of each molecule, with its terms and spread.

        It is that given the properties which the molecules have, of those that the flow knows; the
        probability of a size is not. A molecule whose size has probability 0 gets −∞ without being
        integrated.

        Args:
            clouds: Molecules in the unit of the data; where they are does not matter.
            draws: Features drawn for each molecule. With the exact trace they are weighted by
                importance, which tightens the bound; an estimated trace would be rewarded for its
                noise, so there the plain mean is taken.
            divergence: "exact", "hutchinson", or a configured estimator.
            seed: Features and probes are a function of it and a molecule's place.
            solver: How to integrate; the flow's own where None.
            published_actnorm: See `ActNorm.log_det`; the flow's own where None.
            fallback, check_convergence: As in `AbstractFlow`; a molecule's change is that of its
                bound, with the same draws.

        Raises:
            UsageError: If there is no draw.
        """
        if draws < 1:
            raise UsageError(f"score: found draws = {draws}, expected at least 1.")
        method = divergence_by_name(divergence)

        def by(solver: Solver) -> BoundScores:
            return self._score(clouds, draws, method, seed, solver, published_actnorm, fallback)

        asked = solver or self.solver
        dtype = next(self.parameters()).dtype
        return checked(by, asked, dtype) if check_convergence else by(asked)

    @torch.no_grad()
    def _score(
        self,
        clouds: Clouds,
        draws: int,
        method: AbstractDivergence,
        seed: int,
        solver: Solver,
        published_actnorm: bool | None,
        fallback: bool,
    ) -> BoundScores:
        possible = self.sizes.log_prob(clouds.sizes.cpu()).isfinite().nonzero().squeeze(1)
        repeated = clouds[possible.repeat_interleave(draws)]
        which = list(product(possible.tolist(), range(draws)))
        parts = []
        for start, group in groups(repeated) if len(possible) else ():
            molecules = self.encode(group)
            parts.append(
                self.bound(
                    molecules,
                    self._noise(molecules, which[start : start + len(group)], seed),
                    divergence=method,
                    solver=solver,
                    source=rng.generator(seed, "score", start, device=molecules.x.device),
                    published_actnorm=published_actnorm,
                    fallback=fallback,
                )
            )
        none = next(self.parameters()).detach().new_zeros(0)
        scores = BoundScores.of_draws(
            {
                name: torch.cat([none, *(part.terms[name] for part in parts)]).view(-1, draws).cpu()
                for name in TERMS
            },
            joined_endings(parts),
            weighted=method.is_exact,
        )
        return scores if len(possible) == len(clouds) else scores.among(possible, len(clouds))

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
    ) -> DrawnMolecules:
        """Draw molecules; one whose integration failed is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes: Number of atoms of all, or of each, those that are fixed among them; by the
                training frequencies where None.
            properties, guidance, fixed, solver, fallback: As in `AbstractFlow`.

        Raises:
            UsageError: If there is nothing to draw, or sizes, properties or atoms do not fit.
            UnknownElement: If a fixed atom is not of one of the model's types.
        """
        asked, continuous = self.conditions(count, properties, guidance)
        given = None if fixed is None else Fixed.of(fixed)
        template = self._template(count, seed, sizes, asked, given)
        like = next(self.parameters())
        parts = []
        for start, group in groups(template):
            clouds = Segments(group.ptr.to(like.device))
            context = self._context(group, clouds, like)
            source = rng.generator(seed, "sample", "noise", start, device=like.device)
            noise = partial(continuous.base.sample, clouds, self.dimension, like, source)
            if given is None:
                there = self.structure(noise(), clouds, solver, context, continuous, fallback)
            else:
                known, rows = self._known(given, len(group), source), given.within(clouds)
                there = inpaint(
                    continuous, known, rows, clouds, context, noise, given, solver, fallback
                )
                there = replace(there, x=self.actnorm.inverse(there.x))
            molecules, integers = self._decoded(group, there.x, given)
            parts.append(DrawnMolecules(molecules, None, integers, **there.ending()))
        return DrawnMolecules.join(parts)

    def _noise(self, molecules: Molecules, which: list[tuple[int, int]], seed: int) -> Tensor:
        """Noise that is a function of a molecule's place and the draw, whoever is solved beside."""
        like = molecules.x
        parts = [
            self.dequantiser.noise(
                size,
                like,
                rng.generator(seed, "score", "dequantisation", place, draw, device=like.device),
            )
            for size, (place, draw) in zip(molecules.clouds.lengths.tolist(), which, strict=True)
        ]
        return torch.cat(parts)
