"""What of an image goes on the page: crops pixel for pixel, error maps, where the crop is, and spectra."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from srgan_fast.evaluate.metrics import luma601

CROP = 144  # HR pixels: two fit side by side on a phone at 1:1, one at 2:1 with a slider
ERROR_LIMIT = 32  # of 255: larger errors are drawn as this one
WIDEST = 512  # pixels of an error map: larger images are averaged over blocks
BINS = 32  # of a spectrum, from 0 to half a cycle a pixel

# From no error to ERROR_LIMIT: black, violet, red, orange, pale yellow; lightness grows all the way, also in grey.
_STOPS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], np.float64)

Spectrum = NDArray[np.float64]


def hardest(hr: Tensor, bicubic: Tensor, scale: int) -> tuple[int, int, int, int]:
    """Top, left, height and width, in LR pixels, of the crop where bicubic differs most from HR."""
    error = (hr.to(torch.float32) - bicubic.to(torch.float32)).abs().sum(0)
    rows, columns = (side // scale for side in error.shape)
    error = error.view(rows, scale, columns, scale).sum((1, 3))
    side = max(1, CROP // scale)
    height, width = min(side, rows), min(side, columns)
    sums = F.avg_pool2d(error[None, None], (height, width), stride=1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return top, left, height, width


def encoded(image: Tensor, kind: Literal["PNG", "JPEG"] = "PNG") -> bytes:
    """A picture, uint8 [3, h, w], as the bytes of a file."""
    return _file(Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()), kind)


def error_map(sr: Tensor, hr: Tensor) -> Tensor:
    """The absolute difference of two images, averaged over the channels, in colours; at most `WIDEST` pixels a side.

    Shapes:  [3, h, w] each -> [3, h/k, w/k]
    Dtypes:  uint8
    """
    error = (sr.to(torch.float32) - hr.to(torch.float32)).abs().mean(0)
    blocks = -(-max(error.shape) // WIDEST)
    if blocks > 1:
        error = F.avg_pool2d(error[None, None], blocks, ceil_mode=True)[0, 0]
    position = (error / ERROR_LIMIT * (len(_STOPS) - 1)).numpy()  # beyond the last colour interp stays there
    channels = [np.interp(position, np.arange(len(_STOPS)), _STOPS[:, channel]) for channel in range(3)]
    return torch.from_numpy(np.stack(channels).round().astype(np.uint8))


def whereabouts(hr: Tensor, box: tuple[int, int, int, int]) -> bytes:
    """The whole picture, small, with a frame (top, left, height, width in HR pixels) around the crop: a JPEG file."""
    picture = Image.fromarray(hr.permute(1, 2, 0).contiguous().cpu().numpy())
    shrink = max(1.0, max(picture.size) / 240)
    picture = picture.resize((max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink))))
    top, left, height, width = (side / shrink for side in box)
    pen = ImageDraw.Draw(picture)
    corners = (left, top, min(left + width, picture.width) - 1, min(top + height, picture.height) - 1)
    pen.rectangle(corners, outline=(0, 0, 0), width=3)
    pen.rectangle(corners, outline=(255, 255, 255), width=1)
    return _file(picture, "JPEG")


def spectrum(image: Tensor) -> Spectrum:
    """The power of the luma by frequency, averaged around the circle, in dB; NaN where a small image has none.

    Under a Hann window, without the mean; bin i holds frequencies from i to i + 1, in 1 / (2 BINS) cycles a pixel.

    Shapes:  [3, h, w] -> [BINS]
    Dtypes:  uint8 -> float64
    """
    luma = luma601(image)[0].numpy()
    height, width = luma.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    bins = np.floor(radius * 2 * BINS).astype(np.int64).ravel()
    inside = bins < BINS
    counts = np.bincount(bins[inside], minlength=BINS)
    sums = np.bincount(bins[inside], power.ravel()[inside], minlength=BINS)
    means = np.divide(sums, counts, out=np.full(BINS, np.nan), where=counts > 0)
    # A flat image has no power at all; a thousandth of a grey level is the least that is told apart.
    return 10 * np.log10(np.maximum(means, 1e-6))


def _file(picture: Image.Image, kind: Literal["PNG", "JPEG"]) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
    return buffer.getvalue()
