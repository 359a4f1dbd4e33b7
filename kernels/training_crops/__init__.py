"""Images as bytes, and where to cut -> the LR and HR batch of a training step, in one pass and equal on every device.

A crop is turned before its LR is made, as a turned image would be: MATLAB's antialiased bicubic (a = -0.5), whose
weights are dyadic for these scales, so that integers hold every sum. What a window reaches beyond the border of its
image is the border pixel. With `lows` LR is cut from an image of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import takes_reference
from srgan_fast.kernels.contract import expect, output_for
from srgan_fast.kernels.training_crops.cases import BENCH_CASES, CASES
from srgan_fast.kernels.training_crops.reference import scaled
from srgan_fast.kernels.training_crops.reference import training_crops as reference
from srgan_fast.kernels.training_crops.windows import cut, windows

__all__ = [
    "BENCH_CASES",
    "CASES",
    "EXACT",
    "RESULTS",
    "SCALES",
    "bytes_moved",
    "cut",
    "flops",
    "reference",
    "run",
    "scaled",
    "training_crops",
    "windows",
]

EXACT = True  # held to the reference bit for bit
RESULTS = ("lr",)
SCALES = (2, 4, 8)

_PIXELS = 256  # of HR, a program
_VALUES = 32  # of LR, a program


def run(
    pixels: Tensor,
    table: Tensor,
    draws: Tensor,
    lr: Tensor,
    crop: int,
    scale: int,
    lows: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Cut a batch by the fastest implementation that the device has: `lr` is written to, HR is returned.

    A row of `table` is an image: its first byte, height and width, planes [3, h, w] one after another; one of `draws`
    is a crop: image, y and x of its corner (in LR pixels where `lows` are given), and which of the eight ways it lies.
    That they name what is there is not looked at, which would wait for the device.

    Shapes:  pixels [bytes], table and lows [images, 3], draws [b, 4],
             lr [b, crop/scale, crop/scale, 3], result [b, crop, crop, 3]
    Dtypes:  pixels uint8; table, draws and lows int64; lr and result float32
    Units:   lr in [0, 1], result in [-1, 1]
    Raises:  ValueError for other shapes, dtypes or scales
    """
    expect("pixels", pixels, None, dtype=torch.uint8)
    for name, tensor, columns in (("table", table, 3), ("draws", draws, 4), ("lows", lows, 3)):
        if tensor is not None:
            expect(name, tensor, None, columns, dtype=torch.int64)
    if scale not in SCALES or crop < scale or crop % scale:
        raise ValueError(f"expected scale 2, 4 or 8 and a crop that is a multiple, got scale {scale} and crop {crop}")
    count, size = draws.shape[0], crop // scale
    expect("lr", lr, count, size, size, 3, dtype=torch.float32)
    if not lr.is_contiguous():
        raise ValueError(f"expected a contiguous lr, got strides {list(lr.stride())}")
    out = output_for(pixels, out, count, crop, crop, 3, dtype=torch.float32)
    if takes_reference(pixels):
        return out.copy_(reference(pixels, table, draws, lr, crop, scale, lows))
    from srgan_fast.kernels.training_crops import kernel

    blocks = -(-crop * crop // _PIXELS) + -(-3 * size * size // _VALUES)
    table = table.contiguous()
    kernel.training_crops_pointer[(blocks, count)](
        pixels.contiguous(),
        table,
        table if lows is None else lows.contiguous(),
        draws.contiguous(),
        lr,
        out,
        crop,
        SCALE=scale,
        SHIFT=(16 * scale**4).bit_length() - 1,
        PAIRS=lows is not None,
        BP=_PIXELS,
        BL=_VALUES,
        num_warps=4,
    )
    return out


@torch.library.custom_op("srgan_fast::training_crops", mutates_args=("lr",))
def training_crops(
    pixels: torch.Tensor,
    table: torch.Tensor,
    draws: torch.Tensor,
    lr: torch.Tensor,
    crop: int,
    scale: int,
    lows: torch.Tensor | None = None,
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(pixels, table, draws, lr, crop, scale, lows)


@training_crops.register_fake
def _(
    pixels: Tensor, table: Tensor, draws: Tensor, lr: Tensor, crop: int, scale: int, lows: Tensor | None = None
) -> Tensor:
    return pixels.new_empty(draws.shape[0], crop, crop, 3, dtype=torch.float32)


def flops(draws: Tensor, crop: int, scale: int, lows: Tensor | None = None, **_: object) -> int:
    """Both passes of the bicubic kernel as they would be done apart, and the scaling."""
    size = crop // scale
    shrinking = 0 if lows is not None else 2 * 4 * scale * (size * crop + size * size)
    return draws.shape[0] * 3 * (shrinking + 2 * crop * crop + size * size)


def bytes_moved(draws: Tensor, crop: int, scale: int, lows: Tensor | None = None, **_: object) -> int:
    """Bytes that must be read and written once."""
    size = crop // scale
    read = crop * crop + size * size if lows is not None else (crop + 3 * scale) ** 2
    return draws.shape[0] * 3 * (read + 4 * crop * crop + 4 * size * size)
