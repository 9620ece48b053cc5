r"""The entropy of node features on a graph, its gradient, and message passing that ascends it.

Each node has a Dirichlet energy, and a Boltzmann factor of it at the temperature `T`:

.. math::
    E_i = \tfrac12 C_i \sum_{e \to i} \lVert x_c - x_i \rVert^2, \quad
    C_i = 1 / \sqrt{|N_i| F}, \quad P_i = e^{-E_i / T}, \quad S = -\sum_i P_i \ln P_i,

with `F` features and `|N_i|` incoming edges. On any graph, directed or not, of
`P̄ = P (1 + ln P)` the gradient is

.. math::
    \nabla_{x_k} S = \frac1T \Big[ \sum_{e \to k} C_k \bar P_k (x_k - x_c)
        + \sum_{k \to e} C_r \bar P_r (x_k - x_r) \Big],

on a symmetric one `(1/T) Σ_j (C_k P̄_k + C_j P̄_j)(x_k − x_j)`. Where `P` is normalised to a
distribution over the nodes of each graph, `P̄ = P (S + ln P)`. Both are exact. The theorem that was
published has one `C` outside the sum, and a `P̄ = (P + 1) ln P` which is never positive and vanishes
where features collapse: there it lets entropy fall.

Energies are computed of features divided by their size in each graph, so entropy and gradient keep
their digits also where squares of features leave the range of floats; energies themselves do not.

`S` does not change as all nodes of a graph move alike, so its gradient has no mean there.

Reference: Entropy Aware Message Passing in Graph Neural Networks (Nazari, Lemke, Guidobene, Gesp,
2024), arXiv:2403.04636, its theorem on the gradient corrected. That `F` is the number of features
is how the authors' code computes it. By default that code takes 1 for all `C_i`, `scaled=False`
here, and leaves out the `1/T`: a weight `λ` there is `λ T` here. On a graph of one degree, a
temperature `T` with such energies is `C T` with scaled ones.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from eqflow.edges import (
    Edges,
    gather,
    segment_sum,
    squared_distance,
    weighted_difference,
)
from eqflow.errors import ShapeError, UsageError
from eqflow.geometry import Segments
from eqflow.nn.arguments import require_edges
from eqflow.nn.energies import common_size
from eqflow.nn.field import AbstractField
from eqflow.nn.graph_convolution import inverse_square_root_degrees

Constant = Literal["nothing", "weights", "term"]


def node_entropic_energies(x: Tensor, edges: Edges, *, scaled: bool = True) -> Tensor:
    """Energy of each node, `E_i = ½ C_i Σ_{e→i} ‖x_c − x_i‖²`; 0 where no edge leads to it.

    Args:
        x: Node features, shape (N, F).
        edges: The graph; repeated edges count as often as they are there, self loops in `|N_i|`.
        scaled: Whether `C_i` is as in the module, or 1.

    Returns:
        Shape (N,).

    Raises:
        ShapeError: If `x` is not (N, F) of floating point with F at least 1.
    """
    _require_features(x, edges)
    total = 0.5 * segment_sum(squared_distance(x, edges), edges)
    return _scale(x, edges) * total if scaled else total


def entropy(
    x: Tensor,
    edges: Edges,
    temperature: float = 1.0,
    *,
    normalised: bool = False,
    scaled: bool = True,
) -> Tensor:
    """Entropy of each graph, `S = −Σ P_i ln P_i`, in nats.

    Args:
        x: Node features, shape (N, F).
        edges: The graph, or a batch of graphs.
        temperature: `T > 0`, in the unit of the energies, which is that of `x` squared.
        normalised: Whether `P` is divided by its sum over the nodes of each graph. It is then
            largest, `ln n`, where all energies are equal, as in a collapse: no remedy for that.
        scaled: Whether energies have their `C_i`.

    Returns:
        Shape (B,). Without normalisation a node without edges, or among equal ones, adds 0.

    Raises:
        ShapeError: If `x` does not fit.
        UsageError: If the temperature is not positive and finite.

    >>> import torch
    >>> pair = Edges.from_index(torch.tensor([[0, 1], [1, 0]]), 2)
    >>> entropy(torch.tensor([[0.0], [2.0]]), pair, temperature=2.0)  # E = (2, 2): −2 ln(1/e) / e
    tensor([0.7358])
    """
    _require_temperature("entropy", temperature)
    _require_features(x, edges)
    q = _exponents(x, edges, temperature, normalised, scaled)
    if not normalised:
        return -edges.clouds.sum(q.exp() * q)
    log_p = _log_probabilities(q, edges.clouds)
    return -edges.clouds.sum(log_p.exp() * log_p)


def entropy_gradient(
    x: Tensor,
    edges: Edges,
    temperature: float = 1.0,
    *,
    normalised: bool = False,
    scaled: bool = True,
    constant_weights: bool = False,
) -> Tensor:
    """`∇_x S` in closed form, for the sum of the entropies of all graphs of the batch.

    Its sum over the nodes of each graph is zero, and it turns with `x`.

    Args:
        x, edges, temperature, normalised, scaled: As in `entropy`.
        constant_weights: Whether `P̄` is a constant to a derivative of the result.

    Returns:
        Shape (N, F).

    Raises:
        ShapeError: If `x` does not fit.
        UsageError: If the temperature is not positive and finite.
    """
    _require_temperature("entropy_gradient", temperature)
    _require_features(x, edges)
    at = x.detach() if constant_weights else x
    q = _exponents(at, edges, temperature, normalised, scaled)
    if normalised:
        p = _log_probabilities(q, edges.clouds).exp()
        # `S + ln P`, without the `ln Z` in both, which would hide small differences of energies.
        p_bar = p * (q - edges.clouds.expand(edges.clouds.sum(p * q)))
    else:
        p_bar = q.exp() * (1 + q)
    # Pulls of each node along its incoming edges, per difference of features of order 1.
    x, size = _in_units(x, edges)
    root = math.sqrt(temperature)
    pull = -p_bar * (size / root / root).clamp(max=torch.finfo(x.dtype).max)
    if scaled:
        pull = _scale(x, edges) * pull
    at_receiver = gather(pull, edges, "receiver")
    if edges.is_symmetric:
        return weighted_difference(at_receiver + gather(pull, edges), x, edges)
    turned = edges.transposed()
    return weighted_difference(at_receiver, x, edges) + weighted_difference(
        gather(pull, turned), x, turned
    )


class EntropyAscent(nn.Module):
    """`x + λ ∇S(x)`: a step up the entropy, after any layer.

    Args:
        weight: `λ`, finite; 0 changes nothing.
        temperature: `T > 0`.
        normalised, scaled: As in `entropy`.
        constant: What a derivative takes for constant: `"nothing"`, `"weights"` (the `P̄`), or the
            whole `"term"`, as in the authors' training.

    Raises:
        UsageError: If one of them is not as said.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        *,
        normalised: bool = False,
        scaled: bool = True,
        constant: Constant = "nothing",
    ) -> None:
        super().__init__()
        _require_temperature("EntropyAscent", temperature)
        if not math.isfinite(weight):
            raise UsageError(f"EntropyAscent: found a weight of {weight}, expected a finite one.")
        if constant not in get_args(Constant):
            raise UsageError(
                f"EntropyAscent: found constant={constant!r}, expected one of "
                f"{', '.join(map(repr, get_args(Constant)))}."
            )
        self.weight = weight
        self.temperature = temperature
        self.normalised = normalised
        self.scaled = scaled
        self.constant = constant

    def term(self, x: Tensor, edges: Edges) -> Tensor:
        """`λ ∇S`, shape (N, F) of `x`."""
        gradient = entropy_gradient(
            x.detach() if self.constant == "term" else x,
            edges,
            self.temperature,
            normalised=self.normalised,
            scaled=self.scaled,
            constant_weights=self.constant == "weights",
        )
        return self.weight * gradient

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        """Features one step further up, shape (N, F) of `x`."""
        return x + self.term(x, edges)

    def extra_repr(self) -> str:
        """What it was made with."""
        return (
            f"weight={self.weight}, temperature={self.temperature}, "
            f"normalised={self.normalised}, scaled={self.scaled}, constant={self.constant!r}"
        )


class Entropic(AbstractField):
    """The field `v + λ ∇S` of a field `v`: any right-hand side, its entropy raised.

    The entropy is that of the whole state, positions and features beside them. The term turns with
    the positions and has no mean in any graph, so what `v` says of symmetry and centre holds.

    Args:
        field: `v`.
        weight, temperature, normalised, scaled, constant: As in `EntropyAscent`.

    Raises:
        UsageError: If the field has a cutoff: energies would jump as neighbours come and go.
    """

    is_equivariant = True  # said of the term; `turns_with_state` asks the field as well

    def __init__(
        self,
        field: AbstractField,
        weight: float = 1.0,
        temperature: float = 1.0,
        *,
        normalised: bool = False,
        scaled: bool = True,
        constant: Constant = "nothing",
    ) -> None:
        super().__init__()
        if field.cutoff is not None:
            raise UsageError(
                f"Entropic: found a field with a cutoff of {field.cutoff}, across which the "
                "entropy jumps as neighbours come and go. Expected a field on a fixed graph: pass "
                "cutoff=None to it."
            )
        self.field = field
        self.ascent = EntropyAscent(
            weight, temperature, normalised=normalised, scaled=scaled, constant=constant
        )
        self.state_features = field.state_features
        self.context_features = field.context_features
        self.message_width = field.message_width

    def connect(self, x: Tensor, clouds: Segments) -> Edges:
        """The graph that the field connects."""
        return self.field.connect(x, clouds)

    @property
    def turns_with_state(self) -> bool:
        """Whether the field does."""
        return super().turns_with_state and self.field.turns_with_state

    def forward(self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None) -> Tensor:
        """The velocity; arguments as in `AbstractField`."""
        velocity: Tensor = self.field(t, x, edges, context)
        return velocity + self.ascent.term(x, edges)

    def velocity_and_logits(
        self, t: Tensor, x: Tensor, edges: Edges, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity, and logits where the field has them."""
        velocity, logits = self.field.velocity_and_logits(t, x, edges, context)
        return velocity + self.ascent.term(x, edges), logits


def _scale(x: Tensor, edges: Edges) -> Tensor:
    """`C_i`, shape (N,)."""
    return inverse_square_root_degrees(edges, x.dtype) / math.sqrt(x.shape[1])


def _in_units(x: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Features divided by the size they have in their graph, and that size for each node, (N,)."""
    size = edges.clouds.expand(common_size(x, edges.clouds))
    return x / size.unsqueeze(1), size


def _exponents(
    x: Tensor, edges: Edges, temperature: float, normalised: bool, scaled: bool
) -> Tensor:
    """`−E/T` of each node, (N,); above the largest of its graph where `P` is a distribution.

    It is cut off where its exponential is 0 in any case, so that nothing is infinite.
    """
    unit, size = _in_units(x, edges)
    energies = node_entropic_energies(unit, edges, scaled=scaled)
    if normalised:
        # The least energy cancels, so it is a constant to the derivative.
        energies = energies + edges.clouds.expand(edges.clouds.max(-energies.detach()))
    largest = math.sqrt(torch.finfo(x.dtype).max)
    ratio = (size / math.sqrt(temperature)).clamp(max=largest)
    return -(ratio * (ratio * energies)).clamp(max=largest)


def _log_probabilities(q: Tensor, clouds: Segments) -> Tensor:
    """`ln P` of `P ∝ exp(q)` over the nodes of each graph, exact also where `P` is 0."""
    return q - clouds.expand(clouds.sum(q.exp()).log())


def _require_features(x: Tensor, edges: Edges) -> None:
    require_edges("entropy", edges)
    if x.dim() != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise ShapeError(
            f"entropy: found x {tuple(x.shape)} of {x.dtype}, expected (N, F) of floating point "
            "with at least one feature."
        )


def _require_temperature(where: str, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UsageError(
            f"{where}: found a temperature of {temperature}, expected a positive, finite one."
        )
