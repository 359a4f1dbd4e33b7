"""conv3x3_int8 in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.kernels.quantise_int8.reference import quantise_int8


def conv3x3_int8(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
    slopes: Tensor | None = None,
    residual: Tensor | None = None,
    quantised: Tensor | None = None,
    inverse: float = 1.0,
    r: int = 1,
) -> Tensor:
    """See the package."""
    n, h, w, _ = x.shape
    padded = F.pad(x.float(), (0, 0, 1, 1, 1, 1))
    # Whole numbers below 2^24 all along: products and sums in float32 are exact, in whatever order they are added.
    acc = torch.zeros(n, h, w, weight.shape[-1], device=x.device)
    for tap in range(9):
        acc += padded[:, tap // 3 : tap // 3 + h, tap % 3 : tap % 3 + w] @ weight[tap].float()
    v = acc * gain
    v = v + bias
    v = v.reshape(n, h, w, r, r, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h * r, w * r, -1)
    if slopes is not None:
        v = torch.where(v >= 0, v, v * slopes)
    if residual is not None:
        v = v + residual.float()
    if dtype == torch.int8:
        return quantise_int8(v, 1.0)
    y = v.to(dtype)
    if quantised is not None:
        quantised.copy_(quantise_int8(y, inverse))
    return y
