"""Fixed steps for a GPU that waits for its host: one step recorded as a CUDA graph, then replayed.

A small system spends most of a step launching kernels. Recorded once, all kernels of a step are
launched as one. A graph reads and writes where it was recorded, so state, time and step size are
buffers that stay where they are; host and device meet only at the end. Recording takes about three
ordinary steps.

A state that is not on a CUDA device is carried by the same steps on the same buffers, unrecorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from eqflow.errors import UsageError
from eqflow.flows.evaluation import Evaluator
from eqflow.flows.steppers import TABLEAUS, Tableau, Weights, equal_steps


class StaticStep:
    """One step of a method, whose every tensor stays where it is.

    It is recorded as it is made where `y` is on a CUDA device.

    Args:
        evaluate: The right-hand side; its work must not depend on values, only on shapes.
        tableau: The method.
        y: The state to start from, shape (M,); it is copied.
        time: Its time.

    Attributes:
        state: Where the state is, shape (M,).
    """

    def __init__(self, evaluate: Evaluator, tableau: Tableau, y: Tensor, time: float) -> None:
        self._evaluate = evaluate
        self._tableau = tableau
        self._start = y.new_full((), time)
        self._length = y.new_zeros(())
        self._graph: torch.cuda.CUDAGraph | None = None
        self.state = y.clone()
        if y.is_cuda:
            self._record()

    def __call__(self, start: float, end: float) -> None:
        """Carry `state` from one time to another."""
        nodes = self._tableau.nodes
        self._evaluate.count(start + nodes[-1] * (end - start), len(nodes))
        # A number filled in travels with the launch; copied from the host it would wait.
        self._start.fill_(start)
        self._length.fill_(end - start)
        if self._graph is None:
            self._take()
        else:
            self._graph.replay()

    def _take(self) -> None:
        stages: list[Tensor] = []
        for node, row in zip(self._tableau.nodes, self._tableau.rows, strict=True):
            time = torch.add(self._start, self._length, alpha=node)
            stages.append(self._evaluate.uncounted(time, self._moved(row, stages)))
        self.state.copy_(self._moved(self._tableau.weights, stages))

    def _moved(self, weights: Weights, stages: Sequence[Tensor]) -> Tensor:
        """`y + h Σ wᵢ kᵢ`, with `h` where the graph finds it."""
        moved = self.state
        for weight, stage in zip(weights, stages, strict=True):
            if weight != 0:
                moved = torch.addcmul(moved, stage, self._length, value=weight)
        return moved

    def _record(self) -> None:
        # What is made at first use is made before recording, away from the stream in use; the
        # step is of length zero still, and leaves the state as it is.
        with torch.cuda.device(self.state.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._take()
                self._take()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._take()
            except RuntimeError as error:
                raise UsageError(
                    f"solver.capture: the field cannot be recorded as a CUDA graph: {error}. A "
                    "field with a cutoff makes its graph anew at each state; set "
                    "solver.capture=false."
                ) from error
        self._graph = graph


@torch.no_grad()
def integrate_captured(
    evaluate: Evaluator, method: str, y: Tensor, times: Sequence[float], steps: int
) -> list[Tensor]:
    """As `integrate_fixed`, by one step on fixed buffers, without derivatives.

    Raises:
        Stopped: If there were too many evaluations, or a value is not finite.
        UsageError: If the field cannot be recorded.
    """
    size = abs(times[-1] - times[0]) / steps
    step = StaticStep(evaluate, TABLEAUS[method], y, times[0])
    states = [y]
    for start, end in pairwise(times):
        for here, there in pairwise(equal_steps(start, end, size)):
            step(here, there)
        states.append(step.state.clone())
    return states
