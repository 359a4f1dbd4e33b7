"""Planes of a video frame to RGB as a picture has it: the standards' matrix, range, depth and chroma positions.

4:2:0, 4:2:2 and 4:4:4 are told by the shapes of the planes; grey has no chroma. What lies beyond [0, 1] is clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import takes_reference
from srgan_fast.kernels.chroma import LUMA, SITINGS, ToRGB, bands
from srgan_fast.kernels.contract import LEVELS, expect_pixels, output_for
from srgan_fast.kernels.yuv_to_rgb.cases import BENCH_CASES, CASES
from srgan_fast.kernels.yuv_to_rgb.reference import channels
from srgan_fast.kernels.yuv_to_rgb.reference import yuv_to_rgb as reference

__all__ = ["BENCH_CASES", "CASES", "EXACT", "bytes_moved", "flops", "reference", "run", "yuv_to_rgb"]

EXACT = True  # held to the reference bit for bit

_ROWS, _COLUMNS = 8, 64  # of luma, a program


def run(
    y: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    matrix: str,
    full: bool,
    depth: int,
    siting: str,
    dtype: torch.dtype,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """RGB of one frame by the fastest implementation that its device has.

    Shapes:  y [h, w]; u and v [h or ceil(h/2), w or ceil(w/2)], or None for grey; result [h, w, 3]
    Dtypes:  planes uint8 or uint16 (the low `depth` bits), or code values as floats; result uint8, uint16 over its
             whole range, or floating-point in [0, 1]; computed in float32
    Units:   `full` range or the standards' limited one; `matrix` bt601, bt709 or bt2020; `siting` left, centre, topleft
    Raises:  ValueError for other shapes, dtypes or names
    Source:  ITU-R BT.601, BT.709, BT.2020; ITU-T H.273
    """
    if y.dim() != 2 or y.numel() == 0:
        raise ValueError(f"expected luma of shape [any, any], got {list(y.shape)}")
    expect_pixels("planes", y.dtype)
    h, w = y.shape
    if (u is None) != (v is None):
        raise ValueError("expected both planes of chroma or none")
    if u is not None and v is not None:
        sizes = [(a, b) for a in (h, -(-h // 2)) for b in (w, -(-w // 2))]
        if tuple(u.shape) not in sizes or v.shape != u.shape:
            raise ValueError(f"expected chroma of one of the shapes {sizes}, got {list(u.shape)} and {list(v.shape)}")
        if u.dtype != y.dtype or v.dtype != y.dtype:
            raise ValueError(f"expected planes of one dtype, got {y.dtype}, {u.dtype} and {v.dtype}")
    if matrix not in LUMA or siting not in SITINGS:
        raise ValueError(
            f"expected a matrix of {', '.join(LUMA)} and a siting of {', '.join(SITINGS)}, got {matrix}, {siting}"
        )
    expect_pixels("a result", dtype)
    if not 8 <= depth <= 16:
        raise ValueError(f"expected 8 to 16 bits, got {depth}")
    out = output_for(y, out, h, w, 3, dtype=dtype)
    if takes_reference(y) or dtype == torch.float64:
        for first, end in bands(y):
            for i, channel in enumerate(channels(y, u, v, matrix, full, depth, siting, dtype, first, end)):
                out[first:end, :, i] = channel
        return out
    from srgan_fast.kernels.yuv_to_rgb import kernel

    top = LEVELS.get(dtype, 1)
    # Where there is no chroma its pointers are of luma, and nothing is read through them.
    cb, cr = y if u is None else u, y if v is None else v
    ch, cw = cb.shape
    across, down = SITINGS[siting]
    kernel.yuv_to_rgb_pointer[(-(-h // _ROWS) * -(-w // _COLUMNS),)](
        *(
            y.contiguous(),
            cb.contiguous(),
            cr.contiguous(),
            out,
            h,
            w,
            ch,
            cw,
            float(top),
            *ToRGB.of(matrix, full, depth, top),
        ),
        CHROMA=u is not None,
        DOWN=ch != h,
        ACROSS=cw != w,
        FIRST_ROW=down,
        FIRST_COLUMN=across,
        WHOLE=not dtype.is_floating_point,
        TH=_ROWS,
        TW=_COLUMNS,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out


@torch.library.custom_op("srgan_fast::yuv_to_rgb", mutates_args=())
def yuv_to_rgb(
    y: torch.Tensor,
    u: torch.Tensor | None,
    v: torch.Tensor | None,
    matrix: str,
    full: bool,
    depth: int,
    siting: str,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return run(y, u, v, matrix, full, depth, siting, dtype)


@yuv_to_rgb.register_fake
def _(
    y: Tensor, u: Tensor | None, v: Tensor | None, matrix: str, full: bool, depth: int, siting: str, dtype: torch.dtype
) -> Tensor:
    return y.new_empty(*y.shape, 3, dtype=dtype)


def flops(y: Tensor, u: Tensor | None, **_: object) -> int:
    """Luma from its offset, chroma to the places of luma, the matrix."""
    if u is None:
        return 2 * y.numel()
    between = sum(2 * 3 for mine, other in zip(u.shape, y.shape, strict=True) if mine != other)
    return (2 + between + 8) * y.numel() + 2 * u.numel()


def bytes_moved(y: Tensor, u: Tensor | None, v: Tensor | None, dtype: torch.dtype, **_: object) -> int:
    """Bytes that must be read and written once."""
    return sum(plane.nbytes for plane in (y, u, v) if plane is not None) + 3 * y.numel() * dtype.itemsize
