"""The only door to randomness: every draw is a function of `(seed, purpose)`.

A purpose is a path of words and counters, such as `("train", "noise", step)`. The same path gives
the same numbers whatever was drawn before it, so a run that was killed and resumed draws what the
uninterrupted run would have drawn, and adding a draw somewhere changes no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Purpose = str | int


def derived_seed(seed: int, *purpose: Purpose) -> int:
    """A 63-bit seed that is a function of `seed` and the path of `purpose`.

    >>> derived_seed(0, "noise", 1) == derived_seed(0, "noise", 1)
    True
    >>> derived_seed(0, "noise", 1) == derived_seed(0, "noise", 2)
    False
    """
    path = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: Purpose, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for one purpose, on the device that will draw from it."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *purpose))


def normal(shape: tuple[int, ...], like: Tensor, source: torch.Generator) -> Tensor:
    """Standard normal draws with the dtype and device of `like`."""
    return torch.randn(shape, generator=source, dtype=like.dtype, device=like.device)


def uniform(shape: tuple[int, ...], like: Tensor, source: torch.Generator) -> Tensor:
    """Uniform draws in [0, 1) with the dtype and device of `like`."""
    return torch.rand(shape, generator=source, dtype=like.dtype, device=like.device)


def uniform_within_seeded(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform draws in [0, 1) from PyTorch's global generator of the device of `like`.

    For layers that draw anew in each call, as dropout does: what they draw is a function of the
    seed of the `seeded` that the call is within, and of what was drawn there before.
    """
    return torch.rand(shape, dtype=like.dtype, device=like.device)


def rademacher(shape: tuple[int, ...], like: Tensor, source: torch.Generator) -> Tensor:
    """Draws of −1 and +1, each with probability one half."""
    bits = torch.randint(0, 2, shape, generator=source, device=like.device)
    return bits.to(like.dtype).mul_(2).sub_(1)


def permutation(count: int, source: torch.Generator) -> Tensor:
    """A random order of `count` items, shape (count,), int64."""
    return torch.randperm(count, generator=source, device=source.device)


@contextmanager
def seeded(seed: int, *purpose: Purpose, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let code that draws from PyTorch's global generators do so, such as layer initialisation.

    That of the CPU, and that of `device` where it is a GPU. The global states are put back
    afterwards.
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derived_seed(seed, *purpose))
        for each in devices:
            place = torch.cuda.current_device() if each.index is None else each.index
            torch.cuda.default_generators[place].manual_seed(derived_seed(seed, *purpose))
        yield
