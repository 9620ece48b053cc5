"""What a classifier of nodes can be: one dataclass a model, each leaf with what it means.

A diffusion encodes features into a state, integrates a field over `time`, and decodes. A layered
network has `layers` instead of a time. Widths are channels of the state of a node.
"""

from __future__ import annotations

from dataclasses import dataclass

from eqflow.train.config import leaf


@dataclass
class NodeModelConfig:
    """What every classifier of nodes has."""

    name: str = leaf("", "")
    width: int = leaf(64, "channels of a node's state")
    input_dropout: float = leaf(0.5, "fraction of the features left out in each training step")
    dropout: float = leaf(0.5, "fraction of the last state left out in each training step")


@dataclass
class DiffusionModelConfig(NodeModelConfig):
    """What every diffusion has."""

    time: float = leaf(1.0, "length of the integration")
    layers: int | None = leaf(
        None, "steps of a fixed-step method, each of them a layer; solver.steps where not given"
    )
    norm: bool = leaf(False, "normalise the encoded features over the nodes (batch norm)")
    source: bool = leaf(True, "add β x(0) to the velocity, β being learned from 0")
    hidden_layer: bool = leaf(False, "a second layer between the last state and the classes")


@dataclass
class AttentionModelConfig(DiffusionModelConfig):
    """What every diffusion by attention has."""

    nonlinear: bool = leaf(False, "attention of the state at hand, not of the start")
    heads: int = leaf(4, "heads of attention, averaged")
    attention_width: int = leaf(64, "channels of queries and keys, of all heads together")
    diffusivity: str = leaf(
        "scaled_dot",
        "scaled_dot, cosine, pearson, exponential, additive, distance or gaussian_mixture; of "
        "blend position_and_feature as well",
    )
    normaliser: str = leaf("softmax", "softmax or squareplus")
    over: str = leaf("rows", "what sums to 1: rows (a receiver's edges) or columns (a sender's)")


@dataclass
class GrandConfig(AttentionModelConfig):
    """Attention diffusion of features (GRAND)."""

    name: str = leaf("grand", "grand")


@dataclass
class BlendConfig(AttentionModelConfig):
    """Attention diffusion of positions and features (BLEND); needs an encoding."""

    name: str = leaf("blend", "blend")
    position_width: int = leaf(16, "channels of positions beside those of features")
    space: str = leaf(
        "euclidean", "where positions lie: euclidean or hyperbolic (position_and_feature)"
    )
    diffusivity: str = leaf(
        "scaled_dot",
        "as of grand, or position_and_feature: distances of positions times a kernel of features",
    )
    neighbours: int | None = leaf(
        None, "edges are those to so many neighbours in u(t), at each evaluation; as given if null"
    )


@dataclass
class GraffConfig(DiffusionModelConfig):
    """Gradient flow with symmetric mixing of channels (GRAFF)."""

    name: str = leaf("graff", "graff")
    mixing: str = leaf(
        "symmetric",
        "form of W: symmetric, diagonal, diagonal_dominant, positive, negative, spectral, zero or "
        "identity",
    )
    damping: str = leaf("diagonal", "form of Ω: as of W")
    nonlinear: bool = leaf(False, "a ReLU around the velocity")
    matrices: int = leaf(1, "matrices W, Ω in turn over the time; one for each step is published")


@dataclass
class OnsagerConfig(AttentionModelConfig):
    """Attention diffusion whose channels mix by a symmetric, positive matrix (Onsager)."""

    name: str = leaf("onsager", "onsager")


@dataclass
class GdeConfig(DiffusionModelConfig):
    """Graph convolutions as a velocity (GDE): a baseline, and no diffusion."""

    name: str = leaf("gde", "gde")
    convolutions: int = leaf(1, "graph convolutions that make up the velocity")
    source: bool = leaf(False, "add β x(0) to the velocity, β being learned from 0")


@dataclass
class LayeredModelConfig(NodeModelConfig):
    """What every layered network has."""

    layers: int = leaf(2, "graph convolutions")


@dataclass
class GcnConfig(LayeredModelConfig):
    """Graph convolutions (GCN)."""

    name: str = leaf("gcn", "gcn")


@dataclass
class ResidualGcnConfig(LayeredModelConfig):
    """Graph convolutions added to the state."""

    name: str = leaf("residual_gcn", "residual_gcn")
    layers: int = leaf(4, "graph convolutions; those but the first and the last are residual")


@dataclass
class EntropicGcnConfig(LayeredModelConfig):
    """Graph convolutions, each followed by a step of entropy ascent."""

    name: str = leaf("entropic_gcn", "entropic_gcn")
    weight: float = leaf(1.0, "λ, of the entropy's gradient")
    temperature: float = leaf(10.0, "T, of the entropy")
    normalised: bool = leaf(False, "probabilities that sum to 1 over a graph")
    scaled: bool = leaf(True, "energies are divided by √(neighbours · width), as in the paper")
    constant: str = leaf(
        "nothing", "what a derivative takes for constant of the term: nothing, weights or term"
    )


@dataclass
class PairNormGcnConfig(LayeredModelConfig):
    """Graph convolutions, each followed by PairNorm."""

    name: str = leaf("pair_norm_gcn", "pair_norm_gcn")
    scale: float = leaf(1.0, "root mean square of a row after PairNorm")


@dataclass
class GatedGcnConfig(LayeredModelConfig):
    """Graph convolutions under gradient gating (G2)."""

    name: str = leaf("gated_gcn", "gated_gcn")
    layers: int = leaf(4, "graph convolutions; those but the first and the last are gated")
    power: float = leaf(2.0, "p, of the differences in the gate")


NODE_MODELS: dict[str, type[NodeModelConfig]] = {
    "grand": GrandConfig,
    "blend": BlendConfig,
    "graff": GraffConfig,
    "onsager": OnsagerConfig,
    "gde": GdeConfig,
    "gcn": GcnConfig,
    "residual_gcn": ResidualGcnConfig,
    "entropic_gcn": EntropicGcnConfig,
    "pair_norm_gcn": PairNormGcnConfig,
    "gated_gcn": GatedGcnConfig,
}
