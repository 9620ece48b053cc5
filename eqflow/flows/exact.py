"""The exact divergence: one route for every kind of field, and the choice between them."""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.edges import Dual
from eqflow.errors import UsageError
from eqflow.flows.directions import Directions, at_once
from eqflow.flows.field_at import FieldAt, Pullback, carries_tangents, features_of
from eqflow.flows.trace import AbstractDivergence, Trace, Velocity
from eqflow.geometry import Segments
from eqflow.nn.field import AbstractField

# Measured on a CPU: directions and numbers in all of them below which the tangents of a field are
# cheaper than a trace of its own, and numbers alone where features evolve, whose own trace takes
# more steps; numbers that forward passes are to be spared before it pays to find what rotations
# say, directions together before they are cheaper than reverse ones, which do not evaluate the
# field again, and before that pays `torch.func.jvp` what it costs to begin.
FEW_DIRECTIONS, LITTLE = 6, 2**19
LITTLE_OF_FEATURES = 2**17
WORTH_TURNING = 2**15
WORTH_FORWARD = 4
LEAST_MAPPED = 8


class Exact(AbstractDivergence):
    """The exact trace by the cheapest route that there is.

    - The field's own, where nothing is to be differentiated and there is one, as of the fields of
      this package on complete graphs; that of an `EGNNField` of one layer, a radial field, is a
      closed form. A few clouds of three or four points are done sooner by the next.
    - Else `ExactForward` where the field carries tangents. On a CPU that was measured to be the
      cheapest where the trace is to be differentiated or several directions fit a pass. On a GPU
      it was chosen on paper, for launching fewer and larger kernels than pass after pass.
    - Else `ExactReverse`, which asks least of a field.

    `benchmarks/divergence.py` compares them.
    """

    is_exact = True

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace."""
        if isinstance(velocity, FieldAt):
            is_own = not torch.is_grad_enabled() and not _is_little(velocity, x, clouds)
            own = velocity.exact_trace(x) if is_own else None
            if own is not None:
                return Trace(own[0], own[1].unsqueeze(1))
            together = at_once(x, _numbers(velocity, clouds))
            pays = torch.is_grad_enabled() or x.is_cuda or together >= WORTH_FORWARD
            if velocity.field.carries_tangents and pays:
                return ExactForward()(velocity, x, clouds, probes)
        return ExactReverse()(velocity, x, clouds, probes)


class ExactReverse(AbstractDivergence):
    """The exact trace by reverse mode, one direction after another through one graph.

    Directions that symmetry makes superfluous (`Directions`) are left out. Every cloud of a batch
    shares the passes.
    """

    is_exact = True

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace, one reverse pass a direction."""
        pullback = Pullback(velocity, x)
        directions = Directions(
            pullback.x, clouds, rotations=_turns(velocity, x), features=features_of(velocity)
        )
        trace = directions.known(pullback.value)
        for tangents, covectors in directions.blocks(at_once(x, x.numel())):
            for tangent, covector in zip(tangents.unbind(1), covectors.unbind(1), strict=True):
                trace = trace + clouds.sum((pullback(covector) * tangent).sum(-1))
        return Trace(pullback.value, trace.unsqueeze(1))


class ExactForward(AbstractDivergence):
    """The exact trace by forward mode, several directions a pass.

    A field that carries tangents evaluates itself once a pass, whose directions share that; any
    other function is mapped over `torch.func.jvp`. Directions that symmetry makes superfluous
    (`Directions`) are left out.

    Args:
        chunk: Directions carried at once. Where None, as many as keep a layer's temporary of
            `edges × message_width × directions` numbers within 1 MiB on a CPU and 512 MiB on a GPU;
            8 at least of what is mapped, whose passes cost more to begin. A function that is no
            field counts as one of width 64 on complete graphs. What a backward pass keeps of all
            directions is not bounded by it.
    """

    is_exact = True

    def __init__(self, chunk: int | None = None) -> None:
        if chunk is not None and chunk < 1:
            raise UsageError(f"divergence.chunk: found {chunk}, expected at least 1.")
        self.chunk = chunk

    def __call__(self, velocity: Velocity, x: Tensor, clouds: Segments, probes: Tensor) -> Trace:
        """Velocity and trace, several directions a pass."""
        numbers = _numbers(velocity, clouds)
        features = features_of(velocity)
        dimension = x.shape[1] - features
        saved = numbers * dimension * (dimension - 1) // 2
        rotations = saved >= WORTH_TURNING and _turns(velocity, x)
        directions = Directions(x, clouds, rotations=rotations, features=features)
        least = 1 if carries_tangents(velocity) else LEAST_MAPPED
        chunk = self.chunk or max(at_once(x, numbers), least)
        value, trace = None, x.new_zeros(clouds.count)
        for tangents, covectors in directions.blocks(chunk):
            value, pushed = _pushforward(velocity, x, tangents)
            trace = trace + clouds.sum((pushed * covectors).sum((1, 2)))
        value = velocity(x) if value is None else value
        return Trace(value, (trace + directions.known(value)).unsqueeze(1))


def _pushforward(velocity: Velocity, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Velocity (N, d + K) and its derivatives along `tangents`, (N, S, d + K)."""
    if carries_tangents(velocity):
        t, at = velocity.t.to(x.dtype), Dual(x, tangents)
        return velocity.field.pushforward(t, at, velocity.edges, velocity.context)

    def along(tangent: Tensor) -> tuple[Tensor, ...]:
        return torch.func.jvp(velocity, (x,), (tangent,))

    values, pushed = torch.func.vmap(along, in_dims=1, out_dims=(0, 1))(tangents)
    return values[0], pushed


def _is_little(velocity: FieldAt, x: Tensor, clouds: Segments) -> bool:
    """Whether tangents along all directions that symmetry leaves are the cheapest route."""
    features = features_of(velocity)
    d = x.shape[1] - features
    count = (clouds.longest - 1) * d + clouds.longest * features
    count -= _turns(velocity, x) * d * (d - 1) // 2
    numbers = _numbers(velocity, clouds) * count
    is_small = count <= FEW_DIRECTIONS and numbers < LITTLE
    if features:
        is_small = numbers < LITTLE_OF_FEATURES
    return is_small and velocity.field.carries_tangents and not x.is_cuda


def _turns(velocity: Velocity, x: Tensor) -> bool:
    """Whether rotations may be made use of; on a GPU the host would wait for ranks."""
    is_plain = not x.is_cuda and not torch._C._are_functorch_transforms_active()
    return is_plain and isinstance(velocity, FieldAt) and velocity.field.turns_with_state


def _numbers(velocity: Velocity, clouds: Segments) -> int:
    """Numbers in a temporary of one direction."""
    if isinstance(velocity, FieldAt):
        return velocity.edges.count * velocity.field.message_width
    return int(clouds.lengths.square().sum()) * AbstractField.message_width
