"""yuv_to_rgb in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.chroma import LUMA, SITINGS, levels, quantised, shift, wide
from srgan_fast.kernels.contract import LEVELS


def yuv_to_rgb(
    y: Tensor, u: Tensor | None, v: Tensor | None, matrix: str, full: bool, depth: int, siting: str, dtype: torch.dtype
) -> Tensor:
    """See the package."""
    y_offset, y_span, c_offset, c_span = levels(full, depth)
    luma = (wide(y, dtype) - y_offset) / y_span
    if u is None or v is None:
        rgb = luma.unsqueeze(-1).expand(*luma.shape, 3)
    else:
        pb, pr = ((_enlarged(wide(c, dtype), y.shape[-2], y.shape[-1], siting) - c_offset) / c_span for c in (u, v))
        k_red, k_blue = LUMA[matrix]
        red, blue = luma + 2 * (1 - k_red) * pr, luma + 2 * (1 - k_blue) * pb
        green = (luma - k_red * red - k_blue * blue) / (1 - k_red - k_blue)
        rgb = torch.stack((red, green, blue), -1)
    top = LEVELS.get(dtype, 1)
    return quantised(rgb.clamp(0, 1) * top, top, dtype)


def _enlarged(c: Tensor, height: int, width: int, siting: str) -> Tensor:
    """Chroma at the places of luma, linear between its own."""
    across, down = SITINGS[siting]
    if c.shape[-1] != width:
        c = _doubled(c, -1, across)[..., :width]
    if c.shape[-2] != height:
        c = _doubled(c, -2, down)[..., :height, :]
    return c


def _doubled(c: Tensor, dim: int, on_first: bool) -> Tensor:
    before, after = shift(c, -1, dim), shift(c, 1, dim)
    pair = (c, 0.5 * (c + after)) if on_first else (0.75 * c + 0.25 * before, 0.75 * c + 0.25 * after)
    return torch.stack(pair, dim).flatten(dim - 1, dim)
