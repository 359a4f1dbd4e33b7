"""What conv3x3_int8 is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(
    n: int,
    h: int,
    w: int,
    cin: int,
    channels: int,
    *,
    r: int = 1,
    slopes: bool = False,
    residual: bool = False,
    result: torch.dtype | None = None,
    quantised: bool = False,
    extreme: bool = False,
) -> Case:
    """`result` of None is the dtype of the test; a gain that puts usual values over most of int8's range, and beyond.

    `extreme` fills x and the weight with the largest values, so that sums reach the ends of what float32 holds exactly.
    """

    def make(draw: Draw) -> Arguments:
        outputs = r * r * channels
        dtype = draw.dtype if result is None else result
        # Sums are about 127/sqrt(3) squared times the root of the number of products; int8 takes them to about 60.
        gain = (60 if dtype == torch.int8 else 1) / (5400 * (9 * cin) ** 0.5)
        arguments: Arguments = {
            "x": draw.whole(n, h, w, cin),
            "weight": draw.whole(9, cin, outputs),
            "gain": gain * (1 + 0.3 * draw.vector(outputs)).abs(),
            "bias": draw.vector(outputs, 20.0 if dtype == torch.int8 else 0.5),
            "dtype": dtype,
            "r": r,
        }
        if extreme:
            arguments["x"].fill_(127)
            arguments["weight"].fill_(127)
            arguments["weight"][:, :, 1::2] = -127
        if slopes:
            arguments["slopes"] = draw.slopes(channels)
        if residual:
            arguments["residual"] = draw.normal(n, h * r, w * r, channels, dtype=dtype)
        if quantised:
            arguments["quantised"] = torch.zeros(n, h * r, w * r, channels, dtype=torch.int8, device=draw.device)
            arguments["inverse"] = 61.7
        return arguments

    parts = [f"{n}x{h}x{w}", f"{cin} to {channels}", *[f"x{r}"] * (r > 1), *["slopes"] * slopes]
    parts += ["residual"] * residual
    parts += [f"to {str(result).removeprefix('torch.')}"] * (result is not None)
    return Case(", ".join([*parts, *["both"] * quantised, *["extreme"] * extreme]), make)


def _half_steps(draw: Draw) -> Arguments:
    """Values halfway between two levels, of either sign."""
    x = torch.zeros(1, 5, 8, 16, dtype=torch.int8)
    x[..., 0] = torch.arange(40, dtype=torch.int8).view(1, 5, 8) - 20
    weight = torch.zeros(9, 16, 16, dtype=torch.int8)
    weight[4, 0] = torch.arange(16, dtype=torch.int8) - 8
    return {
        "x": x.to(draw.device),
        "weight": weight.to(draw.device),
        "gain": torch.full((16,), 0.5, device=draw.device),
        "bias": torch.zeros(16, device=draw.device),
        "dtype": torch.int8,
    }


def _strided(draw: Draw) -> Arguments:
    """Every argument a view: rows apart, channels apart, transposed."""
    return {
        "x": draw.whole(2, 6, 18, 32)[:, :, ::2, ::2],
        "weight": draw.whole(9, 16, 32)[..., ::2],
        "gain": draw.vector(32, 1e-4).abs()[::2],
        "bias": draw.vector(32)[::2],
        "slopes": draw.slopes(32)[::2],
        "residual": draw.normal(2, 9, 6, 16).transpose(1, 2),
        "dtype": draw.dtype,
    }


CASES = (
    _case(1, 1, 1, 64, 64, slopes=True, result=torch.int8),
    _case(1, 9, 17, 64, 64, slopes=True, result=torch.int8),
    _case(2, 8, 16, 64, 64, residual=True, quantised=True),
    _case(1, 5, 3, 64, 64, quantised=True),
    _case(1, 7, 5, 16, 36, slopes=True, residual=True),
    _case(1, 3, 7, 64, 256, slopes=True),
    _case(2, 3, 5, 64, 64, r=2, slopes=True, result=torch.int8),
    _case(1, 3, 4, 32, 20, r=3, slopes=True, quantised=True),
    # float32 shows each rounding; float16 and int8 hide most of a wrong one.
    _case(1, 5, 9, 64, 64, slopes=True, residual=True, result=torch.float32),
    _case(1, 4, 6, 112, 48, result=torch.float32, extreme=True),
    Case("1x5x8, 16 to 16, half steps", _half_steps),
    Case("2x6x9, 16 to 16, strided", _strided),
)


def _layer(height: int, width: int, batch: int, device: str, dtype: torch.dtype, **options: bool) -> Arguments:
    result = None if options.get("residual") else torch.int8
    return _case(batch, height, width, 64, 64, result=result, **options).inputs(device, dtype)


BENCH_CASES = {
    "64 to 64, PReLU": lambda *size: _layer(*size, slopes=True),
    "64 to 64, residual": lambda *size: _layer(*size, residual=True, quantised=True),
}
