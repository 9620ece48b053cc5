r"""What is tried where a solver fails on some structures, and when its result may be believed.

Structures that failed are solved again, each alone, by other solvers in turn:

1. `dopri5`, within the tolerance asked for, where another method was: fixed steps that were too
   long, or that left the region where the field exists, are what fails most often;
2. `radau`, after a limit of evaluations: it is implicit, and where rates are large but the solution
   is smooth it needs a few hundred where an explicit method needs tens of thousands;
3. `dopri5` with a tenth of the tolerance, after a state that was not finite, where numbers resolve
   a finer one: where errors carried the solution over the edge of where it exists;
4. `rk4` in `STEPS` steps: for fields that jump, where error control never rests, and where the
   tolerance is finer than the numbers.

All attempts at one structure share `MORE` times the evaluations that were allowed to the solver
asked for, and what they do not suffice for is not begun: where nothing helps, a structure costs at
most that much more than its failure did.

None is believed on its word. Each solves twice, the second time finer (`refined`); the finer result
is given, with the difference of the two as its error, and counts where that is at most
`LARGEST_ERROR`. Of fixed steps it is `MARGIN` times the difference: of a field that jumps each
result is off by about a step, and the two may happen to agree. Where none counts, a structure stays
failed as it failed at first: fixed steps walk over a pole without a sign.

Where gradients are enabled, nothing is tried: a loss is of the solver that was asked for.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from eqflow.flows.continuous import LATENT, ContinuousFlow, Transport
from eqflow.flows.convergence import finest, refined
from eqflow.flows.solver import Solver, Status
from eqflow.flows.trace import AbstractDivergence
from eqflow.geometry import Segments

MORE = 5  # times the evaluations allowed to the solver asked for, of all attempts together
STEPS = 400
STAGES = 4  # of a step of rk4
LEAST_STEPS = 25  # of an adaptive implicit method, so that it steps over nothing unseen
# In nats and in standardised units of length, or relative to the state where that is larger.
LARGEST_ERROR = 1e-3
MARGIN = 4


def others(asked: Solver, status: Status, dtype: torch.dtype) -> list[Solver]:
    """What is tried after a solver failed, in its order.

    None is coarser than what was asked for, unless that cannot be checked in numbers of this dtype:
    then it is as fine as can be.
    """
    least = 2 * finest(dtype)  # so that there is a finer one
    rtol, atol = max(asked.rtol, least), max(asked.atol, least)
    plain = Solver("dopri5", rtol, atol, LEAST_STEPS, asked.step_limit)
    tighter = replace(plain, rtol=max(rtol / 10, least), atol=max(atol / 10, least))
    # Twice as many steps are taken to check them.
    last = replace(plain, method="rk4", steps=STEPS, step_limit=2 * STAGES * STEPS)
    if not is_plain(asked):
        return [plain, last]
    if status is Status.STEP_LIMIT:
        # Its steps are few, but each takes several evaluations.
        return [replace(plain, method="radau", step_limit=2 * asked.step_limit), last]
    if status is Status.NON_FINITE and tighter.rtol + tighter.atol < asked.rtol + asked.atol:
        return [tighter, last]
    return [last]


def need(solver: Solver) -> int:
    """How many evaluations a solver and its check are known to take, at least."""
    return 1 if solver.is_adaptive else 3 * STAGES * solver.steps


def is_plain(solver: Solver) -> bool:
    """Whether it is `dopri5` as eqflow takes its steps, whose failures say the most."""
    return solver.method == "dopri5" and solver.implementation == "eqflow"


def in_words(solver: Solver) -> str:
    """A solver as results name it.

    >>> in_words(Solver("rk4", steps=400)), in_words(Solver("radau", rtol=1e-6))
    ('rk4 in 400 steps', 'radau at 1e-06')
    """
    how = f"at {solver.rtol:g}" if solver.is_adaptive else f"in {solver.steps} steps"
    return f"{solver.method} {how}"


def carry(
    flow: ContinuousFlow,
    x: Tensor,
    clouds: Segments,
    context: Tensor | None = None,
    *,
    start: float,
    end: float,
    solver: Solver,
    divergence: AbstractDivergence | None = None,
    source: torch.Generator | None = None,
    fallback: bool = True,
) -> Transport:
    """`ContinuousFlow.transport`, and other solvers for clouds on which that failed.

    What arrives by the solver asked for is bitwise the same, whatever becomes of the others, and
    nothing is evaluated besides where nothing fails.

    Args:
        flow, x, clouds, context, start, end, solver, divergence, source: As of `transport`; probes
            are the same in all attempts.
        fallback: Whether others are tried.

    Returns:
        Where clouds were carried. `solver` and `solver_error` say which other solver carried a
        cloud, and how much it may be off; `evaluations` counts all attempts.
    """
    probes = flow.probes(x, clouds, divergence, source)

    def by(solver: Solver, chosen: Tensor | None) -> Transport:
        some, rows = (clouds, None) if chosen is None else clouds.select(chosen)
        return flow.transport(
            x if rows is None else x[rows],
            some,
            context if rows is None or context is None else context[rows],
            start=start,
            end=end,
            solver=solver,
            divergence=divergence,
            probes=probes if rows is None else probes[:, rows],
        )

    asked = by(solver, None)
    failed = [cloud for cloud, status in enumerate(asked.status) if status.failed]
    if not failed or not fallback or torch.is_grad_enabled():
        return asked
    final, log_det, evaluations = asked.x.clone(), asked.log_det.clone(), asked.evaluations.clone()
    time, error = asked.time.clone(), asked.solver_error.clone()
    status, names = list(asked.status), list(asked.solver)
    for cloud in failed:
        chosen = torch.tensor([cloud], device=x.device)
        alone, rows = clouds.select(chosen)
        waiting = others(solver, asked.status[cloud], x.dtype)
        is_first = True
        left = MORE * solver.step_limit
        while waiting:
            other = waiting.pop(0)
            if need(other) > left:
                continue
            coarse = by(replace(other, step_limit=min(other.step_limit, left)), chosen)
            evaluations[cloud] += int(coarse.evaluations)
            left -= int(coarse.evaluations)
            if coarse.status[0].failed:
                if is_first and not is_plain(solver):
                    # How this one failed says what is worth trying.
                    waiting = others(other, coarse.status[0], x.dtype)
                is_first = False
                continue
            is_first = False
            if left < 1:
                break
            finer = replace(refined(other, x.dtype), step_limit=left)
            fine = by(finer, chosen)
            evaluations[cloud] += int(fine.evaluations)
            left -= int(fine.evaluations)
            if fine.status[0].failed:
                continue
            found, allowed = _difference(flow, coarse, fine, alone, end)
            found *= 1 if other.is_adaptive else MARGIN
            if not found <= allowed:
                continue
            final[rows], log_det[chosen] = fine.x, fine.log_det
            time[cloud], error[cloud] = end, found
            status[cloud], names[cloud] = Status.SUCCESS, in_words(finer)
            break
    return replace(
        asked,
        x=final,
        log_det=log_det,
        evaluations=evaluations,
        time=time,
        status=tuple(status),
        solver=tuple(names),
        solver_error=error,
    )


def _difference(
    flow: ContinuousFlow, coarse: Transport, fine: Transport, alone: Segments, end: float
) -> tuple[float, float]:
    """How far two results of one cloud are apart, and how far they may be."""
    apart = (fine.x - coarse.x).double().square().mean().sqrt()
    scale = fine.x.double().square().mean().sqrt()
    gained = [each.log_det.double().mean(1) for each in (coarse, fine)]
    if fine.log_det.shape[1]:
        if end == LATENT:
            gained = [
                gain + flow.base.log_prob(each.x, alone).double()
                for gain, each in zip(gained, (coarse, fine), strict=True)
            ]
        apart = torch.maximum(apart, (gained[1] - gained[0]).abs().squeeze())
        scale = torch.maximum(scale, gained[1].abs().squeeze())
    return float(apart), LARGEST_ERROR * max(1.0, float(scale))
