"""batchnorm_act in plain PyTorch, and its gradients in closed form: no autograd runs inside an operator."""

from __future__ import annotations

import torch
from torch import Tensor


def batchnorm_act(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    slopes: Tensor | None = None,
    skip: Tensor | None = None,
    slope: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """See the package."""
    _, z = _normalised(x, mean, variance, gamma, beta, eps)
    y = torch.where(z >= 0, z, z * (slope if slopes is None else slopes)).to(x.dtype)
    return y if skip is None else y + skip


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """See the package."""
    variance, mean = torch.var_mean(x.to(_wide(x)), (0, 1, 2), correction=0)
    return mean, variance


def batchnorm_act_backward(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    dy: Tensor,
    slopes: Tensor | None = None,
    slope: float = 1.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """See the package; what autograd makes of the formula above where mean and variance are those of x."""
    unit, z = _normalised(x, mean, variance, gamma, beta, eps)
    dy = dy.to(_wide(dy))
    dz = torch.where(z > 0, dy, dy * (slope if slopes is None else slopes))
    sums = [dz.sum((0, 1, 2)), (dz * unit).sum((0, 1, 2))]
    if slopes is not None:
        sums.append((dy * z.clamp_max(0)).sum((0, 1, 2)))
    pixels = x.numel() // x.shape[-1]
    dx = gamma * (variance + eps).rsqrt() * (dz - sums[0] / pixels - unit * (sums[1] / pixels))
    return dx.to(x.dtype), torch.stack(sums)


def _normalised(
    x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    unit = (x.to(_wide(x)) - mean) * (variance + eps).rsqrt()
    return unit, unit * gamma + beta


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
