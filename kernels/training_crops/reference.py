"""training_crops in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.training_crops.windows import windows


def training_crops(
    pixels: Tensor, table: Tensor, draws: Tensor, lr: Tensor, crop: int, scale: int, lows: Tensor | None = None
) -> Tensor:
    """See the package."""
    if lows is None:
        reach = 3 * scale // 2
        wide = windows(pixels, table, draws, crop, reach)
        high, low = wide[..., reach:-reach, reach:-reach], _shrunk(wide, scale)
    else:
        corners = torch.cat([draws[:, :1], draws[:, 1:3] * scale, draws[:, 3:]], 1)
        high = windows(pixels, table, corners, crop)
        low = windows(pixels, lows, draws, crop // scale)
    lr.copy_(scaled(low, 255.0).permute(0, 2, 3, 1))
    return (scaled(high, 127.5) - 1.0).permute(0, 2, 3, 1).contiguous()


def scaled(levels: Tensor, top: float) -> Tensor:
    """Levels over `top`, rounded once; on a GPU a division by a number would be a product with its inverse."""
    return levels.to(torch.float32) / torch.full((), top, device=levels.device)


def _shrunk(wide: Tensor, scale: int) -> Tensor:
    """MATLAB's antialiased bicubic, rows first, half up after each pass, of windows that reach 3/2 of a pixel out."""
    # Every sum is exact: of 12 bits behind the point at most in float32, of 16 in float64.
    x = wide.to(torch.float64 if scale == 8 else torch.float32)
    for dim in (-2, -1):
        taps = x.unfold(dim, 4 * scale, scale).unbind(-1)
        total = taps[0] * _cubic(0, scale)
        for tap in range(1, 4 * scale):
            total.add_(taps[tap], alpha=_cubic(tap, scale))
        x = total.add_(0.5).floor_().clamp_(0, 255)
    return x


def _cubic(tap: int, scale: int) -> float:
    d = abs(tap + 0.5 - 2 * scale) / scale
    return ((1.5 * d - 2.5) * d * d + 1 if d <= 1 else ((-0.5 * d + 2.5) * d - 4) * d + 2) / scale
