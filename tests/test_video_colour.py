"""Colour of video against the standards' own formulas in float64, written here anew, and against published values."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from clips import make

from srgan_fast.kernels import rgb_to_yuv, yuv_to_rgb
from srgan_fast.video.colour import Colour, Matrix, from_rgb, to_rgb
from srgan_fast.video.source import Source

pytestmark = pytest.mark.usefixtures("one_thread")

_LUMA = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722), "bt2020": (0.2627, 0.6780, 0.0593)}
SITINGS = ("left", "centre", "topleft")

# 100% bars in eight bits and limited range: ITU-R BT.601 and BT.709 as every table of colour bars has them.
_BARS = {
    "white": (255, 255, 255),
    "yellow": (255, 255, 0),
    "cyan": (0, 255, 255),
    "green": (0, 255, 0),
    "magenta": (255, 0, 255),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
}
_CODES: dict[Matrix, list[tuple[int, int, int]]] = {
    "bt601": [
        *((235, 128, 128), (210, 16, 146), (170, 166, 16), (145, 54, 34)),
        *((106, 202, 222), (81, 90, 240), (41, 240, 110), (16, 128, 128)),
    ],
    "bt709": [
        *((235, 128, 128), (219, 16, 138), (188, 154, 16), (173, 42, 26)),
        *((78, 214, 230), (63, 102, 240), (32, 240, 118), (16, 128, 128)),
    ],
}


def matrix_of(name: str) -> np.ndarray:
    """From RGB to Y, Pb, Pr."""
    red, green, blue = _LUMA[name]
    y = np.array([red, green, blue])
    return np.stack([y, (np.array([0, 0, 1]) - y) / (2 - 2 * blue), (np.array([1, 0, 0]) - y) / (2 - 2 * red)])


def coded(ypp: np.ndarray, full: bool, depth: int) -> np.ndarray:
    """Code values, not rounded: BT.2100 table 9."""
    if full:
        top = 2**depth - 1
        return ypp * top + np.array([0, 2 ** (depth - 1), 2 ** (depth - 1)])
    return (ypp * np.array([219, 224, 224]) + np.array([16, 128, 128])) * 2 ** (depth - 8)


def positions(size: int, siting: str, axis: str) -> np.ndarray:
    """Where each sample of luma lies among the samples of chroma."""
    first = siting == "topleft" or (siting == "left" and axis == "x")
    return np.arange(size) / 2 if first else (np.arange(size) - 0.5) / 2


def stretched(c: np.ndarray, height: int, width: int, siting: str) -> np.ndarray:
    """Chroma by linear interpolation between the places where it lies."""
    if c.shape[1] != width:
        x = positions(width, siting, "x")
        c = np.stack([np.interp(x, np.arange(len(row)), row) for row in c])
    if c.shape[0] != height:
        y = positions(height, siting, "y")
        c = np.stack([np.interp(y, np.arange(len(column)), column) for column in c.T]).T
    return c


def planes_at_random(sub: str, depth: int, h: int, w: int, seed: int = 0) -> list[np.ndarray]:
    dice = np.random.default_rng(seed)
    small = (-(-h // 2) if sub == "420" else h, -(-w // 2) if sub in ("420", "422") else w)
    kind = np.uint8 if depth == 8 else np.uint16
    return [dice.integers(0, 2**depth, size).astype(kind) for size in ((h, w), small, small)]


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_bars_are_the_published_ones(matrix: Matrix) -> None:
    colour = Colour(matrix, full=False, depth=8, subsampling="444")
    rgb = torch.tensor(list(_BARS.values()), dtype=torch.uint8)[None]
    codes = torch.stack(from_rgb(rgb, colour), -1)[0].tolist()
    assert [tuple(code) for code in codes] == _CODES[matrix]
    planes = torch.tensor(_CODES[matrix], dtype=torch.uint8)[None].unbind(-1)
    assert (to_rgb(planes, colour).int() - rgb.int()).abs().max() <= 2  # as near as codes in eight bits come


@pytest.mark.parametrize("matrix", list(_LUMA))
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_rgb_is_that_of_the_formulas(matrix: Matrix, full: bool, depth: int) -> None:
    """Every sampling and position: within half a level of the truth, and what rounding in float32 adds."""
    for sub, siting, (h, w) in itertools.product(("444", "422", "420"), SITINGS, ((15, 21), (8, 10), (1, 2))):
        planes = planes_at_random(sub, depth, h, w)
        wide = [plane.astype(np.float64) for plane in planes]
        y, u, v = wide[0], stretched(wide[1], h, w, siting), stretched(wide[2], h, w, siting)
        zero, one = coded(np.zeros(3), full, depth), coded(np.ones(3), full, depth)
        ypp = (np.stack([y, u, v], -1) - zero) / (one - zero)
        top = 255 if depth == 8 else 65535
        truth = np.clip(ypp @ np.linalg.inv(matrix_of(matrix)).T, 0, 1) * top
        colour = Colour(matrix, full, depth, sub, siting)  # type: ignore[arg-type]
        got = to_rgb([torch.from_numpy(plane) for plane in planes], colour)
        assert got.dtype == (torch.uint8 if depth == 8 else torch.uint16)
        assert np.abs(got.numpy().astype(np.float64) - truth).max() < 0.5 + 4e-7 * top


@pytest.mark.parametrize("matrix", list(_LUMA))
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12])
def test_planes_are_those_of_the_formulas(matrix: Matrix, full: bool, depth: int) -> None:
    dice = np.random.default_rng(1)
    kind, top = (np.uint8, 255) if depth == 8 else (np.uint16, 65535)
    for sub, siting, (h, w) in itertools.product(("444", "422", "420"), SITINGS, ((15, 21), (8, 10), (1, 2))):
        rgb = dice.integers(0, top + 1, (h, w, 3)).astype(kind)
        truth = coded(rgb / top @ matrix_of(matrix).T, full, depth)
        parts = [truth[..., 0], truth[..., 1], truth[..., 2]]
        for axis, name in ((1, "x"), (0, "y")):
            if sub == "444" or (sub == "422" and axis == 0):
                continue
            on_first = siting == "topleft" or (siting == "left" and name == "x")
            taps = {-1: 0.25, 0: 0.5, 1: 0.25} if on_first else {0: 0.5, 1: 0.5}
            for part in (1, 2):
                size = parts[part].shape[axis]
                at = np.arange(0, size, 2)
                parts[part] = sum(
                    weight * np.take(parts[part], np.clip(at + by, 0, size - 1), axis) for by, weight in taps.items()
                )
        colour = Colour(matrix, full, depth, sub, siting)  # type: ignore[arg-type]
        for mine, true in zip(from_rgb(torch.from_numpy(rgb), colour), parts, strict=True):
            error = np.abs(mine.numpy().astype(np.float64) - np.clip(true, 0, 2**depth - 1))
            assert error.max() < 0.5 + 1e-6 * 2**depth


@pytest.mark.parametrize("siting", SITINGS)
@pytest.mark.parametrize("sub", ["420", "422"])
def test_chroma_does_not_move(sub: str, siting: str) -> None:
    """A ramp of colour comes back as it was: any other position on the way back shifts it."""
    ramp = np.linspace(0, 65535, 64).round()
    rgb = np.stack([np.broadcast_to(ramp, (64, 64)), np.full((64, 64), 30000.0), ramp[:, None] * np.ones(64)], -1)
    frame = torch.from_numpy(rgb.astype(np.uint16))
    colour = Colour("bt709", True, 16, sub, siting)  # type: ignore[arg-type]
    error = (to_rgb(from_rgb(frame, colour), colour).int() - frame.int()).abs()
    assert error[4:-4, 4:-4].max() <= 4
    other = Colour("bt709", True, 16, sub, "centre" if siting != "centre" else "left")  # type: ignore[arg-type]
    assert (to_rgb(from_rgb(frame, colour), other).int() - frame.int()).abs()[4:-4, 4:-4].max() > 100


@pytest.mark.parametrize("full", [False, True])
def test_grey_stays_grey(full: bool) -> None:
    colour = Colour("bt601", full, 8, "400")
    codes = torch.arange(0 if full else 16, 256 if full else 236, dtype=torch.uint8)[None]
    rgb = to_rgb([codes], colour)
    assert torch.equal(rgb[..., 0], rgb[..., 1])
    assert torch.equal(rgb[..., 0], rgb[..., 2])
    (back,) = from_rgb(rgb, colour)
    assert torch.equal(back, codes)


def test_rgb_in_rgb_planes_is_itself() -> None:
    rgb = torch.arange(256, dtype=torch.uint8)[:, None, None].expand(256, 4, 3).contiguous()
    assert torch.equal(to_rgb(rgb.unbind(-1), Colour("rgb", True, 8, "444")), rgb)
    ten = torch.arange(1024, dtype=torch.int32).to(torch.uint16)[None]
    wide = to_rgb([ten] * 3, Colour("rgb", True, 10, "444"))[0, :, 0].int()
    assert wide[0] == 0
    assert wide[-1] == 65535
    assert wide.diff().min() == 64


def test_results_go_where_they_are_wanted() -> None:
    planes = [torch.from_numpy(plane) for plane in planes_at_random("420", 8, 6, 8)]
    out = torch.empty(6, 8, 3, dtype=torch.uint8)
    assert yuv_to_rgb.run(*planes, "bt709", False, 8, "left", torch.uint8, out=out) is out
    back = tuple(torch.empty_like(plane) for plane in planes)
    given = rgb_to_yuv.run(out, "bt709", False, 8, "420", "left", torch.uint8, out=back)
    assert all(one is other for one, other in zip(given, back, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(5, 4, dtype=torch.uint8), "v": torch.zeros(5, 4, dtype=torch.uint8)}, "expected chroma of"),
        ({"u": None}, "both planes of chroma or none"),
        ({"u": torch.zeros(3, 4, dtype=torch.uint16)}, "planes of one dtype"),
        ({"matrix": "bt470"}, "expected a matrix of bt601"),
        ({"siting": "right"}, "a siting of left"),
        ({"depth": 7}, "8 to 16 bits"),
        ({"y": torch.zeros(0, 8, dtype=torch.uint8)}, "expected luma of shape"),
    ],
)
def test_planes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    y, u, v = (torch.from_numpy(plane) for plane in planes_at_random("420", 8, 6, 8))
    names = {"matrix": "bt709", "full": False, "depth": 8, "siting": "left", "dtype": torch.uint8}
    with pytest.raises(ValueError, match=message):
        yuv_to_rgb.run(**{"y": y, "u": u, "v": v, **names, **change})


def shown(
    path: Path, picture: np.ndarray, pixels: str, matrix: Matrix, full: bool, tags: tuple[int, int, int] | None
) -> None:
    """A file of one picture, coded without loss by the formulas of this module."""
    depth = 10 if "10" in pixels else 8
    parts = np.floor(coded(picture @ matrix_of(matrix).T, full, depth) + 0.5).clip(0, 2**depth - 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0" if depth == 8 else "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], pixels
        context = stream.codec_context
        if tags is not None:
            context.colorspace, context.color_primaries, context.color_trc = tags
            context.color_range = 2 if full else 1
        frame = av.VideoFrame(picture.shape[1], picture.shape[0], pixels)
        for plane, part in zip(frame.planes, np.moveaxis(parts, -1, 0), strict=True):
            lines = np.frombuffer(plane, np.uint8 if depth == 8 else np.uint16).reshape(plane.height, -1)
            lines[:, : plane.width] = part
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def soft(h: int = 48, w: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([0.5 + 0.45 * np.sin(x / 9), 0.5 + 0.4 * np.cos(y / 7), 0.5 + 0.45 * np.sin((x + y) / 11)], -1)


@pytest.mark.parametrize(
    ("matrix", "full", "tags", "size", "pixels"),
    [
        ("bt601", False, (6, 6, 6), (48, 64), "yuv444p"),
        ("bt601", False, (5, 5, 6), (48, 64), "yuv444p"),
        ("bt709", False, (1, 1, 1), (48, 64), "yuv444p"),
        ("bt709", True, (1, 1, 1), (48, 64), "yuv444p"),
        ("bt2020", False, (9, 9, 14), (48, 64), "yuv444p10le"),
        ("bt601", False, None, (48, 64), "yuv444p"),
        ("bt709", False, None, (600, 64), "yuv444p"),
    ],
)
def test_a_file_has_the_colours_that_its_tags_say(
    matrix: Matrix, full: bool, tags: tuple[int, int, int] | None, size: tuple[int, int], pixels: str, tmp_path: Path
) -> None:
    picture = soft(*size)
    shown(tmp_path / "in.mkv", picture, pixels, matrix, full, tags)
    (frame,) = Source(tmp_path / "in.mkv").frames()
    rgb = to_rgb([torch.from_numpy(plane) for plane in frame.planes], frame.colour)
    assert (frame.colour.matrix, frame.colour.full, frame.colour.tagged) == (matrix, full, tags is not None)
    top = 65535 if rgb.dtype == torch.uint16 else 255
    error = np.abs(rgb.numpy().astype(np.float64) / top - picture) * 255
    assert error.max() < 2.5
    assert error.mean() < 0.6  # both roundings; another matrix is several levels away


def test_the_user_knows_the_matrix_better(tmp_path: Path) -> None:
    path = make(tmp_path / "in.mp4", colours=(1, 1, 1))
    assert Source(path).info.colour.matrix == "bt709"
    (first, *_) = Source(path, matrix="bt601").frames()
    assert first.colour.matrix == "bt601"
    ictcp = make(tmp_path / "ictcp.mkv", colours=(14, 9, 16))
    assert Source(ictcp, matrix="bt2020").info.colour.matrix == "bt2020"
