"""The laws that a flow with masked types claims to obey, measured as those of `laws`.

Its velocity and its logits are functions of positions and of what is visible; types are jumps, so
that only the positions, types staying as they are, can be carried to noise and back. It has no
likelihood, and so no law of one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.evaluate.laws import (
    CANDIDATES,
    SOLVER,
    TIMES,
    Function,
    Law,
    independence_law,
    round_trip,
    symmetry_law,
    velocity_laws,
)
from eqflow.flows import MaskedMolecularFlow, Masking, Solver
from eqflow.geometry import Clouds

MOST_ATOMS = 16
STEPS = Solver(method="euler", steps=20)


def masked_laws(flow: MaskedMolecularFlow, structures: int = 8, seed: int = 0) -> Iterator[Law]:
    """Measure every law on molecules drawn from the flow, each given as soon as it is known.

    Args:
        flow: A trained flow; a copy of it is used.
        structures: How many, at least 2 or independence of the batch says nothing.
        seed: Molecules and motions are functions of it.
    """
    flow = copy.deepcopy(flow).double().cpu()
    sizes = flow.sizes.draw(CANDIDATES * structures, rng.generator(seed, "check", "sizes"))
    few = sizes.sort().values[:structures].clamp(max=MOST_ATOMS).tolist()
    drawn = flow.sample(structures, seed, sizes=few, solver=STEPS)
    # Types rather than atomic numbers are what a point is here: they have the charges as well.
    batch = replace(drawn, numbers=flow.types.kinds(drawn), charges=None, properties={})
    yield from velocity_laws(lambda t: masked_velocity_at(flow, t), batch, seed)
    yield from _logit_laws(flow, batch, seed)
    encoded, path = flow.encode(drawn), Masking(len(flow.types))
    context = path.context(flow.types.kinds(drawn), encoded.x, encoded.context)
    yield round_trip(flow.continuous, encoded.x, encoded.clouds, context, solver=SOLVER)


def masked_velocity_at(flow: MaskedMolecularFlow, t: float) -> Function:
    """The velocity of positions at a time; it takes each atom's kind as its node feature."""
    return _at(flow, t)[0]


def _at(flow: MaskedMolecularFlow, t: float) -> tuple[Function, Function]:
    """Velocity and logits at a time, a share `t` of the types being masked, whichever they are."""
    path = Masking(len(flow.types))

    def both(x: Tensor, ptr: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        kinds = h[:, 0].round().to(torch.int64)
        visible = kinds.masked_fill(kinds + 0.5 < t * path.categories, path.mask)
        bare = Clouds(x, ptr)
        others = flow.properties
        known = None if others is None else others.context(bare, bare.segments, x)
        with torch.no_grad():
            v, logits = flow.continuous.velocity_and_logits(
                x.new_tensor(t), x / flow.scale, bare.segments, path.context(visible, x, known)
            )
        return v, v[:, :0] if logits is None else logits

    return lambda x, ptr, h: both(x, ptr, h)[0], lambda x, ptr, h: both(x, ptr, h)[1]


def _logit_laws(flow: MaskedMolecularFlow, batch: Clouds, seed: int) -> list[Law]:
    d, logits = batch.dimension, [_at(flow, t)[1] for t in TIMES]
    return [
        symmetry_law(f"logits: motions, E({d})", logits, batch, f"E({d})", "scalar", seed),
        symmetry_law("logits: permutations, S(n)", logits, batch, "S(n)", "scalar", seed),
        independence_law("logits: independence of the batch", logits, batch),
    ]
