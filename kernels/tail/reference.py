"""tail in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.kernels.contract import LEVELS


def tail(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    r: int,
    dtype: torch.dtype,
    *,
    tanh: bool = False,
    base: Tensor | None = None,
) -> Tensor:
    """See the package."""
    taps, cin, outputs = weight.shape
    size = round(taps**0.5)
    kernel = weight.reshape(size, size, cin, outputs).permute(3, 2, 0, 1)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel.to(x.dtype), bias.to(x.dtype), padding=size // 2)
    if base is not None:
        y = y + base[..., :3].permute(0, 3, 1, 2).repeat_interleave(r * r, 1)
    y = F.pixel_shuffle(torch.tanh(y) if tanh else y, r).permute(0, 2, 3, 1)
    wide = torch.promote_types(y.dtype, torch.float32)
    v = torch.addcmul(offset.to(wide), y.to(wide), gain.to(wide)).clamp(0, 1)
    if dtype not in LEVELS:
        return v.to(dtype)
    pixels = (v * LEVELS[dtype] + 0.5).floor()
    return pixels.to(torch.int32).to(dtype)  # uint16 has no direct conversion from floats on every device
