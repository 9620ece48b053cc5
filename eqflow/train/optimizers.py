r"""Optimizers by their name in a configuration, Muon among them.

`train.learning_rate` means the same for all that are Adam's kin, and for Muon: a step changes the
entries of a weight by a fifth of it in root mean square.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eqflow.errors import UsageError
from eqflow.train.config import LoopConfig

# Root mean square of the entries of Adam's steps, in units of the learning rate.
ADAM_RMS = 0.2
# A matrix with fewer rows or columns reads or writes features, and goes with the biases.
SMALLEST_SIDE = 32
# Those with which Newton–Schulz iterations reach singular values of about 1 soonest.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Of a matrix to be made orthogonal; below it there is nothing but rounding.
SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    r"""Momentum made orthogonal for hidden matrices, AdamW for all other weights.

    A matrix `W` of `a` rows and `b` columns with gradient `G` has momentum
    :math:`M \leftarrow \mu M + (1 - \mu) G`, and

    .. math::
        W \leftarrow (1 - \eta \lambda) W
            - 0.2\, \eta \sqrt{\max(a, b)} \; \mathrm{orth}\big(\mu M + (1 - \mu) G\big)

    with `orth` as in `orthogonalised`, whose entries have a root mean square of about
    :math:`1 / \sqrt{\max(a, b)}`: a step is as large as one of Adam at the same learning rate.
    Matrices of one shape are iterated together. Everything is in the type of the weights.

    Args:
        weights: What is trained.
        lr: Learning rate `η`.
        weight_decay: `λ`, decoupled.
        momentum: `μ`.
        betas, eps: Of AdamW.

    References: Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024),
    kellerjordan.github.io/posts/muon; Muon is Scalable for LLM Training (Liu et al., 2025),
    arXiv:2502.16982, eq. 4, for the size of a step.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        every = list(weights)
        hidden = [weight for weight in every if is_hidden_matrix(weight)]
        others = [weight for weight in every if not is_hidden_matrix(weight)]
        groups: list[dict[str, Any]] = [
            {"params": hidden, "is_orthogonal": True},
            {"params": others, "is_orthogonal": False},
        ]
        settings = {"momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(
            [group for group in groups if group["params"]],
            {"lr": lr, "weight_decay": weight_decay, **settings},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            if group["is_orthogonal"]:
                self._orthogonal_step(weights, group)
            else:
                self._adam_step(weights, group)
        return loss

    def _orthogonal_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
            alike[weight.shape].append(weight)
        mu = group["momentum"]
        for shape, some in alike.items():
            gradients = torch.stack([weight.grad for weight in some if weight.grad is not None])
            momenta = [self.state[weight]["momentum"] for weight in some]
            torch._foreach_lerp_(momenta, gradients.unbind(), 1 - mu)
            step = orthogonalised(gradients.lerp(torch.stack(momenta), mu))
            step *= -group["lr"] * ADAM_RMS * math.sqrt(max(shape))
            torch._foreach_add_(some, step.unbind())

    def _adam_step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for weight in weights:
            state, gradient = self.state[weight], weight.grad
            if gradient is None:
                continue
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float64)
                state["mean"] = torch.zeros_like(weight)
                state["square"] = torch.zeros_like(weight)
            state["step"] += 1
            k = float(state["step"])
            state["mean"].lerp_(gradient, 1 - first)
            state["square"].lerp_(gradient.square(), 1 - second)
            spread = (state["square"] / (1 - second**k)).sqrt_().add_(group["eps"])
            weight.addcdiv_(state["mean"], spread, value=-group["lr"] / (1 - first**k))


def is_hidden_matrix(weight: Tensor) -> bool:
    """Whether a weight maps many features to many, so that Muon takes it."""
    return weight.dim() == 2 and min(weight.shape) >= SMALLEST_SIDE


def orthogonalised(matrices: Tensor) -> Tensor:
    r"""What is left of matrices (B, a, b) when all singular values are about 1.

    Five Newton–Schulz iterations :math:`X \leftarrow a X + (b A + c A^2) X`, :math:`A = X X^T`,
    from :math:`X / \lVert X \rVert`: singular values end between 0.7 and 1.2, those of the
    original below two thousandths of its norm aside. What is smaller than `SMALLEST_NORM` as a
    whole counts as zero, and stays it.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


# Adam, Adamax and RMSprop add λw to the gradient; AdamW and Muon shrink the weights beside the
# step.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "rmsprop": torch.optim.RMSprop,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
}


def build_optimizer(config: LoopConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a configuration, of all weights of a model.

    Raises:
        UsageError: If there is none of that name.
    """
    require_optimizer(config.optimizer)
    return OPTIMIZERS[config.optimizer](
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )


def require_optimizer(name: str) -> None:
    """Check a name.

    Raises:
        UsageError: If there is no such optimizer.
    """
    if name not in OPTIMIZERS:
        raise UsageError(
            f"train.optimizer: found {name!r}, expected one of {', '.join(OPTIMIZERS)}."
        )
