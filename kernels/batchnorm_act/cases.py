"""What batchnorm_act is tested and timed with."""

from __future__ import annotations

import torch

from srgan_fast.kernels.cases import Arguments, Case, Draw


def _case(
    n: int, h: int, w: int, channels: int, act: str = "", *, skip: bool = False, shift: float = 0.0, scale: float = 1.0
) -> Case:
    """`act` is channel, shared or the constant slope; `shift` is the mean of x."""

    def make(draw: Draw) -> Arguments:
        x = draw.normal(n, h, w, channels, scale=scale) + shift
        arguments: Arguments = {"x": x, **_of(draw, x, channels)}
        if act in ("channel", "shared"):
            arguments["slopes"] = draw.slopes(channels) if act == "channel" else draw.slopes(2)[1:]
        elif act:
            arguments["slope"] = float(act)
        if skip:
            arguments["skip"] = draw.normal(n, h, w, channels)
        return arguments

    said = f"{n}x{h}x{w}, {channels} channels" + (f", slope {act}" if act else "") + (", skip" * skip)
    said += f", mean {shift:g}" if shift else ""
    return Case(said if scale == 1.0 else f"{said}, values of {scale:g}", make)


def _of(draw: Draw, x: torch.Tensor, channels: int) -> Arguments:
    """The statistics of x, with gains and shifts of every kind."""
    variance, mean = torch.var_mean(x.double(), (0, 1, 2), correction=0)
    return {
        "mean": mean.float(),
        "variance": variance.float(),
        "gamma": 1 + draw.vector(channels, 0.5),
        "beta": draw.vector(channels),
    }


def _strided(draw: Draw) -> Arguments:
    x = draw.normal(1, 3, 5, 32)[..., ::2].transpose(1, 2)
    given = {name: torch.stack([v, v], 1)[:, 0] for name, v in _of(draw, x, 16).items()}
    return {"x": x, **given, "slopes": draw.slopes(32)[::2], "skip": draw.normal(1, 3, 5, 16).transpose(1, 2)}


CASES = (
    _case(1, 1, 1, 64, "shared"),
    _case(2, 9, 7, 64, "channel", skip=True),
    _case(1, 5, 3, 20, "channel"),
    _case(3, 3, 5, 64, "shared"),
    _case(2, 7, 6, 36, "0.2"),
    _case(1, 5, 7, 64, skip=True),
    _case(1, 4, 3, 160, "0.2", scale=1e3),
    _case(2, 5, 6, 16, "channel", shift=30.0),
    Case("1x5x3, 16 channels, strided", _strided),
)


def _stage(
    height: int, width: int, batch: int, device: str, dtype: torch.dtype, *, act: str = "", skip: bool = False
) -> Arguments:
    return _case(batch, height, width, 64, act, skip=skip).inputs(device, dtype)


BENCH_CASES = {
    "64 channels, PReLU": lambda *size: _stage(*size, act="shared"),
    "64 channels, skip": lambda *size: _stage(*size, skip=True),
    "64 channels, LeakyReLU": lambda *size: _stage(*size, act="0.2"),
}
