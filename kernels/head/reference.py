"""head in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.kernels.frame_input.reference import frame_input


def head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """See the package."""
    size, _, cout = weight.shape
    if gain is not None and offset is not None:
        x = frame_input(x, gain, offset, weight.dtype)
    kernel = weight[:, : size * 4].reshape(size, size, 4, cout).permute(3, 2, 0, 1)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.to(x.dtype), bias.to(x.dtype), padding=size // 2)
    return F.prelu(y, slopes.to(x.dtype)).permute(0, 2, 3, 1).contiguous(memory_format=torch.contiguous_format)
