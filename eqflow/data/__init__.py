"""Structures from files, downloads and formulas; their splits and batches."""

from eqflow.data.batches import SizeBatches
from eqflow.data.download import fetch
from eqflow.data.files import (
    encoded,
    encoded_molecules,
    read,
    read_report,
    writable_ending,
    write,
    write_molecules,
)
from eqflow.data.images import read_images
from eqflow.data.qm9 import load_qm9
from eqflow.data.records import ReadResult
from eqflow.data.shapes import surfaces
from eqflow.data.splits import duplicates, formulas, split
from eqflow.data.vocabulary import has_known_elements, with_known_elements
from eqflow.data.voxels import read_voxels

__all__ = [
    "ReadResult",
    "SizeBatches",
    "duplicates",
    "encoded",
    "encoded_molecules",
    "fetch",
    "formulas",
    "has_known_elements",
    "load_qm9",
    "read",
    "read_images",
    "read_report",
    "read_voxels",
    "split",
    "surfaces",
    "with_known_elements",
    "writable_ending",
    "write",
    "write_molecules",
]
