"""PSNR and SSIM with their conventions in the name of the protocol, because the convention moves a score more
than most methods do.

    y601   luma of BT.601 in 16..235, unrounded; Wang's SSIM (11x11 Gaussian, sigma 1.5, valid region)
    paper  the daala tools of Ledig et al. (see `daala.py`)
    rgb    the three channels as they are; SSIM averaged over them

Every protocol first removes a border of `scale` pixels and takes uint8 images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.errors import ShapeError, UsageError
from srgan_fast.evaluate import daala

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


class Score(NamedTuple):
    """What one protocol says of one image."""

    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Protocol:
    """A convention of measuring: its name, one line on what it does, and the measure without the border crop."""

    name: str
    description: str
    measure: Callable[[Tensor, Tensor], Score]


def _y601(hr: Tensor, sr: Tensor) -> Score:
    a, b = luma601(hr), luma601(sr)
    return Score(psnr_db(a, b), ssim(a, b))


def _paper(hr: Tensor, sr: Tensor) -> Score:
    a, b = (daala.luma(image.permute(1, 2, 0).cpu().numpy()) for image in (hr, sr))
    return Score(psnr_db(*(torch.from_numpy(luma).to(torch.float64) for luma in (a, b))), daala.ssim(a, b))


def _rgb(hr: Tensor, sr: Tensor) -> Score:
    a, b = hr.to(torch.float64), sr.to(torch.float64)
    return Score(psnr_db(a, b), ssim(a, b))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("y601", "BT.601 luma, unrounded; Wang's SSIM, 11x11, sigma 1.5", _y601),
        Protocol("paper", "the SRGAN paper's daala tools: dithered BT.709 luma; SSIM window by height", _paper),
        Protocol("rgb", "the RGB channels; Wang's SSIM, averaged over them", _rgb),
    )
}


def protocols(names: Sequence[str]) -> list[str]:
    """Check protocol names, dropping repeats.

    Raises:  UsageError for an unknown name, or for none
    """
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise UsageError(f"expected protocols out of {', '.join(PROTOCOLS)}, got {', '.join(unknown) or 'none'}")
    return list(dict.fromkeys(names))


def score(hr: Tensor, sr: Tensor, protocol: str, scale: int) -> Score:
    """Compare an upscaled image with the original by a named protocol, without a border of `scale` pixels.

    Shapes:  [3, h, w] each
    Dtypes:  uint8
    Raises:  ShapeError for another dtype, unequal shapes or too small an image; UsageError for an unknown protocol
    """
    (protocol,) = protocols([protocol])
    for image in (hr, sr):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise ShapeError(f"expected uint8 [3, h, w], got {image.dtype} {tuple(image.shape)}; convert it to RGB")
    if hr.shape != sr.shape:
        raise ShapeError(f"expected two images of one size, got {tuple(hr.shape)} and {tuple(sr.shape)}")
    if min(hr.shape[-2:]) < 11 + 2 * scale:
        raise ShapeError(
            f"expected at least {11 + 2 * scale} pixels on each side (a border of {scale} is removed, SSIM needs 11), "
            f"got {hr.shape[-2]}x{hr.shape[-1]}; leave the image out"
        )
    inside = (slice(None), slice(scale, -scale), slice(scale, -scale))
    return PROTOCOLS[protocol].measure(hr[inside], sr[inside])
