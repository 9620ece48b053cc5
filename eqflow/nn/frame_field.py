r"""A velocity field made equivariant by averaging: any backbone, over the poses of a frame.

:math:`\dot x = \sum_k w_k R_k\, Φ\big((x - \bar x) R_k, t\big)`, its mean removed. A transformer of
sets is equivariant under permutations already, and the frame adds rotations and reflections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eqflow.edges import Edges
from eqflow.errors import UsageError
from eqflow.geometry import centred
from eqflow.geometry.frames import AbstractFrame, PCAFrame, StochasticFrame
from eqflow.nn.averaging.frame_average import FrameAverage, frame_of
from eqflow.nn.backbones import AbstractBackbone
from eqflow.nn.conditioning import Conditioning
from eqflow.nn.field import AbstractField

# A solver may come as close to equal moments as it likes, and must not be stopped there.
PRINCIPAL = PCAFrame(gap=1e-8, on_degenerate="orbit")


class FrameField(AbstractField):
    """The frame average of a backbone as the velocity field of a flow.

    Args:
        backbone: Makes the backbone for a number of node features that go in: the conditioning
            features and those of time. It takes positions of `d` coordinates, which is the number
            of its outputs.
        context_features: Width of the conditioning node features.
        frame: `"weighted"`, `"pca"` (whose divergence has no limit near linear molecules and other
            equal moments), or a frame of `eqflow.geometry.frames`. Averages over orbit frames jump
            on surfaces that paths of a flow cross, and are refused.
        reflections: Equivariance under E(d), or under SE(d) alone.
        training_draws: Poses drawn for each cloud at each call in training mode, so that a step
            costs as many calls of the backbone; the whole frame where None. Only objectives that
            evaluate the field once for each structure can be trained so.
        time_frequencies: As in `EGNNField`.

    Raises:
        UsageError: If the frame is none that can drive a flow, or the backbone's outputs are no
            velocities.

    Example:
        >>> import torch
        >>> from eqflow.nn.backbones import TransformerBackbone
        >>> field = FrameField(lambda features: TransformerBackbone(3, features, 3, width=16))
        >>> edges = Edges.complete(torch.tensor([0, 3, 7]))
        >>> x = torch.eye(7)[:, :3]
        >>> field(torch.tensor(0.5), x, edges).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        backbone: Callable[[int], AbstractBackbone],
        context_features: int = 0,
        *,
        frame: str | AbstractFrame = "weighted",
        reflections: bool = True,
        training_draws: int | None = None,
        time_frequencies: int = 0,
    ) -> None:
        super().__init__()
        self.conditioning = Conditioning(context_features, time_frequencies)
        self.context_features = context_features
        made = None if isinstance(backbone, nn.Module) else backbone(self.conditioning.width)
        if not isinstance(made, AbstractBackbone):
            raise UsageError(
                f"FrameField: found {backbone!r}, expected a function that makes an "
                "AbstractBackbone of eqflow.nn.backbones for a number of features, such as "
                "lambda features: TransformerBackbone(3, features, 3)."
            )
        network = made
        if network.outputs != network.dimension or network.pooled:
            raise UsageError(
                f"FrameField: the backbone gives {network.outputs} columns for points of "
                f"{network.dimension} coordinates (pooled={network.pooled}); expected as many, a "
                "row a point: a velocity."
            )
        chosen = PRINCIPAL if frame == "pca" else frame_of(frame)
        if chosen.jump_codimension == 1:
            raise UsageError(
                f"FrameField: averages over {chosen} jump where a path of the flow would cross, so "
                "it has no density. Use frame='weighted' or 'pca'."
            )
        group = f"{'E' if reflections else 'SE'}({network.dimension})"
        self.average = FrameAverage(network, group, chosen, "vector")
        self.drawn = None if training_draws is None else StochasticFrame(chosen, training_draws)

    @property
    def draws(self) -> bool:
        """Whether poses are drawn: in training, where that was asked for."""
        return self.training and self.drawn is not None

    @property
    def is_equivariant(self) -> bool:  # type: ignore[override]
        """Whether velocities turn with positions exactly, and not in expectation."""
        return not self.draws and not self.average.frame.in_expectation

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`. The graph is complete."""
        clouds, average = edges.clouds, self.average
        h = self.conditioning(t, clouds, context)
        frame = self.drawn if self.draws else average.frame
        # A solver may try a step too far: its answer is no number, and not the end of the others.
        lost = ~torch.isfinite(x.detach()).all(-1, keepdim=True)
        velocity = average(x.masked_fill(lost, 0.0), clouds, h, frame=frame)
        return centred(velocity.masked_fill(lost, torch.nan), clouds)
