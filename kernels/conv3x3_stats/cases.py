"""What conv3x3_stats is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(
    n: int, h: int, w: int, cin: int, cout: int, *, stride: int = 1, shift: float | None = None, scale: float = 1.0
) -> Case:
    """`shift` adds a bias around that value."""

    def make(draw: Draw) -> Arguments:
        return {
            "x": draw.normal(n, h, w, cin, scale=scale),
            "weight": draw.normal(cout, 3, 3, cin, scale=(9 * cin) ** -0.5),
            "bias": None if shift is None else draw.vector(cout) + shift,
            "stride": stride,
            **_results(draw, cout),
        }

    said = f"{n}x{h}x{w}, {cin} to {cout}" + (f", stride {stride}" if stride > 1 else "")
    said += "" if shift is None else f", bias {shift:g}"
    return Case(said if scale == 1.0 else f"{said}, values of {scale:g}", make)


def _results(draw: Draw, cout: int) -> Arguments:
    return {name: torch.empty(cout, device=draw.device) for name in ("mean", "variance")}


def _strided(draw: Draw) -> Arguments:
    """Every argument a view: rows apart, channels apart, weights in PyTorch's own order."""
    return {
        "x": draw.normal(2, 6, 18, 32)[:, :, ::2, ::2],
        "weight": draw.normal(16, 16, 3, 3, scale=144**-0.5).permute(0, 2, 3, 1),
        "bias": draw.vector(32)[::2],
        **_results(draw, 16),
    }


CASES = (
    _case(1, 1, 1, 64, 64),
    _case(2, 9, 7, 64, 64),
    _case(3, 5, 9, 32, 48, stride=2),
    _case(2, 6, 4, 20, 36, stride=2, shift=0.0),
    _case(1, 5, 3, 128, 80),
    # A small deviation beside a large mean: what E[x^2] - E[x]^2 loses.
    _case(2, 10, 11, 16, 16, shift=30.0, scale=0.1),
    _case(1, 5, 6, 64, 64, scale=100.0),
    Case("2x6x9, 16 to 16, strided", _strided),
)


def _trunk(height: int, width: int, batch: int, device: str, dtype: torch.dtype) -> Arguments:
    return _case(batch, height, width, 64, 64).inputs(device, dtype)


BENCH_CASES = {"64 to 64": _trunk}
