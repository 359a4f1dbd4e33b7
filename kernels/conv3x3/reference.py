"""conv3x3 in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """See the package."""
    cin, cout = x.shape[-1], weight.shape[-1]
    kernel = weight.reshape(3, 3, cin, cout).permute(3, 2, 0, 1)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.to(x.dtype), bias.to(x.dtype), padding=1)
    if slopes is not None:
        y = F.prelu(y, slopes.to(x.dtype))
    y = y.permute(0, 2, 3, 1)
    return y if residual is None else y + residual
