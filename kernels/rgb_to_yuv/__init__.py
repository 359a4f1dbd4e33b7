"""RGB as a picture has it to the planes of a video frame: the standards' matrix, range, depth and chroma positions."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.chroma import LUMA, SITINGS, SUBSAMPLINGS, bands
from srgan_fast.kernels.contract import LEVELS, output_for
from srgan_fast.kernels.rgb_to_yuv.reference import planes
from srgan_fast.kernels.rgb_to_yuv.reference import rgb_to_yuv as reference

__all__ = ["SUBSAMPLINGS", "reference", "run"]

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
    h, w, _ = rgb.shape
    less = SUBSAMPLINGS[subsampling]
    shapes = [(h, w)] + ([] if less is None else [(-(-h // less[0]), -(-w // less[1]))] * 2)
    if out is not None and len(out) != len(shapes):
        raise ValueError(f"expected {len(shapes)} planes as out, got {len(out)}")
    places = tuple(
        output_for(rgb, None if out is None else out[i], *shape, dtype=dtype) for i, shape in enumerate(shapes)
    )
    for first, end in bands(rgb):
        found = planes(rgb, matrix, full, depth, subsampling, siting, dtype, first, end)
        for place, plane, height in zip(places, found, (1, *[2 if subsampling == "420" else 1] * 2), strict=False):
            place[first // height : -(-end // height)] = plane
    return places
