"""Autocast is for backbones: poses and rotations in half precision would be none."""

from __future__ import annotations

import torch


def autocast_of_caller(device: str) -> torch.autocast:
    """The state of autocast now on a type of device, to be entered around a backbone."""
    return torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    )


def without_autocast(device: str) -> torch.autocast:
    """What averages compute in: the types that they were given."""
    return torch.autocast(device, enabled=False)
