"""The closure of the edge primitives: the derivative of each is another of the set.

A part of the conformance suite; the table it goes through is that of the design's section on the
edge primitives, a test for each row.
"""

from __future__ import annotations

import pytest
import torch
from loops import GRAPHS, Graph, Primitive, relative_error
from torch import Tensor
from torch.func import jvp, vjp

from eqflow.edges import (
    Edges,
    difference_dot,
    edge_dot,
    edge_linear,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    weighted_difference,
    weighted_sum,
)

DIFFERENTIATED = ("uniform", "ragged", "isolated", "repeated and loops", "unsorted clouds")
graphs_with_derivatives = pytest.mark.parametrize(
    "graph", [GRAPHS[name] for name in DIFFERENTIATED], ids=DIFFERENTIATED
)


def transposed(edges: Edges) -> Edges:
    """Every edge turned round; `values[transposed(edges).order]` carries edge values over."""
    return Edges.from_index(torch.stack([edges.receiver, edges.sender]), edges.nodes)


def pullback(fn, inputs: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return vjp(fn, *inputs)[1](cotangent)


def pull(m: Tensor, edges: Edges) -> Tensor:
    """The transpose of `x ↦ x_c − x_r`."""
    return segment_sum(m, edges, "sender") - segment_sum(m, edges, "receiver")


class ClosureConformance:
    device: str = "cpu"

    @graphs_with_derivatives
    @pytest.mark.parametrize("end", ["receiver", "sender"])
    def test_gather_and_segment_sum_are_each_others_derivative(
        self, graph: Graph, end: str
    ) -> None:
        edges = graph.edges(self.device)
        x, m = self._draw(edges, "N3", "E3")
        (of_gather,) = pullback(lambda v: gather(v, edges, end), [x], m)
        (of_sum,) = pullback(lambda v: segment_sum(v, edges, end), [m], x)
        assert relative_error(of_gather, segment_sum(m, edges, end)) < 1e-14
        assert relative_error(of_sum, gather(x, edges, end)) < 1e-14

    @graphs_with_derivatives
    def test_edge_dot_has_weighted_sums_as_derivative(self, graph: Graph) -> None:
        edges = graph.edges(self.device)
        back = transposed(edges)
        p, q, v = self._draw(edges, "N3", "N3", "E")
        of_p, of_q = pullback(lambda p, q: edge_dot(p, q, edges), [p, q], v)
        assert relative_error(of_p, weighted_sum(v, q, edges)) < 1e-14
        assert relative_error(of_q, weighted_sum(v[back.order], p, back)) < 1e-14

    @graphs_with_derivatives
    def test_weighted_sum_has_edge_dot_and_its_transpose_as_derivative(self, graph: Graph) -> None:
        edges = graph.edges(self.device)
        back = transposed(edges)
        w, x, g = self._draw(edges, "E", "N3", "N3")
        of_w, of_x = pullback(lambda w, x: weighted_sum(w, x, edges), [w, x], g)
        assert relative_error(of_w, edge_dot(g, x, edges)) < 1e-14
        assert relative_error(of_x, weighted_sum(w[back.order], g, back)) < 1e-14

    @graphs_with_derivatives
    def test_weighted_difference_has_difference_dot_and_its_transpose_as_derivative(
        self, graph: Graph
    ) -> None:
        edges = graph.edges(self.device)
        w, x, g = self._draw(edges, "E", "N3", "N3")
        of_w, of_x = pullback(lambda w, x: weighted_difference(w, x, edges), [w, x], g)
        assert relative_error(of_w, difference_dot(g, x, edges)) < 1e-14
        weighted = w.unsqueeze(1) * gather(g, edges, "receiver")
        assert relative_error(of_x, pull(weighted, edges)) < 1e-14

    @graphs_with_derivatives
    def test_heads_of_weighted_difference_have_heads_of_difference_dot_as_derivative(
        self, graph: Graph
    ) -> None:
        edges = graph.edges(self.device)
        w, x, g = self._draw(edges, "E2", "N3", "N23")
        (of_w,) = pullback(lambda w: weighted_difference(w, x, edges), [w], g)
        assert relative_error(of_w, difference_dot(g, x, edges)) < 1e-14

    @graphs_with_derivatives
    def test_difference_dot_has_weighted_difference_as_derivative(self, graph: Graph) -> None:
        edges = graph.edges(self.device)
        g, x, v = self._draw(edges, "N3", "N3", "E")
        of_g, of_x = pullback(lambda g, x: difference_dot(g, x, edges), [g, x], v)
        assert relative_error(of_g, weighted_difference(v, x, edges)) < 1e-14
        weighted = v.unsqueeze(1) * gather(g, edges, "receiver")
        assert relative_error(of_x, pull(weighted, edges)) < 1e-14

    @graphs_with_derivatives
    def test_squared_distance_has_weighted_differences_as_derivative(self, graph: Graph) -> None:
        edges = graph.edges(self.device)
        back = transposed(edges)
        x, v = self._draw(edges, "N3", "E")
        (of_x,) = pullback(lambda x: squared_distance(x, edges), [x], v)
        expected = -2 * (
            weighted_difference(v, x, edges) + weighted_difference(v[back.order], x, back)
        )
        assert relative_error(of_x, expected) < 1e-14

    @graphs_with_derivatives
    @pytest.mark.parametrize("end", ["receiver", "sender"])
    def test_segment_softmax_has_a_self_adjoint_derivative(self, graph: Graph, end: str) -> None:
        edges = graph.edges(self.device)
        logits, v = self._draw(edges, "E2", "E2")

        def fn(logits: Tensor) -> Tensor:
            return segment_softmax(logits, edges, end)

        a, pushed = jvp(fn, (logits,), (v,))
        mean = gather(segment_sum(a * v, edges, end), edges, end)
        assert relative_error(pushed, a * (v - mean)) < 1e-14
        assert relative_error(pullback(fn, [logits], v)[0], pushed) < 1e-14

    @graphs_with_derivatives
    def test_edge_linear_has_segment_sums_and_products_as_derivative(self, graph: Graph) -> None:
        edges = graph.edges(self.device)
        p, q, a, g = self._draw(edges, "N4", "N4", "E2", "E4")
        W = self._draw(edges, "42")[0]
        found = pullback(lambda *v: edge_linear(*v, edges), [p, q, a, W], g)
        expected = (segment_sum(g, edges), segment_sum(g, edges, "sender"), g @ W, g.t() @ a)
        for one, other in zip(found, expected, strict=True):
            assert relative_error(one, other) < 1e-13

    def _draw(self, edges: Edges, *shapes: str) -> list[Tensor]:
        """Normal values of shapes such as "E", "N3" or "N23", float64."""
        axes = tuple(tuple(a if a in "NE" else int(a) for a in shape) for shape in shapes)
        return Primitive(gather, gather, axes).inputs(edges)
