"""conv3x3 and conv3x3_shuffle for sm_90a: which calls the kernel in sm90.cu takes, and how it is launched for them."""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from srgan_fast.kernels import hopper, load
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report

CHANNELS = 64  # of the input, and of a slice of the outputs
TAPS = 9


class Layout(enum.Enum):
    """How the pixels of a tile lie in shared memory; see include/conv3x3.cuh. In the order of preference."""

    SHIFTED = "kShifted"
    FLAT = "kFlat"
    BOXES = "kBoxes"


@dataclass(frozen=True)
class Tile:
    """The numbers of Conv3x3Tile that the host needs."""

    layout: Layout
    rows: int
    pixel_bytes: int = 2 * CHANNELS
    result_bytes: int = 2 * CHANNELS

    @property
    def columns(self) -> int:
        """Columns that are written."""
        return 30 if self.layout is Layout.FLAT else 8

    @property
    def computed(self) -> int:
        """Columns that are multiplied."""
        return 32 if self.layout is Layout.FLAT else 8

    @property
    def pitch(self) -> int:
        """Columns of a copied box."""
        return 10 if self.layout is Layout.SHIFTED else self.computed

    @property
    def stored_rows(self) -> int:
        """Rows of a copy of results."""
        return 1 if self.layout is Layout.FLAT else self.rows

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block."""
        boxes = 3 if self.layout is Layout.BOXES else 1
        beyond = 2 * self.pixel_bytes if self.layout is Layout.FLAT else 0
        halo = boxes * self.pitch * (self.rows + 2) * self.pixel_bytes + beyond
        results = self.computed * self.rows * self.result_bytes
        buffers = sum(-(-buffer // 1024) * 1024 for buffer in (halo, results))
        return 1024 + TAPS * CHANNELS * self.pixel_bytes + 2 * buffers + 8 * 11


@cache
def heights(layout: Layout, pixel_bytes: int = 2 * CHANNELS, result_bytes: int = 2 * CHANNELS) -> tuple[int, ...]:
    """The heights of tiles: N is a multiple of 16 and at most 256, and what fits into shared memory."""
    step = 1 if layout is Layout.FLAT else 2
    tiles = (Tile(layout, rows, pixel_bytes, result_bytes) for rows in range(step, 33, step))
    return tuple(
        tile.rows
        for tile in tiles
        if tile.computed * tile.rows <= 256 and tile.shared_bytes <= hopper.SHARED_LIMIT_BYTES
    )


def best_tile(
    layout: Layout, x: Tensor, blocks: int, pixel_bytes: int = 2 * CHANNELS, result_bytes: int = 2 * CHANNELS
) -> Tile:
    """The tile by which `blocks` blocks are done first with frames x."""
    n, h, w, _ = x.shape
    any_tile = Tile(layout, 1)
    allowed = heights(layout, pixel_bytes, result_bytes)
    steps = TAPS * pixel_bytes // 32
    rows = hopper.tile_rows(n, h, w, any_tile.columns, any_tile.computed, blocks, allowed, steps)
    return Tile(layout, rows, pixel_bytes, result_bytes)


class Work(ctypes.Structure):
    """Conv3x3Work, with what its alignment adds."""

    _fields_ = hopper.padded(
        ("x", hopper.Map),
        ("weight", hopper.Map),
        ("residual", hopper.Map),
        ("across", ctypes.c_int),
        ("order", hopper.TileOrder),
    )


class Parameters(ctypes.Structure):
    """Conv3x3Parameters, with what its alignment adds."""

    _fields_ = hopper.padded(
        ("work", Work),
        ("y", hopper.Map),
        ("bias", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("slope_slices", ctypes.c_int),
    )


@dataclass(frozen=True)
class Variant:
    """The template arguments of the kernel, and the op that asks for it."""

    op: str
    dtype: torch.dtype
    tile: Tile
    prelu: bool
    residual: bool

    @property
    def source(self) -> Specialisation:
        """What is compiled."""
        flags = f"{self.prelu}, {self.residual}".lower()
        layout = f"srgan_fast::{self.tile.layout.value}"
        expression = f"srgan_fast::conv3x3<{hopper.ELEMENT[self.dtype]}, {layout}, {self.tile.rows}, {flags}>"
        return Specialisation("conv3x3/sm90.cu", expression)

    @property
    def kernel(self) -> hopper.Kernel:
        """The kernel, with its check."""
        return hopper.Kernel(self.op, self.source, self.tile.shared_bytes, partial(_check, self))


def offer(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    *,
    r: int = 1,
    backwards: bool = False,
) -> hopper.Offer | str:
    """A call by the kernel, or why it does not cover this one; see `run` of the packages. r is the shuffle's factor."""
    runtime = hopper.runtime_for(x.device)
    if runtime is None:
        return "no Hopper GPU, or no compiler for it"
    if x.dtype not in hopper.ELEMENT:
        return f"it has no kernel in {x.dtype}"
    if (reason := uncovered(weight, r, x, residual, out)) is not None:
        return reason
    cin, cout = weight.shape[1:]
    layout = preferred_layout(runtime)
    if layout is None:
        return "this GPU reads no layout of its tiles rightly"
    n, h, w, _ = x.shape
    blocks = max(1, hopper.processors(runtime) // (cout // CHANNELS))
    tile = best_tile(layout, x, blocks)
    variant = Variant(op, x.dtype, tile, slopes is not None, residual is not None)

    def call(out: Tensor) -> None:
        launch(runtime, variant, blocks, x, weight, bias, slopes, residual, out, r, backwards)

    what = f"{op} of {n}x{h}x{w}, {cin} to {cout // r**2}, by {variant.source.expression}"
    return hopper.Offer(runtime, (variant.kernel,), what, call)


def uncovered(weight: Tensor, r: int, *memory: Tensor | None) -> str | None:
    """Why the pipeline of include/conv3x3.cuh does not do a convolution from and to such memory; None if it does."""
    cin, cout = weight.shape[1:]
    if cin != CHANNELS or cout % (CHANNELS * r * r):
        return f"it takes 64 channels to multiples of 64, and these are {cin} to {cout // r**2}"
    if any(each.data_ptr() % 16 for each in memory if each is not None):
        return "its copies start at words of 16 bytes"
    return None


def launch(
    runtime: hopper.Runtime,
    variant: Variant,
    blocks: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slopes: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    r: int,
    backwards: bool,
) -> None:
    """Launch the kernel on contiguous tensors, with up to `blocks` blocks a slice of the outputs."""
    slices = weight.shape[-1] // CHANNELS
    parameters = Parameters(
        work=work_of(runtime, variant.tile, x, weight, residual, r, backwards),
        y=result_map(runtime, variant.tile, out, x, slices, r),
        bias=bias.data_ptr(),
        slopes=None if slopes is None else slopes.data_ptr(),
        slope_slices=slices // r**2,
    )
    hopper.launch(runtime, variant.kernel, (min(parameters.work.order.tiles, blocks), slices, 1), parameters)


def work_of(
    runtime: hopper.Runtime, tile: Tile, x: Tensor, weight: Tensor, residual: Tensor | None, r: int, backwards: bool
) -> Work:
    """What the pipeline of include/conv3x3.cuh is told; r as in `offer`."""
    n, h, w, _ = x.shape
    slices = weight.shape[-1] // CHANNELS
    rows = hopper.packed(weight, _rows)
    halo = (CHANNELS, tile.pitch, tile.rows + 2, 1)
    empty = hopper.Map()
    return Work(
        x=hopper.dense_map(runtime, x, (CHANNELS, w, h, n), halo, tile.pixel_bytes),
        weight=hopper.dense_map(runtime, rows, (CHANNELS, len(rows)), (CHANNELS, 192), tile.pixel_bytes),
        residual=empty if residual is None else _window(runtime, residual, x, slices, r, tile.computed, tile.rows),
        across=_across(slices, r),
        order=hopper.tile_order(n, h, w, tile.rows, tile.columns, backwards),
    )


def result_map(runtime: hopper.Runtime, tile: Tile, out: Tensor, x: Tensor, slices: int, r: int) -> Any:
    """The map through which results in any dtype leave."""
    return _window(runtime, out, x, slices, r, tile.columns, tile.stored_rows)


def _across(slices: int, r: int) -> int:
    # Slices are channels beside each other in a pixel, or sub-pixels beside and below each other.
    return slices if r == 1 else r * (slices // r**2)


def _window(runtime: hopper.Runtime, pixels: Tensor, x: Tensor, slices: int, r: int, columns: int, rows: int) -> Any:
    n, h, w, _ = x.shape
    across = _across(slices, r)
    sizes = (across * CHANNELS, w, slices // across, h, n)
    box = (CHANNELS, columns, 1, rows, 1)
    return hopper.dense_map(runtime, pixels, sizes, box, CHANNELS * pixels.element_size())


def preferred_layout(runtime: hopper.Runtime) -> Layout | None:
    """The first layout that a GPU reads rightly; None if there is none."""
    return next((layout for layout, count in wrong_values(runtime).items() if count == 0), None)


def wrong_values(runtime: hopper.Runtime) -> dict[Layout, int]:
    """How many values of a tile in each layout a GPU takes from the wrong place, by `probe.cu`."""
    found: dict[Layout, int] = hopper.known(
        runtime, "wrong values by layout", lambda: dict(zip(Layout, _probe(runtime), strict=True))
    )
    return found


# The identity and the largest of the three halos of probe.cu, which is that of boxes, and the room to align them.
_PROBE_SHARED_BYTES = 1024 + (CHANNELS + 3 * 8 * (8 + 2)) * 2 * CHANNELS


class _ProbeParameters(ctypes.Structure):
    _fields_ = (("wrong", ctypes.c_void_p),)


def _probe(runtime: hopper.Runtime) -> list[int]:
    wrong = torch.full((len(Layout),), -1, dtype=torch.int32, device=runtime.device)
    source = Specialisation("conv3x3/probe.cu", "srgan_fast::probe")
    kernel = runtime.kernel(source, _PROBE_SHARED_BYTES)
    runtime.launch(kernel, (len(Layout), 1, 1), 128, _ProbeParameters(wrong.data_ptr()), what="probe of layouts")
    runtime.check("probe of layouts")
    return wrong.tolist()


def _rows(weight: Tensor) -> Tensor:
    """Weights [9, 64, slices * 64] -> [slices * 9 * 64, 64]: a row an output of a tap of a slice."""
    return weight.view(TAPS, CHANNELS, -1, CHANNELS).permute(2, 0, 3, 1).reshape(-1, CHANNELS)


def _check(variant: Variant, runtime: hopper.Runtime) -> Report:
    """The variant on two frames of ragged tiles, of which each of two blocks has several."""
    n, h, w = 2, variant.tile.rows + 1, 2 * variant.tile.columns + 3
    draw = Draw(str(runtime.device), variant.dtype)
    shuffled = variant.op == "conv3x3_shuffle"
    r, outputs = (2, 4 * CHANNELS) if shuffled else (1, 2 * CHANNELS)
    x, weight, bias = draw.normal(n, h, w, CHANNELS), draw.weight(9, CHANNELS, outputs), draw.vector(outputs, 0.5)
    slopes = draw.slopes(outputs // r**2) if variant.prelu else None
    residual = draw.normal(n, h, w, outputs) if variant.residual else None
    out = torch.full((n, h * r, w * r, outputs // r**2), torch.nan, dtype=variant.dtype, device=runtime.device)
    launch(runtime, variant, 2, x, weight, bias, slopes, residual, out, r, False)
    arguments: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "slopes": slopes}
    arguments |= {"r": r} if shuffled else {"residual": residual}
    return hopper.compare_by(load(variant.op).reference, arguments, out)
