"""conv3x3_shuffle in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def conv3x3_shuffle(x: Tensor, weight: Tensor, bias: Tensor, slopes: Tensor, r: int = 2) -> Tensor:
    """See the package."""
    cin, channels = x.shape[-1], slopes.shape[0]
    # Packed columns are (row, column, channel); PixelShuffle wants (channel, row, column).
    kernel = weight.reshape(3, 3, cin, r * r, channels).permute(4, 3, 2, 0, 1).reshape(-1, cin, 3, 3)
    bias = bias.reshape(r * r, channels).t().reshape(-1)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.to(x.dtype), bias.to(x.dtype), padding=1)
    return F.prelu(F.pixel_shuffle(y, r), slopes.to(x.dtype)).permute(0, 2, 3, 1)
