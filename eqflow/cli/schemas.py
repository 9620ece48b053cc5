"""Schemas of the verbs that use or import a run; training's own is `eqflow.train.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eqflow.train.config import ExactConfig, SolverConfig, leaf


@dataclass
class SolverOverride:
    """How to integrate; whatever is not given is the run's own."""

    method: str | None = leaf(
        None, "dopri5, adaptive_heun, radau, rk4, heun, midpoint, euler; as in the run"
    )
    rtol: float | None = leaf(None, "relative tolerance; as in the run")
    atol: float | None = leaf(None, "absolute tolerance; as in the run")
    steps: int | None = leaf(None, "steps of a fixed-step method; as in the run")
    step_limit: int | None = leaf(
        None, "most evaluations of the field before others are tried (fallback); as in the run"
    )
    implementation: str | None = leaf(None, "eqflow or torchdiffeq; as in the run")
    capture: bool | None = leaf(None, "fixed steps on a GPU as a CUDA graph; as in the run")


@dataclass
class SampleConfig:
    """Draw structures from a trained run."""

    run: str | None = leaf(None, "run folder or weights.safetensors")
    n: int = leaf(1000, "how many structures")
    seed: int = leaf(0, "all draws are a function of it")
    out: str | None = leaf(None, "file to write: .xyz .extxyz .sdf .npz .npy")
    sizes: int | None = leaf(
        None, "points of every structure; by training frequency where not given"
    )
    formula: str | None = leaf(None, "composition of every structure, such as C2H6O")
    like: str | None = leaf(None, "file whose structures' elements (or sizes) are taken in turn")
    properties: list[str] = leaf(  # noqa: RUF009 - a fresh list each time
        [], "what every structure is asked to have, such as [gap=0.3,mu=1.2]"
    )
    guidance: float = leaf(1.0, "how much properties count; 1 is the density that was trained")
    fixed: str | None = leaf(None, "file of one fragment, around which the rest is grown")
    fixed_times: int | None = leaf(
        None, "stretches between noise and data when growing; 50 where not given"
    )
    fixed_rounds: int | None = leaf(
        None,
        "how often a stretch is travelled again, 4 where not given: slower; less biased after "
        "independent coupling",
    )
    temperature: float | None = leaf(
        None, "elements of a run of masked_egnn are drawn at it: 1 where not given"
    )
    remasking: float | None = leaf(
        None, "rate at which a run of masked_egnn takes elements back: 0 where not given"
    )
    bonds: bool = leaf(True, "write molecules to .sdf with bonds: RDKit's, or else by distances")
    batch: int = leaf(256, "structures drawn together; each time they are saved")
    solver: SolverOverride = field(default_factory=SolverOverride)
    fallback: bool = leaf(
        True, "try other solvers on structures where that one fails, and say which were"
    )
    device: str = leaf("auto", "cpu, cuda, or auto")
    threads: int | None = leaf(None, "CPU threads; PyTorch's choice where not given")


@dataclass
class ScoreDataConfig:
    """Which structures to score, or which graph."""

    path: str | None = leaf(
        None, "file of structures, or of a graph; of nodes, that of the run where not given"
    )
    source: str | None = leaf(
        None, "of nodes: what data.path is, as in train; file where not given, or as in the run"
    )
    on_problem: str = leaf("stop", "stop at a malformed record, or skip it and list it")
    structures: int | None = leaf(None, "most structures to score, from the first")


@dataclass
class ScoreConfig:
    """Log-likelihood of structures under a trained run."""

    run: str | None = leaf(None, "run folder or weights.safetensors")
    data: ScoreDataConfig = field(default_factory=ScoreDataConfig)
    out: str | None = leaf(None, "CSV file to write, a row a structure or node")
    seed: int = leaf(0, "probes of an estimator, and features drawn, are a function of it")
    draws: int | None = leaf(
        None, "features drawn for each molecule, of a joint model; 8 where not given"
    )
    published_actnorm: bool | None = leaf(
        None, "count degrees of freedom as the published E-NF does; as in the run"
    )
    divergence: Any = None  # an option of the group; that of the run where not given
    exact_atoms: int | None = leaf(
        None,
        "most points of a structure scored by the exact trace, larger ones by four probes; where "
        "not given, no limit with divergence=exact, else what the model can afford",
    )
    solver: SolverOverride = field(default_factory=SolverOverride)
    fallback: bool = leaf(
        True, "try other solvers on structures where that one fails, and say which were"
    )
    convergence: bool = leaf(
        False, "score again by a finer solver, and say what that changes: of densities alone"
    )
    device: str = leaf("auto", "cpu, cuda, or auto")
    threads: int | None = leaf(None, "CPU threads; PyTorch's choice where not given")


@dataclass
class CheckConfig:
    """Symmetry and consistency laws of a trained run, or the symmetry of any function."""

    run: str | None = leaf(None, "run folder or weights.safetensors")
    target: str | None = leaf(
        None, "instead of a run, package.module:function of x, ptr, h, or a torch module made there"
    )
    output: str | None = leaf(
        None, "of a target: scalar, vector, point, tensor(2) or irreps; vector where not given"
    )
    dimension: int | None = leaf(None, "of a target: number of coordinates; 3 where not given")
    group: str | None = leaf(
        None,
        "what to measure, commas between: E(3), SE(3), O(3), SO(3), T(3), S(n), E(3)×S(n), batch, "
        "mirror, scale, continuity; E(d),S(n),batch,mirror,scale where not given",
    )
    dtypes: str | None = leaf(
        None,
        "arithmetic of the symmetry; float64 of a run, float64,float32 of a target",
    )
    tolerance: float | None = leaf(None, "largest error of symmetry; by dtype where not given")
    out: str | None = leaf(None, "JSON file to write as well")
    seed: int = leaf(0, "motions and structures are a function of it")
    structures: int = leaf(8, "structures each law is tested on; of nodes, twice as many of them")
    threads: int | None = leaf(None, "CPU threads; PyTorch's choice where not given")


@dataclass
class ImportedRunConfig:
    """Where an imported model goes."""

    dir: str | None = leaf(None, "run folder to make; it may exist where it is empty")


@dataclass
class ImportEnfConfig:
    """The published E-NF as a run."""

    weights: str | None = leaf(
        None, ".npz of the published weights, or a folder with flow.npy and dequantizer.npy"
    )
    run: ImportedRunConfig = field(default_factory=ImportedRunConfig)
    published_actnorm: bool = leaf(
        False, "scores count n d degrees of freedom as the published code; they are (n − 1) d"
    )
    divergence: Any = field(default_factory=ExactConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)


@dataclass
class DemoConfig:
    """The whole job on embedded defaults: train, sample, score, check, and pictures of it."""

    out: str = leaf("runs/demo", "folder for everything")
    seed: int = leaf(0, "all randomness is a function of it")
    particle_minutes: float = leaf(1.5, "training time on DW4")
    molecule_minutes: float = leaf(1.0, "training time on molecules")
    samples: int = leaf(1000, "structures to draw")


@dataclass
class DoctorConfig:
    """What this installation can do, and what it cannot."""

    dir: str = leaf("runs", "folder that run folders go into; it need not be there yet")
    out: str | None = leaf(None, "JSON file to write as well")
    threads: int | None = leaf(None, "CPU threads; PyTorch's choice where not given")


@dataclass
class TuneConfig:
    """Search the settings of a preset; all other words are those of train."""

    dir: str | None = leaf(None, "folder of the search; runs/<name>-tune where not given")
    preset: str | None = leaf(None, "search space of configs/tune to begin with")
    trials: int = leaf(50, "settings to try; a larger number goes on with a search")
    repeats: int = leaf(1, "runs of each trial, with seeds one apart; the mean of them counts")
    metric: str | None = leaf(
        None,
        "what is best: of nodes val_accuracy (largest) or val_loss, of structures val_loss or "
        "val_nll (smallest); the first of these where not given",
    )
    tune_seed: int = leaf(0, "what is tried is a function of it; seed is that of the runs")
