"""A classifier that encodes features, lets them diffuse for a while, and decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eqflow import rng
from eqflow.flows.diffusion_arguments import Measure
from eqflow.flows.graph_diffusion import Diffused, diffuse
from eqflow.flows.solver import Solver
from eqflow.graphs.classifier import AbstractNodeClassifier, Classification
from eqflow.graphs.encoder import NodeDecoder, NodeEncoder
from eqflow.graphs.graph import Graph
from eqflow.nn.field import AbstractField


class DiffusionClassifier(AbstractNodeClassifier):
    r"""`decode(z(T))` with :math:`\dot z = f(t, z)` from `z(0) = encode(graph)`.

    Args:
        field: The right-hand side `f`; where it asks for a context, that is `z(0)`.
        encoder: Gives states as wide as the field's.
        decoder: Takes them to logits.
        time: Length `T` of the integration.
        solver: How to integrate.
        penalties: What training may penalise: "kinetic", :math:`\int \lVert \dot z \rVert^2 dt`,
            and "jacobian", :math:`\int \lVert \partial \dot z / \partial z \rVert_F^2 dt` by one
            probe; means over nodes.
    """

    def __init__(
        self,
        field: AbstractField,
        encoder: NodeEncoder,
        decoder: NodeDecoder,
        time: float,
        solver: Solver,
        penalties: Sequence[Measure] = (),
    ) -> None:
        super().__init__()
        self.field = field
        self.encoder = encoder
        self.decoder = decoder
        self.features = encoder.features
        self.encoding_features = encoder.encoding_features
        self.classes = decoder.classes
        self.time = time
        self.solver = solver
        self.penalties: tuple[Measure, ...] = tuple(penalties)

    def logits_at(self, graph: Graph, times: Sequence[float]) -> list[Tensor]:
        """The logits (N, K) of the state at each of several times above 0, each by its own solve.

        To read the state early, when it serves validation nodes best, is a choice made after
        training: `time` is what was trained. They are those of a classifier that reads there.
        """
        return [
            self.decoder(self._solve(graph, [time], self.solver_until(time)).final())
            for time in times
        ]

    def solver_until(self, time: float) -> Solver:
        """The solver with steps as long as those of `time`, where steps are fixed."""
        return replace(self.solver, steps=max(1, round(self.solver.steps * time / self.time)))

    def read_at(self, time: float) -> None:
        """Read the state at another time from now on."""
        self.solver, self.time = self.solver_until(time), time

    def path(self, graph: Graph, times: Sequence[float]) -> Tensor:
        """The state at time 0 and at each of `times`, shape (1 + T, N, C)."""
        return self._solve(graph, times, self.solver).require()

    def _classify(self, graph: Graph) -> Classification:
        found = self._solve(graph, [self.time], self.solver)
        logits = self.decoder(found.final())
        penalties = {name: sums.sum() / graph.nodes for name, sums in found.measured.items()}
        return Classification(logits, penalties, found.evaluations)

    def _solve(self, graph: Graph, times: Sequence[float], solver: Solver) -> Diffused:
        graph = self.looped(graph)
        measure = self.penalties if self.training else ()
        z = self.encoder(graph)
        # The seed by which whoever trains lets dropout draw.
        seed = torch.initial_seed()
        source = rng.generator(seed, "probe", device=z.device) if measure else None
        return diffuse(
            self.field,
            z,
            graph.edges,
            times[-1],
            solver,
            times=[0.0, *times],
            measure=measure,
            source=source,
        )
