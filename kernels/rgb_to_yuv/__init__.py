"""RGB as a picture has it to the planes of a video frame: the standards' matrix, range, depth and chroma positions."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels import takes_reference
from srgan_fast.kernels.chroma import LUMA, SITINGS, SUBSAMPLINGS, ToYUV, bands, shapes
from srgan_fast.kernels.contract import LEVELS, output_for
from srgan_fast.kernels.rgb_to_yuv.cases import BENCH_CASES, CASES
from srgan_fast.kernels.rgb_to_yuv.reference import planes
from srgan_fast.kernels.rgb_to_yuv.reference import rgb_to_yuv as reference

__all__ = ["BENCH_CASES", "CASES", "EXACT", "bytes_moved", "flops", "reference", "rgb_to_yuv", "run"]

EXACT = True  # held to the reference bit for bit

_ROWS, _COLUMNS = 8, 64  # of luma, a program


def run(
    rgb: Tensor,
    matrix: str,
    full: bool,
    depth: int,
    subsampling: str,
    siting: str,
    dtype: torch.dtype,
    *,
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Planes of one frame by the fastest implementation that its device has.

    Shapes:  rgb [h, w, 3]; result y [h, w], and but for 400 u and v [h, w] over the subsampling, rounded up
    Dtypes:  rgb uint8, uint16 over its whole range, or floating-point in [0, 1]; result uint8, uint16 (the low `depth`
             bits), or floating-point code values that are not rounded; computed in float32
    Units:   `full` range or the standards' limited one; `matrix` bt601, bt709 or bt2020; `siting` left, centre, topleft
    Raises:  ValueError for other shapes, dtypes or names
    Source:  ITU-R BT.601, BT.709, BT.2020; ITU-T H.273
    """
    if rgb.dim() != 3 or rgb.shape[-1] != 3 or rgb.numel() == 0:
        raise ValueError(f"expected RGB of shape [any, any, 3], got {list(rgb.shape)}")
    if matrix not in LUMA or siting not in SITINGS or subsampling not in SUBSAMPLINGS:
        raise ValueError(
            f"expected a matrix of {', '.join(LUMA)}, a siting of {', '.join(SITINGS)} and a subsampling of "
            f"{', '.join(SUBSAMPLINGS)}, got {matrix}, {siting} and {subsampling}"
        )
    holds = {torch.uint8: 8, torch.uint16: 16}.get(dtype, 16 if dtype.is_floating_point else 0)
    if not 8 <= depth <= holds or (rgb.dtype not in LEVELS and not rgb.dtype.is_floating_point):
        raise ValueError(f"expected pixels and a dtype that holds {depth} bits, got {rgb.dtype} and {dtype}")
    sizes = _shapes(rgb, subsampling)
    if out is not None and len(out) != len(sizes):
        raise ValueError(f"expected {len(sizes)} planes as out, got {len(out)}")
    places = tuple(output_for(rgb, None if out is None else out[i], *size, dtype=dtype) for i, size in enumerate(sizes))
    (h, w), (ch, cw) = sizes[0], sizes[-1]
    if takes_reference(rgb) or dtype == torch.float64:
        for first, end in bands(rgb):
            found = planes(rgb, matrix, full, depth, subsampling, siting, dtype, first, end)
            for place, plane in zip(places, found, strict=True):
                start = first if len(place) == h else first // 2
                place[start : start + len(plane)] = plane
        return places
    from srgan_fast.kernels.rgb_to_yuv import kernel

    by = ToYUV.of(matrix, full, depth, LEVELS.get(rgb.dtype, 1))
    less_down, less_across = SUBSAMPLINGS[subsampling] or (1, 1)
    across, down = SITINGS[siting]
    # Where there is no chroma its pointers are of luma, and nothing is written through them.
    kernel.rgb_to_yuv_pointer[(-(-h // _ROWS) * -(-w // _COLUMNS),)](
        *(rgb.contiguous(), places[0], *(places * 3)[-2:], h, w, ch, cw, float((1 << depth) - 1)),
        *(by.y_offset, by.c_offset, *by.y, *by.u, *by.v),
        FLOATS=rgb.is_floating_point(),
        CHROMA=len(places) > 1,
        DOWN=less_down == 2,
        ACROSS=less_across == 2,
        FIRST_ROW=down,
        FIRST_COLUMN=across,
        WHOLE=not dtype.is_floating_point,
        TH=_ROWS,
        TW=_COLUMNS,
        CTH=_ROWS // less_down,
        CTW=_COLUMNS // less_across,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return places


def _shapes(rgb: Tensor, subsampling: str) -> list[tuple[int, int]]:
    return shapes(rgb.shape[0], rgb.shape[1], subsampling)


@torch.library.custom_op("srgan_fast::rgb_to_yuv", mutates_args=())
def rgb_to_yuv(
    rgb: torch.Tensor, matrix: str, full: bool, depth: int, subsampling: str, siting: str, dtype: torch.dtype
) -> list[torch.Tensor]:
    """`run` as an operator that torch.compile and torch.export see as one node."""
    return list(run(rgb, matrix, full, depth, subsampling, siting, dtype))


@rgb_to_yuv.register_fake
def _(
    rgb: Tensor, matrix: str, full: bool, depth: int, subsampling: str, siting: str, dtype: torch.dtype
) -> list[Tensor]:
    return [rgb.new_empty(shape, dtype=dtype) for shape in _shapes(rgb, subsampling)]


def flops(rgb: Tensor, subsampling: str, **_: object) -> int:
    """The colours smoothed to where chroma lies, in each direction where it is sparser, and the matrix."""
    luma, *chroma = (rows * columns for rows, columns in _shapes(rgb, subsampling))
    less_down, less_across = SUBSAMPLINGS[subsampling] or (1, 1)
    smoothed = sum(chroma[:1]) * 3 * 4 * ((less_across == 2) + less_across * (less_down == 2))
    return 6 * (luma + sum(chroma)) + smoothed


def bytes_moved(rgb: Tensor, subsampling: str, dtype: torch.dtype, **_: object) -> int:
    """Bytes that must be read and written once."""
    return rgb.nbytes + sum(rows * columns for rows, columns in _shapes(rgb, subsampling)) * dtype.itemsize
