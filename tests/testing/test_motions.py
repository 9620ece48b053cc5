"""Motions of clouds with all that their points have."""

from dataclasses import replace

import torch

from eqflow.geometry import Clouds
from eqflow.testing.motions import Motion


def test_charges_go_with_their_points() -> None:
    numbers, charges = torch.tensor([7, 1, 8]), torch.tensor([1, 0, -1])
    batch = Clouds(torch.randn(3, 3), torch.tensor([0, 3]), numbers, charges=charges)
    swapped = replace(Motion.identity(batch), order=torch.tensor([2, 0, 1])).apply(batch)
    assert swapped.numbers.tolist() == [8, 7, 1]
    assert swapped.charges.tolist() == [-1, 1, 0]
