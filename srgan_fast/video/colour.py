"""Colour of video: which matrix, range, depth and chroma positions a frame has, and RGB from and to its planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Matrix = Literal["bt601", "bt709", "bt2020", "rgb"]
Subsampling = Literal["400", "420", "422", "444"]
Siting = Literal["left", "centre", "topleft"]

UNKNOWN = 2  # of primaries and transfer, ITU-T H.273

# Codes of ITU-T H.273 for a matrix.
MATRIX_OF: dict[int, Matrix] = {0: "rgb", 1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}
# Those that are read as their neighbour: they differ from it by a few levels in saturated colours.
NEAREST: dict[int, tuple[Matrix, str]] = {
    4: ("bt601", "FCC"),
    7: ("bt709", "SMPTE 240M"),
    10: ("bt2020", "BT.2020 with constant luminance"),
}
# Those that none of ours comes near.
FOREIGN = {8: "YCgCo", 11: "ST 2085", 12: "chroma-derived", 13: "chroma-derived", 14: "ICtCp", 15: "IPT-C2"}


@dataclass(frozen=True)
class Colour:
    """How the planes of a frame mean colours. `tagged` is whether the file says its matrix.

    Planes are y, u, v, or y alone for 400; with the matrix rgb they are red, green, blue at full range.
    `primaries` and `transfer` are codes of ITU-T H.273; 2 is unknown.
    """

    matrix: Matrix
    full: bool
    depth: int
    subsampling: Subsampling
    siting: Siting = "left"
    primaries: int = UNKNOWN
    transfer: int = UNKNOWN
    tagged: bool = True


def guess_matrix(width: int, height: int) -> Matrix:
    """The matrix of a video that does not say it: BT.601 up to 1024x576, as players have it, BT.709 above."""
    return "bt601" if height <= 576 and width <= 1024 else "bt709"


def to_rgb(planes: Sequence[Tensor], colour: Colour) -> Tensor:
    """RGB of a frame as a picture has it: [h, w, 3] on the planes' device.

    Dtypes:  uint8 for 8 bits, uint16 over its whole range for more
    """
    import torch

    from srgan_fast.kernels import yuv_to_rgb

    dtype = torch.uint8 if colour.depth == 8 else torch.uint16
    if colour.matrix == "rgb":
        # A grey formula serves each: full range, depth to the whole range of the dtype.
        whole = [
            yuv_to_rgb.run(p, None, None, "bt709", colour.full, colour.depth, "left", dtype)[..., 0] for p in planes
        ]
        return torch.stack(whole, -1)
    u, v = (planes[1], planes[2]) if len(planes) > 1 else (None, None)
    return yuv_to_rgb.run(planes[0], u, v, colour.matrix, colour.full, colour.depth, colour.siting, dtype)


def from_rgb(rgb: Tensor, colour: Colour) -> tuple[Tensor, ...]:
    """Planes of a frame from RGB, [h, w, 3] in uint8 or uint16 over its whole range, on its device.

    Dtypes:  uint8 for 8 bits, else uint16 with the low `depth` bits
    """
    import torch

    from srgan_fast.kernels import rgb_to_yuv

    dtype = torch.uint8 if colour.depth == 8 else torch.uint16
    return rgb_to_yuv.run(rgb, colour.matrix, colour.full, colour.depth, colour.subsampling, colour.siting, dtype)
