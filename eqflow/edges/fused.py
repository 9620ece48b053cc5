"""Whole message passes as one operation, so that a backend can fuse them.

`eqflow.edges.reference` composes them from primitives: what stands there is their meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eqflow.edges.backend import run
from eqflow.edges.graph import Edges
from eqflow.edges.network import EdgeNetwork, Gate, MessageDual, MessageInputs, MessageTangents
from eqflow.edges.primitives import require_floats, require_one_type
from eqflow.edges.weights import Normaliser, require_normaliser
from eqflow.errors import ShapeError


def egcl_messages(
    x: Tensor,
    receiver: Tensor,
    sender: Tensor,
    scalars: Tensor | None,
    network: EdgeNetwork,
    edges: Edges,
    envelope: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Both sums of an equivariant graph convolution over the incoming edges of each node.

    With `m_ij = φ_e(h_i, h_j, d_ij², a_ij)` and the envelope `s_ij`, 1 where there is none, returns
    :math:`\sum_j s_{ij} (x_i - x_j) / (d_{ij} + 1) \cdot \varphi_x(m_{ij})` and
    :math:`\sum_j s_{ij} m_{ij}`.

    Args:
        x: Positions, shape (N, d).
        receiver: `W₁ h + b`, the receiver's part of the first layer of `φ_e`, shape (N, F).
        sender: `W₂ h`, the sender's part, shape (N, F).
        scalars: Edge attributes `a`, shape (E, K), or None for K = 0.
        network: The edge functions.
        edges: The graph.
        envelope: `s`, the weight of each edge in both sums, such as `smooth_cutoff`, shape (E,).

    Returns:
        Coordinate shift (N, d) and message sum (N, F).

    Raises:
        ShapeError: If a part does not fit the graph and the network, or is of another type.

    Reference: E(n) Equivariant Normalizing Flows (Satorras et al., 2021), arXiv:2105.09016,
    eq. 9-12.
    """
    _require_message(
        MessageInputs(x, receiver, sender, scalars, envelope), network, edges, "egcl_messages"
    )
    return run("egcl_messages", x, receiver, sender, scalars, network, edges, envelope)


def egcl_messages_dual(
    primal: MessageInputs, tangent: MessageTangents, network: EdgeNetwork, edges: Edges
) -> MessageDual:
    r"""`egcl_messages` and its derivatives along S directions, in one pass.

    Differentiable once more, by weights, inputs and tangents: what training on a trace needs.

    Args:
        primal: Where; the inputs of `egcl_messages`.
        tangent: Directions, S of them on the second axis of each part.
        network: The edge functions.
        edges: The graph.

    Raises:
        ShapeError: If a part does not fit the graph and the network, or is of another type.
    """
    _require_message(primal, network, edges, "egcl_messages_dual")
    directions = tangent.x.shape[1] if tangent.x.dim() == 3 else 0
    for name, value, moved in zip(primal._fields, primal, tangent, strict=True):
        if moved is None:
            continue
        expected = None if value is None else (len(value), directions, *value.shape[1:])
        if value is None or directions < 1 or moved.shape != expected:
            raise ShapeError(
                f"egcl_messages_dual: found a tangent of {name} of shape {tuple(moved.shape)}, "
                f"expected {expected}: that of {name} with S ≥ 1 directions on the second axis."
            )
        if moved.dtype is not value.dtype:
            require_one_type("egcl_messages_dual", **{name: value, f"{name}_tangent": moved})
    return run("egcl_messages_dual", primal, tangent, network, edges)


def attention_diffusion(
    query: Tensor, key: Tensor, x: Tensor, edges: Edges, normaliser: Normaliser = "softmax"
) -> Tensor:
    r"""Scaled dot-product attention as a diffusion: `Σ_e a_e (x_c − x_r)`, see `attention_weights`.

    Args:
        query: Shape (N, C), or (N, H, C) for `H` heads; read at the receiver.
        key: Same shape; read at the sender.
        x: Node values, shape (N, D), or (N, H, D).
        edges: The graph.
        normaliser: What makes logits positive.

    Returns:
        Shape of `x`, or (N, H, D) where there are heads.

    Raises:
        ShapeError: If query, key and values do not fit each other and the graph.
    """
    require_normaliser("attention_diffusion", normaliser)
    heads = query.shape[1:-1]
    fits = query.dim() in (2, 3) and query.shape == key.shape and len(query) == edges.nodes
    fits = fits and x.dim() >= 2 and len(x) == edges.nodes
    if not (fits and x.shape[1:-1] in (torch.Size(), heads)):
        raise ShapeError(
            f"attention_diffusion: found query {tuple(query.shape)}, key {tuple(key.shape)} and x "
            f"{tuple(x.shape)}, expected (N, C) twice with x (N, D), or (N, H, C) twice with x "
            f"(N, D) or (N, H, D), N = {edges.nodes}."
        )
    require_floats("attention_diffusion", query=query, key=key, x=x)
    return run("attention_diffusion", query, key, x, edges, normaliser)


def smooth_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """`(1 − u)³ (1 + 3u + 6u²)` with `u = d / cutoff`, and 0 beyond: twice differentiable there.

    A field whose messages end this way is continuous, and so is its divergence, while neighbours
    come and go. The envelope must be that of the distances the graph was made from.

    >>> smooth_cutoff(torch.tensor([0.0, 1.0, 2.0, 3.0]), cutoff=2.0)
    tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    u = (distance / cutoff).clamp(max=1)
    return (1 - u) ** 3 * (1 + 3 * u + 6 * u.square())


def smooth_cutoff_slope(distance: Tensor, cutoff: float) -> Tensor:
    """Derivative of `smooth_cutoff` by the distance: `−30 u² (1 − u)² / cutoff`."""
    u = (distance / cutoff).clamp(max=1)
    return -30 * u.square() * (1 - u).square() / cutoff


def _require_message(inputs: MessageInputs, network: EdgeNetwork, edges: Edges, where: str) -> None:
    width, columns = network.scalar_weight.shape
    n, e = edges.nodes, edges.count
    dimension = inputs.x.shape[-1] if inputs.x.dim() else 0
    expected = {
        "x": (n, dimension),
        "receiver": (n, width),
        "sender": (n, width),
        "scalars": (e, columns - 1) if columns > 1 else None,
        "envelope": None if inputs.envelope is None else (e,),
    }
    for (name, shape), value in zip(expected.items(), inputs, strict=True):
        found = None if value is None else tuple(value.shape)
        if found != shape:
            raise ShapeError(f"{where}: found {name} of shape {found}, expected {shape}.")
    like, weights = inputs.x.dtype, network.tensors()
    is_one = all(part is None or part.dtype is like for part in (*inputs, *weights))
    if not (is_one and like.is_floating_point):
        given = {name: part for name, part in inputs._asdict().items() if part is not None}
        gates = [name for name in ("attention", "inference") if getattr(network, name)]
        names = [
            *network._fields[:6],
            *(f"{gate}_{part}" for gate in gates for part in Gate._fields),
        ]
        require_one_type(where, **given, **dict(zip(names, weights, strict=True)))
