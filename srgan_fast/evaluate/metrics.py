"""PSNR and SSIM with their conventions in the name of the protocol, because the convention moves a score more
than most methods do.

    y601   luma of BT.601 in 16..235, unrounded; Wang's SSIM (11x11 Gaussian, sigma 1.5, valid region)
    rgb    the three channels as they are; SSIM averaged over them
    paper  the daala tools of Ledig et al. (see `daala.py`)

Every protocol first removes a border of `scale` pixels and takes uint8 images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import ShapeError

# ITU-R BT.601, 8-bit studio range, as in MATLAB's rgb2ycbcr.
_LUMA = (65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0)


def luma601(image: Tensor) -> Tensor:
    """BT.601 luma, unrounded: uint8 [3, h, w] -> float64 [1, h, w] in 16..235."""
    x = image.to(torch.float64)
    return (_LUMA[0] * x[0] + _LUMA[1] * x[1] + _LUMA[2] * x[2] + 16.0)[None]


def psnr_db(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two float64 images in 0..255; infinite when they are equal."""
    mse = float(torch.mean((a - b) ** 2))
    return math.inf if mse == 0 else 10.0 * math.log10(255.0**2 / mse)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two float64 [c, h, w] images in 0..255, averaged over positions and channels.

    Raises:  ShapeError for images smaller than the 11x11 window
    Source:  Wang et al. 2004: Gaussian 11x11, sigma 1.5, population covariance, valid region only
    """
    if min(a.shape[-2:]) < 11:
        raise ShapeError(f"expected at least 11x11 pixels after the border crop, got {a.shape[-2]}x{a.shape[-1]}")
    offsets = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x[:, None], window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(score.mean())
