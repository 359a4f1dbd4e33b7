"""training_crops in plain PyTorch, without a wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor


def training_crops(
    pixels: Tensor, table: Tensor, draws: Tensor, lr: Tensor, crop: int, scale: int, lows: Tensor | None = None
) -> Tensor:
    """See the package."""
    if lows is None:
        reach = 3 * scale // 2
        wide = windows(pixels, table, draws, crop, reach)
        high, low = wide[..., reach:-reach, reach:-reach], _shrunk(wide, crop // scale, scale)
    else:
        corners = torch.cat([draws[:, :1], draws[:, 1:3] * scale, draws[:, 3:]], 1)
        high = windows(pixels, table, corners, crop)
        low = windows(pixels, lows, draws, crop // scale)
    lr.copy_(scaled(low, 255.0).permute(0, 2, 3, 1))
    return (scaled(high, 127.5) - 1.0).permute(0, 2, 3, 1).contiguous()


def windows(pixels: Tensor, table: Tensor, draws: Tensor, size: int, reach: int = 0) -> Tensor:
    """Squares of `size` and `reach` around them, turned; outside of an image its border pixel: uint8 [b, 3, s, s]."""
    image, y, x, turn = draws.unbind(1)
    start, height, width = table[image].unbind(1)
    along = torch.arange(-reach, size + reach, device=draws.device)
    mirrored, quarter = turn[:, None] >= 4, turn[:, None] % 4
    # Of a turned square one image coordinate follows its rows and the other its columns, forwards or backwards.
    rows = torch.where((quarter == 1) | (quarter == 2), size - 1 - along, along)
    columns = torch.where(((quarter == 2) | (quarter == 3)) ^ mirrored, size - 1 - along, along)
    across = quarter % 2 == 1
    by_row, by_column = torch.where(across, x[:, None], y[:, None]), torch.where(across, y[:, None], x[:, None])
    last = torch.stack([height, width], 1) - 1
    last_row = torch.where(across, last[:, 1:], last[:, :1])
    last_column = torch.where(across, last[:, :1], last[:, 1:])
    step_row = torch.where(across, 1, width[:, None])
    step_column = torch.where(across, width[:, None], 1)
    rows = (by_row + rows).clamp_min(0).minimum(last_row) * step_row
    columns = (by_column + columns).clamp_min(0).minimum(last_column) * step_column
    planes = start[:, None] + torch.arange(3, device=draws.device) * (height * width)[:, None]
    index = (planes[:, :, None] + rows[:, None])[..., None] + columns[:, None, None]
    return pixels.index_select(0, index.view(-1)).view(index.shape)


def scaled(levels: Tensor, top: float) -> Tensor:
    """Levels over `top`, rounded once; on a GPU a division by a number would be a product with its inverse."""
    return levels.to(torch.float32) / torch.full((), top, device=levels.device)


def _shrunk(wide: Tensor, size: int, scale: int) -> Tensor:
    """MATLAB's antialiased bicubic, rows first, half up after each pass; in float64 every sum of it is exact."""
    tap = torch.arange(4 * scale, device=wide.device, dtype=torch.float64)
    d = (tap + 0.5 - 2 * scale).abs() / scale
    weights = torch.where(d <= 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2) / scale
    matrix = wide.new_zeros(size, wide.shape[-1], dtype=torch.float64)
    matrix.as_strided((size, 4 * scale), (wide.shape[-1] + scale, 1)).copy_(weights.expand(size, -1))
    rows = (matrix @ wide.double()).add_(0.5).floor_().clamp_(0, 255)
    return (rows @ matrix.t()).add_(0.5).floor_().clamp_(0, 255)
