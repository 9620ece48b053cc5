r"""The velocity of positions and the posterior of categories of which some are masked.

Categories do not move: each point is of one, or masked, and stays so while positions flow. The
network is told which, `one_hot(k)` of `K + 1` columns with the mask last, and gives the velocity
beside the log-posterior of what each point would be unmasked.

Reference: Generative Flows on Discrete State-Spaces: Enabling Multimodal Flows with Applications to
Protein Co-Design (Campbell et al., 2024), arXiv:2402.04997, section 4.
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.geometry import centred
from eqflow.nn.conditioning import Conditioning
from eqflow.nn.egcl import CoordinateUpdate
from eqflow.nn.egnn import EGNN
from eqflow.nn.field import AbstractField


class AbstractMaskedField(AbstractField):
    """A field of positions that also predicts categories.

    Its state is the positions alone, and the first `categories + 1` columns of its context are what
    each point is, one-hot, the last of them for a masked one.

    Attributes:
        categories: Their number K.
    """

    categories: int

    @abstractmethod
    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The velocity (N, d), and the unnormalised log-posterior (N, K) of each category.

        Arguments are those of `forward`. Logits of points that are not masked mean nothing.
        """

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`."""
        return self.velocity_and_logits(t, x, edges, context)[0]


class MaskedEGNNField(AbstractMaskedField):
    r"""An EGNN on positions whose nodes know what they are, unless they are masked.

    :math:`\dot x = x^L - x + \frac{2 t - 1}{(1 - t)^2 + t^2} x` with
    :math:`(x^L, \ell) = \mathrm{EGNN}(x, [\mathrm{context}, \tau(t)])`, the mean removed, as in
    `CategoricalEGNNField`: the term in `x` is the velocity if data were normal.

    Args:
        categories: Their number K.
        context_features: Width of the conditioning node features behind the K + 1 of categories.
        width, layers, attention, coordinate_update, coordinate_range: As in `EGNN`.
        time_frequencies: As in `Conditioning`.
        cutoff: Connect points within this distance (in the unit of `x`), their messages ending
            smoothly; complete graphs where None.
        radial: As in `EGNN`.

    Raises:
        UsageError: If there is no category, or an option is out of range.
    """

    is_equivariant = True

    def __init__(
        self,
        categories: int,
        context_features: int = 0,
        width: int = 64,
        layers: int = 5,
        *,
        attention: bool = False,
        coordinate_update: CoordinateUpdate = "stabilized",
        coordinate_range: float | None = None,
        time_frequencies: int = 3,
        cutoff: float | None = None,
        radial: int = 0,
    ) -> None:
        super().__init__()
        if categories < 1:
            raise UsageError(
                f"MaskedEGNNField: found categories={categories}, expected at least 1."
            )
        self.categories = categories
        self.context_features = categories + 1 + context_features
        self.conditioning = Conditioning(self.context_features, time_frequencies)
        self.cutoff = cutoff
        self.message_width = width
        self.egnn = EGNN(
            self.conditioning.width,
            width,
            layers,
            attention=attention,
            coordinate_update=coordinate_update,
            coordinate_range=coordinate_range,
            input_distance=True,
            radial=radial,
            cutoff=cutoff,
            output_features=categories,
        )

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The velocity and the log-posterior; arguments as in `AbstractField`."""
        clouds = edges.clouds
        s = clouds.expand(t.expand(clouds.count)).unsqueeze(1)
        x = centred(x, clouds)
        moved, logits = self.egnn(x, self.conditioning(t, clouds, context), edges)
        contraction = (2 * s - 1) / ((1 - s).square() + s.square())
        return centred(moved - x + contraction * x, clouds), logits
