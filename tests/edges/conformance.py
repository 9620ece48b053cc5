"""What any backend of the edge primitives has to pass: inherit `BackendConformance` and name it.

class TestMine(BackendConformance):
    backend = "mine"
    device = "cuda"
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from closure import ClosureConformance, graphs_with_derivatives, pullback
from loops import GRAPHS, PRIMITIVES, Graph, Primitive, relative_error
from tolerances import TOLERANCE
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import jvp, vjp, vmap

from eqflow.edges import (
    Edges,
    difference_dot,
    edge_dot,
    gather,
    segment_softmax,
    segment_sum,
    squared_distance,
    use_backend,
    weighted_difference,
    weighted_sum,
)

every_primitive = pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES)
every_graph = pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)


class BackendConformance(ClosureConformance):
    backend: str
    device: str = "cpu"
    large_graph: tuple[int, int] = (20_000, 1_000_000)  # nodes and edges
    seconds_for_the_large_graph: float = 5.0
    repeated_graph: tuple[int, int] = (500, 40_000)
    # What gradcheck batches by is torch's old vmap: it knows no rule of an autograd.Function.
    gradcheck_batches: bool = True
    gradcheck_all_entries: bool = True

    @pytest.fixture(autouse=True)
    def _on_the_backend(self) -> Iterator[None]:
        with use_backend(self.backend, strict=True):
            yield

    # Values.

    @every_primitive
    @every_graph
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_value_is_that_of_the_loop_over_edges(
        self, primitive: Primitive, graph: Graph, dtype: torch.dtype
    ) -> None:
        edges = graph.edges(self.device)
        inputs = primitive.inputs(edges, dtype=dtype)
        pairs = [graph.pairs[e] for e in edges.order.tolist()]
        expected = primitive.loop(pairs, edges.nodes, *[v.double() for v in inputs])
        found = primitive.run(*inputs, edges)
        assert found.dtype == dtype
        assert relative_error(found, expected) < TOLERANCE[dtype]

    @every_primitive
    def test_the_order_of_an_edge_list_does_not_matter(self, primitive: Primitive) -> None:
        sorted_list = GRAPHS["unsorted clouds"]
        shuffled = Graph(sorted_list.pairs[::-1], sorted_list.sizes)
        one, other = sorted_list.edges(self.device), shuffled.edges(self.device)
        inputs = primitive.inputs(one)
        back = one.count - 1 - other.order  # place in the first list of each edge of `other`
        to_other = torch.argsort(one.order)[back]
        moved = [
            value[to_other] if shape[0] == "E" else value
            for value, shape in zip(inputs, primitive.shapes, strict=True)
        ]
        expected = primitive.run(*inputs, one)
        if expected.shape[0] == one.count and expected.shape[0] != one.nodes:
            expected = expected[to_other]
        assert relative_error(primitive.run(*moved, other), expected) < 1e-14

    @every_primitive
    def test_a_graph_gives_the_same_alone_as_in_a_batch(self, primitive: Primitive) -> None:
        parts = [GRAPHS["repeated and loops"], GRAPHS["one receiver"], GRAPHS["isolated"]]
        alone = [part.edges(self.device) for part in parts]
        inputs = [primitive.inputs(edges, seed=k) for k, edges in enumerate(alone)]
        starts = [sum(part.sizes[0] for part in parts[:k]) for k in range(len(parts))]
        pairs = [
            (c + start, r + start)
            for edges, start in zip(alone, starts, strict=True)
            for c, r in zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True)
        ]
        batch = Graph(pairs, tuple(part.sizes[0] for part in parts)).edges(self.device)
        together = [
            torch.cat([each[k] for each in inputs]) if shape[0] in ("N", "E") else inputs[0][k]
            for k, shape in enumerate(primitive.shapes)
        ]
        for k, shape in enumerate(primitive.shapes):
            if shape[0] not in ("N", "E"):
                for each in inputs:
                    each[k] = together[k]
        expected = torch.cat(
            [primitive.run(*each, edges) for each, edges in zip(inputs, alone, strict=True)]
        )
        assert relative_error(primitive.run(*together, batch), expected) < 1e-14

    # Derivatives.

    @every_primitive
    @graphs_with_derivatives
    def test_reverse_and_forward_derivatives_are_those_of_the_value(
        self, primitive: Primitive, graph: Graph
    ) -> None:
        edges = graph.edges(self.device)
        inputs = [value.requires_grad_() for value in primitive.inputs(edges)]
        assert gradcheck(
            lambda *values: primitive.run(*values, edges),
            inputs,
            check_forward_ad=True,
            check_batched_grad=self.gradcheck_batches,
            check_batched_forward_grad=self.gradcheck_batches,
            fast_mode=not self.gradcheck_all_entries,
        )

    @every_primitive
    @graphs_with_derivatives
    def test_second_derivatives_are_those_of_the_first(
        self, primitive: Primitive, graph: Graph
    ) -> None:
        edges = graph.edges(self.device)
        inputs = [value.requires_grad_() for value in primitive.inputs(edges)]
        assert gradgradcheck(
            lambda *values: primitive.run(*values, edges),
            inputs,
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
            fast_mode=not self.gradcheck_all_entries,
        )

    @every_primitive
    @pytest.mark.parametrize("name", ["no nodes", "no edges", "no clouds"])
    def test_a_graph_without_edges_has_derivatives_of_zero(
        self, primitive: Primitive, name: str
    ) -> None:
        edges = GRAPHS[name].edges(self.device)
        inputs = [value.requires_grad_() for value in primitive.inputs(edges)]
        first = torch.autograd.grad(
            primitive.run(*inputs, edges).square().sum(), inputs, create_graph=True
        )
        assert all(value.shape == g.shape for value, g in zip(inputs, first, strict=True))
        assert all((g == 0).all() for g in first)
        tangents = tuple(torch.ones_like(value) for value in inputs)
        _, pushed = jvp(lambda *values: primitive.run(*values, edges), tuple(inputs), tangents)
        assert (pushed == 0).all()

    @every_primitive
    @graphs_with_derivatives
    def test_forward_and_reverse_mode_agree(self, primitive: Primitive, graph: Graph) -> None:
        edges = graph.edges(self.device)
        inputs, tangents = primitive.inputs(edges, 0), primitive.inputs(edges, 1)

        def fn(*values: Tensor) -> Tensor:
            return primitive.run(*values, edges)

        value, pushed = jvp(fn, tuple(inputs), tuple(tangents))
        source = torch.Generator().manual_seed(2)
        u = torch.randn(value.shape, generator=source, dtype=value.dtype).to(value.device)
        pulled = pullback(fn, inputs, u)
        reverse = sum((p * v).sum() for p, v in zip(pulled, tangents, strict=True))
        assert relative_error((u * pushed).sum(), reverse) < TOLERANCE[torch.float64]
        with forward_ad.dual_level():
            dual = fn(*map(forward_ad.make_dual, inputs, tangents))
            assert torch.equal(forward_ad.unpack_dual(dual).tangent, pushed)

    @every_primitive
    @graphs_with_derivatives
    def test_batched_forward_mode_gives_the_jacobian(
        self, primitive: Primitive, graph: Graph
    ) -> None:
        edges = graph.edges(self.device)
        for k, value in enumerate(inputs := primitive.inputs(edges)):
            if value.numel() == 0:
                continue

            def fn(v: Tensor, k: int = k, inputs: list[Tensor] = inputs) -> Tensor:
                return primitive.run(*inputs[:k], v, *inputs[k + 1 :], edges)

            basis = torch.eye(value.numel(), dtype=value.dtype, device=value.device)
            columns = vmap(lambda v, fn=fn, value=value: jvp(fn, (value,), (v,))[1])(
                basis.reshape(-1, *value.shape)
            )
            jacobian = torch.autograd.functional.jacobian(fn, value).flatten(-value.dim())
            assert relative_error(columns.movedim(0, -1), jacobian) < 1e-13

    @every_primitive
    @graphs_with_derivatives
    def test_batched_reverse_mode_gives_each_derivative(
        self, primitive: Primitive, graph: Graph
    ) -> None:
        edges = graph.edges(self.device)
        value, pull = vjp(lambda *v: primitive.run(*v, edges), *primitive.inputs(edges))
        source = torch.Generator().manual_seed(2)
        u = torch.randn(3, *value.shape, generator=source, dtype=value.dtype).to(value.device)
        for k, batched in enumerate(zip(*vmap(pull)(u), strict=True)):
            for one, other in zip(batched, pull(u[k]), strict=True):
                assert relative_error(one, other) < 1e-13

    # Numbers that are large.

    def test_differences_keep_their_digits_at_an_offset_of_a_million(self) -> None:
        source = torch.Generator().manual_seed(0)
        edges = Edges.complete(torch.tensor([0, 20, 50], device=self.device))
        near = torch.randn(50, 3, generator=source) * 8
        x = (near + 1e6).to(self.device)  # rounded: every backend is given the same positions
        w = torch.randn(edges.count, generator=source).to(self.device)
        expected = weighted_difference(w.double(), x.double(), edges)
        assert relative_error(weighted_difference(w, x, edges), expected) < 3e-7
        d2 = squared_distance(x.double(), edges)
        assert relative_error(squared_distance(x, edges), d2) < 3e-7
        g = near.to(self.device)
        dots = difference_dot(g.double(), x.double(), edges)
        assert relative_error(difference_dot(g, x, edges), dots) < 3e-7
        # The form that subtracts afterwards is what this guards against.
        split = weighted_sum(w, x, edges) - segment_sum(w, edges).unsqueeze(1) * x
        assert relative_error(split, expected) > 1e-4

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_softmax_of_huge_logits_is_finite_and_sums_to_one(self, dtype: torch.dtype) -> None:
        edges = GRAPHS["ragged"].edges(self.device)
        (logits,) = self._draw(edges, "E")
        logits = (logits * 1e30).to(dtype).requires_grad_()
        a = segment_softmax(logits, edges)
        occupied = edges.incoming.lengths > 0
        total = segment_sum(a, edges)
        assert relative_error(total[occupied], torch.ones_like(total[occupied])) < 1e-6
        assert (total[~occupied] == 0).all()
        assert torch.autograd.grad(a.square().sum(), logits)[0].isfinite().all()

    def test_softmax_of_one_graph_is_not_changed_by_huge_logits_of_another(self) -> None:
        edges = GRAPHS["unsorted clouds"].edges(self.device)
        (logits,) = self._draw(edges, "E")
        first = edges.clouds.ids[edges.receiver] == 0
        other = torch.where(first, logits, logits + 1e5)
        assert torch.equal(
            segment_softmax(logits, edges)[first], segment_softmax(other, edges)[first]
        )

    def test_softmax_does_not_change_with_a_shift_of_each_receivers_logits(self) -> None:
        edges = GRAPHS["ragged"].edges(self.device)
        logits, shift = self._draw(edges, "E", "N")
        moved = logits + gather(shift, edges, "receiver")
        assert relative_error(segment_softmax(moved, edges), segment_softmax(logits, edges)) < 1e-14

    # Size and repetition.

    def test_a_large_graph_gives_the_sums_of_float64_in_time(self) -> None:
        edges, x, w = self._large(*self.large_graph)
        w.requires_grad_()
        x.requires_grad_()
        begin = time.process_time()
        out = weighted_difference(segment_softmax(w, edges), x, edges)
        out.square().sum().backward()
        if self.device == "cuda":
            torch.cuda.synchronize()
        assert time.process_time() - begin < self.seconds_for_the_large_graph

        sender, receiver = edges.sender.cpu().numpy(), edges.receiver.cpu().numpy()
        weight = np.exp(w.detach().double().cpu().numpy())
        weight /= np.bincount(receiver, weight, edges.nodes)[receiver]
        positions = x.detach().double().cpu().numpy()
        rows = weight[:, None] * (positions[sender] - positions[receiver])
        expected = np.stack([np.bincount(receiver, c, edges.nodes) for c in rows.T], 1)
        assert relative_error(out.detach().cpu(), torch.from_numpy(expected)) < 1e-5
        g = 2 * expected
        dots = ((positions[sender] - positions[receiver]) * g[receiver]).sum(1)
        mean = np.bincount(receiver, weight * dots, edges.nodes)
        of_logits = torch.from_numpy(weight * (dots - mean[receiver]))
        assert relative_error(w.grad.cpu(), of_logits) < 1e-5

    def test_repeats_are_equal_to_the_last_bit_also_with_several_threads(self) -> None:
        if self.device != "cpu":
            pytest.skip("promised on CPU")
        edges, x, w = self._large(*self.repeated_graph)
        threads = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            runs = [self._run_all(edges, x, w) for _ in range(3)]
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))

    def _run_all(self, edges: Edges, x: Tensor, w: Tensor) -> list[Tensor]:
        x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
        a = segment_softmax(w + squared_distance(x, edges) + edge_dot(x, x, edges), edges)
        outs = [weighted_sum(a, x, edges), weighted_difference(a, x, edges)]
        outs.append(segment_sum(a.unsqueeze(1) * gather(x, edges), edges, "sender"))
        total = sum(out.square().sum() for out in outs)
        return [a.detach(), *(out.detach() for out in outs), *torch.autograd.grad(total, (x, w))]

    def _large(self, n: int, count: int) -> tuple[Edges, Tensor, Tensor]:
        source = torch.Generator().manual_seed(0)
        index = torch.randint(n, (2, count), generator=source)
        x, w = torch.randn(n, 3, generator=source), torch.randn(count, generator=source)
        edges = Edges.from_index(index.to(self.device), n)
        return edges, x.to(self.device), w.to(self.device)
