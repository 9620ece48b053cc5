"""The laws that a joint flow of molecules claims to obey, measured as those of `laws`.

Beside positions it moves features, which no motion of space may touch, and makes features of
labels, of which the labels must follow again. What it scores is a bound, so the law of a sample
that is scored as it was drawn has no counterpart; bounds are compared with the same noise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.evaluate.laws import (
    CANDIDATES,
    INVARIANCE_TOLERANCE,
    SOLVED_TOLERANCE,
    SOLVER,
    TIMES,
    Function,
    Law,
    differences,
    divergence_laws,
    independence_law,
    law_of_each,
    motion_of,
    relative,
    round_trip,
    symmetry_law,
    velocity_laws,
)
from eqflow.flows import MolecularFlow, Solver
from eqflow.flows.bounds import TERMS
from eqflow.flows.continuous import LATENT
from eqflow.flows.joint_states import Molecules
from eqflow.geometry import Clouds, split_state

# An exact trace has a direction for each position and feature of each atom: it is integrated along
# the way of a few small molecules only.
MOST_ATOMS = 4
BOUNDED = 2
# The published flow magnifies errors on the way: at 1e-8 it comes back within 4e-6 to 8e-5.
THERE_AND_BACK = Solver(rtol=1e-10, atol=1e-10, step_limit=10_000)


def molecular_laws(flow: MolecularFlow, structures: int = 8, seed: int = 0) -> Iterator[Law]:
    """Measure every law on molecules drawn from the flow, each given as soon as it is known.

    Args:
        flow: A joint flow; a copy of it is used.
        structures: How many, at least 2 or independence of the batch says nothing.
        seed: Molecules, motions and probes are functions of it.
    """
    flow = copy.deepcopy(flow).double().cpu()
    flow.solver = SOLVER
    batch = _small_molecules(flow, structures, seed)
    molecules, noise = _encoded(flow, batch, seed)
    with torch.no_grad():
        state, _ = flow.state(molecules, noise)
    # Laws see node features, which here are the types of atoms: an element may have several.
    typed = replace(batch, numbers=1 + molecules.labels.kind, charges=None)
    yield from velocity_laws(lambda t: molecular_velocity_at(flow, t), typed, seed)
    yield from _feature_laws(flow, typed, seed)
    yield from _label_laws(flow, molecules, noise, state)
    clouds = molecules.clouds
    # From noise: features made of labels that the flow holds unlikely may end where points meet,
    # and there a field need not be smooth, so that no solver finds the way back.
    source = rng.generator(seed, "check", "noise")
    z = flow.continuous.base.sample(clouds, flow.dimension, state, source)
    context = molecules.context
    yield round_trip(flow.continuous, z, clouds, context, start=LATENT, solver=THERE_AND_BACK)
    yield from divergence_laws(flow.continuous, flow.actnorm(state).detach(), clouds, context, seed)
    few = batch[:BOUNDED]
    yield from _bound_laws(flow, few, noise[: few.segments.rows], seed)


def _small_molecules(flow: MolecularFlow, count: int, seed: int) -> Clouds:
    """Molecules of the smallest of many sizes; the laws hold for any."""
    sizes = flow.sizes.draw(CANDIDATES * count, rng.generator(seed, "check", "sizes"))
    few = sizes.sort().values[:count].clamp(max=MOST_ATOMS)
    return flow.sample(count, seed, sizes=few.tolist())


def _encoded(flow: MolecularFlow, batch: Clouds, seed: int) -> tuple[Molecules, Tensor]:
    molecules = flow.encode(batch)
    source = rng.generator(seed, "check", "dequantisation")
    return molecules, flow.dequantiser.noise(len(molecules.x), molecules.x, source)


def molecular_velocity_at(flow: MolecularFlow, t: float) -> Function:
    """The velocity of positions at a time, where features are the labels themselves.

    It takes the place of each atom's type, plus 1, as its node feature.
    """
    return _velocity(flow, t, features=False)


def _velocity(flow: MolecularFlow, t: float, *, features: bool) -> Function:
    """The velocity of positions or of features, where features are the labels themselves.

    It takes the place of each atom's type, plus 1, as its node feature.
    """

    def velocity(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        numbers, charges = flow.types.labels(h[:, 0].round().to(torch.int64) - 1)
        encoded = flow.encode(Clouds(x, ptr, numbers, charges=charges))
        clouds, labels = encoded.clouds, encoded.labels
        # Not the centred positions: the law is about the field, which must not see the centre.
        state = torch.cat([x, flow.dequantiser.numbers(labels, x)], 1)
        with torch.no_grad():
            moved = flow.continuous.velocity(
                x.new_tensor(t), flow.actnorm(state), clouds, encoded.context
            )
        return split_state(moved, flow.actnorm.features)[features]

    return velocity


def _feature_laws(flow: MolecularFlow, batch: Clouds, seed: int) -> list[Law]:
    d, fields = batch.dimension, [_velocity(flow, t, features=True) for t in TIMES]
    return [
        symmetry_law(f"features: motions, E({d})", fields, batch, f"E({d})", "scalar", seed),
        symmetry_law("features: permutations, S(n)", fields, batch, "S(n)", "scalar", seed),
        independence_law("features: independence of the batch", fields, batch),
    ]


def _label_laws(
    flow: MolecularFlow, molecules: Molecules, noise: Tensor, state: Tensor
) -> list[Law]:
    """Labels follow from the features made of them, and so does the noise."""
    x, clouds, labels = molecules.x, molecules.clouds, molecules.labels
    _, v = split_state(state, flow.actnorm.features)
    found = flow.dequantiser.labels(v)
    wrong = (found.kind != labels.kind) | (found.integers != labels.integers).any(1)
    with torch.no_grad():
        back = flow.dequantiser.inverse(labels, x, clouds, v)
    return [
        Law("dequantiser: wrong labels", float(wrong.double().mean()), 0.0),
        Law("dequantiser: features back to noise", relative(back, noise), SOLVED_TOLERANCE),
    ]


def _bound_laws(flow: MolecularFlow, batch: Clouds, noise: Tensor, seed: int) -> list[Law]:
    d = batch.dimension
    moved = motion_of(batch, f"E({d})", "combined", seed).apply(batch)
    swap = motion_of(batch, "S(n)", "permutation", seed)
    together = Clouds.join([batch, moved, swap.apply(batch)])
    scored = _bounds(flow, together, torch.cat([noise, noise, noise[swap.order]]))
    still, turned, shuffled = scored.split(len(batch))
    parts: Sequence[Tensor] = noise.split(batch.sizes.tolist())
    alone = torch.cat([_bounds(flow, one, own) for one, own in zip(batch, parts, strict=True)])
    return [
        law_of_each(
            f"bound given the size: {claim}", differences(other, still), tolerance, batch.segments
        )
        for claim, other, tolerance in (
            (f"motions, E({d})", turned, INVARIANCE_TOLERANCE),
            ("permutations, S(n)", shuffled, INVARIANCE_TOLERANCE),
            ("independence of the batch", alone, SOLVED_TOLERANCE),
        )
    ]


def _bounds(flow: MolecularFlow, clouds: Clouds, noise: Tensor) -> Tensor:
    """The bound but for the term of the size, which may be impossible here, shape (B,)."""
    with torch.no_grad():
        terms = flow.bound(flow.encode(clouds), noise).terms
    return torch.stack([terms[name] for name in TERMS if name != "log_prob_size"]).sum(0)
