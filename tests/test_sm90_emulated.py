"""The 3x3 convolution for sm_90a as it ships, run on a CPU: right in every form, and every planted fault is found."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch
from emulated import Emulated, Fault, assert_planted, some_always

from srgan_fast import kernels
from srgan_fast.kernels import hopper
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.conv3x3.sm90 import Layout, Tile, Variant
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report

pytestmark = [pytest.mark.beside, pytest.mark.skipif(emulated.COMPILER is None, reason=emulated.NO_COMPILER)]

SHIFTED, FLAT, BOXES = Tile(Layout.SHIFTED, 4), Tile(Layout.FLAT, 2), Tile(Layout.BOXES, 4)
TILES = pytest.mark.parametrize("tile", [SHIFTED, FLAT, BOXES], ids=lambda tile: tile.layout.value)
FENCED = 0.25  # what lies around a result, and must stay


@dataclass(frozen=True)
class Call:
    """One call of the op; r > 1 is conv3x3_shuffle, which has slopes and no residual."""

    tile: Tile
    size: tuple[int, int, int]  # frames, rows, columns
    outputs: int = 64
    prelu: bool = False
    residual: bool = False
    r: int = 1
    backwards: bool = False
    dtype: torch.dtype = torch.float16
    blocks: int = 2

    def on(self, runtime: Emulated, *, after_another: bool = True) -> Report:
        """Run it, and hold it against the reference; nothing outside the result may be written.

        The frames are what another kernel has just written, unless it is told otherwise.
        """
        op = "conv3x3" if self.r == 1 else "conv3x3_shuffle"
        variant = Variant(op, self.dtype, self.tile, self.prelu, self.residual)
        draw = Draw("cpu", self.dtype)
        (n, h, w), r = self.size, self.r
        x, weight, bias = draw.normal(n, h, w, 64), draw.weight(9, 64, self.outputs), draw.vector(self.outputs, 0.5)
        slopes = draw.slopes(self.outputs // r**2) if self.prelu else None
        residual = draw.normal(n, h, w, self.outputs) if self.residual else None
        around = torch.full((n * h * w * self.outputs + 1024,), FENCED, dtype=self.dtype)
        out = around[512:-512].view(n, h * r, w * r, -1).fill_(torch.nan)
        runtime.fresh = [tensor for tensor in (x, residual) if after_another and tensor is not None]
        sm90.launch(runtime, variant, self.blocks, x, weight, bias, slopes, residual, out, r, self.backwards)
        assert (around[:512] == FENCED).all()
        assert (around[-512:] == FENCED).all()
        arguments: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "slopes": slopes}
        arguments |= {"residual": residual} if r == 1 else {"r": r}
        return hopper.compare_by(kernels.load(op).reference, arguments, out)


def ragged(tile: Tile, down: int = 2, across: int = 2) -> tuple[int, int]:
    """Rows and columns of so many tiles and a part of another, both ways."""
    return down * tile.rows + 1, across * tile.columns + 3


@TILES
@pytest.mark.parametrize("prelu", [False, True], ids=["linear", "prelu"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_right_in_every_layout_and_with_every_epilogue(tile: Tile, prelu: bool, residual: bool) -> None:
    for seed in range(4):
        report = Call(tile, (2, *ragged(tile)), prelu=prelu, residual=residual).on(Emulated(seed=seed))
        assert report.passed, f"seed {seed}: {report}"


@TILES
@pytest.mark.parametrize(
    "change",
    [
        {"size": (1, 1, 1)},
        {"size": (3, 1, 1), "residual": True},
        {"size": (1, 1, 70)},
        {"size": (1, 23, 1)},
        {"size": (1, 9, 31), "blocks": 1},
        {"size": (1, 9, 31), "blocks": 99},
        {"size": (2, 9, 31), "backwards": True, "residual": True},
        {"size": (1, 9, 31), "dtype": torch.bfloat16, "prelu": True, "residual": True},
        {"size": (1, 5, 11), "outputs": 256, "prelu": True},
        {"size": (1, 5, 11), "outputs": 128, "residual": True},
        {"size": (2, 5, 11), "outputs": 256, "prelu": True, "r": 2},
        {"size": (1, 3, 11), "outputs": 576, "prelu": True, "r": 3},
    ],
    ids=lambda change: ",".join(f"{name}={value}" for name, value in change.items()),
)
def test_right_for_sizes_slices_and_sub_pixels(tile: Tile, change: dict[str, Any]) -> None:
    report = Call(tile, **change).on(Emulated(seed=7))
    assert report.passed, report


@pytest.mark.parametrize("tile", [Tile(Layout.SHIFTED, 30), Tile(Layout.FLAT, 8), Tile(Layout.BOXES, 10)], ids=str)
def test_right_with_the_tallest_tiles(tile: Tile) -> None:
    report = Call(tile, (1, *ragged(tile, 1, 2)), prelu=True, residual=True).on(Emulated())
    assert report.passed, report


class Numbers(ctypes.Structure):
    _fields_ = (("to", ctypes.c_void_p),)


def test_the_host_and_the_kernel_agree_on_every_tile(tmp_path: Path) -> None:
    sizes = ((128, 128), (64, 128), (64, 64))  # of a pixel and of its result, in bytes
    tiles = [Tile(layout, rows, *size) for size in sizes for layout in Layout for rows in sm90.heights(layout, *size)]
    names = ("kColumns", "kComputed", "kPitch", "kStoredRows", "kSharedBytes")
    lines = [
        f"  n.to[{5 * i + k}] = Conv3x3Tile<{tile.layout.value}, {tile.rows}, {tile.pixel_bytes}, "
        f"{tile.result_bytes}>::{name};\n"
        for i, tile in enumerate(tiles)
        for k, name in enumerate(names)
    ]
    source = tmp_path / "numbers.cu"
    source.write_text(
        '#include "conv3x3.cuh"\nnamespace srgan_fast {\nstruct Numbers { int* to; };\n'
        f"__global__ void numbers(const Numbers n) {{\n{''.join(lines)}}}\n}}\n"
    )
    runtime, numbers = Emulated(), torch.zeros(len(tiles), 5, dtype=torch.int32)
    kernel = runtime.kernel(Specialisation(str(source), "srgan_fast::numbers"), 0)
    runtime.launch(kernel, (1, 1, 1), 1, Numbers(numbers.data_ptr()))
    assert numbers.tolist() == [[t.columns, t.computed, t.pitch, t.stored_rows, t.shared_bytes] for t in tiles]


def test_a_block_with_too_little_memory_is_refused() -> None:
    # A block's memory may start 16 bytes after a multiple of 1024, and the kernel has room for 1024: 16 are to spare.
    variant = Variant("conv3x3", torch.float16, SHIFTED, False, False)
    runtime = Emulated()
    kernel = runtime.kernel(variant.source, SHIFTED.shared_bytes - 32)
    runtime.kernel = lambda *_: kernel  # type: ignore[method-assign]
    with pytest.raises(Fault, match="outside the"):
        Call(SHIFTED, (16, 1, 1), blocks=16).on(runtime)  # each block's memory starts elsewhere


# --- how the hardware may read what lies in shared memory --------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "right", "layout"),
    [
        ("address", (True, True, True), Layout.SHIFTED),
        ("address-sbo1024", (False, True, True), Layout.FLAT),
        ("row", (False, False, True), Layout.BOXES),
    ],
)
def test_the_probe_tells_which_layouts_the_hardware_reads_rightly(
    model: str, right: tuple[bool, ...], layout: Layout
) -> None:
    for seed in range(3):
        runtime = Emulated(model=model, seed=seed)
        assert tuple(wrong == 0 for wrong in sm90._probe(runtime)) == right
        assert sm90.preferred_layout(runtime) is layout
    for tile, is_right in zip((SHIFTED, FLAT, BOXES), right, strict=True):
        # The kernel and the probe agree on the hardware, whatever it is.
        assert Call(tile, (1, *ragged(tile))).on(Emulated(model=model)).passed == is_right


@pytest.mark.parametrize("model", emulated.MODELS)
def test_an_op_takes_the_layout_that_is_right(model: str) -> None:
    draw, runtime = Draw("cpu", torch.float16), Emulated(model=model)
    arguments = {"x": draw.normal(1, 5, 9, 64), "weight": draw.weight(9, 64, 64), "bias": draw.vector(64)}
    with hopper.emulated(runtime), torch.inference_mode():
        out = kernels.load("conv3x3").run(**arguments)
        assert hopper.failures(torch.device("cpu")) == []
    assert runtime.launches == 3  # the probe, the check, the call
    assert hopper.compare_by(kernels.load("conv3x3").reference, arguments, out).passed


# --- planted faults: each replaces one piece of the shipped source -----------------------------------------------

PIPELINE, EPILOGUE = "include/conv3x3.cuh", "conv3x3/sm90.cu"
UNFENCED, STILL_READ = "without fence_async_shared", "still reads"
WRONG = "FAIL"

FAULTS = {
    "swizzle of the epilogue": (EPILOGUE, "word * 16, Swizzle::k128", "word * 16, Swizzle::k64", WRONG),
    "no swizzle in the epilogue": (EPILOGUE, "word * 16, Swizzle::k128", "word * 16, Swizzle::kNone", WRONG),
    "stride of groups of rows": (PIPELINE, "(LAYOUT == kShifted ? kPitch : 8) *", "8 *", WRONG),
    "offset of a tap": (PIPELINE, "(row * kPitch + column)", "(row * kPitch + column + row / 2)", WRONG),
    "too few arrivals": (PIPELINE, "kHaloFree + g), 4)", "kHaloFree + g), 3)", STILL_READ),
    "too many arrivals": (PIPELINE, "kHaloFree + g), 4)", "kHaloFree + g), 5)", "deadlock"),
    "turns of half a warpgroup": (PIPELINE, "kTurn + g), 128)", "kTurn + g), 64)", "deadlock|more often"),
    "no proxy fence": (PIPELINE, "    fence_async_shared();\n", "", UNFENCED),
    "no barrier before a store": (
        PIPELINE,
        "    fence_async_shared();\n    named_barrier(group + 1, 128);\n",
        "    fence_async_shared();\n",
        UNFENCED,
    ),
    "no wait for the store before": (PIPELINE, "      if (thread == 0) store_wait_read();\n", "", STILL_READ),
    "no barrier after that wait": (
        PIPELINE,
        "store_wait_read();\n      named_barrier(group + 1, 128);",
        "store_wait_read();",
        STILL_READ,
    ),
    "a residual over a store": (PIPELINE, "        store_wait_read();\n        barrier", "        barrier", STILL_READ),
    "a halo freed early": (
        PIPELINE,
        "    wgmma_wait();\n    if (lane == 0) barrier_arrive(barrier(kHaloFree + group));\n",
        "    if (lane == 0) barrier_arrive(barrier(kHaloFree + group));\n    wgmma_wait();\n",
        STILL_READ,
    ),
    "no wait for products": (PIPELINE, "    wgmma_wait();\n", "", f"{STILL_READ}|without a wgmma_fence|{WRONG}"),
    "no wait for the halo": (
        PIPELINE,
        "    barrier_wait(barrier(kHaloFull + group), parity);\n",
        "",
        f"still fills|{WRONG}",
    ),
    "no fence of registers": (PIPELINE, "    wgmma_fence();\n", "", "without a wgmma_fence"),
    "no commit": (PIPELINE, "    wgmma_commit();\n", "", "not committed"),
    "parity of the halo": (
        PIPELINE,
        "kHaloFull + group), parity)",
        "kHaloFull + group), parity ^ 1)",
        "deadlock|still f",
    ),
    "parity of a free halo": (PIPELINE, "kHaloFree + g), parity ^ 1)", "kHaloFree + g), parity)", "deadlock"),
    "fewer bytes expected": (PIPELINE, "Tile::kCopyBytes);", "Tile::kCopyBytes - 128);", "more than its phase expects"),
    "more bytes expected": (PIPELINE, "Tile::kCopyBytes);", "Tile::kCopyBytes + 128);", "deadlock"),
    "barriers not made known": (PIPELINE, "    barrier_init_done();\n", "", "without a barrier_init_done"),
    "no barrier after barriers": (PIPELINE, "  __syncthreads();\n", "", "no barrier was made"),
    "a copy ahead of the kernel before": (
        PIPELINE,
        "    wait_for_previous_kernel();\n    for",
        "    for",
        "has not called wait_for_previous_kernel",
    ),
    "an end without the stores": (PIPELINE, "  if (thread == 0) store_wait();\n", "", "no thread waited"),
    "halos too small": (
        PIPELINE,
        "kPitch * (ROWS + 2) *",
        "kPitch * (ROWS + 1) *",
        f"{STILL_READ}|still fills|{WRONG}|more",
    ),
    "memory not aligned": (
        PIPELINE,
        "(dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment",
        "dynamic_shared()",
        "no multiple of 1024",
    ),
}


def test_every_fault_changes_a_text_that_is_there() -> None:
    for file, shipped, *_ in FAULTS.values():
        assert_planted(file, shipped)


@pytest.mark.parametrize("fault", some_always(FAULTS))
def test_a_planted_fault_is_found(fault: str) -> None:
    file, shipped, planted, said = FAULTS[fault]
    found = []
    # Races need the right moment: a fault counts as found if a few seeds find it, in one of the two forms.
    for seed in range(6):
        for residual in (False, True):
            runtime = Emulated(seed=seed, mutations={file: (shipped, planted)})
            try:
                report = Call(SHIFTED, (2, *ragged(SHIFTED)), prelu=True, residual=residual).on(runtime)
            except Fault as error:
                found.append(str(error))
            else:
                found += [] if report.passed else [str(report)]
        if found:
            break
    assert found
    assert re.search(said, found[0]), found[0]


def test_a_store_before_anyone_waited_for_the_kernel_before_is_found() -> None:
    waits = [
        ("    wait_for_previous_kernel();\n    for", "    for"),
        ("  wait_for_previous_kernel();\n  const", "  const"),
    ]
    with pytest.raises(Fault, match="before any thread of the block called wait_for_previous_kernel"):
        Call(SHIFTED, (1, 1, 1)).on(Emulated(mutations={PIPELINE: waits}), after_another=False)
