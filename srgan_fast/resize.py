"""The degradations that make LR images from HR ones, and the interpolations that methods are compared with.

`imresize` is MATLAB's, which every published x4 score rests on: bit-identical to the LR files that MATLAB wrote for
the usual test sets. It runs on any device, on batches, in a few lines of torch, because training uses it too.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import ShapeError


def _as_float(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8 or image.dim() < 3:
        raise ShapeError(f"expected uint8 [..., c, h, w], got {image.dtype} {tuple(image.shape)}")
    return image.reshape(-1, *image.shape[-3:]).to(torch.float32)


def _shrunk(image: Tensor, scale: int) -> tuple[int, int]:
    """Height and width of an image that is `scale` times smaller."""
    height, width = image.shape[-2:]
    if height % scale or width % scale or min(height, width) == 0:
        raise ShapeError(f"expected a height and width that are multiples of {scale}, got {height}x{width}; crop first")
    return height // scale, width // scale


def _round_u8(x: Tensor) -> Tensor:
    return (x + 0.5).floor_().clamp_(0, 255)


def _two_passes(x: Tensor, size: tuple[int, int], pad: int, crop: int) -> Tensor:
    """Bicubic to `size`, rows first, rounding between the passes; `pad` input pixels become `crop` output pixels."""
    # Both axes are padded at once: torch's antialiased resize of a single column reads the wrong rows.
    x = F.pad(x, (pad, pad, pad, pad), mode="replicate")
    rows = F.interpolate(x, size=(size[0] + 2 * crop, x.shape[-1]), mode="bicubic", antialias=True)
    rows = _round_u8(rows)
    both = F.interpolate(rows, size=(rows.shape[-2], size[1] + 2 * crop), mode="bicubic", antialias=True)
    return _round_u8(both[..., crop:-crop, crop:-crop])


def imresize_down(image: Tensor, scale: int) -> Tensor:
    """Shrink by MATLAB's antialiased bicubic kernel (a = -0.5), rounding to uint8 after each pass, rows first.

    Shapes:  [..., c, h, w] -> [..., c, h/scale, w/scale]; h and w multiples of scale
    Dtypes:  uint8, computed in float32
    Raises:  ShapeError for another dtype or size
    Source:  MATLAB imresize before 2019 (replicated border); 219 of 219 published LR images identical
    """
    height, width = _shrunk(image, scale)
    x = _two_passes(_as_float(image), (height, width), pad=2 * scale, crop=2)
    return x.to(torch.uint8).reshape(*image.shape[:-2], height, width)


def imresize_up(image: Tensor, scale: int) -> Tensor:
    """Enlarge by MATLAB's bicubic kernel (a = -0.5), rounding to uint8 after each pass, rows first.

    Shapes:  [..., c, h, w] -> [..., c, h*scale, w*scale]
    Dtypes:  uint8, computed in float32
    Raises:  ShapeError for another dtype
    """
    height, width = image.shape[-2:]
    x = _two_passes(_as_float(image), (height * scale, width * scale), pad=2, crop=2 * scale)
    return x.to(torch.uint8).reshape(*image.shape[:-2], height * scale, width * scale)


def nearest_up(image: Tensor, scale: int) -> Tensor:
    """Enlarge by repeating pixels: [..., h, w] -> [..., h*scale, w*scale], any dtype."""
    return image.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)


def gaussian_down(image: Tensor, scale: int, sigma: float) -> Tensor:
    """Blur with a Gaussian and keep one sample in `scale`, taken at the centre of the pixels that it replaces.

    Shapes:  [..., c, h, w] -> [..., c, h/scale, w/scale]; h and w multiples of scale
    Dtypes:  uint8, computed in float32, rounded once
    Units:   sigma in HR pixels
    Raises:  ShapeError for another dtype or size
    """
    height, width = _shrunk(image, scale)
    x = _as_float(image)
    reach = max(1, math.ceil(3 * sigma / scale)) * scale
    kernel = _gaussian(scale, sigma, reach, x.device)
    channels = x.shape[1]
    x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), stride=(scale, 1), groups=channels)
    x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), stride=(1, scale), groups=channels)
    return _round_u8(x).to(torch.uint8).reshape(*image.shape[:-2], height, width)


@lru_cache(maxsize=16)  # on a GPU the host would wait for the copy, in every step of a run
def _gaussian(scale: int, sigma: float, reach: int, device: torch.device) -> Tensor:
    # An even window centred between pixels for an even scale, on one for an odd scale: no shift against bicubic.
    offsets = torch.arange(-reach, scale + reach, dtype=torch.float64) - (scale - 1) / 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).to(device=device, dtype=torch.float32)
