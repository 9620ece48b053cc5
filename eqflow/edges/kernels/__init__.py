"""The Triton backend: fused kernels on CSR and CSC order, without atomics, deterministic."""

from __future__ import annotations

from typing import Any


def unsupported(operation: str, *arguments: Any) -> str | None:
    """Why this backend cannot do a call, or None where it can."""
    return "no kernel for it yet"
