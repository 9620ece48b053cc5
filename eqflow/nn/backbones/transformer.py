r"""The set transformer: every point attends to all points of its cloud.

.. math::
    h &\leftarrow h + W_o \, \mathrm{softmax}\big(Q K^\top / \sqrt{c}\big) V, \qquad
        [Q, K, V] = W \, \mathrm{LayerNorm}(h) \\
    h &\leftarrow h + \mathrm{MLP}(\mathrm{LayerNorm}(h))

No place in a sequence is encoded, so it is equivariant under permutations of the points. All parts
are smooth, and the softmax is written out, so that it can be differentiated any number of times, in
reverse and in forward mode: kernels of fused attention can do so once.

References: Attention Is All You Need (Vaswani et al., 2017), arXiv:1706.03762, section 3; On Layer
Normalization in the Transformer Architecture (Xiong et al., 2020), arXiv:2002.04745, section 3.1;
Set Transformer (Lee et al., 2019), arXiv:1810.00825, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqflow.errors import UsageError
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_counts
from eqflow.nn.backbones.abstract import AbstractBackbone, LayerNorm, perceptron

# Width of the inner layer of a block's perceptron, in units of the width.
EXPANSION = 2


class TransformerBackbone(AbstractBackbone):
    r"""Pre-norm transformer of sets, for clouds of any sizes.

    Args:
        dimension, features, outputs, pooled: As in `AbstractBackbone`; pooling is the mean over
            points, zero where there are none.
        width: Width of the hidden features.
        layers: Number of blocks.
        heads: Number of attention heads, a divisor of `width`.
        frequencies: Number K of cosine-sine pairs of each coordinate, :math:`\cos 2^k x`,
            :math:`\sin 2^k x` for `k = 0 … K − 1`, beside the coordinate itself. The unit of `x` is
            thought to be the spread of the data.

    Raises:
        UsageError: If a number is out of range, or `heads` does not divide `width`.

    >>> backbone = TransformerBackbone(3, features=0, outputs=2, width=16, layers=1, heads=2)
    >>> backbone(torch.zeros(5, 3), torch.tensor([0, 2, 5])).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dimension: int,
        features: int,
        outputs: int,
        width: int = 64,
        layers: int = 3,
        heads: int = 4,
        *,
        frequencies: int = 0,
        pooled: bool = False,
    ) -> None:
        super().__init__(dimension, features, outputs, pooled=pooled)
        require_counts(type(self).__name__, width=width, layers=layers, heads=heads)
        require_counts(type(self).__name__, 0, frequencies=frequencies)
        if width % heads:
            raise UsageError(
                f"TransformerBackbone: found width={width}, heads={heads}; expected a width that "
                "is a multiple of heads."
            )
        self.frequencies = frequencies
        self.embed = nn.Linear(dimension * (1 + 2 * frequencies) + features, width)
        self.layers = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width)
        self.readout = nn.Linear(width, outputs)

    def of_points(self, x: Tensor, values: Tensor, clouds: Segments) -> Tensor:
        """The network; arguments as in `AbstractBackbone`."""
        if self.frequencies:
            k = torch.arange(self.frequencies, device=x.device, dtype=x.dtype)
            angle = (x.unsqueeze(-1) * 2**k).flatten(1)
            values = torch.cat([values, angle.cos(), angle.sin()], 1)
        h = self.embed(values)
        mask = _padding(clouds)
        for layer in self.layers:
            h = layer(h, clouds, mask)
        h = self.norm(h)
        return self.readout(clouds.mean(h) if self.pooled else h)


class TransformerBlock(nn.Module):
    """Attention within each cloud, then a perceptron of each point, both residual.

    Args:
        width: Width of the features.
        heads: Number of heads, a divisor of `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.perceptron_norm = LayerNorm(width)
        self.perceptron = perceptron(width, EXPANSION * width, width)

    def forward(self, h: Tensor, clouds: Segments, mask: Tensor | None = None) -> Tensor:
        """Features after the block.

        Args:
            h: Shape (N, width).
            clouds: Points of each cloud.
            mask: Places of the padded batch that hold no point, shape (B, 1, 1, L), or None.

        Returns:
            Shape (N, width).
        """
        h = h + self.mix(self._attend(self.projections(self.attention_norm(h)), clouds, mask))
        return h + self.perceptron(self.perceptron_norm(h))

    def _attend(self, projected: Tensor, clouds: Segments, mask: Tensor | None) -> Tensor:
        """Values (N, width) averaged by `softmax(Q Kᵀ / √c)`, from `[Q, K, V]`, (N, 3 width)."""
        dense = clouds.to_dense(projected.unflatten(1, (3, self.heads, -1)))  # (B, L, 3, H, c)
        query, key, value = dense.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, c) each
        logits = query @ key.mT / query.shape[-1] ** 0.5
        if mask is not None:
            # Finite, as −∞ in all of an empty cloud's row would make it 0 / 0.
            logits = logits.masked_fill(mask, torch.finfo(logits.dtype).min)
        mean = logits.softmax(-1) @ value
        return clouds.from_dense(mean.transpose(1, 2).flatten(2))


def _padding(clouds: Segments) -> Tensor | None:
    """Places of the padded batch without a point, (B, 1, 1, L); None where there are none."""
    if clouds.uniform is not None:
        return None
    place = torch.arange(clouds.longest, device=clouds.ptr.device)
    return (place >= clouds.lengths.unsqueeze(1))[:, None, None, :]
