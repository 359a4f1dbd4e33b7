"""What training_crops is tested and timed with."""

from __future__ import annotations

import torch
from torch import Tensor

from srgan_fast.kernels.cases import Arguments, Case, Draw

_TURNS = 8


def _table(sizes: list[tuple[int, int]], start: int) -> Tensor:
    rows = []
    for height, width in sizes:
        rows.append((start, height, width))
        start += 3 * height * width
    return torch.tensor(rows)


def _arguments(
    draw: Draw, sizes: list[tuple[int, int]], rows: list[tuple[int, int, int, int]], **given: int
) -> Arguments:
    """`rows` of draws; with `pairs` the sizes are those of LR. `before` bytes of others come first."""
    crop, scale, pairs, before = given["crop"], given["scale"], given.get("pairs", 0), given.get("before", 0)
    highs = [(height * scale, width * scale) for height, width in sizes] if pairs else sizes
    table = _table(highs, before)
    end = int(table[-1, 0] + 3 * table[-1, 1] * table[-1, 2])
    lows = _table(sizes, end) if pairs else None
    total = end + (3 * sum(height * width for height, width in sizes) if pairs else 0)
    size = crop // scale
    return {
        "pixels": draw.pixels(total, dtype=torch.uint8),
        "table": table.to(draw.device),
        "draws": torch.tensor(rows).to(draw.device),
        "lr": torch.zeros(len(rows), size, size, 3, device=draw.device),
        "crop": crop,
        "scale": scale,
        "lows": None if lows is None else lows.to(draw.device),
    }


def _case(name: str, sizes: list[tuple[int, int]], rows: list[tuple[int, int, int, int]], **given: int) -> Case:
    return Case(name, lambda draw: _arguments(draw, sizes, rows, **given))


def _black_and_white(draw: Draw) -> Arguments:
    """Only extremes: sums that overshoot on both sides, and ties between levels."""
    arguments = _arguments(draw, [(16, 16)], [(0, 0, 0, 3)], crop=16, scale=4)
    return arguments | {"pixels": (arguments["pixels"] > 127).to(torch.uint8) * 255}


def _ties(draw: Draw) -> Arguments:
    """An edge through the middle of LR pixels, whose mean lies between two levels."""
    arguments = _arguments(draw, [(16, 16)], [(0, 0, 0, 0)], crop=16, scale=4)
    edge = (torch.arange(16) >= 6).to(torch.uint8).view(1, 16, 1).expand(3, 16, 16) * 101
    pixels = edge.reshape(-1).clone()
    pixels[0], pixels[-1] = 255, 0
    return arguments | {"pixels": pixels.to(draw.device)}


def _strided(draw: Draw) -> Arguments:
    arguments = _arguments(draw, [(9, 12), (8, 11)], [(1, 0, 3, 6), (0, 1, 2, 1)], crop=8, scale=2)
    for name in ("pixels", "table", "draws"):
        arguments[name] = arguments[name].repeat_interleave(2, 0)[::2]
    return arguments


CASES = (
    _case("x4, one LR pixel", [(4, 4)], [(0, 0, 0, 0)], crop=4, scale=4),
    _case("x4, every turn", [(9, 13), (11, 8)], [(t % 2, t % 2, 0, t) for t in range(_TURNS)], crop=8, scale=4),
    _case("x4, two turns", [(9, 13), (11, 8)], [(0, 0, 5, 1), (1, 3, 0, 5)], crop=8, scale=4),
    _case("x4, inside of an image", [(60, 64)], [(0, 21, 19, 6)], crop=16, scale=4),
    _case("x2, some turns", [(9, 15)], [(0, 1, t, t) for t in (1, 2, 7)], crop=8, scale=2),
    _case("x8, some turns", [(19, 21)], [(0, 3, t, t) for t in (3, 4)], crop=16, scale=8),
    _case(
        "x2, pairs, every turn", [(9, 7), (6, 8)], [(t % 2, 0, 1, t) for t in range(_TURNS)], crop=8, scale=2, pairs=1
    ),
    _case("x4, behind other bytes", [(12, 12)], [(0, 0, 0, 7)], crop=12, scale=4, before=1001),
    Case("x4, black and white", _black_and_white),
    Case("x4, ties", _ties),
    Case("x2, strided", _strided),
)


def _batch(scale: int, pairs: int = 0) -> object:
    def make(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
        """Sixteen crops for each frame, of a side near a frame's own."""
        side = max(8, min(height, width) // 8 * 8)
        large = 2 * side // scale if pairs else 2 * side
        rows = [(i % 4, i % 7, i % 5, i % _TURNS) for i in range(16 * batch)]
        return _arguments(Draw(device, dtype), [(large, large)] * 4, rows, crop=side, scale=scale, pairs=pairs)

    return make


BENCH_CASES = {"x4": _batch(4), "x2, pairs": _batch(2, pairs=1)}
