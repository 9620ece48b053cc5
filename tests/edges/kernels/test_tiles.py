from itertools import pairwise

import pytest
import torch
from loops import GRAPHS, Graph, complete

from eqflow.edges.kernels.rows import sum_pieces
from eqflow.edges.kernels.tiles import MOST_ROWS, tiles_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MORE = {
    **GRAPHS,
    "pairs": complete(*[2] * 200),
    "mixed": complete(12, 1, 1, 9, 3, 0, 20, 2),
    "hub": Graph([(k % 5, 1) for k in range(100)] + [(1, 4), (2, 4)], (5,)),
}
every_graph = pytest.mark.parametrize("name", MORE)


def greedy(lengths: list[int], M: int, R: int) -> list[int]:
    """First row of each tile, a row at a time."""
    starts, edges = [0], 0
    for row, length in enumerate(lengths):
        if edges + length > M or row - starts[-1] == R:
            starts.append(row)
            edges = 0
        edges += length
    return [*starts, len(lengths)] if lengths else [0]


@every_graph
@pytest.mark.parametrize("M", [16, 64])
def test_a_tile_takes_as_many_rows_as_fit(name: str, M: int) -> None:
    tiles = tiles_of(MORE[name].edges(DEVICE), M)
    expected = greedy(tiles.rows.lengths.tolist(), M, tiles.rows_per_tile)
    assert tiles.tile_ptr.tolist() == expected
    assert tiles.rows.longest <= M
    assert tiles.rows_per_tile <= MOST_ROWS


@every_graph
def test_rows_are_receivers_or_pieces_of_them_in_order(name: str) -> None:
    edges = MORE[name].edges(DEVICE)
    tiles = tiles_of(edges, 16)
    if tiles.pieces is None:
        receiver = tiles.row_of_edge
    else:
        receiver = tiles.pieces.ids[tiles.row_of_edge.long()]
        assert tiles.pieces.count == edges.nodes
    assert torch.equal(receiver.long(), edges.receiver)
    assert torch.equal(tiles.rows.ids, tiles.row_of_edge.long())


@every_graph
def test_sums_by_row_combine_to_sums_by_receiver(name: str) -> None:
    edges = MORE[name].edges(DEVICE)
    tiles = tiles_of(edges, 16)
    values = torch.randn(edges.count, 3, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(tiles.combine(tiles.rows.sum(values)), edges.incoming.sum(values))


def test_a_table_is_made_once_for_a_graph() -> None:
    edges = MORE["mixed"].edges(DEVICE)
    assert tiles_of(edges, 64) is tiles_of(edges, 64)
    assert tiles_of(edges, 32) is not tiles_of(edges, 64)


@pytest.mark.parametrize("shape", [(3,), (2, 70), (200,), (0,)])
def test_rows_of_any_shape_are_added_up(shape: tuple[int, ...]) -> None:
    ptr = torch.tensor([0, 0, 40, 41, 50], device=DEVICE)
    values = torch.randn(50, *shape, dtype=torch.float64, device=DEVICE)
    expected = [values[a:b].sum(0) for a, b in pairwise(ptr)]
    torch.testing.assert_close(sum_pieces(values, ptr), torch.stack(expected))
