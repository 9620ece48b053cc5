r"""`MolecularFlow`: a density over whole molecules: their size, what atoms they have and where.

Labels of atoms become continuous features `v ~ q(v | labels, x)` beside the positions, and

.. math::
    \log p(\text{molecule}) \ge \mathbb E_q \Big[ \log p(n) + \log p_Z(z)
    + \int \mathrm{tr} J \, dt + \log \Big| \frac{\partial z_0}{\partial (x, v)} \Big| - \log q(v)
    \Big]

with `z_0` the state that `ActNorm` makes of `(x, v)` and `z` where the flow carries it. It is in
nats, of `n` ordered atoms, with positions in the unit of the data on the zero-mean subspace.

References: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016, section 5;
Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519, eq. 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eqflow import rng
from eqflow.errors import UnknownElement, UsageError
from eqflow.flows.abstract import AbstractFlow
from eqflow.flows.actnorm import ActNorm
from eqflow.flows.bounds import BoundScores, DrawnMolecules
from eqflow.flows.compositions import Compositions
from eqflow.flows.continuous import DATA, LATENT, ContinuousFlow, Transport
from eqflow.flows.density import groups
from eqflow.flows.dequantisation import AbstractDequantiser, Labels
from eqflow.flows.divergence import divergence_by_name
from eqflow.flows.ode import Solver, Status
from eqflow.flows.sizes import Sizes
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Clouds, Segments, centred, split_state

# What an atom's integers may be, each a function of atomic numbers (N,).
INTEGER_FEATURES: dict[str, Callable[[Tensor], Tensor]] = {"atomic_number": lambda numbers: numbers}


# Named parts of the bound, in nats.
TERMS = ("log_prob_size", "log_prob_base", "log_det_flow", "log_det_actnorm", "minus_log_q")
DRAWS = 8


class Molecules(NamedTuple):
    """Molecules as a flow takes them.

    Attributes:
        x: Centred positions in the unit of the data, shape (N, d).
        clouds: Which atoms belong to which molecule.
        labels: What the atoms are.
    """

    x: Tensor
    clouds: Segments
    labels: Labels


@dataclass(frozen=True)
class Bound:
    """The bound for one draw of features a molecule.

    Attributes:
        terms: The parts named in `TERMS`, which add up to the bound, each shape (B,), in nats.
        z: Latent state, shape (N, d + K).
        evaluations: Evaluations of the field, shape (B,).
        status: How each integration ended.
    """

    terms: dict[str, Tensor]
    z: Tensor
    evaluations: Tensor
    status: tuple[Status, ...]

    @property
    def total(self) -> Tensor:
        """The bound, shape (B,)."""
        return torch.stack(list(self.terms.values())).sum(0)


class MolecularFlow(AbstractFlow):
    """A joint density over size, labels and positions.

    Args:
        continuous: The flow of states in standardised units.
        dequantiser: How labels become features.
        actnorm: Standardisation of positions and features.
        sizes: How many atoms there are.
        elements: Atomic number of each category, rising.
        integer_features: What the integers of an atom are, names of `INTEGER_FEATURES`.
        dimension: Number of coordinates of an atom.
        solver: How to integrate unless a call says otherwise.
        published_actnorm: See `ActNorm.log_det`; what scores count unless a call says otherwise.

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
        self.elements = tuple(elements)
        self.integer_features = tuple(integer_features)
        self.dimension = dimension
        self.solver = Solver() if solver is None else solver
        self.published_actnorm = published_actnorm

    def encode(self, clouds: Clouds) -> Molecules:
        """Clouds in the data's units as the flow takes them.

        Raises:
            UsageError: If the clouds have another dimension.
            UnknownElement: If an element is not one of the model's, or there is none.
        """
        if clouds.dimension != self.dimension:
            raise UsageError(
                f"found clouds in {clouds.dimension} dimensions, expected {self.dimension}."
            )
        like = next(self.parameters())
        segments = Segments(clouds.ptr.to(like.device))
        x = centred(clouds.x.to(like.device, torch.float64), segments).to(like.dtype)
        known = Compositions(self.elements, torch.zeros(0, len(self.elements)), torch.zeros(0))
        kind, numbers = known.types(clouds), clouds.numbers
        if kind is None or numbers is None:
            raise UnknownElement("found clouds without elements, expected molecules.")
        integers = numbers.new_zeros(len(numbers), len(self.integer_features))
        for column, name in enumerate(self.integer_features):
            integers[:, column] = INTEGER_FEATURES[name](numbers)
        labels = Labels(kind.to(like.device), integers.to(like.device))
        return Molecules(x, segments, labels)

    def state(self, molecules: Molecules, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and dequantised labels (N, d + K), and `log q` of the latter (B,)."""
        x, clouds, labels = molecules
        v, log_q = self.dequantiser(labels, x, clouds, noise)
        return torch.cat([x, v], 1), log_q

    def bound(
        self,
        molecules: Molecules,
        noise: Tensor,
        *,
        divergence: AbstractDivergence | str = "exact",
        solver: Solver | None = None,
        source: torch.Generator | None = None,
        published_actnorm: bool | None = None,
    ) -> Bound:
        """The bound on the log-likelihood for one draw of features, with its terms.

        Args:
            molecules: As `encode` gives them.
            noise: What the features are made of, as `dequantiser.noise` draws it.
            divergence: "exact", "hutchinson", or a configured estimator.
            solver: How to integrate; the flow's own where None.
            source: Where probes of an estimator come from.
            published_actnorm: See `ActNorm.log_det`; the flow's own where None.
        """
        clouds = molecules.clouds
        published = self.published_actnorm if published_actnorm is None else published_actnorm
        state, log_q = self.state(molecules, noise)
        there: Transport = self.continuous.transport(
            self.actnorm(state),
            clouds,
            start=DATA,
            end=LATENT,
            solver=solver or self.solver,
            divergence=divergence_by_name(divergence),
            source=source,
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
        return Bound(dict(zip(TERMS, terms, strict=True)), there.x, there.evaluations, there.status)

    def structure(self, z: Tensor, clouds: Segments, solver: Solver | None = None) -> Transport:
        """Carry latent states to positions and features in the data's units, (N, d + K) both."""
        there = self.continuous.transport(
            z, clouds, start=LATENT, end=DATA, solver=solver or self.solver
        )
        return Transport(
            self.actnorm.inverse(there.x),
            there.log_det,
            there.path,
            there.evaluations,
            there.status,
        )

    @torch.no_grad()
    def score(
        self,
        clouds: Clouds,
        *,
        draws: int = DRAWS,
        divergence: AbstractDivergence | str = "exact",
        seed: int = 0,
        solver: Solver | None = None,
        published_actnorm: bool | None = None,
    ) -> BoundScores:
        """A lower bound on the log-likelihood of each molecule, with its terms and spread.

        A molecule whose size has probability 0 gets −∞ without being integrated.

        Args:
            clouds: Molecules in the unit of the data; where they are does not matter.
            draws: Features drawn for each molecule. With the exact trace they are weighted by
                importance, which tightens the bound; an estimated trace would be rewarded for its
                noise, so there the plain mean is taken.
            divergence: "exact", "hutchinson", or a configured estimator.
            seed: Features and probes are a function of it and a molecule's place.
            solver: How to integrate; the flow's own where None.
            published_actnorm: See `ActNorm.log_det`; the flow's own where None.

        Raises:
            UsageError: If there is no draw.
        """
        if draws < 1:
            raise UsageError(f"score: found draws = {draws}, expected at least 1.")
        method = divergence_by_name(divergence)
        possible = self.sizes.log_prob(clouds.sizes.cpu()).isfinite().nonzero().squeeze(1)
        repeated = clouds[possible.repeat_interleave(draws)]
        parts = []
        for start, group in groups(repeated) if len(possible) else ():
            molecules = self.encode(group)
            drawn = [divmod(place, draws) for place in range(start, start + len(group))]
            parts.append(
                self.bound(
                    molecules,
                    self._noise(molecules, [(int(possible[i]), draw) for i, draw in drawn], seed),
                    divergence=method,
                    solver=solver,
                    source=rng.generator(seed, "score", start, device=molecules.x.device),
                    published_actnorm=published_actnorm,
                )
            )
        none = next(self.parameters()).detach().new_zeros(0)
        scores = BoundScores.of_draws(
            {
                name: torch.cat([none, *(part.terms[name] for part in parts)]).view(-1, draws).cpu()
                for name in TERMS
            },
            torch.cat([torch.arange(0), *(part.evaluations for part in parts)]).view(-1, draws),
            [status for part in parts for status in part.status],
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
        solver: Solver | None = None,
    ) -> DrawnMolecules:
        """Draw molecules; one whose integration failed is marked, not raised.

        Args:
            count: How many.
            seed: All draws are a function of it.
            sizes: Number of atoms of all, or of each; by the training frequencies where None.
            solver: How to integrate; the flow's own where None.

        Raises:
            UsageError: If there is nothing to draw, or sizes do not fit.
        """
        template = self._template(count, seed, sizes)
        like = next(self.parameters())
        parts = []
        for start, group in groups(template):
            clouds = Segments(group.ptr.to(like.device))
            source = rng.generator(seed, "sample", "noise", start, device=like.device)
            z = self.continuous.base.sample(clouds, self.dimension, like, source)
            there = self.structure(z, clouds, solver)
            x, v = split_state(there.x, self.actnorm.features)
            kind, integers = (part.cpu() for part in self.dequantiser.labels(v))
            numbers = torch.tensor(self.elements)[kind]
            molecules = Clouds(centred(x, clouds).cpu(), group.ptr, numbers)
            parts.append(DrawnMolecules(molecules, None, there.evaluations, there.status, integers))
        return DrawnMolecules.join(parts)

    def sample(
        self,
        count: int,
        seed: int = 0,
        *,
        sizes: int | Sequence[int] | None = None,
        solver: Solver | None = None,
    ) -> Clouds:
        """Draw `count` molecules in the unit of the data; see `draw`.

        Raises:
            SolverFailed: If an integration failed.
        """
        drawn = self.draw(count, seed=seed, sizes=sizes, solver=solver)
        drawn.require_success()
        return drawn.clouds

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

    def _template(self, count: int, seed: int, sizes: int | Sequence[int] | None) -> Clouds:
        """Clouds of the sizes to be drawn with all points at the origin."""
        if count < 1:
            raise UsageError(f"sample: found n = {count}, expected at least 1.")
        if sizes is None:
            lengths = self.sizes.draw(count, rng.generator(seed, "sample", "sizes"))
        else:
            lengths = torch.tensor(sizes, dtype=torch.int64)
            if lengths.dim() > 0 and len(lengths) != count:
                raise UsageError(
                    f"sizes: found {len(lengths)} for {count} structures; pass one, or one of each."
                )
            if int(lengths.min()) < 1:
                raise UsageError(f"sizes: found {int(lengths.min())}, expected at least 1.")
            lengths = lengths.expand(count)
        segments = Segments.of_lengths(lengths)
        return Clouds(torch.zeros(segments.rows, self.dimension), segments.ptr)
