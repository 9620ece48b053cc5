"""What a run is made of: one dataclass a concept, each leaf with its unit and why its default.

These are the schemas of the command line; presets in `configs/experiment` override them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol


def leaf(default: Any, text: str) -> Any:
    """A field with its documentation, which `eqflow train --help` prints."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class RunConfig:
    """Where everything goes."""

    dir: str | None = leaf(None, "run folder; runs/<name> where not given")


@dataclass
class DataConfig:
    """Which structures, and how they are divided."""

    source: str = leaf(
        "file", "file, qm9, images, voxels, shapes, g2, or a target: dw4, lj13, lj55, …"
    )
    path: str | None = leaf(None, "file or folder; a target or shapes are generated without one")
    structures: int | None = leaf(None, "how many to generate, or the most to use of a file")
    dimension: int = leaf(3, "coordinates of a point")
    points: int | None = leaf(None, "most points of a structure (images, voxels, shapes)")
    elements: list[str] = leaf(  # noqa: RUF009 - a fresh list each time
        [], "elements of the model; none: all points are alike, or a joint model takes those found"
    )
    charges: bool = leaf(
        True, "formal charges, where the file has them, are part of what a joint model's atoms are"
    )
    properties: list[str] = leaf(  # noqa: RUF009 - a fresh list each time
        [], "properties of structures in the file that the model is conditioned on, such as [gap]"
    )
    on_problem: str = leaf("stop", "stop at a malformed record, or skip it and list it")
    together: str = leaf(
        "duplicates", "never in different parts: duplicates, or all of one formula (conformers)"
    )
    validation: float = leaf(0.05, "fraction held out to choose the best weights")
    test: float = leaf(0.05, "fraction held out for the final figures")


@dataclass
class FieldConfig:
    """What every velocity field has."""

    name: str = leaf("", "which")
    layers: int = leaf(3, "message passes")
    width: int = leaf(64, "hidden features")
    time_frequencies: int = leaf(0, "cosine–sine pairs of time beside t itself")


@dataclass
class GraphFieldConfig(FieldConfig):
    """What velocity fields of neighbouring points have beside."""

    cutoff: float | None = leaf(
        None, "connect points nearer than this (units of the data's scale); all where not given"
    )


@dataclass
class ModelConfig(GraphFieldConfig):
    """The velocity field."""

    name: str = leaf("egnn", "egnn")
    layers: int = leaf(3, "message passes; 3 is the published choice for particles")
    attention: bool = leaf(True, "gate each message, as published")
    coordinate_update: str = leaf("stabilized", "stabilized: divide by d + 1; mean: by n − 1")
    coordinate_range: float | None = leaf(15.0, "bound of the coordinate weights, as published")


@dataclass
class IrrepsModelConfig(GraphFieldConfig):
    """The velocity field of spherical tensors, for points in space or in the plane."""

    name: str = leaf("e3nn", "e3nn")
    width: int = leaf(32, "channels of each irrep; cost grows with width × (lmax + 1)²")
    lmax: int = leaf(2, "highest order of irreps and harmonics, 1 (vectors) to 6")
    radial: int = leaf(16, "Gaussians of the distance, up to the cutoff or to 4 units of the data")


@dataclass
class FrameModelConfig(FieldConfig):
    """The velocity field of a transformer averaged over frames of each cloud."""

    name: str = leaf("frame_transformer", "frame_transformer")
    layers: int = leaf(3, "blocks of attention within a cloud")
    heads: int = leaf(4, "attention heads, a divisor of width")
    frame: str = leaf(
        "weighted", "weighted: continuous everywhere, many poses; pca: 2^d poses of principal axes"
    )
    threshold: float = leaf(
        0.8, "weighted: leave out poses by points nearer than this part of the furthest; 0: none"
    )
    reflections: bool = leaf(True, "mirror images are alike; false: rotations alone")
    training_draws: int | None = leaf(
        1, "poses drawn for each structure and training step; null: all, as in sampling"
    )


@dataclass
class JointModelConfig(ModelConfig):
    """The velocity field of positions and features, and how labels become features."""

    name: str = leaf("joint_egnn", "joint_egnn")
    layers: int = leaf(6, "message passes; 6 is the published choice for QM9")
    dequantiser: str = leaf("variational", "variational, argmax, uniform or gaussian")
    integers: list[str] = leaf(  # noqa: RUF009 - a fresh list each time
        [], "integers of an atom beside its type: atomic_number, formal_charge"
    )
    dequantiser_layers: int = leaf(4, "message passes of a variational dequantiser")
    dequantiser_width: int = leaf(64, "hidden features of a variational dequantiser")
    published_actnorm: bool = leaf(
        False, "count n d degrees of freedom in scores, as the published code; they are (n − 1) d"
    )


@dataclass
class RadialModelConfig(ModelConfig):
    """A field of positions that also predicts the category of each atom."""

    layers: int = leaf(5, "message passes")
    attention: bool = leaf(False, "gate each message")
    coordinate_range: float | None = leaf(None, "bound of the coordinate weights")
    time_frequencies: int = leaf(3, "cosine–sine pairs of time beside t itself")
    radial: int = leaf(
        0,
        "Gaussians of the distance that messages see beside its square, up to 4 times the scale "
        "that positions are divided by; 0: none",
    )


@dataclass
class CategoricalModelConfig(RadialModelConfig):
    """A joint field whose features move by the posterior of each atom's category."""

    name: str = leaf("categorical_egnn", "categorical_egnn")
    feature_scale: float = leaf(
        1.0, "one-hot elements are multiplied by it; the smaller, the later they are decided"
    )
    feature_spread: float = leaf(0.1, "standard deviation around a one-hot element, before that")


@dataclass
class MaskedModelConfig(RadialModelConfig):
    """A field of positions that predicts masked elements; it has no log-likelihood."""

    name: str = leaf("masked_egnn", "masked_egnn")


@dataclass
class FlowMatchingConfig:
    """Regress the velocity of straight paths: no solver runs while training."""

    name: str = leaf("flow_matching", "flow_matching")
    coupling: str = leaf("equivariant_ot", "equivariant_ot, minibatch_ot or independent")
    feature_weight: float = leaf(0.2, "weight of the elements' term of a joint model")
    time_power: float = leaf(
        1.0, "times of training are u^p, u uniform; above 1 there are more near the data"
    )
    unconditional: float = leaf(0.1, "how often a structure is trained on without its properties")


@dataclass
class MaximumLikelihoodConfig:
    """Minimise the negative log-likelihood through the solver."""

    name: str = leaf("maximum_likelihood", "maximum_likelihood")
    trace: str = leaf("hutchinson", "trace while training: hutchinson, or exact for few points")
    probes: int = leaf(1, "probes a step of hutchinson")
    kinetic: float = leaf(0.0, "weight of ∫‖v‖² dt; 1e-3 is published for molecules")
    jacobian: float = leaf(0.0, "weight of ∫‖∂v/∂x‖² dt; 1e-3 is published for molecules")
    unconditional: float = leaf(0.1, "how often a structure is trained on without its properties")


@dataclass
class ExactConfig:
    """The trace itself."""

    name: str = leaf("exact", "exact")


@dataclass
class HutchinsonConfig:
    """Unbiased estimate by random probes."""

    name: str = leaf("hutchinson", "hutchinson")
    probes: int = leaf(
        4, "independent estimates: two or more give a standard error, one is cheapest"
    )
    distribution: str = leaf("rademacher", "rademacher (smaller variance) or gaussian")


@dataclass
class HutchPlusPlusConfig:
    """Exact on a sketched subspace, Hutchinson on the rest."""

    name: str = leaf("hutch_plus_plus", "hutch_plus_plus")
    probes: int = leaf(4, "independent estimates given the sketch")
    sketch: int = leaf(2, "directions taken exactly")


@dataclass
class SolverConfig:
    """How the flow is integrated: in likelihood training, figures, and by default afterwards."""

    method: str = leaf(
        "dopri5",
        "dopri5, adaptive_heun (adaptive), rk4, heun, midpoint, euler; radau (stiff equations, no "
        "likelihood training)",
    )
    rtol: float = leaf(1e-5, "relative tolerance; 1e-4 costs 0.5 nat a molecule in accuracy")
    atol: float = leaf(1e-5, "absolute tolerance, in units of the data's scale and in nats")
    steps: int = leaf(
        20, "steps of a fixed-step method; elements of masked_egnn are drawn after each"
    )
    step_limit: int = leaf(2000, "most evaluations of the field in one integration")
    gradient: str = leaf("direct", "direct; checkpoint: the same in less memory; or adjoint")
    implementation: str = leaf("eqflow", "who takes the steps: eqflow, or torchdiffeq to compare")
    capture: bool = leaf(False, "fixed steps without gradients on a GPU as a CUDA graph")


@dataclass
class LoopConfig:
    """The step loop, whatever the task."""

    steps: int = leaf(20000, "updates")
    minutes: float | None = leaf(None, "stop after this much wall time if it comes first")
    learning_rate: float = leaf(1e-3, "peak")
    optimizer: str = leaf(
        "adamw",
        "adamw; muon: matrices by orthogonal steps of the same size, all else by adamw; adam, "
        "adamax or rmsprop",
    )
    schedule: str = leaf("cosine", "cosine to zero, or constant, after the warm-up")
    warmup_steps: int = leaf(100, "linear warm-up of the learning rate")
    weight_decay: float = leaf(0.0, "decoupled with adamw and muon")
    clip: float | None = leaf(1.0, "largest norm of the gradient; null: any")
    ema_decay: float = leaf(0.999, "moving average of the weights, shorter at first; 0: none")
    validate_every: int = leaf(1000, "steps between validations")
    checkpoint_every: int = leaf(1000, "steps between checkpoints")
    log_every: int = leaf(50, "steps between rows of metrics.csv")
    tensorboard: bool = leaf(True, "write TensorBoard events as well, where it is installed")
    device: str = leaf("auto", "cpu, cuda, or auto: cuda where there is one")
    threads: int | None = leaf(None, "CPU threads; PyTorch's choice where not given")


@dataclass
class TrainConfig(LoopConfig):
    """The step loop of structures."""

    clip: float = leaf(1.0, "largest norm of the gradient")
    batch_size: int = leaf(256, "structures a step")
    pairs: int | None = leaf(None, "most directed pairs of points a step; bounds the memory")
    validation_structures: int = leaf(2048, "most structures a validation uses")
    compile: bool = leaf(
        False, "message passes on a CPU through a C++ compiler: a minute, then faster likelihoods"
    )
    final_structures: int = leaf(100, "held-out structures of the final figures; 0 for none")
    wait_minutes: float = leaf(10.0, "how long processes of torchrun wait for each other")


@dataclass
class Config:
    """A whole run."""

    name: str = leaf("custom", "name of the preset, and of the default run folder")
    seed: int = leaf(0, "all randomness is a function of it")
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: Any = field(default_factory=ModelConfig)
    objective: Any = field(default_factory=FlowMatchingConfig)
    divergence: Any = field(default_factory=ExactConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class RunConfiguration(Protocol):
    """What the configurations of all tasks have."""

    @property
    def name(self) -> str:
        """Of the preset."""

    @property
    def seed(self) -> int:
        """All randomness is a function of it."""

    @property
    def run(self) -> RunConfig:
        """Where everything goes."""

    @property
    def train(self) -> LoopConfig:
        """The loop's settings."""
