"""rgb_to_yuv in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.chroma import LUMA, SITINGS, levels, quantised, shift, wide
from srgan_fast.kernels.contract import LEVELS


def rgb_to_yuv(
    rgb: Tensor, matrix: str, full: bool, depth: int, subsampling: str, siting: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """See the package."""
    red, green, blue = (wide(rgb, dtype) / LEVELS.get(rgb.dtype, 1)).clamp(0, 1).unbind(-1)
    k_red, k_blue = LUMA[matrix]
    luma = k_red * red + (1 - k_red - k_blue) * green + k_blue * blue
    y_offset, y_span, c_offset, c_span = levels(full, depth)
    top = (1 << depth) - 1
    planes = [quantised(luma * y_span + y_offset, top, dtype)]
    if subsampling != "400":
        across, down = SITINGS[siting]
        for difference, weight in ((blue - luma, k_blue), (red - luma, k_red)):
            c = difference / (2 * (1 - weight))
            if subsampling in ("420", "422"):
                c = _halved(c, -1, across)
            if subsampling == "420":
                c = _halved(c, -2, down)
            planes.append(quantised(c * c_span + c_offset, top, dtype))
    return tuple(planes)


def _halved(c: Tensor, dim: int, on_first: bool) -> Tensor:
    """Every other element, weighed with its neighbours: 1 2 1 about the first of a pair, or 1 1 between the two."""
    here, after = _every_other(c, dim), _every_other(shift(c, 1, dim), dim)
    if not on_first:
        return 0.5 * (here + after)
    return 0.25 * (_every_other(shift(c, -1, dim), dim) + after) + 0.5 * here


def _every_other(x: Tensor, dim: int) -> Tensor:
    return x[..., ::2] if dim == -1 else x[..., ::2, :]
