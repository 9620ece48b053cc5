"""What becomes of `train.compile`, said before training: small steps have nothing to gain."""

from __future__ import annotations

from eqflow.edges.reference.messages import SMALL
from eqflow.geometry import Clouds
from eqflow.train.config import FieldConfig


def compiling(clouds: Clouds, batch_size: int, model: FieldConfig) -> str:
    """A line about what `train.compile` will do, with a step of so many structures."""
    sizes = clouds.sizes.double()
    pairs = batch_size * float((sizes * (sizes - 1)).mean())
    if pairs * getattr(model, "width", 1) < SMALL:
        return (
            f"notice: nothing is compiled: a step has about {pairs:,.0f} pairs of points, too few "
            "at this width to be faster so. Leave out train.compile, or raise train.batch_size"
        )
    return "the first step compiles the message passes, which takes up to a minute, once a process"
