"""conv3x3_stats in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def conv3x3_stats(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
) -> Tensor:
    """See the package."""
    kernel = weight.permute(0, 3, 1, 2)
    shift = None if bias is None else bias.to(x.dtype)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel, shift, stride, padding=1).permute(0, 2, 3, 1).contiguous()
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    found = torch.var_mean(wide, (0, 1, 2), correction=0)
    for target, value in zip((variance, mean), found, strict=True):
        if target is not None:
            target.copy_(value)
    return y
