"""Whether all pairs of points of the largest structure fit into memory, said before training."""

from __future__ import annotations

import torch

from eqflow.data.limits import free_memory, shown_bytes
from eqflow.geometry import Clouds
from eqflow.train.config import FieldConfig, ModelConfig

BYTES = 4  # of a number, in float32


def pairs_notice(clouds: Clouds, model: FieldConfig, device: torch.device) -> str:
    """A line where one structure alone takes more memory than is free; empty where it fits.

    Without a cutoff a structure of `n` points has `n (n − 1)` messages of the model's width, and
    a step on a CPU holds them all several times. Structures that turn out not to fit are left out.

    Args:
        clouds: Structures that are trained on.
        model: The velocity field; only those of messages between all points are judged.
        device: Where it is trained. On a GPU messages need not all be held at once.
    """
    if not isinstance(model, ModelConfig) or model.cutoff is not None or device.type != "cpu":
        return ""
    sizes = clouds.sizes
    place = int(sizes.argmax())
    n = int(sizes[place])
    needed, free = BYTES * model.width * n * (n - 1), free_memory()
    if free is None or needed <= free:
        return ""
    where = clouds.source[place] if clouds.source else f"structure {place}"
    return (
        f"{where} has {n:,} points: the messages of their {n * (n - 1):,} pairs take "
        f"{shown_bytes(needed)} or more, and {shown_bytes(free)} of memory are free. It will "
        "hardly fit; give model.cutoff or a smaller model.width, or leave such structures out"
    )
