"""The ops of video colour: what their cases cover, their bands of rows on a CPU, and values that are no pixels."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srgan_fast import kernels
from srgan_fast.kernels import chroma, parity, rgb_to_yuv, yuv_to_rgb
from srgan_fast.kernels.cases import Draw
from srgan_fast.kernels.chroma import LUMA, SITINGS, SUBSAMPLINGS
from srgan_fast.kernels.yuv_to_rgb.cases import code_values


@pytest.mark.parametrize(("op", "source"), [("yuv_to_rgb", "y"), ("rgb_to_yuv", "rgb")])
def test_cases_cover_what_breaks_colour(op: str, source: str) -> None:
    """Odd sizes, one pixel, several tiles, views; each subsampling, position, matrix, range, depth and dtype."""
    cases = kernels.load(op).CASES
    given = [case.inputs("cpu", torch.float32) for case in cases]
    frames = [arguments[source] for arguments in given]
    assert any(x.shape[:2] == (1, 1) for x in frames)
    assert any(x.shape[0] % 2 and x.shape[1] % 2 and x.shape[1] > 1 for x in frames)
    assert any(x.shape[0] > 8 and x.shape[1] > 64 for x in frames)
    assert any(not x.is_contiguous() for x in frames)
    assert {x.dtype for x in frames} == {torch.uint8, torch.uint16, torch.float32}
    assert {arguments["dtype"] for arguments in given} == {torch.uint8, torch.uint16, torch.float32}
    assert {arguments["matrix"] for arguments in given} == {"bt601", "bt709", "bt2020"}
    assert {arguments["full"] for arguments in given} == {False, True}
    assert {8, 10, 12, 16} <= {arguments["depth"] for arguments in given}
    for subsampling in ("400", "422", "444"):
        assert any(f", {subsampling} " in case.name for case in cases)
    for siting in ("left", "centre", "topleft"):
        assert any(f", 420 {siting}," in case.name for case in cases)
    assert len({case.name for case in cases}) == len(cases)


def same(found: Any, wanted: Any) -> bool:
    pairs = zip(parity.returned(found), parity.returned(wanted), strict=True)
    return all(parity.compare_exact(one, other).passed for one, other in pairs)


DTYPES = st.sampled_from([torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64])


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 23), st.integers(1, 12)),
    subsampling=st.sampled_from(sorted(SUBSAMPLINGS)),
    siting=st.sampled_from(sorted(SITINGS)),
    matrix=st.sampled_from(sorted(LUMA)),
    full=st.booleans(),
    depth=st.sampled_from([8, 10, 16]),
    dtypes=st.tuples(DTYPES, DTYPES),
    band=st.integers(1, 120),
    seed=st.integers(0, 1000),
)
def test_bands_give_the_bits_of_the_whole_frame(
    size: tuple[int, int],
    subsampling: str,
    siting: str,
    matrix: str,
    full: bool,
    depth: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    band: int,
    seed: int,
) -> None:
    """Both ways, however few rows are done at a time."""
    planes, pixels = dtypes
    # What float16 holds: an infinity as a pixel is not defined.
    depth = {torch.uint8: 8, torch.float16: min(depth, 10)}.get(planes, depth)
    h, w = size
    draw = Draw("cpu", torch.float32, seed)
    less = SUBSAMPLINGS[subsampling]
    sizes = [] if less is None else [(-(-h // less[0]), -(-w // less[1]))] * 2
    found = [code_values(draw, *shape, depth, planes) for shape in [(h, w), *sizes]]
    y, u, v = found if sizes else (*found, None, None)
    to_rgb = (y, u, v, matrix, full, depth, siting, pixels)
    rgb = yuv_to_rgb.reference(*to_rgb)
    to_yuv = (rgb, matrix, full, depth, subsampling, siting, planes)
    # Where Triton is interpreted too: the bands are the reference's.
    with mock.patch.object(chroma, "_BAND_PIXELS", band), kernels.only("reference"):
        assert same(yuv_to_rgb.run(*to_rgb), rgb)
        assert same(rgb_to_yuv.run(*to_yuv), rgb_to_yuv.reference(*to_yuv))


@given(height=st.integers(1, 5000), width=st.integers(1, 20000))
def test_bands_cover_a_frame_and_are_small(height: int, width: int) -> None:
    found = list(chroma.bands(torch.empty(1, 1).expand(height, width)))
    assert [first for first, _ in found] == [0, *(end for _, end in found[:-1])]
    assert found[-1][1] == height
    for first, end in found:
        assert first % 2 == 0
        assert end - first == 2 or (end - first) * width <= 2**17 or height == 1
    assert list(chroma.bands(torch.empty(height, width, device="meta"))) == [(0, height)]


PLACES = [pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu), "cpu"]


@pytest.mark.parametrize("device", PLACES)
def test_a_nan_stays_one(device: str) -> None:
    """In floats, where it was and in the chroma around it."""
    rgb = torch.full((4, 6, 3), 0.5, device=device)
    rgb[0, 0, 0] = float("nan")
    y, u, v = rgb_to_yuv.run(rgb, "bt709", False, 8, "420", "left", torch.float32)
    for plane in (y, u, v):
        assert torch.isnan(plane[0, 0])
        assert int(torch.isnan(plane).sum()) == 1
    back = yuv_to_rgb.run(y, u, v, "bt709", False, 8, "left", torch.float32)
    assert torch.isnan(back[0, 0]).all()
    assert not torch.isnan(back[3:]).any()


@pytest.mark.parametrize("device", PLACES)
def test_float64_is_computed_in_float64(device: str) -> None:
    y = torch.arange(16, 236, dtype=torch.uint8, device=device).view(20, 11)
    rgb = yuv_to_rgb.run(y, None, None, "bt709", False, 8, "left", torch.float64)
    assert float((rgb[..., 1] - (y.double() - 16) / 219).abs().max()) < 1e-15
    (back,) = rgb_to_yuv.run(rgb, "bt709", False, 8, "400", "left", torch.float64)
    assert float((back - y.double()).abs().max()) < 1e-12
