"""Pixels as a frame has them, [n, h, w, 3], to what the network's first convolution reads: x = frame * gain + offset.

The result has a fourth channel of zeros, so that a pixel is an aligned word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import takes_reference
from srgan_fast.kernels.contract import expect, expect_pixels, output_for
from srgan_fast.kernels.frame_input.cases import BENCH_CASES, CASES
from srgan_fast.kernels.frame_input.reference import frame_input as reference

__all__ = ["BENCH_CASES", "CASES", "bytes_moved", "flops", "frame_input", "reference", "run"]

_PIXELS = 256  # a program


def run(frames: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
    """Scale NHWC frames by the fastest implementation that their device has.

    Shapes:  frames [n, h, w, 3], gain and offset [3], result [n, h, w, 4]
    Dtypes:  frames uint8, uint16 or floating-point; gain and offset float32; result `dtype`, computed in float32
    Raises:  ValueError for other shapes or dtypes
    """
    if frames.dim() != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ValueError(f"expected frames of shape [any, any, any, 3], got {list(frames.shape)}")
    expect_pixels("frames", frames.dtype)
    for name, vector in (("gain", gain), ("offset", offset)):
        expect(name, vector, 3, dtype=torch.float32)
    out = output_for(frames, out, *frames.shape[:-1], 4, dtype=dtype)
    if takes_reference(frames):
        return out.copy_(reference(frames, gain, offset, dtype))
    from srgan_fast.kernels.frame_input import kernel

    pixels = frames.numel() // 3
    kernel.frame_input_pointer[(-(-pixels // _PIXELS),)](
        frames.contiguous(), gain.contiguous(), offset.contiguous(), out, pixels, BP=_PIXELS, num_warps=4
    )
    return out


@torch.library.custom_op("srgan_fast::frame_input", mutates_args=())
def frame_input(frames: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(frames, gain, offset, dtype)


@frame_input.register_fake
def _(frames: Tensor, gain: Tensor, offset: Tensor, dtype: torch.dtype) -> Tensor:
    return frames.new_empty(*frames.shape[:-1], 4, dtype=dtype)


def flops(frames: Tensor, **_: object) -> int:
    """A multiplication and an addition a value."""
    return 2 * frames.numel()


def bytes_moved(frames: Tensor, dtype: torch.dtype, **_: object) -> int:
    """Bytes that must be read and written once."""
    return frames.numel() * frames.element_size() + frames.numel() // 3 * 4 * dtype.itemsize
