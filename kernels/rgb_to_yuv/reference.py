"""rgb_to_yuv in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.kernels.chroma import LUMA, SITINGS, levels, quantised, wide
from srgan_fast.kernels.contract import LEVELS

# Of the sample before, the one at the place, and the one after: what makes chroma as dense as luma, chroma that lies on
# the first of two, and chroma between the two.
_DENSE, _ON_FIRST, _BETWEEN = (0.0, 1.0, 0.0), (0.25, 0.5, 0.25), (0.0, 0.5, 0.5)
_ROWS = 64  # at a time, so that what lies between them stays in the cache; even, as chroma needs it


def rgb_to_yuv(
    rgb: Tensor, matrix: str, full: bool, depth: int, subsampling: str, siting: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """See the package."""
    arguments = (matrix, full, depth, subsampling, siting, dtype)
    bands = [_band(rgb, top, *arguments) for top in range(0, rgb.shape[0], _ROWS)]
    return tuple(torch.cat(parts) for parts in zip(*bands, strict=True))


def _band(
    rgb: Tensor, top: int, matrix: str, full: bool, depth: int, subsampling: str, siting: str, dtype: torch.dtype
) -> list[Tensor]:
    """Planes of a few rows, which see one row above and one below them; outside the frame the border goes on."""
    bottom, above = min(top + _ROWS, rgb.shape[0]), int(top > 0)
    below = int(bottom < rgb.shape[0])
    x = wide(rgb[top - above : bottom + below].permute(2, 0, 1).contiguous(), dtype)[None]
    if rgb.is_floating_point():
        x = x.clamp(0, 1)
    x = F.pad(x, (1, 1, 1 - above, 1 - below), mode="replicate")
    red, blue = LUMA[matrix]
    luma = x.new_tensor([red, 1 - red - blue, blue])
    y_offset, y_span, c_offset, c_span = levels(full, depth)
    unit = 1 / LEVELS.get(rgb.dtype, 1)
    most = (1 << depth) - 1
    y = F.conv2d(x[..., 1:-1, 1:-1], (luma * (y_span * unit)).view(1, 3, 1, 1))[0, 0]
    planes = [quantised(y + y_offset, most, dtype)]
    if subsampling != "400":
        on_first = [_ON_FIRST if first else _BETWEEN for first in SITINGS[siting]]
        across = on_first[0] if subsampling in ("420", "422") else _DENSE
        down = on_first[1] if subsampling == "420" else _DENSE
        to_blue, to_red = (
            (x.new_tensor([0, 0, 1]) - luma) / (2 - 2 * blue),
            (x.new_tensor([1, 0, 0]) - luma) / (2 - 2 * red),
        )
        taps = x.new_tensor(down)[:, None] * x.new_tensor(across)
        stride = (1 if down is _DENSE else 2, 1 if across is _DENSE else 2)
        c = F.conv2d(x, torch.stack((to_blue, to_red))[..., None, None] * (taps * (c_span * unit)), stride=stride)[0]
        planes += quantised(c + c_offset, most, dtype)
    return planes
