"""How the convolutions are cut into tiles: a small table by architecture, and the rule that adapts it to a shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from srgan_fast.kernels import architecture

# Kilobytes of shared memory that one program may use; the compiler does not check it.
SHARED_LIMIT_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

# Offsets inside a frame are 32-bit.
MOST_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Tiles:
    """The cut of a convolution: `rows` x `columns` pixels by `outputs` channels, `inputs` channels at a time."""

    rows: int
    columns: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int
    descriptors: bool = False

    def grid(self, frames: int, height: int, width: int, blocks: int) -> tuple[int, int, int]:
        """The programs of a pointer kernel: tiles of a frame, blocks of outputs, frames."""
        return -(-height // self.rows) * -(-width // self.columns), blocks, frames

    def blocks(self, cout: int) -> int:
        """How many programs share the outputs of a tile."""
        return -(-cout // self.outputs)

    @property
    def constants(self) -> dict[str, int]:
        """What every convolution kernel is compiled with; the pointer kernels take `inputs` as BK besides."""
        return {
            "TH": self.rows,
            "TW": self.columns,
            "BN": self.outputs,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


@dataclass(frozen=True)
class _Row:
    """A line of the table; `num_stages` tiles are in flight.

    Several blocks of inputs need registers for addresses besides the sums: a full tile of those takes `wide_num_warps`.
    """

    rows: int
    columns: int
    most_outputs: int
    num_warps: int
    wide_num_warps: int
    num_stages: int


# By architecture: what fits its registers and shared memory without a spill (asserted ahead of time in the tests).
# None of it has been tuned on a GPU yet.
_TABLE = {
    80: _Row(8, 16, 64, 4, 8, 3),
    86: _Row(8, 16, 64, 4, 8, 3),
    89: _Row(8, 16, 64, 4, 8, 3),
    90: _Row(8, 16, 128, 8, 8, 4),
    100: _Row(8, 16, 128, 8, 8, 4),
    120: _Row(8, 16, 64, 4, 4, 3),
}
# Tensor descriptors degrade to plain loads with spills before sm_90, and gain nothing on sm_120.
_DESCRIPTORS = (90, 100)


def nearest_architecture(sm: int) -> int:
    """The entry of the table for an architecture: itself, or the newest that is not newer."""
    return max((known for known in _TABLE if known <= sm), default=min(_TABLE))


def choose(sm: int, processors: int, frames: int, height: int, width: int, cin: int, cout: int, itemsize: int) -> Tiles:
    """The tiles of a convolution of this shape.

    Large frames get the table's tile. Where that would leave multiprocessors idle, the tile is halved until they are
    busy or it has 4 rows.
    """
    known = nearest_architecture(sm)
    row = _TABLE[known]
    outputs = max(16, min(row.most_outputs, power_of_two(cout)))
    # A product of int8 takes 32 inputs at the least, of 16-bit floats 16.
    inputs = max(32 if itemsize == 1 else 16, min(32 if itemsize > 2 else 64, power_of_two(cin)))
    rows, warps, stages = row.rows, row.num_warps, row.num_stages
    if itemsize > 2:
        # Without tensor cores the operands need registers too: more threads share a tile, and fewer are in flight.
        warps, stages = 8, 2
    elif cin > inputs and outputs == row.most_outputs:
        warps = row.wide_num_warps
    while rows > 4 and _programs(frames, height, width, cout, rows, row.columns, outputs) < processors:
        rows, warps = rows // 2, max(4, warps // 2)
    # Descriptors feed tensor cores; with float32's larger tiles they would also pass the limit of shared memory.
    fits = itemsize == 2 and cin == inputs and cout % outputs == 0
    return Tiles(rows, row.columns, outputs, inputs, warps, stages, known in _DESCRIPTORS and fits)


def tiles_for(x: torch.Tensor, cout: int) -> Tiles:
    """The tiles of a convolution of NHWC `x` to `cout` channels on the device where it lies."""
    frames, height, width, cin = x.shape
    sm, count = architecture(x.device), processors(x.device)
    return choose(sm, count, frames, height, width, cin, cout, x.element_size())


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# What `pretend` puts in the place of the device's own number.
_pretended: ContextVar[int | None] = ContextVar("pretended", default=None)


def processors(device: torch.device) -> int:
    """The number of multiprocessors, which a persistent kernel fills and a small frame leaves idle."""
    return pretended() or _processors(device)


def pretended() -> int | None:
    """The number that `pretend` puts in the place of a device's own; None outside of it."""
    return _pretended.get()


@contextmanager
def pretend(count: int) -> Iterator[None]:
    """Choose tiles as for a device of `count` multiprocessors: a small frame then meets a large one's tiles."""
    token = _pretended.set(count)
    try:
        yield
    finally:
        _pretended.reset(token)


def _programs(frames: int, height: int, width: int, cout: int, rows: int, columns: int, outputs: int) -> int:
    return frames * -(-height // rows) * -(-width // columns) * -(-cout // outputs)


def power_of_two(value: int) -> int:
    """The least one that is not below a value from 1 up: blocks of Triton have such sizes."""
    return 1 << (value - 1).bit_length()


def join_parts(
    kernel: Any, parts: torch.Tensor, pixels: int, block: int, mean: torch.Tensor, variance: torch.Tensor
) -> None:
    """Launch moments.join_parts_pointer: statistics of so many pixels from parts [parts, 2, c] of a block each."""
    channels = parts.shape[-1]
    rows = min(256, power_of_two(len(parts)))
    kernel[(-(-channels // 16),)](
        parts, mean, variance, len(parts), pixels, block, C=channels, BR=rows, BC=16, num_warps=4
    )
