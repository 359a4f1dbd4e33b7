"""Every kernel that may be asked of the sources for sm_90a, and the machine code that each must become.

Not a test itself: `test_sm90_compile.py` asserts on it. An op adds its own list to TABLE.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from ahead_of_time import read, sass

from srgan_fast.kernels import hopper, nvrtc
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.conv3x3.sm90 import Layout, Tile, Variant
from srgan_fast.kernels.conv3x3_int8 import sm90 as int8
from srgan_fast.kernels.head import sm90 as head
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.tail import sm90 as tail

# What 384 threads leave each when a block has all 65536 registers of a multiprocessor.
MOST_REGISTERS = 168


@dataclass(frozen=True)
class Entry:
    """One kernel: what the host says of it, and what is expected of its machine code.

    `shared` is a C++ expression of its dynamic shared memory, in the words of its source. `product` is the shape and
    the types of its HGMMA, empty if it has none; `instructions` are counts in the words of `ahead_of_time.Built`. One
    group of products, however many they are: where the compiler must put them one after another, it makes more.
    """

    source: Specialisation
    shared: str
    shared_bytes: int
    product: str
    instructions: dict[str, int]

    @property
    def name(self) -> str:
        return self.source.expression.replace("srgan_fast::", "")


def _product(dtype: torch.dtype, pixels: int) -> str:
    return f"64x{pixels}x16.F32" + (".BF16" if dtype == torch.bfloat16 else "")


def _conv3x3(dtype: torch.dtype, tile: Tile, prelu: bool, residual: bool) -> Entry:
    pixels = tile.computed * tile.rows
    return Entry(
        Variant("conv3x3", dtype, tile, prelu, residual).source,
        f"srgan_fast::Conv3x3Tile<srgan_fast::{tile.layout.value}, {tile.rows}, 128, 128>::kSharedBytes",
        tile.shared_bytes,
        _product(dtype, pixels),
        {
            "wgmma": 9 * sm90.CHANNELS // 16,
            "wgmma_groups": 1,
            # Weights in three parts, a halo, or three of them, and a residual.
            "tma_load": 3 + (3 if tile.layout is Layout.BOXES else 1) + residual,
            "tma_store": tile.rows // tile.stored_rows,
            "matrix_store": pixels // 16,
            "matrix_load": pixels // 16 if residual else 0,
            "registers_moved": 2,
            "spill": 0,
        },
    )


CONV3X3 = [
    _conv3x3(dtype, Tile(layout, rows), prelu, residual)
    for layout in Layout
    for rows in sm90.heights(layout)
    for dtype in hopper.ELEMENT
    for prelu, residual in product((False, True), repeat=2)
]


def _int8(tile: Tile, prelu: bool, residual: bool, half: bool, quantised: bool) -> Entry:
    pixels = tile.computed * tile.rows
    return Entry(
        int8.Variant(tile, prelu, residual, half, quantised).source,
        f"srgan_fast::Conv3x3Tile<srgan_fast::{tile.layout.value}, {tile.rows}, 64, {tile.result_bytes}>::kSharedBytes",
        tile.shared_bytes,
        f"64x{pixels}x32.S8.S8",
        {
            "wgmma": 9 * sm90.CHANNELS // 32,
            "wgmma_groups": 1,
            "tma_load": 3 + (3 if tile.layout is Layout.BOXES else 1) + residual,
            "tma_store": tile.rows // tile.stored_rows * (half + quantised),
            "matrix_store": pixels // 16 * half,
            "matrix_load": pixels // 16 * residual,
            "registers_moved": 2,
            "spill": 0,
        },
    )


INT8 = [
    _int8(Tile(layout, rows, sm90.CHANNELS, size), prelu, residual, half, quantised)
    for layout in Layout
    # A residual comes with a 16-bit result alone.
    for half, quantised, residuals in (
        (False, True, (False,)),
        (True, False, (False, True)),
        (True, True, (False, True)),
    )
    for size in (int8.result_bytes(half, quantised),)
    for rows in sm90.heights(layout, sm90.CHANNELS, size)
    for prelu, residual in product((False, True), residuals)
]

PROBE = [
    Entry(
        Specialisation("conv3x3/probe.cu", "srgan_fast::probe"),
        "srgan_fast::kSwizzleAlignment + 64 * 128"
        " + srgan_fast::Conv3x3Tile<srgan_fast::kBoxes, 8, 128, 128>::kHaloBytes",
        sm90._PROBE_SHARED_BYTES,
        "64x64x16.F32",
        {"registers_moved": 0, "spill": 0},
    )
]


def _head(variant: head.Variant) -> Entry:
    pixels = head.COLUMNS * variant.rows
    return Entry(
        variant.source,
        f"srgan_fast::HeadTile<{variant.size}, {variant.rows}>::kSharedBytes",
        variant.shared_bytes,
        _product(variant.dtype, pixels),
        {
            "wgmma": head.steps(variant.size),
            "wgmma_groups": 1,
            "tma_load": 1,
            "tma_store": 1,
            "matrix_store": pixels // 16,
            "registers_moved": 0,
            "spill": 0,
        },
    )


HEAD = [
    _head(head.Variant(dtype, frames, size, rows))
    for size in head.SIZES
    # The paper's kernel in every height; of the others the first and the last.
    for rows in (head.HEIGHTS if size == 9 else head.HEIGHTS[:: len(head.HEIGHTS) - 1])
    for dtype in hopper.ELEMENT
    for frames in (None, *head.SOURCES)
]


def _columns(tile: tail.Tile, dtype: torch.dtype) -> Entry:
    pixels = tail.COLUMNS * tile.rows
    return Entry(
        tail.Variant(dtype, tile, 1, True, dtype).columns.source,
        f"srgan_fast::TailTile<{tile.slabs}, {tile.size}, {tile.rows}>::kSharedBytes",
        tile.shared_bytes,
        _product(dtype, pixels),
        {
            "wgmma": 4 * tile.size,
            "wgmma_groups": 1,
            "tma_load": 2,
            "tma_store": 1,
            "matrix_store": pixels // 16,
            "registers_moved": 0,
            "spill": 0,
        },
    )


def _sum(size: int, r: int, tanh: bool, result: torch.dtype) -> Entry:
    kernel = tail.Variant(torch.float16, tail.Tile(1, size, 2), r, tanh, result).sum
    shared = f"srgan_fast::TailSpan<{size}>::kSharedBytes"
    return Entry(kernel.source, shared, kernel.shared_bytes, "", {"wgmma": 0, "spill": 0})


TAIL = [
    *(
        _columns(tail.Tile(slabs, size, rows), dtype)
        for slabs, size in ((4, 5), (1, 5), (2, 5), (3, 5), (1, 1), (1, 3), (1, 7), (1, 9))
        for rows in tail.heights(slabs, size)
        for dtype in hopper.ELEMENT
    ),
    *(
        _sum(size, r, tanh, result)
        for size, r in ((5, 2), (3, 2), (1, 4), (3, 1), (7, 1), (9, 1))
        for tanh in (False, True)
        for result in tail.RESULTS
    ),
]

TABLE = [*CONV3X3, *INT8, *PROBE, *HEAD, *TAIL]


def faults(entry: Entry, source: Specialisation | None = None) -> list[str]:
    """Compile a kernel, or an altered copy of it, and say what is not as the table wants it."""
    cubin = nvrtc.compile_cubin(source or entry.source)
    said = sass(cubin.image)
    built = read(said, entry.shared_bytes)
    found = [f"{line.strip()}" for line in cubin.log.splitlines() if re.search(r"\b[1-9]\d* bytes (?!gmem|cmem)", line)]
    if built.stack_bytes or built.local_bytes:
        found.append(f"{built.stack_bytes} bytes of stack, {built.local_bytes} of local memory")
    # What warpgroups give each other comes out of those of the launch: with fewer, one would wait for ever.
    exactly = built.instructions["registers_moved"] > 0
    if built.registers > MOST_REGISTERS or (exactly and built.registers != MOST_REGISTERS):
        found.append(f"{built.registers} registers")
    products = set(re.findall(r"\b[HI]GMMA\.([0-9x]+\.(?:F32(?:\.BF16)?|S8\.S8))", said))
    if products != ({entry.product} if entry.product else set()):
        found.append(f"products {products}, not {entry.product}")
    for name, count in entry.instructions.items():
        if built.instructions[name] != count:
            found.append(f"{name}: {built.instructions[name]}, not {count}")
    return found


def values(file: str, expressions: Sequence[str]) -> list[int]:
    """Constants of a source under kernels/, by C++ expressions: the compiler names a template by their values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(copy(file, Path(folder)))
        path.write_text(path.read_text() + "\ntemplate <long long...> __global__ void values() {}\n")
        symbol = nvrtc.compile_cubin(Specialisation(str(path), f"values<{', '.join(expressions)}>")).symbol
    return [int(value) for value in re.findall(r"Lx(\d+)E", symbol)]


def copy(file: str, folder: Path, old: str = "", new: str = "", *, of: str | None = None) -> str:
    """A copy of a source and of the headers it may include in a folder, with one text changed in one of them, `of`."""
    text, headers = nvrtc.sources(file)
    name = Path(file).name
    texts = {name: text, **headers}
    if old:
        changed = of or name
        assert old in texts[changed], f"{changed} has no {old!r} to change"
        texts[changed] = texts[changed].replace(old, new)
    for each, content in texts.items():
        (folder / each).write_text(content)
    return str(folder / name)
