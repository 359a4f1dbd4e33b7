"""head for sm_90a: which calls the kernel in sm90.cu takes, and how it is launched for them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from srgan_fast.kernels import hopper, load
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.contract import LEVELS
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report

OUTPUTS = 64
COLUMNS = 8  # of a tile
SIZES = (3, 5, 7, 9)
# N = 8 * rows of a product is a multiple of 16, and 256 at the most.
HEIGHTS = tuple(range(2, 33, 2))
# Frames as they come; pixels that were prepared before have no source of their own.
SOURCES = {torch.uint8: "unsigned char", torch.uint16: "unsigned short", torch.float32: "float"}


class Parameters(ctypes.Structure):
    """HeadParameters, with what its alignment adds."""

    _fields_ = hopper.padded(
        ("weight", hopper.Map),
        ("y", hopper.Map),
        ("x", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("order", hopper.TileOrder),
    )


@dataclass(frozen=True)
class Variant:
    """The template arguments of the kernel; `frames` is the dtype of frames, None for prepared pixels."""

    dtype: torch.dtype
    frames: torch.dtype | None
    size: int
    rows: int

    @property
    def source(self) -> Specialisation:
        """What is compiled."""
        pixels = "srgan_fast::Prepared" if self.frames is None else SOURCES[self.frames]
        expression = f"srgan_fast::head<{hopper.ELEMENT[self.dtype]}, {pixels}, {self.size}, {self.rows}>"
        return Specialisation("head/sm90.cu", expression)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        halo = 16 * (COLUMNS + self.size - 1) * (self.rows + self.size - 1)
        return 1024 + 2 * 128 * COLUMNS * self.rows + sum(map(_whole, (halo, halo, 2048 * steps(self.size)))) + 8 * 7

    @property
    def kernel(self) -> hopper.Kernel:
        """The kernel, with its check."""
        return hopper.Kernel("head", self.source, self.shared_bytes, partial(_check, self))


def steps(size: int) -> int:
    """Products of a tile: two words of two columns each, beside each other, or the last of two rows."""
    words = (size + 1) // 2
    return size * (words // 2) + words % 2 * words


def _whole(size: int) -> int:
    return -(-size // 1024) * 1024


def offer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    gain: Tensor | None,
    offset: Tensor | None,
    out: Tensor,
    *,
    backwards: bool = False,
) -> hopper.Offer | str:
    """A call by the kernel, or why it does not cover this one; see `run` of the package."""
    runtime = hopper.runtime_for(x.device)
    if runtime is None:
        return "no Hopper GPU, or no compiler for it"
    size, _, cout = weight.shape
    if weight.dtype not in hopper.ELEMENT:
        return f"it has no kernel in {weight.dtype}"
    if cout != OUTPUTS or size not in SIZES:
        return f"it makes 64 channels by kernels of {', '.join(map(str, SIZES))}, and this makes {cout} by {size}"
    frames = None if gain is None else x.dtype
    if frames is not None and frames not in SOURCES:
        return f"it takes no frames in {frames}"
    # A pixel that was prepared is read as a word of 8 bytes; what comes of the results is copied in words of 16.
    if out.data_ptr() % 16 or (frames is None and x.data_ptr() % 8):
        return "its memory starts at words of 16 bytes"
    n, h, w, _ = x.shape
    blocks = hopper.processors(runtime)
    rows = hopper.tile_rows(n, h, w, COLUMNS, COLUMNS, blocks, HEIGHTS, steps(size))
    variant = Variant(weight.dtype, frames, size, rows)

    def call(out: Tensor) -> None:
        launch(runtime, variant, blocks, x, weight, bias, slopes, gain, offset, out, backwards)

    return hopper.Offer(runtime, (variant.kernel,), f"head of {n}x{h}x{w} by {variant.source.expression}", call)


def launch(
    runtime: hopper.Runtime,
    variant: Variant,
    blocks: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor,
    gain: Tensor | None,
    offset: Tensor | None,
    out: Tensor,
    backwards: bool,
) -> None:
    """Launch the kernel on contiguous tensors, with up to `blocks` blocks."""
    n, h, w, _ = x.shape
    matrices = hopper.packed(weight, pack)
    parameters = Parameters(
        weight=hopper.dense_map(runtime, matrices, (OUTPUTS, len(matrices)), (OUTPUTS, 16), 0),
        y=hopper.dense_map(runtime, out, (OUTPUTS, w, h, n), (OUTPUTS, COLUMNS, variant.rows, 1), 128),
        x=x.data_ptr(),
        bias=bias.data_ptr(),
        slopes=slopes.data_ptr(),
        gain=None if gain is None else gain.data_ptr(),
        offset=None if offset is None else offset.data_ptr(),
        height=h,
        width=w,
        order=hopper.tile_order(n, h, w, variant.rows, COLUMNS, backwards),
    )
    hopper.launch(runtime, variant.kernel, (min(parameters.order.tiles, blocks), 1, 1), parameters)


def pack(weight: Tensor) -> Tensor:
    """Weights as the package packs them -> [steps * 16, 64]: sixteen rows a step, its core matrices one after another.

    A core matrix is eight outputs of eight values: two columns of four channels. Of an odd number of words in a row,
    the last goes together with that of the next row; where there is none, with zeros in the place of the row before.
    """
    size, _, cout = weight.shape
    words = (size + 1) // 2
    columns = weight[:, : 4 * size].reshape(size, 4 * size, cout)
    rows = torch.nn.functional.pad(columns, (0, 0, 0, 4)).view(size, words, 8, cout)
    beside = words // 2
    all_steps = [rows[:, : 2 * beside].reshape(size * beside, 2, 8, cout)]
    if words % 2:
        last = rows[:, -1]
        below = torch.cat([last[:-1], torch.zeros_like(last[:1]), last[-1:]])
        all_steps.append(below.view(words, 2, 8, cout))
    matrices = torch.cat(all_steps).view(-1, 2, 8, cout // 8, 8)
    return matrices.permute(0, 3, 1, 4, 2).reshape(-1, cout)


def _check(variant: Variant, runtime: hopper.Runtime) -> Report:
    """The variant on two frames of ragged tiles, of which each of two blocks has several."""
    n, h, w = 2, variant.rows + 1, 2 * COLUMNS + 3
    draw = Draw(str(runtime.device), variant.dtype)
    colours = draw.normal(OUTPUTS, 3, variant.size, variant.size, scale=(3 * variant.size**2) ** -0.5)
    package = load("head")
    arguments = {
        "weight": package.pack(colours),
        "bias": draw.vector(OUTPUTS, 0.5),
        "slopes": draw.slopes(OUTPUTS),
        "gain": None,
        "offset": None,
    }
    if variant.frames is None:
        arguments["x"] = torch.nn.functional.pad(draw.normal(n, h, w, 3), (0, 1))
    else:
        floats = variant.frames.is_floating_point
        make = draw.normal if floats else draw.pixels
        arguments["x"] = make(n, h, w, 3, dtype=variant.frames)
        arguments["gain"] = (draw.vector(3).abs() + 1) / LEVELS.get(variant.frames, 1)
        arguments["offset"] = draw.vector(3) - 2
    out = torch.full((n, h, w, OUTPUTS), torch.nan, dtype=variant.dtype, device=runtime.device)
    launch(runtime, variant, 2, **arguments, out=out, backwards=False)
    return hopper.compare_by(package.reference, arguments, out)
