"""conv3x3_int8 for sm_90a: which calls the kernel in sm90.cu takes, and how it is launched for them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from srgan_fast.kernels import hopper, load
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.conv3x3.sm90 import (
    CHANNELS,
    Tile,
    Work,
    best_tile,
    preferred_layout,
    result_map,
    uncovered,
    work_of,
)
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report, compare_exact


class Parameters(ctypes.Structure):
    """Conv3x3Int8Parameters, with what its alignment adds."""

    _fields_ = hopper.padded(
        ("work", Work),
        ("half", hopper.Map),
        ("quantised", hopper.Map),
        ("gain", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("slopes", ctypes.c_void_p),
        ("slope_slices", ctypes.c_int),
        ("inverse", ctypes.c_float),
    )


@dataclass(frozen=True)
class Variant:
    """The template arguments of the kernel: what is done to the sums, and in what the result leaves."""

    tile: Tile
    prelu: bool
    residual: bool
    half: bool
    quantised: bool

    @property
    def source(self) -> Specialisation:
        """What is compiled."""
        flags = ", ".join(str(flag).lower() for flag in (self.prelu, self.residual, self.half, self.quantised))
        layout = f"srgan_fast::{self.tile.layout.value}"
        return Specialisation("conv3x3_int8/sm90.cu", f"srgan_fast::conv3x3_int8<{layout}, {self.tile.rows}, {flags}>")

    @property
    def kernel(self) -> hopper.Kernel:
        """The kernel, with its check."""
        return hopper.Kernel("conv3x3_int8", self.source, self.tile.shared_bytes, partial(_check, self))


def result_bytes(half: bool, quantised: bool) -> int:
    """What a pixel needs in shared memory while it is finished; a residual comes with a 16-bit result."""
    return (2 * half + quantised) * CHANNELS


def offer(
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    slopes: Tensor | None,
    residual: Tensor | None,
    quantised: Tensor | None,
    inverse: float,
    r: int,
    out: Tensor,
    *,
    backwards: bool = False,
) -> hopper.Offer | str:
    """A call by the kernel, or why it does not cover this one; see `run` of the package."""
    runtime = hopper.runtime_for(x.device)
    if runtime is None:
        return "no Hopper GPU, or no compiler for it"
    if out.dtype not in (torch.int8, torch.float16):
        return f"it gives no result in {out.dtype}"
    if (reason := uncovered(weight, r, x, residual, quantised, out)) is not None:
        return reason
    cin, cout = weight.shape[1:]
    layout = preferred_layout(runtime)
    if layout is None:
        return "this GPU reads no layout of its tiles rightly"
    half = out.dtype == torch.float16
    two = quantised is not None
    blocks = max(1, hopper.processors(runtime) // (cout // CHANNELS))
    tile = best_tile(layout, x, blocks, CHANNELS, result_bytes(half, two or not half))
    variant = Variant(tile, slopes is not None, residual is not None, half, two or not half)

    def call(out: Tensor) -> None:
        launch(runtime, variant, blocks, x, weight, gain, bias, slopes, residual, quantised, inverse, out, r, backwards)

    n, h, w, _ = x.shape
    what = f"conv3x3_int8 of {n}x{h}x{w}, {cin} to {cout // r**2}, by {variant.source.expression}"
    return hopper.Offer(runtime, (variant.kernel,), what, call)


def launch(
    runtime: hopper.Runtime,
    variant: Variant,
    blocks: int,
    x: Tensor,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    slopes: Tensor | None,
    residual: Tensor | None,
    quantised: Tensor | None,
    inverse: float,
    out: Tensor,
    r: int,
    backwards: bool,
) -> None:
    """Launch the kernel on contiguous tensors, with up to `blocks` blocks a slice of the outputs."""
    slices = weight.shape[-1] // CHANNELS
    eight = quantised if variant.half else out
    maps = [
        hopper.Map() if result is None else result_map(runtime, variant.tile, result, x, slices, r)
        for result in (out if variant.half else None, eight)
    ]
    parameters = Parameters(
        work=work_of(runtime, variant.tile, x, weight, residual, r, backwards),
        half=maps[0],
        quantised=maps[1],
        gain=gain.data_ptr(),
        bias=bias.data_ptr(),
        slopes=None if slopes is None else slopes.data_ptr(),
        slope_slices=slices // r**2,
        inverse=inverse,
    )
    hopper.launch(runtime, variant.kernel, (min(parameters.work.order.tiles, blocks), slices, 1), parameters)


def _check(variant: Variant, runtime: hopper.Runtime) -> Report:
    """The variant on two frames of ragged tiles, of which each of two blocks has several, bit for bit."""
    n, h, w, outputs = 2, variant.tile.rows + 1, 2 * variant.tile.columns + 3, 2 * CHANNELS
    draw = Draw(str(runtime.device), torch.float16)
    x, weight = draw.whole(n, h, w, CHANNELS), draw.whole(9, CHANNELS, outputs)
    gain, bias = draw.vector(outputs, 2e-4).abs(), draw.vector(outputs, 20.0)
    slopes = draw.slopes(outputs) if variant.prelu else None
    residual = draw.normal(n, h, w, outputs, scale=30.0) if variant.residual else None
    dtype = torch.float16 if variant.half else torch.int8
    out = torch.full((n, h, w, outputs), 77, dtype=dtype, device=runtime.device)
    both = variant.half and variant.quantised
    mine, theirs = (
        torch.full(out.shape, fill, dtype=torch.int8, device=runtime.device) if both else None for fill in (77, -77)
    )
    launch(runtime, variant, 2, x, weight, gain, bias, slopes, residual, mine, 0.7, out, 1, False)
    reference = load("conv3x3_int8").reference(x, weight, gain, bias, dtype, slopes, residual, theirs, 0.7, 1)
    report = compare_exact(out, reference)
    return compare_exact(mine, theirs) if report.passed and mine is not None and theirs is not None else report
