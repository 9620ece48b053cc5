"""The objective of molecules with masked categories: matching of positions and of categories."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from eqflow.errors import UsageError
from eqflow.flows.continuous import ContinuousFlow
from eqflow.flows.couplings import AbstractCoupling
from eqflow.flows.masking import Masking
from eqflow.flows.objectives import (
    AbstractObjective,
    Batch,
    Loss,
    require_weights,
    stratified_times,
)
from eqflow.geometry import degrees_of_freedom
from eqflow.nn import AbstractMaskedField


class MaskedMatching(AbstractObjective):
    r"""Regress the velocity of straight paths, and classify what is masked on the way.

    :math:`\mathcal L = \mathbb E\, \lVert v - (z - x) \rVert^2 / ((n - 1) d)
    - w\, \mathbb E_{\text{masked}} \log p(k \mid x_t, k_t)` with the positions of `FlowMatching`,
    categories masked with probability `t`, and one time a cloud for both. The second term is the
    mean over the masked points of a batch, and 0 where there is none.

    Args:
        coupling: How noise is paired with structures.
        feature_weight: `w`.
        time_power: As in `FlowMatching`.

    Raises:
        UsageError: If the weight is negative, or the power not positive.

    Reference: Generative Flows on Discrete State-Spaces: Enabling Multimodal Flows with
    Applications to Protein Co-Design (Campbell et al., 2024), arXiv:2402.04997, section 4.
    """

    def __init__(
        self, coupling: AbstractCoupling, feature_weight: float = 1.0, time_power: float = 1.0
    ) -> None:
        require_weights(feature_weight, time_power)
        self.coupling = coupling
        self.feature_weight = feature_weight
        self.time_power = time_power

    def __call__(self, flow: ContinuousFlow, batch: Batch, source: torch.Generator) -> Loss:
        """The loss; `batch.kinds` are the categories, `batch.context` what is known besides.

        Raises:
            UsageError: If the field predicts no categories, or the batch has none.
        """
        field, x, clouds, kinds = flow.field, batch.x.detach(), batch.clouds, batch.kinds
        if not isinstance(field, AbstractMaskedField) or kinds is None:
            raise UsageError(
                f"MaskedMatching: found {type(field).__name__} and a batch "
                f"{'without' if kinds is None else 'with'} categories, expected a field that "
                "predicts masked categories, such as MaskedEGNNField, and a batch with them."
            )
        z = self.coupling(x, clouds, batch.types, source)
        t = stratified_times(clouds.count, x, source) ** self.time_power
        of_each = clouds.expand(t)
        path = Masking(field.categories)
        visible = path.masked(kinds, of_each, source)
        s = of_each.unsqueeze(1)
        context = path.context(visible, x, batch.context)
        at = (1 - s) * x + s * z
        v, logits = field.velocity_and_logits(t, at, field.connect(at, clouds), context)
        freedom = degrees_of_freedom(clouds, x.shape[1]).clamp(min=1)
        positions = (clouds.sum((v - (z - x)).square().sum(-1)) / freedom).mean()
        is_masked = visible == path.mask
        each = cross_entropy(logits, kinds, reduction="none")
        features = (each * is_masked).sum() / is_masked.sum().clamp(min=1)
        loss = positions + self.feature_weight * features
        terms = {"loss": loss, "loss_positions": positions, "loss_features": features}
        return Loss(loss, {name: float(value.detach()) for name, value in terms.items()})
