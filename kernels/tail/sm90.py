"""tail for sm_90a: which calls the two kernels in sm90.cu take, and how they are launched for them."""

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
from srgan_fast.kernels.parity import Report, compare_pixels

CHANNELS = 64  # of a slab of the input, and the most sums of a pixel
COLUMNS = 8  # of a tile
_BARRIER_BYTES = 8 * 9
_SPAN = 128  # pixels of a row that a block of the second kernel finishes
RESULTS = hopper.ELEMENT | {torch.uint8: "unsigned char", torch.uint16: "unsigned short", torch.float32: "float"}


class ColumnsParameters(ctypes.Structure):
    """TailColumnsParameters, with what its alignment adds."""

    _fields_ = hopper.padded(
        ("x", hopper.Map),
        ("weight", hopper.Map),
        ("sums", hopper.Map),
        ("order", hopper.TileOrder),
    )


class SumParameters(ctypes.Structure):
    """TailSumParameters."""

    _fields_ = (
        ("sums", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("spans_across", ctypes.c_int),
        ("reversed", ctypes.c_int),
    )


@dataclass(frozen=True)
class Tile:
    """The numbers of TailTile that the host needs: of an input of `slabs` times 64 channels."""

    slabs: int
    size: int
    rows: int

    @property
    def slab_bytes(self) -> int:
        """64 channels of the tile and of the rows above and below it."""
        return (self.rows + self.size - 1) * COLUMNS * 2 * CHANNELS

    @property
    def stages(self) -> int:
        """Slabs that are in shared memory at once, beside the weights."""
        return min(4, (hopper.SHARED_LIMIT_BYTES - self._besides) // self.slab_bytes)

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        return self._besides + self.stages * self.slab_bytes

    @property
    def _besides(self) -> int:
        return 1024 + self.slabs * self.size * CHANNELS * 2 * CHANNELS + _BARRIER_BYTES


def heights(slabs: int, size: int) -> tuple[int, ...]:
    """The heights of tiles: N is a multiple of 16, and a slab fits besides one a warpgroup; none for wide inputs."""
    return tuple(rows for rows in range(2, 33, 2) if Tile(slabs, size, rows).stages >= 3)


@dataclass(frozen=True)
class Variant:
    """The template arguments of both kernels; `result` is the dtype of the picture."""

    dtype: torch.dtype
    tile: Tile
    r: int
    tanh: bool
    result: torch.dtype

    @property
    def columns(self) -> hopper.Kernel:
        """The kernel that makes the sums of the kernel's columns."""
        tile = self.tile
        arguments = f"{hopper.ELEMENT[self.dtype]}, {tile.slabs}, {tile.size}, {tile.rows}"
        source = Specialisation("tail/sm90.cu", f"srgan_fast::tail_columns<{arguments}>")
        return hopper.Kernel("tail", source, tile.shared_bytes, partial(_check, self))

    @property
    def sum(self) -> hopper.Kernel:
        """The kernel that adds them and makes the picture."""
        arguments = f"{RESULTS[self.result]}, {self.tile.size}, {self.r}, {str(self.tanh).lower()}"
        source = Specialisation("tail/sm90.cu", f"srgan_fast::tail_sum<{arguments}>")
        return hopper.Kernel("tail", source, (_SPAN + self.tile.size - 1) * 132, partial(_check, self))


def offer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    r: int,
    out: Tensor,
    *,
    tanh: bool = False,
    base: Tensor | None = None,
    scratch: Tensor | None = None,
    backwards: bool = False,
) -> hopper.Offer | str:
    """A call by the kernels, or why they do not cover this one; see `run` of the package.

    `scratch` is memory for the sums, 128 bytes a pixel; where there is none, or less, it is allocated.
    """
    runtime = hopper.runtime_for(x.device)
    if runtime is None:
        return "no Hopper GPU, or no compiler for it"
    taps, cin, outputs = weight.shape
    size = round(taps**0.5)
    if x.dtype not in hopper.ELEMENT:
        return f"it has no kernel in {x.dtype}"
    if out.dtype not in RESULTS:
        return f"it makes no picture in {out.dtype}"
    if base is not None:
        return "it adds no base"
    if size * outputs > CHANNELS:
        return f"it sums {CHANNELS} outputs of a kernel's columns at the most, and these are {size * outputs}"
    if cin % CHANNELS or not heights(cin // CHANNELS, size):
        return f"it takes 64 channels or a few times that, and these are {cin} by {size}x{size}"
    if any(memory.data_ptr() % 16 for memory in (x, out)):
        return "its copies start at words of 16 bytes"
    n, h, w, _ = x.shape
    blocks = hopper.processors(runtime)
    slabs = cin // CHANNELS
    rows = hopper.tile_rows(n, h, w, COLUMNS, COLUMNS, blocks, heights(slabs, size), 4 * slabs * size)
    variant = Variant(x.dtype, Tile(slabs, size, rows), r, tanh, out.dtype)

    def call(out: Tensor) -> None:
        launch(runtime, variant, blocks, x, weight, bias, gain, offset, out, scratch, backwards)

    kernels = variant.columns, variant.sum
    what = f"tail of {n}x{h}x{w}, {cin}, by {' and '.join(kernel.source.expression for kernel in kernels)}"
    return hopper.Offer(runtime, kernels, what, call)


def launch(
    runtime: hopper.Runtime,
    variant: Variant,
    blocks: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    out: Tensor,
    scratch: Tensor | None,
    backwards: bool,
) -> None:
    """Launch the kernels on contiguous tensors, the first with up to `blocks` blocks."""
    n, h, w, cin = x.shape
    tile = variant.tile
    columns = hopper.packed(weight, pack)
    sums = _memory(scratch, n * h * w * CHANNELS, x.device)
    first = ColumnsParameters(
        x=hopper.dense_map(runtime, x, (cin, w, h, n), (CHANNELS, COLUMNS, tile.rows + tile.size - 1, 1), 128),
        weight=hopper.dense_map(runtime, columns, (CHANNELS, len(columns)), (CHANNELS, CHANNELS), 128),
        sums=hopper.dense_map(runtime, sums, (CHANNELS, w, h, n), (CHANNELS, COLUMNS, tile.rows, 1), 128),
        order=hopper.tile_order(n, h, w, tile.rows, COLUMNS, backwards),
    )
    hopper.launch(runtime, variant.columns, (min(first.order.tiles, blocks), 1, 1), first)
    spans = -(-w // _SPAN)
    second = SumParameters(
        sums=sums.data_ptr(),
        bias=bias.data_ptr(),
        gain=gain.data_ptr(),
        offset=offset.data_ptr(),
        y=out.data_ptr(),
        height=h,
        width=w,
        spans_across=spans,
        # What the first kernel wrote last is still in the cache.
        reversed=not backwards,
    )
    hopper.launch(runtime, variant.sum, (spans * h * n, 1, 1), second, threads=_SPAN)


def _memory(scratch: Tensor | None, values: int, device: torch.device) -> Tensor:
    """Memory for so many values of float16, aligned to 16 bytes."""
    if scratch is not None and scratch.is_contiguous() and scratch.data_ptr() % 16 == 0:
        lent = scratch.view(-1).view(torch.float16)
        if lent.numel() >= values:
            return lent
    return torch.empty(values, dtype=torch.float16, device=device)


def pack(weight: Tensor) -> Tensor:
    """Weights [k*k, slabs * 64, o] -> [slabs * k * 64, 64]: a row a sum of a row of the kernel of a slab.

    The sums are the outputs of each column of the kernel, one column after another, filled up with zeros to 64.
    """
    taps, cin, outputs = weight.shape
    size = round(taps**0.5)
    slabs = weight.view(size, size, cin // CHANNELS, CHANNELS, outputs).permute(2, 0, 1, 4, 3)
    sums = slabs.reshape(-1, size * outputs, CHANNELS)
    return torch.nn.functional.pad(sums, (0, 0, 0, CHANNELS - size * outputs)).reshape(-1, CHANNELS)


def _check(variant: Variant, runtime: hopper.Runtime) -> Report:
    """Both kernels on two frames of ragged tiles and spans; pixels of integers against the floats behind them."""
    n, h, w = 2, variant.tile.rows + 1, _SPAN + COLUMNS + 3
    draw = Draw(str(runtime.device), variant.dtype)
    outputs = 3 * variant.r**2
    arguments = {
        "x": draw.normal(n, h, w, CHANNELS * variant.tile.slabs),
        "weight": draw.weight(variant.tile.size**2, CHANNELS * variant.tile.slabs, outputs),
        "bias": draw.vector(outputs, 0.2),
        "gain": draw.vector(3).abs() * 0.2 + 0.05,
        "offset": draw.vector(3) * 0.1 + 0.5,
    }

    def picture(result: torch.dtype) -> Tensor:
        shape = n, h * variant.r, w * variant.r, 3
        out = torch.empty(shape, dtype=result, device=runtime.device)
        out.fill_(torch.nan if result.is_floating_point else 1)
        made = Variant(variant.dtype, variant.tile, variant.r, variant.tanh, result)
        launch(runtime, made, 2, **arguments, out=out, scratch=None, backwards=False)
        return out

    if variant.result not in LEVELS:
        floats = picture(variant.result)
    else:
        pixels, floats = picture(variant.result), picture(torch.float32)
        exact = compare_pixels(pixels, floats)
        if not exact.passed:
            return exact
    rest = {"r": variant.r, "dtype": floats.dtype, "tanh": variant.tanh}
    return hopper.compare_by(load("tail").reference, arguments | rest, floats, variant.dtype)
