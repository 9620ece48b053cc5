"""Clouds to and from PyTorch Geometric, which packs batches in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from eqflow.errors import DataError
from eqflow.geometry.clouds import Clouds
from eqflow.geometry.segments import Segments

if TYPE_CHECKING:
    import torch_geometric.data


def to_pyg(clouds: Clouds) -> torch_geometric.data.Batch:
    """One `Batch` with `pos` (N, d), `batch` (N,), `ptr` (B + 1,) and, with elements, `z` (N,).

    Formal charges, where there are any, are `formal_charges` (N,). Properties are left out.
    The tensors are shared, not copied; `batch[i]` and `batch.to_data_list()` work.
    """
    from torch_geometric.data import Batch, Data

    ptr = clouds.ptr
    fields = {"pos": clouds.x}
    if clouds.numbers is not None:
        fields["z"] = clouds.numbers
    if clouds.charges is not None:
        fields["formal_charges"] = clouds.charges
    batch = Batch(_base_cls=Data, batch=clouds.segments.ids, ptr=ptr, **fields)
    batch._num_graphs = len(clouds)
    batch._slice_dict = {key: ptr.cpu() for key in fields}
    batch._inc_dict = {key: torch.zeros(len(clouds), dtype=torch.int64) for key in fields}
    return batch


def from_pyg(batch: torch_geometric.data.Batch | torch_geometric.data.Data) -> Clouds:
    """Clouds from a `Batch`, or from one `Data`, with `pos` and, if there are elements, `z`.

    Formal charges are those of `formal_charges`, where there are any.

    Raises:
        DataError: If there is no `pos`, or the points of a cloud are not consecutive.
    """
    x = batch.pos
    if x is None:
        raise DataError(f"from_pyg: found {batch}, expected positions in `pos` (N, d).")
    numbers, charges = (
        None if labels is None else labels.to(torch.int64)
        for labels in (getattr(batch, "z", None), getattr(batch, "formal_charges", None))
    )
    return Clouds(x, _ptr(batch, x), numbers, charges=charges)


def _ptr(
    batch: torch_geometric.data.Batch | torch_geometric.data.Data, x: torch.Tensor
) -> torch.Tensor:
    ptr = getattr(batch, "ptr", None)
    if ptr is not None:
        return ptr
    ids = getattr(batch, "batch", None)
    if ids is None:
        return torch.tensor([0, len(x)], device=x.device)
    if (ids[1:] < ids[:-1]).any():
        raise DataError("from_pyg: found a `batch` that falls, expected the points cloud by cloud.")
    return Segments.of_lengths(torch.bincount(ids)).ptr
