"""What a run that classifies the nodes of a graph is made of; see `eqflow.train.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eqflow.train.config import LoopConfig, RunConfig, leaf
from eqflow.train.node_models import GrandConfig

NODE_CLASSIFICATION = "node_classification"


@dataclass
class NodeDataConfig:
    """Which graph, and how its nodes are divided."""

    source: str = leaf(
        "file",
        "file; cora, citeseer, pubmed; photo, computers, coauthor_cs; texas, cornell, wisconsin, "
        "actor, chameleon, squirrel, chameleon_filtered, squirrel_filtered",
    )
    path: str | None = leaf(
        None, ".npz of the graph, or a folder with it; cora and citeseer are downloaded without one"
    )
    split: str = leaf(
        "published",
        "published: a split that came with the data; or one drawn by the protocol planetoid, "
        "per_class, development or fraction (see eqflow.graphs.random_split)",
    )
    split_index: int = leaf(0, "which of several published splits, from 0")
    split_seed: int | None = leaf(None, "of a drawn split; that of the run where not given")
    train_per_class: int = leaf(20, "training nodes of a class in a drawn split but for fraction")
    development: int = leaf(
        1500, "nodes of training and validation together with split=development"
    )
    largest_component: bool = leaf(False, "keep the largest connected component alone")
    undirected: bool = leaf(True, "every edge goes both ways, once")
    self_loops: bool = leaf(True, "every node has one edge to itself")
    binary_features: bool = leaf(False, "features are 1 where they are above 0")
    normalise_features: bool = leaf(False, "features of a node sum to 1; they must not be negative")


@dataclass
class NoEncodingConfig:
    """Nodes have no positions."""

    name: str = leaf("none", "none")


@dataclass
class EncodingConfig(NoEncodingConfig):
    """What every encoding has."""

    width: int | None = leaf(16, "channels of an encoding")


@dataclass
class PprConfig(EncodingConfig):
    """Personalised PageRank (DIGL)."""

    name: str = leaf("ppr", "ppr")
    width: int | None = leaf(
        None,
        "channels of an encoding; of ppr, null: one a node, the 64 largest, for this graph",
    )
    teleport: float = leaf(0.05, "probability to return to the node at each step")


@dataclass
class DeepWalkConfig(EncodingConfig):
    """Nodes that random walks visit together (DeepWalk), by factorisation."""

    name: str = leaf("deepwalk", "deepwalk")
    window: int = leaf(10, "steps apart that count as visited together")


@dataclass
class LaplacianConfig(EncodingConfig):
    """Eigenvectors of the graph's Laplacian; their signs are arbitrary."""

    name: str = leaf("laplacian", "laplacian")


@dataclass
class RandomWalkConfig(EncodingConfig):
    """Probabilities that a walk is back after 1, 2, … steps."""

    name: str = leaf("random_walk", "random_walk")


@dataclass
class PoincareConfig(EncodingConfig):
    """Points of the Poincaré ball whose distances follow the edges; trained for each graph."""

    name: str = leaf("poincare", "poincare")


@dataclass
class NoRewiringConfig:
    """The edges are those of the data."""

    name: str = leaf("none", "none")


@dataclass
class RewiringConfig(NoRewiringConfig):
    """What every rewiring has."""

    keep: bool = leaf(False, "keep the edges of the data as well")


@dataclass
class KnnRewiringConfig(RewiringConfig):
    """Edges from the nearest neighbours in the encoding."""

    name: str = leaf("knn", "knn")
    neighbours: int = leaf(16, "edges that lead to a node")


@dataclass
class RadiusRewiringConfig(RewiringConfig):
    """Edges between nodes whose encodings are near."""

    name: str = leaf("radius", "radius")
    radius: float = leaf(1.0, "largest distance, in units of the encoding")


@dataclass
class PprRewiringConfig(RewiringConfig):
    """Edges from the nodes of largest personalised PageRank (DIGL)."""

    name: str = leaf("ppr_top_k", "ppr_top_k")
    neighbours: int = leaf(64, "edges that lead to a node")
    teleport: float = leaf(0.05, "probability to return to the node at each step")


@dataclass
class TwoHopRewiringConfig(NoRewiringConfig):
    """Edges to the neighbours of neighbours as well."""

    name: str = leaf("two_hop", "two_hop")


ENCODINGS: dict[str, type[NoEncodingConfig]] = {
    "none": NoEncodingConfig,
    "ppr": PprConfig,
    "deepwalk": DeepWalkConfig,
    "laplacian": LaplacianConfig,
    "random_walk": RandomWalkConfig,
    "poincare": PoincareConfig,
}
REWIRINGS: dict[str, type[NoRewiringConfig]] = {
    "none": NoRewiringConfig,
    "knn": KnnRewiringConfig,
    "radius": RadiusRewiringConfig,
    "ppr_top_k": PprRewiringConfig,
    "two_hop": TwoHopRewiringConfig,
}


@dataclass
class NodeSolverConfig:
    """How a diffusion is integrated; layered networks have no use for it."""

    method: str = leaf(
        "dopri5",
        "dopri5, adaptive_heun (adaptive), rk4, heun, midpoint, euler, implicit, "
        "exponential_euler (fixed steps), or exponential: a linear diffusion in closed form, of "
        "order 2 in fixed steps otherwise",
    )
    rtol: float = leaf(1e-4, "relative tolerance")
    atol: float = leaf(1e-4, "absolute tolerance, in units of the state")
    steps: int = leaf(8, "steps of a fixed-step method")
    step_limit: int = leaf(
        2000,
        "most evaluations of the field in one integration; of exponential and implicit methods, "
        "most products of a state with its matrix",
    )
    gradient: str = leaf("direct", "direct; checkpoint: the same in less memory; or adjoint")


@dataclass
class RegularisationConfig:
    """Penalties on the path of a diffusion, added to the cross entropy of a training step."""

    kinetic: float = leaf(0.0, "weight of the mean over nodes of ∫‖ẋ‖² dt")
    jacobian: float = leaf(0.0, "weight of the mean over nodes of ∫‖∂ẋ/∂x‖² dt, by one probe")


@dataclass
class NodeTrainConfig(LoopConfig):
    """The step loop of node classification: a step is an epoch, all nodes at once."""

    steps: int = leaf(200, "updates; each is an epoch, of all training nodes")
    learning_rate: float = leaf(1e-2, "peak")
    optimizer: str = leaf("adam", "adam, adamax, rmsprop, adamw or muon")
    weight_decay: float = leaf(
        5e-4, "added to the gradient as λw, as in the published recipes; decoupled with adamw"
    )
    schedule: str = leaf("constant", "constant, or cosine to zero, after the warm-up")
    warmup_steps: int = leaf(0, "linear warm-up of the learning rate")
    clip: float | None = leaf(None, "largest norm of the gradient; null: any")
    ema_decay: float = leaf(0.0, "moving average of the weights, shorter at first; 0: none")
    validate_every: int = leaf(1, "steps between validations")
    patience: int | None = leaf(
        None, "stop after this many steps without a better validation; null: never"
    )
    stop_times: list[float] = leaf(  # noqa: RUF009 - a fresh list each time
        [],
        "times at which validation reads the state as well, such as [0.5,1.5]: the best weights "
        "come with the best of them and of model.time; for a diffusion",
    )
    checkpoint_every: int = leaf(50, "steps between checkpoints")
    log_every: int = leaf(10, "steps between rows of metrics.csv; all validated steps have one")


@dataclass
class NodeConfig:
    """A whole run that classifies the nodes of a graph."""

    name: str = leaf("nodes", "name of the preset, and of the default run folder")
    task: str = leaf(NODE_CLASSIFICATION, NODE_CLASSIFICATION)
    seed: int = leaf(0, "all randomness is a function of it")
    run: RunConfig = field(default_factory=RunConfig)
    data: NodeDataConfig = field(default_factory=NodeDataConfig)
    encoding: Any = field(default_factory=NoEncodingConfig)
    rewiring: Any = field(default_factory=NoRewiringConfig)
    model: Any = field(default_factory=GrandConfig)
    solver: NodeSolverConfig = field(default_factory=NodeSolverConfig)
    regularisation: RegularisationConfig = field(default_factory=RegularisationConfig)
    train: NodeTrainConfig = field(default_factory=NodeTrainConfig)
