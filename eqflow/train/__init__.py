"""Training: configuration, the step loop, checkpoints, the run folder."""

from eqflow.train.config import Config
from eqflow.train.run import Run
from eqflow.train.weights import load

__all__ = ["Config", "Run", "load"]
