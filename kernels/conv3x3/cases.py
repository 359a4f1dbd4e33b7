"""What conv3x3 is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(
    n: int, h: int, w: int, cin: int, cout: int, *, slopes: str = "", residual: bool = False, scale: float = 1.0
) -> Case:
    def make(draw: Draw) -> Arguments:
        arguments: Arguments = {
            "x": draw.normal(n, h, w, cin, scale=scale),
            "weight": draw.weight(9, cin, cout),
            "bias": draw.vector(cout, 0.5),
        }
        if slopes == "channel":
            arguments["slopes"] = draw.slopes(cout)
        elif slopes:
            arguments["slopes"] = torch.full((cout,), float(slopes), device=draw.device)
        if residual:
            arguments["residual"] = draw.normal(n, h, w, cout, scale=scale)
        return arguments

    said = f"{n}x{h}x{w}, {cin} to {cout}" + (f", slopes {slopes}" if slopes else "") + (", residual" * residual)
    return Case(said if scale == 1.0 else f"{said}, values of {scale:g}", make)


def _strided(draw: Draw) -> Arguments:
    """Every argument a view: rows apart, channels apart, transposed."""
    return {
        "x": draw.normal(2, 6, 18, 32)[:, :, ::2, ::2],
        "weight": draw.weight(9, 16, 32)[..., ::2],
        "bias": draw.vector(32)[::2],
        "slopes": draw.slopes(32)[::2],
        "residual": draw.normal(2, 9, 6, 16).transpose(1, 2),
    }


CASES = (
    _case(1, 1, 1, 64, 64, slopes="0.25"),
    _case(1, 9, 17, 64, 64, slopes="channel"),
    _case(2, 8, 16, 64, 64, residual=True),
    _case(1, 5, 33, 64, 64),
    _case(1, 3, 7, 64, 256, slopes="channel"),
    _case(1, 7, 5, 16, 16, slopes="-0.5", residual=True),
    _case(1, 6, 4, 20, 36, slopes="1.5"),
    _case(1, 4, 5, 128, 96, slopes="channel"),
    _case(1, 5, 6, 64, 64, slopes="0.25", residual=True, scale=100.0),
    _case(1, 5, 6, 64, 64, slopes="0.25", scale=1e-3),
    Case("2x6x9, 16 to 16, strided", _strided),
)


def _trunk(height: int, width: int, batch: int, device: str, dtype: torch.dtype, *, residual: bool) -> Arguments:
    return _case(batch, height, width, 64, 64, slopes="" if residual else "0.25", residual=residual).inputs(
        device, dtype
    )


BENCH_CASES = {
    "64 to 64, PReLU": lambda *size: _trunk(*size, residual=False),
    "64 to 64, residual": lambda *size: _trunk(*size, residual=True),
}
