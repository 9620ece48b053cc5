r"""Sums over edges without a graph for autograd, by the kernels a CPU has for rows of a table.

A sum :math:`\sum_{e \to i} w_e x_c` is what `torch.embedding_bag` computes for words of a sentence,
one of inner products :math:`\langle p_r, q_c \rangle` is `torch.sparse.sampled_addmm`: neither
writes a row an edge to memory, which is what takes the time in formulas of gathered rows. Both go
through the edges of a node in their order, by one thread, so that a sum repeated gives the same
bits and no graph of a batch has a part in another's.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from eqflow.edges.graph import Edges
from eqflow.edges.primitives import End
from eqflow.edges.watched import is_batched, is_watched
from eqflow.geometry.segments import Segments

# From these sizes on the kernels were faster than formulas of gathered rows, there and back.
# Numbers on all edges: of sums, of differences or several heads, and of weights. Columns of a row:
# that differences of narrower rows, such as positions, are formed, keeps their rounding as it was.
LARGE = 2**15
LARGE_DIFFERENCE = 2**16
LARGE_WEIGHTS = 2**12
COLUMNS = 8
COLUMNS_OF_DIFFERENCE = 16
# Beyond this logit squareplus is as at it: its square is still finite.
LARGEST_LOGIT = {torch.float32: 1e18, torch.float64: 1e150}


def is_for_kernels(numbers: int, large: int, *values: Tensor) -> bool:
    """Whether the kernels take these values, and are worth it with `numbers` on all edges."""
    like = values[0]
    return (
        numbers >= large
        and like.dtype in LARGEST_LOGIT
        and like.device.type == "cpu"
        and all(value.dtype is like.dtype for value in values)
        and not is_watched(like)
        and not any(is_batched(value) for value in values)
        and _are_there()
    )


def weighted_sum(w: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """`Σ_{e→i} w_e x_c`: `w` (E,) with `x` (N, C), or (E, H) with (N, H, C) or (N, C)."""
    if w.dim() == 1:
        return _bag(x, edges.sender, edges.incoming.ptr, w)
    heads = edges.by_heads(w.shape[1])
    if x.dim() == 2:
        rows = _bag(x, heads.node, heads.ptr, heads.split(w))
    else:
        rows = _bag(x.reshape(-1, x.shape[2]), heads.sender, heads.ptr, heads.split(w))
    return rows.view(edges.nodes, w.shape[1], x.shape[-1])


def dot(p: Tensor, q: Tensor, edges: Edges) -> Tensor:
    """`⟨p_r, q_c⟩`: both (N, C), or `p` (N, H, C) with `q` the same or (N, C)."""
    if p.dim() == 2:
        return _sampled(p, q, edges.incoming.ptr, edges.sender)
    heads = edges.by_heads(p.shape[1])
    p = p.reshape(-1, p.shape[2])
    if q.dim() == 2:
        return heads.join(_sampled(p, q, heads.ptr, heads.node))
    return heads.join(_sampled(p, q.reshape(p.shape), heads.ptr, heads.sender))


def own_dot(p: Tensor, q: Tensor) -> Tensor:
    """`⟨p_i, q_i⟩`: both (N, C), or `p` (N, H, C) with `q` the same or (N, C)."""
    if p.dim() != q.dim():
        return (p * q.unsqueeze(1)).sum(-1)
    shape = p.shape[:-1]
    places = torch.arange(shape.numel() + 1)
    p, q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    return _sampled(p, q, places, places[:-1]).view(shape)


def centred(x: Tensor, clouds: Segments) -> Tensor:
    """Rows (N, …) minus the mean of their cloud; one with rows that are not finite stays."""
    rows = x.flatten(1)
    if clouds.uniform is not None:
        mean = rows.view(clouds.count, clouds.uniform, -1).mean(1)
    else:
        every = torch.arange(clouds.rows)
        mean = torch.embedding_bag(rows, every, clouds.ptr, False, 1, False, None, True)[0]
    mean = mean.nan_to_num_(0.0, 0.0, 0.0)
    moved = mean if clouds.count == 1 else clouds.expand(mean)
    return (rows - moved).view(x.shape)


def total(m: Tensor, edges: Edges, end: End) -> Tensor:
    """`Σ_{e→i} m_e`, or that over the edges a node sends: (E,) or (E, H) to (N,) or (N, H)."""
    segments = edges.incoming if end == "receiver" else edges.outgoing
    if end == "receiver" and segments.uniform is not None:
        return segments.sum(m)
    if m.dim() == 1:
        ids = edges.receiver if end == "receiver" else edges.sender
        return m.new_zeros(edges.nodes).index_add_(0, ids, m)
    order = torch.arange(edges.count) if end == "receiver" else edges.by_sender
    return _bag(m, order, segments.ptr, None)


def expand(m: Tensor, edges: Edges, end: End) -> Tensor:
    """The value of the node at that end of each edge: (N, …) to (E, …)."""
    if end == "receiver":
        return edges.incoming.expand(m)
    return m.index_select(0, edges.sender)


def normalised(logits: Tensor, edges: Edges, normaliser: str, end: End) -> Tensor:
    """Positive weights of logits (E,) or (E, H) that sum to 1 at that end."""
    if normaliser == "softmax":
        positive = (logits - expand(_largest(logits, edges, end), edges, end)).exp_()
    else:
        positive = _squareplus(logits)
    return positive.div_(expand(total(positive, edges, end), edges, end))


def _largest(logits: Tensor, edges: Edges, end: End) -> Tensor:
    segments = edges.incoming if end == "receiver" else edges.outgoing
    if end == "sender":
        logits = logits.index_select(0, edges.by_sender)
    if segments.uniform is not None:
        return segments.max(logits)
    rows = logits.contiguous()
    found: Tensor = torch.segment_reduce(rows, "max", offsets=segments.ptr, unsafe=True)
    return found


def _squareplus(logits: Tensor) -> Tensor:
    """`exp(asinh(l / 2))`, by a logarithm that is a tenth of the time of torch's asinh."""
    half = (logits.abs() / 2).clamp_(max=LARGEST_LOGIT[logits.dtype])
    asinh = half.square().add_(1).sqrt_().add_(half).log_()
    return asinh.copysign_(logits).exp_()


def _bag(x: Tensor, rows: Tensor, ptr: Tensor, w: Tensor | None) -> Tensor:
    if w is not None:
        w = w.contiguous()
    return torch.embedding_bag(x.contiguous(), rows, ptr, False, 0, False, w, True)[0]


def _sampled(p: Tensor, q: Tensor, ptr: Tensor, sender: Tensor) -> Tensor:
    found = p.new_zeros(len(sender))
    shape = len(p), len(q)
    pattern = torch.sparse_csr_tensor(ptr, sender, found, shape, check_invariants=False)
    p, q = p.contiguous(), q.contiguous()
    torch.sparse.sampled_addmm(pattern, p, q.t(), beta=0.0, out=pattern)
    return pattern.values()


@cache
def _are_there() -> bool:
    """Whether this build of torch has the kernels."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # Torch says once a process that its matrices in CSR order are new.
        warnings.simplefilter("ignore")
        one = torch.ones(1, COLUMNS)
        index, ptr = torch.tensor([0]), torch.tensor([0, 1])
        try:
            return bool(
                _sampled(one, one, ptr, index).item() == COLUMNS
                and _bag(one, index, ptr, one[:, 0]).sum().item() == COLUMNS
                and torch.segment_reduce(one, "max", offsets=ptr, unsafe=True).sum() == COLUMNS
            )
        except (RuntimeError, NotImplementedError):
            return False
