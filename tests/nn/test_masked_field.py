"""Laws of the field whose categories are masked or visible and do not move."""

import pytest
import torch
from per_edge import awake
from torch import Tensor
from torch.nn.functional import one_hot

from eqflow.edges import Edges
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments, centred
from eqflow.nn import GuidedField, MaskedEGNNField
from eqflow.testing import assert_equivariant, assert_independent, clouds

every_cloud = pytest.mark.parametrize(
    "batch", [batch for _, batch in clouds()], ids=[name for name, _ in clouds()]
)
TIME = torch.tensor(0.37, dtype=torch.float64)
RAGGED = Segments.of_lengths(torch.tensor([4, 6, 1, 2]))


def small(**options) -> MaskedEGNNField:
    return awake(MaskedEGNNField(**{"categories": 2, "width": 8, "layers": 2, **options}))


def draw(*shape: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=source)


@every_cloud
@pytest.mark.parametrize("part", ["vector", "scalar"])
@pytest.mark.parametrize("options", [{}, {"attention": True, "cutoff": 2.0}], ids=str)
def test_the_velocity_turns_with_the_cloud_and_logits_do_not(batch, part: str, options) -> None:
    field = small(**options)

    def found(x: Tensor, ptr: Tensor, h: Tensor) -> Tensor:
        context = one_hot(h[:, 0].round().long() % 3, 3).to(x)
        edges = field.connect(x, Segments(ptr))
        return field.velocity_and_logits(TIME, x, edges, context)[part == "scalar"]

    for group in ("E(3)", "S(n)"):
        assert_equivariant(found, batch, group=group, output=part)
    assert_independent(found, batch)


def test_the_velocity_is_the_first_of_both_and_leaves_centres_at_rest() -> None:
    field, x = small(context_features=2), draw(RAGGED.rows, 3)
    edges, context = Edges.complete(RAGGED), draw(RAGGED.rows, 5, seed=1)
    times = torch.tensor([0.0, 0.5, 0.9, 1.0], dtype=torch.float64)
    v, logits = field.velocity_and_logits(times, x, edges, context)
    assert torch.equal(v, field(times, x, edges, context))
    assert logits.shape == (RAGGED.rows, 2)
    assert RAGGED.mean(v).abs().max() < 1e-14


def test_with_nothing_learned_positions_move_as_normal_data() -> None:
    field, x = small(), draw(RAGGED.rows, 3)
    for parameter in field.parameters():
        parameter.data.zero_()
    v, logits = field.velocity_and_logits(
        TIME, x, Edges.complete(RAGGED), torch.zeros(RAGGED.rows, 3, dtype=torch.float64)
    )
    rate = (2 * 0.37 - 1) / ((1 - 0.37) ** 2 + 0.37**2)
    torch.testing.assert_close(v, rate * centred(x, RAGGED))
    assert not logits.any()


def test_what_is_visible_counts_for_the_velocity_and_for_the_others_logits() -> None:
    field, x, edges = small(), draw(3, 3), Edges.complete(torch.tensor([0, 3]))
    masked, seen = (one_hot(torch.tensor(k), 3).double() for k in ([2, 2, 2], [2, 2, 0]))
    first, second = (field.velocity_and_logits(TIME, x, edges, each) for each in (masked, seen))
    assert (first[0] - second[0]).abs().max() > 1e-4
    assert (first[1] - second[1])[:2].abs().min() > 1e-6


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guidance_weights_logits_as_the_velocity(guidance: float) -> None:
    field, x, edges = small(context_features=2), draw(RAGGED.rows, 3), Edges.complete(RAGGED)
    context = draw(RAGGED.rows, 5, seed=1)
    without = torch.cat([context[:, :3], torch.zeros(RAGGED.rows, 2)], 1)
    guided = GuidedField(field, 2, guidance)
    found = guided.velocity_and_logits(TIME, x, edges, context)
    both = [field.velocity_and_logits(TIME, x, edges, each) for each in (context, without)]
    for place in range(2):
        expected = both[1][place] + guidance * (both[0][place] - both[1][place])
        torch.testing.assert_close(found[place], expected)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match="categories=0"):
        MaskedEGNNField(0)
    with pytest.raises(ShapeError, match="found 0 context features, expected 3"):
        small()(TIME, draw(3, 3), Edges.complete(torch.tensor([0, 3])))
