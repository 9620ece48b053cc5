r"""Properties of whole structures that a flow is conditioned on, as context of their points.

Each point is given, for each property `c` of its structure, `(c − μ) / σ` with mean and standard
deviation of the training structures, or 0 where it is not known; and then, for each, whether it is.
A flow trained with some of them dropped (`PropertyDropout`) is one flow for any of them known: none
known is the unconditional density.

How many points there are, and of which elements, says much about a property and is no part of a
velocity. Draws take it from training structures near what was asked for: one of the
:math:`\sqrt R` nearest of `R`, by the Euclidean distance of standardised properties that were
asked for, each as likely as the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eqflow.errors import DataError, UsageError
from eqflow.flows.continuous import ContinuousFlow
from eqflow.geometry import Clouds, Segments
from eqflow.nn.guided import GuidedField

# What properties are asked to be, by name: one value, or that of each structure.
Asked = Mapping[str, float | Sequence[float] | Tensor]

EXAMPLES = 10_000  # most training structures that are remembered
DIGITS = 4  # of their properties in standard deviations, as they are stored


@dataclass(frozen=True)
class Properties:
    """What is known of the properties of training structures.

    Attributes:
        names: Name of each of the P properties.
        mean: Mean of each, shape (P,), float64, in its own unit; as are `std`, `low` and `high`.
        std: Standard deviation of each.
        low: Least of each.
        high: Largest of each.
        examples: Standardised properties of R training structures, shape (R, P), float64; NaN
            where one is not known.
        makeups: What those structures are made of, as places in the flow's list of it, shape (R,).

    Example:
        >>> clouds = Clouds(torch.zeros(3, 3), torch.tensor([0, 1, 3]),
        ...                 properties={"gap": torch.tensor([1.0, 3.0]).double()})
        >>> gap = Properties.of(clouds, ["gap"], torch.tensor([0, 1]))
        >>> gap.context(clouds, clouds.segments, clouds.x)
        tensor([[-1.,  1.],
                [ 1.,  1.],
                [ 1.,  1.]])
    """

    names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    examples: Tensor
    makeups: Tensor

    @classmethod
    def of(cls, clouds: Clouds, names: Sequence[str], makeups: Tensor) -> Properties:
        """The properties of training structures.

        Args:
            clouds: The training structures.
            names: Which properties.
            makeups: Place of each structure's make-up in the flow's list, shape (B,).

        Raises:
            DataError: If a property is not there, is the same everywhere, or infinite.
        """
        columns = torch.stack([_column(clouds, name) for name in names], 1).cpu()
        known = ~columns.isnan()
        count = known.sum(0)
        filled = columns.nan_to_num()
        mean = filled.sum(0) / count
        std = (((columns - mean).square().nan_to_num()).sum(0) / count).sqrt()
        outermost = torch.full_like(columns, math.inf)
        low = torch.where(known, columns, outermost).amin(0)
        high = torch.where(known, columns, -outermost).amax(0)
        for name, least, largest in zip(names, low.tolist(), high.tolist(), strict=True):
            if not (largest > least and math.isfinite(largest - least)):
                raise DataError(
                    f"data.properties: found {name} from {least:g} to {largest:g} in the training "
                    "structures, expected finite numbers that differ. Correct it, or leave it out."
                )
        every = max(1, math.ceil(len(clouds) / EXAMPLES))
        examples = ((columns - mean) / std)[::every].round(decimals=DIGITS)
        return cls(tuple(names), mean, std, low, high, examples, makeups.cpu()[::every])

    @property
    def width(self) -> int:
        """Context features that properties take, 2P."""
        return 2 * len(self.names)

    def context(self, clouds: Clouds, segments: Segments, like: Tensor) -> Tensor:
        """Context of each point, shape (N, 2P), with the dtype and device of `like`.

        Args:
            clouds: Structures; a property that they do not have is unknown.
            segments: Their points, on the device of `like`.
            like: Positions in the flow.
        """
        values = torch.stack([clouds.values(name) for name in self.names], 1).cpu()
        known = ~values.isnan()
        standard = ((values - self.mean) / self.std).nan_to_num()
        features = torch.cat([torch.where(known, standard, 0.0), known.double()], 1)
        return segments.expand(features.to(like.device, like.dtype))

    def asked(self, properties: Asked, count: int) -> dict[str, Tensor]:
        """Properties of `count` structures to be drawn, each shape (count,), float64.

        Raises:
            UsageError: If a name is unknown, there are not `count` values, or one is infinite.
        """
        values = {}
        for name, value in properties.items():
            if name not in self.names:
                raise UsageError(
                    f"properties: found {name!r}, expected some of {', '.join(self.names)}, which "
                    "this model was trained on."
                )
            each = torch.as_tensor(value, dtype=torch.float64).cpu()
            if each.dim() > 1 or (each.dim() == 1 and len(each) != count):
                raise UsageError(
                    f"properties: found {name} of shape {tuple(each.shape)} for {count} "
                    "structures; pass one number, or one of each."
                )
            if each.isinf().any():
                raise UsageError(f"properties: found {name}={float(each.max())}, expected finite.")
            values[name] = each.expand(count).clone()
        return values

    def beyond(self, properties: Mapping[str, Tensor]) -> list[str]:
        """A line for each property asked for beyond what training structures have."""
        lines = []
        for place, name in enumerate(self.names):
            low, high = float(self.low[place]), float(self.high[place])
            for value in properties.get(name, torch.zeros(0)).unique().tolist():
                if not low <= value <= high and not math.isnan(value):
                    lines.append(
                        f"{name}={value:g} is beyond the training structures, {low:g} to {high:g}: "
                        "what is drawn there is extrapolated"
                    )
        return lines

    def draw(
        self,
        properties: Mapping[str, Tensor],
        source: torch.Generator,
        possible: Tensor | None = None,
    ) -> Tensor:
        """Make-ups of structures near those that have some properties, shape (B,).

        Structures of which a property asked for is unknown are never near; where nothing is asked
        for all are.

        Args:
            properties: Of each structure, shape (B,), as `asked` gives them.
            source: Where the draws come from.
            possible: Which make-ups of the flow's list may be drawn, (M,), bool; all where None.

        Raises:
            UsageError: If no training structure has a possible one.
        """
        allowed = torch.ones_like(self.makeups, dtype=torch.bool)
        if possible is not None:
            allowed = possible[self.makeups]
        if not allowed.any():
            raise UsageError(
                "properties: no training structure whose properties are known has the fixed atoms "
                "in it. Say the sizes (or numbers) of what is to be drawn."
            )
        count = len(next(iter(properties.values())))
        unknown = torch.full((count,), math.nan, dtype=torch.float64)
        values = torch.stack([properties.get(name, unknown) for name in self.names], 1)
        standard = ((values - self.mean) / self.std).nan_to_num(nan=math.inf)
        wanted, which = standard.unique(dim=0, return_inverse=True)
        drawn = torch.zeros(count, dtype=torch.int64)
        for place, each in enumerate(wanted):
            near = self._near(each, allowed)
            rows = (which == place).nonzero().squeeze(1)
            chosen = torch.multinomial(near, len(rows), replacement=True, generator=source)
            drawn[rows] = self.makeups[chosen]
        return drawn

    def guided(self, flow: ContinuousFlow, guidance: float) -> ContinuousFlow:
        """The flow with properties weighted, see `GuidedField`; itself where they count once."""
        if guidance == 1:
            return flow
        return ContinuousFlow(GuidedField(flow.field, self.width, guidance))

    def to_plain(self) -> dict[str, Any]:
        """Plain values for storing."""
        examples = self.examples.tolist()
        return {
            "names": list(self.names),
            **{name: getattr(self, name).tolist() for name in ("mean", "std", "low", "high")},
            "examples": [[None if math.isnan(c) else c for c in row] for row in examples],
            "makeups": self.makeups.tolist(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Properties:
        """The inverse of `to_plain`."""
        examples = [[math.nan if c is None else c for c in row] for row in plain["examples"]]
        return cls(
            tuple(plain["names"]),
            torch.tensor(plain["mean"], dtype=torch.float64),
            torch.tensor(plain["std"], dtype=torch.float64),
            torch.tensor(plain["low"], dtype=torch.float64),
            torch.tensor(plain["high"], dtype=torch.float64),
            torch.tensor(examples, dtype=torch.float64).reshape(-1, len(plain["names"])),
            torch.tensor(plain["makeups"], dtype=torch.int64),
        )

    def __str__(self) -> str:
        columns = zip(self.names, self.low.tolist(), self.high.tolist(), strict=True)
        return ", ".join(f"{name} ({low:g} to {high:g})" for name, low, high in columns)

    def _near(self, wanted: Tensor, allowed: Tensor) -> Tensor:
        """1 for allowed examples as near as the √R-th of them, 0 for others, shape (R,).

        What is not asked is ∞. Of examples equally near all count.
        """
        asked = wanted.isfinite()
        distance = (self.examples[:, asked] - wanted[asked]).square().sum(1)
        distance = distance.nan_to_num(nan=math.inf).masked_fill(~allowed, math.inf)
        known = int(distance.isfinite().sum())
        limit = distance.sort().values[max(1, math.isqrt(known)) - 1] if asked.any() else math.inf
        return ((distance <= limit) & allowed).double()


def as_asked(properties: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names under which drawn structures say what they were asked to have: `asked_gap`."""
    return {f"asked_{name}": values for name, values in properties.items()}


def _column(clouds: Clouds, name: str) -> Tensor:
    values = clouds.values(name)
    if values.isnan().all():
        found = ", ".join(sorted(clouds.properties)) or "none"
        raise DataError(
            f"data.properties: found no {name!r} in the training structures, whose properties are: "
            f"{found}. Name some of these, or write it into the file: in an extended XYZ comment "
            f"{name}=1.5, in SDF a data field, in .npz an array (B,)."
        )
    return values
