import math

import pytest
import torch
from tolerances import TOLERANCE
from torch import Tensor, nn
from torch.nn.functional import conv2d

from eqflow import rng
from eqflow.errors import DataError, ShapeError, UsageError
from eqflow.nn.averaging import ImageGroupAverage

EXACT = TOLERANCE[torch.float64]
LIKE = torch.zeros((), dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return rng.normal(shape, LIKE, rng.generator(seed, "test", "images"))


def pixel_map(turns: int, flips: bool, size: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Where each pixel goes, from the coordinates of its centre: x to the right, y up."""
    half = (size - 1) / 2
    goes = {}
    for row in range(size):
        for column in range(size):
            x, y = column - half, half - row
            x = -x if flips else x
            for _ in range(turns):
                x, y = -y, x
            goes[row, column] = (round(half - y), round(x + half))
    return goes


def moved(image: Tensor, turns: int, flips: bool) -> Tensor:
    """The image `f(g⁻¹ ·)`, a pixel at a time."""
    result = torch.empty_like(image)
    for (row, column), (to_row, to_column) in pixel_map(turns, flips, image.shape[-1]).items():
        result[..., to_row, to_column] = image[..., row, column]
    return result


def matrix(turns: int, flips: bool) -> Tensor:
    angle = math.pi / 2 * turns
    c, s = round(math.cos(angle)), round(math.sin(angle))
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([-1.0 if flips else 1.0, 1.0], dtype=torch.float64))


def components(values: Tensor, turns: int, flips: bool) -> Tensor:
    pairs = values.reshape(len(values), -1, 2, *values.shape[2:])
    return torch.einsum("ij,bkj...->bki...", matrix(turns, flips), pairs).reshape(values.shape)


def elements(group: str) -> list[tuple[int, bool]]:
    order = int(group[2])
    mirrors = (False, True) if group[0] == "D" else (False,)
    return [(4 // order * k, flips) for k in range(order) for flips in mirrors]


class Lopsided(nn.Module):
    """Two convolutions and a weight for each pixel: no symmetry at all."""

    def __init__(self, channels: int, outputs: int, size: int, pooled: bool) -> None:
        super().__init__()
        self.first = nn.Parameter(drawn(4, channels, 3, 3) / 3)
        self.last = nn.Parameter(drawn(outputs, 4, 3, 3, seed=1) / 6)
        self.pixel = nn.Parameter(drawn(size, size, seed=2))
        self.pooled = pooled

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.tanh(conv2d(image * self.pixel, self.first, padding=1))
        values = conv2d(hidden, self.last, padding=1) * self.pixel
        return values.mean((2, 3)) if self.pooled else values


KINDS = {
    "scalar": (True, 3),
    "vector": (True, 4),
    "image": (False, 3),
    "vector_image": (False, 4),
}


def expected_move(values: Tensor, output: str, turns: int, flips: bool) -> Tensor:
    if "image" in output:
        values = moved(values, turns, flips)
    return components(values, turns, flips) if "vector" in output else values


@pytest.mark.parametrize(("channels", "size"), [("image", 4), ("vector_image", 5)])
@pytest.mark.parametrize("output", KINDS)
@pytest.mark.parametrize("group", ["C(2)", "C(4)", "D(1)", "D(2)", "D(4)"])
@torch.no_grad()
def test_the_mean_over_turns_and_mirrors_is_equivariant(
    group: str, output: str, size: int, channels: str
) -> None:
    pooled, columns = KINDS[output]
    backbone = Lopsided(2, columns, size, pooled)
    model = ImageGroupAverage(backbone, group, output, channels)
    image = drawn(3, 2, size, size)
    still, bare = model(image), backbone(image)
    scale = still.abs().max()
    missed = 0.0
    for turns, flips in elements(group):
        turned = moved(image, turns, flips)
        if channels == "vector_image":
            turned = components(turned, turns, flips)
        expected = expected_move(still, output, turns, flips)
        assert (model(turned) - expected).abs().max() < EXACT * scale
        apart = (backbone(turned) - expected_move(bare, output, turns, flips)).abs().max()
        missed = max(missed, float(apart / bare.abs().max()))
    assert missed > 0.01


@pytest.mark.parametrize("output", KINDS)
@pytest.mark.parametrize("group", ["C(4)", "D(4)", "D(2)"])
def test_the_mean_is_the_loop_over_turns_and_mirrors(group: str, output: str) -> None:
    pooled, columns = KINDS[output]
    backbone = Lopsided(2, columns, 4, pooled)
    image = drawn(3, 2, 4, 4)
    terms = []
    for turns, flips in elements(group):
        # A mirror followed by turns is its own inverse; turns alone are undone by the rest.
        back = (turns, True) if flips else (-turns % 4, False)
        terms.append(expected_move(backbone(moved(image, *back)), output, turns, flips))
    expected = torch.stack(terms).mean(0)
    for rows in (1, 5, 4096):
        found = ImageGroupAverage(backbone, group, output, rows=rows)(image)
        assert (found - expected).abs().max() < EXACT
    assert (backbone(image) - expected).abs().max() > 0.01


@pytest.mark.parametrize("group", ["C(4)", "D(4)"])
@pytest.mark.parametrize("padding", [0, 1])
def test_the_mean_of_a_convolution_is_the_convolution_by_the_mean_filter(
    group: str, padding: int
) -> None:
    image, filters = drawn(2, 3, 6, 6), drawn(4, 3, 3, 3, seed=1)
    model = ImageGroupAverage(
        lambda image: conv2d(image, filters, padding=padding), group, output="image"
    )
    mean = torch.stack([moved(filters, *element) for element in elements(group)]).mean(0)
    expected = conv2d(image, mean, padding=padding)
    assert (model(image) - expected).abs().max() < EXACT
    assert (conv2d(image, filters, padding=padding) - expected).abs().max() > 0.1


@pytest.mark.parametrize("group", ["C(4)", "D(4)"])
def test_the_mean_of_a_shallow_network_is_a_group_convolution_pooled_over_the_group(
    group: str,
) -> None:
    """`[f ⋆ ψ](g) = Σ_y f(y) ψ(g⁻¹ y)` on the plane, relu, pooling over g."""
    image, filters = drawn(2, 3, 7, 7), drawn(4, 3, 3, 3, seed=1)
    lifted = torch.stack(
        [conv2d(image, moved(filters, *element), padding=1) for element in elements(group)]
    )
    activated = torch.relu(lifted)

    def network(image: Tensor) -> Tensor:
        return torch.relu(conv2d(image, filters, padding=1))

    pooled = ImageGroupAverage(lambda image: network(image).mean((2, 3)), group, output="scalar")
    assert (pooled(image) - activated.mean((0, 3, 4))).abs().max() < EXACT
    field = ImageGroupAverage(network, group, output="image")
    assert (field(image) - activated.mean(0)).abs().max() < EXACT


def group_convolution(lifted: Tensor, filters: Tensor) -> Tensor:
    """`[f ⋆ ψ](g) = Σ_h f(h) ψ(g⁻¹ h)` on C(4) and the plane, (4, B, K, H, W) by (O, K, 4, n, n).

    The filter at g is turned in the plane, and its copies for each turn are shifted along.
    """
    out = []
    for turns in range(4):
        total = sum(
            conv2d(lifted[h], moved(filters[:, :, (h - turns) % 4], turns, False), padding=1)
            for h in range(4)
        )
        out.append(total)
    return torch.stack(out)


def test_a_deep_mean_is_a_group_convolution_whose_filters_hold_one_turn() -> None:
    image = drawn(2, 3, 7, 7)
    first, last = drawn(4, 3, 3, 3, seed=1), drawn(5, 4, 3, 3, seed=2)

    def network(image: Tensor) -> Tensor:
        return conv2d(torch.relu(conv2d(image, first, padding=1)), last, padding=1).relu()

    lifted = torch.stack([conv2d(image, moved(first, k, False), padding=1) for k in range(4)])
    filters = torch.zeros(5, 4, 4, 3, 3, dtype=torch.float64)
    filters[:, :, 0] = last
    expected = group_convolution(lifted.relu(), filters).relu().mean(0)
    found = ImageGroupAverage(network, "C(4)", output="image")(image)
    assert (found - expected).abs().max() < EXACT

    mixed = filters + 0.3 * drawn(5, 4, 4, 3, 3, seed=3)
    deeper = group_convolution(lifted.relu(), mixed).relu().mean(0)
    assert (found - deeper).abs().max() > 0.1


def test_a_quarter_turn_is_counterclockwise_as_the_image_is_seen() -> None:
    arrow = torch.zeros(1, 1, 3, 3)
    arrow[0, 0, 0, 1] = 1.0  # the top, y = 1
    seen = []
    ImageGroupAverage(lambda image: seen.append(image) or image[:, :, 0, 0], "C(4)")(arrow)
    # The inverse of a quarter turn brings the top to the right, and one more to the bottom.
    places = [tuple(image.squeeze(0).nonzero()[0].tolist()) for image in seen[0]]
    assert places == [(0, 1), (1, 2), (2, 1), (1, 0)]


@pytest.mark.parametrize("group", ["C(4)", "D(4)", "D(2)"])
def test_images_need_not_be_square(group: str) -> None:
    filters = drawn(2, 1, 3, 3)
    image = drawn(2, 1, 4, 6)
    model = ImageGroupAverage(lambda image: conv2d(image, filters).relu(), group, output="image")
    kernels = torch.stack([moved(filters, *element) for element in elements(group)])
    expected = torch.stack([conv2d(image, kernel).relu() for kernel in kernels]).mean(0)
    assert (model(image) - expected).abs().max() < EXACT
    scalar = ImageGroupAverage(lambda image: conv2d(image, filters).relu().mean((2, 3)), group)
    assert (scalar(image) - expected.mean((2, 3))).abs().max() < EXACT


def test_the_mean_of_images_is_differentiable_twice() -> None:
    model = ImageGroupAverage(Lopsided(2, 2, 3, False), "D(4)", "vector_image", "vector_image")
    image = drawn(2, 2, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(model, (image,))
    assert torch.autograd.gradgradcheck(model, (image,))
    assert len(list(model.parameters())) == 3


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    model = ImageGroupAverage(Lopsided(1, 3, 5, True), "D(4)", rows=7)
    images = drawn(4, 1, 5, 5)
    together = model(images)
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    assert (together - alone).abs().max() < EXACT


def test_the_group_of_one_element_leaves_a_network_as_it_is() -> None:
    network = Lopsided(2, 3, 4, False)
    image = drawn(2, 2, 4, 4)
    assert torch.equal(ImageGroupAverage(network, "C(1)", "image")(image), network(image))


def test_no_image_is_a_mean_of_none() -> None:
    model = ImageGroupAverage(Lopsided(1, 3, 5, True), "D(4)")
    assert model(drawn(0, 1, 5, 5)).shape == (0, 3)


def test_as_many_elements_as_fit_go_into_a_call() -> None:
    sizes = []

    def counting(image: Tensor) -> Tensor:
        sizes.append(len(image))
        return image.mean((2, 3))

    for rows, expected in ((4096, [24]), (9, [9, 9, 6]), (1, [3] * 8)):
        sizes.clear()
        ImageGroupAverage(counting, "D(4)", rows=rows)(drawn(3, 1, 4, 4))
        assert sizes == expected


BAD_BACKBONES = {
    "an image": (
        lambda f: f,
        "scalar",
        ShapeError,
        r"\(8, 2, 4, 4\) for 8 images, expected \(8, k",
    ),
    "no image": (lambda f: f.mean((2, 3)), "image", ShapeError, r"expected \(8, k, H, W\)"),
    "fewer": (lambda f: f[:5], "image", ShapeError, r"returned shape \(5, 2, 4, 4\)"),
    "an odd pair": (lambda f: f[:, :1], "vector_image", ShapeError, r"expected \(8, 2 k, H, W\)"),
    "whole": (lambda f: f.long(), "image", UsageError, "torch.int64"),
    "a list": (lambda f: [f], "image", UsageError, "returned list"),
}


@pytest.mark.parametrize(
    ("backbone", "output", "error", "text"), BAD_BACKBONES.values(), ids=BAD_BACKBONES
)
def test_a_network_that_returns_something_else_is_refused(backbone, output, error, text) -> None:
    with pytest.raises(error, match=text):
        ImageGroupAverage(backbone, "C(4)", output)(drawn(2, 2, 4, 4))


BAD_IMAGES = {
    "three axes": (drawn(2, 4, 4), ShapeError, r"\(2, 4, 4\).*expected \(B, an even C, H, W\)"),
    "an odd channel": (drawn(2, 3, 4, 4), ShapeError, "an even C"),
    "bytes": (torch.zeros(2, 2, 4, 4, dtype=torch.uint8), ShapeError, "torch.uint8"),
    "an array": (drawn(2, 2, 4, 4).numpy(), ShapeError, "of type ndarray, expected a tensor"),
    "NaN": (drawn(2, 2, 4, 4) / 0 * 0, DataError, "image 0 has a pixel that is not finite"),
}


@pytest.mark.parametrize(("image", "error", "text"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_that_cannot_be_turned_are_refused(image, error, text) -> None:
    model = ImageGroupAverage(lambda f: f, "C(4)", "image", "vector_image")
    with pytest.raises(error, match=text):
        model(image)


def test_a_network_that_treats_height_and_width_apart_is_refused_where_they_differ() -> None:
    model = ImageGroupAverage(lambda f: f[:, :, :3, :4], "C(4)", "image")
    with pytest.raises(ShapeError, match="treat height and width alike"):
        model(drawn(2, 1, 4, 6))


BAD_OPTIONS = {
    "group": ({"group": "C(3)"}, "that move pixels to pixels. Did you mean"),
    "no group": ({"group": None}, "found None"),
    "output": ({"output": "picture"}, "expected one of 'scalar', 'vector', 'image'"),
    "channels": ({"channels": "scalar"}, "expected one of 'image', 'vector_image'"),
    "rows": ({"rows": 0}, "ImageGroupAverage: found rows=0, expected whole numbers"),
    "half a row": ({"rows": 2.5}, "found rows=2.5"),
    "no backbone": ({"backbone": None}, r"found None as the backbone, .* backbone\(image\)"),
}


@pytest.mark.parametrize(("options", "text"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_wrong_options_for_images_are_refused(options, text) -> None:
    with pytest.raises(UsageError, match=text):
        ImageGroupAverage(**{"backbone": lambda f: f, **options})
