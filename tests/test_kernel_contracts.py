"""What the ops promise besides their numbers: what they refuse, how they look to torch, how they are cut into tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ahead_of_time import SHARED_BYTES_BESIDES, assumed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.kernels import launch
from srgan_fast.kernels.cases import Case
from srgan_fast.kernels.launch import SHARED_LIMIT_KIB, choose, nearest_architecture

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ARCHITECTURES = sorted(SHARED_LIMIT_KIB)


def first_case(op: str) -> dict[str, Any]:
    arguments: dict[str, Any] = kernels.load(op).CASES[1].inputs("cpu", torch.float32)
    return arguments


def f(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


REFUSED = [
    ("frame_input", {"frames": f(13, 7, 3)}, r"expected frames of shape \[any, any, any, 3\], got \[13, 7, 3\]"),
    ("frame_input", {"frames": f(1, 3, 5, 4)}, r"expected frames of shape .*got \[1, 3, 5, 4\]"),
    ("frame_input", {"frames": f(0, 3, 5, 3)}, r"expected frames of shape .*got \[0, 3, 5, 3\]"),
    ("frame_input", {"gain": f(4)}, r"expected gain of shape \[3\], got \[4\]"),
    ("frame_input", {"offset": f(3, dtype=torch.int32)}, r"expected offset in torch.float32, got torch.int32"),
    (
        "frame_input",
        {"out": f(2, 13, 7, 3)},
        r"expected a contiguous out of shape \[2, 13, 7, 4\].*got \[2, 13, 7, 3\]",
    ),
    ("head", {"x": f(2, 9, 17, 3)}, r"expected x of shape \[any, any, any, 4\], got \[2, 9, 17, 3\]"),
    ("head", {"weight": f(8, 64, 64)}, r"expected a weight that `pack` made, got shape \[8, 64, 64\]"),
    ("head", {"weight": f(9, 36, 64)}, r"expected a weight that `pack` made, got shape \[9, 36, 64\]"),
    ("head", {"weight": f(9, 32, 64)}, r"expected a weight that `pack` made, got shape \[9, 32, 64\]"),
    ("head", {"weight": f(9, 64, 64, dtype=torch.float16)}, r"expected weight in torch.float32, got torch.float16"),
    ("head", {"gain": f(3)}, r"expected gain and offset together, got one of them"),
    ("head", {"gain": f(3), "offset": f(3)}, r"expected x of shape \[any, any, any, 3\], got \[2, 9, 17, 4\]"),
    (
        "head",
        {"x": f(2, 9, 17, 3, dtype=torch.uint8), "gain": f(3), "offset": f(1)},
        r"expected offset of shape \[3\], got \[1\]",
    ),
    ("head", {"slopes": f(1)}, r"expected slopes of shape \[64\], got \[1\]"),
    ("conv3x3", {"x": f(9, 17, 64)}, r"expected x of shape \[any, any, any, any\], got \[9, 17, 64\]"),
    ("conv3x3", {"x": f(1, 9, 17, 64, dtype=torch.int32)}, r"expected x in a floating-point dtype, got torch.int32"),
    ("conv3x3", {"weight": f(9, 32, 64)}, r"expected weight of shape \[9, 64, 64\], got \[9, 32, 64\]"),
    ("conv3x3", {"bias": f(64, dtype=torch.float16)}, r"expected bias in torch.float32, got torch.float16"),
    ("conv3x3", {"slopes": f(1)}, r"expected slopes of shape \[64\], got \[1\]"),
    ("conv3x3", {"residual": f(1, 9, 16, 64)}, r"expected residual of shape \[1, 9, 17, 64\], got \[1, 9, 16, 64\]"),
    ("conv3x3", {"out": f(1, 9, 17, 64, dtype=torch.float16)}, r"contiguous out .*torch.float32.*got .*torch.float16"),
    ("conv3x3", {"out": f(1, 17, 9, 64).transpose(1, 2)}, r"expected a contiguous out .*strides \[9792, 64, 576, 1\]"),
    ("conv3x3_shuffle", {"r": 3}, r"expected weight of shape \[9, 64, 576\], got \[9, 64, 256\]"),
    ("conv3x3_shuffle", {"bias": f(64)}, r"expected bias of shape \[256\], got \[64\]"),
    ("conv3x3_shuffle", {"out": f(1, 9, 17, 256)}, r"contiguous out of shape \[1, 18, 34, 64\].*got \[1, 9, 17, 256\]"),
    ("tail", {"weight": f(25, 256, 3)}, r"expected weight of shape \[any, 256, 12\], got \[25, 256, 3\]"),
    ("tail", {"weight": f(24, 256, 12)}, r"expected the weight of a square, odd kernel, got 24 taps"),
    ("tail", {"weight": f(16, 256, 12)}, r"expected the weight of a square, odd kernel, got 16 taps"),
    ("tail", {"gain": f(1)}, r"expected gain of shape \[3\], got \[1\]"),
    ("tail", {"base": f(1, 9, 17, 3)}, r"expected base of shape \[1, 9, 17, 4\], got \[1, 9, 17, 3\]"),
    ("tail", {"out": f(1, 18, 34, 3, dtype=torch.float16)}, r"expected a contiguous out .* in torch.float32"),
    ("pixelshuffle_prelu", {"x": f(2, 9, 7, 64)}, r"expected x of shape \[any, any, any, 256\], got \[2, 9, 7, 64\]"),
    ("pixelshuffle_prelu", {"slopes": f(1, 64)}, r"expected slopes of shape \[any\], got \[1, 64\]"),
    ("pixelshuffle_prelu", {"out": f(2, 9, 7, 64)}, r"expected a contiguous out of shape \[2, 18, 14, 64\]"),
    ("quantise_int8", {"x": f(9, 17, 64)}, r"expected x of shape \[any, any, any, any\], got \[9, 17, 64\]"),
    (
        "quantise_int8",
        {"x": f(1, 9, 17, 64, dtype=torch.int8)},
        r"expected x in a floating-point dtype, got torch.int8",
    ),
    ("quantise_int8", {"out": f(2, 9, 17, 64)}, r"expected a contiguous out .* in torch.int8, got .*torch.float32"),
    ("conv3x3_int8", {"x": f(1, 9, 17, 64)}, r"expected x in torch.int8, got torch.float32"),
    (
        "conv3x3_int8",
        {"x": f(1, 9, 17, 24, dtype=torch.int8)},
        r"int8 takes a multiple of 16 inputs, at most 112, not 24; take conv3x3",
    ),
    ("conv3x3_int8", {"x": f(1, 9, 17, 128, dtype=torch.int8)}, r"a multiple of 16 inputs, at most 112, not 128"),
    ("conv3x3_int8", {"weight": f(9, 64, 64)}, r"expected weight in torch.int8, got torch.float32"),
    ("conv3x3_int8", {"gain": f(1)}, r"expected gain of shape \[64\], got \[1\]"),
    ("conv3x3_int8", {"slopes": f(1)}, r"expected slopes of shape \[64\], got \[1\]"),
    ("conv3x3_int8", {"r": 3}, r"expected a multiple of r\^2 = 9 outputs, got 64"),
    ("conv3x3_int8", {"dtype": torch.float64}, r"expected a result in int8, float16, bfloat16 or float32, got"),
    ("conv3x3_int8", {"residual": f(1, 9, 17, 64)}, r"expected a floating-point result beside residual and quantised"),
    (
        "conv3x3_int8",
        {"dtype": torch.float16, "residual": f(1, 9, 17, 64)},
        r"expected residual in torch.float16, got torch.float32",
    ),
    (
        "conv3x3_int8",
        {"dtype": torch.float16, "quantised": f(1, 9, 17, 64)},
        r"expected quantised in torch.int8, got torch.float32",
    ),
    (
        "conv3x3_int8",
        {"dtype": torch.float16, "quantised": f(1, 17, 9, 64, dtype=torch.int8).transpose(1, 2)},
        r"expected a contiguous quantised, got strides \[9792, 64, 576, 1\]",
    ),
    ("conv3x3_int8", {"out": f(1, 9, 17, 64)}, r"expected a contiguous out .* in torch.int8, got .*torch.float32"),
    ("conv3x3_stats", {"x": f(2, 9, 7, 32)}, r"expected weight of shape \[any, 3, 3, 32\], got \[64, 3, 3, 64\]"),
    ("conv3x3_stats", {"weight": f(9, 64, 64)}, r"expected weight of shape \[any, 3, 3, 64\], got \[9, 64, 64\]"),
    ("conv3x3_stats", {"bias": f(64, dtype=torch.float16)}, r"expected bias in torch.float32, got torch.float16"),
    ("conv3x3_stats", {"stride": 3}, r"expected stride 1 or 2, got 3"),
    ("conv3x3_stats", {"mean": f(32)}, r"expected mean of shape \[64\], got \[32\]"),
    ("conv3x3_stats", {"variance": f(128)[::2]}, r"expected contiguous mean and variance, got strides \(2,\)"),
    ("conv3x3_stats", {"out": f(2, 9, 7, 32)}, r"expected a contiguous out of shape \[2, 9, 7, 64\]"),
    ("batchnorm_act", {"x": f(9, 7, 64)}, r"expected x of shape \[any, any, any, any\], got \[9, 7, 64\]"),
    ("batchnorm_act", {"mean": f(1)}, r"expected mean of shape \[64\], got \[1\]"),
    (
        "batchnorm_act",
        {"variance": f(64, dtype=torch.float16)},
        r"expected variance in torch.float32, got torch.float16",
    ),
    ("batchnorm_act", {"slopes": f(2)}, r"expected slopes of shape \[64\], got \[2\]"),
    ("batchnorm_act", {"skip": f(2, 9, 7, 32)}, r"expected skip of shape \[2, 9, 7, 64\], got \[2, 9, 7, 32\]"),
    ("batchnorm_act", {"out": f(2, 9, 7, 32)}, r"expected a contiguous out of shape \[2, 9, 7, 64\]"),
    ("training_crops", {"pixels": f(1641)}, r"expected pixels in torch.uint8, got torch.float32"),
    ("training_crops", {"table": f(2, 2, dtype=torch.int64)}, r"expected table of shape \[any, 3\], got \[2, 2\]"),
    ("training_crops", {"draws": f(8, 4, dtype=torch.int32)}, r"expected draws in torch.int64, got torch.int32"),
    ("training_crops", {"lows": f(2, 3)}, r"expected lows in torch.int64, got torch.float32"),
    (
        "training_crops",
        {"scale": 3},
        r"expected scale 2, 4 or 8 and a crop that is a multiple, got scale 3 and crop 8",
    ),
    ("training_crops", {"crop": 13}, r"a crop that is a multiple, got scale 4 and crop 13"),
    ("training_crops", {"crop": 0}, r"a crop that is a multiple, got scale 4 and crop 0"),
    ("training_crops", {"lr": f(8, 8, 8, 3)}, r"expected lr of shape \[8, 2, 2, 3\], got \[8, 8, 8, 3\]"),
    ("training_crops", {"lr": f(8, 2, 2, 3).transpose(1, 2)}, r"expected a contiguous lr, got strides \[12, 3, 6, 1\]"),
    (
        "training_crops",
        {"out": f(8, 3, 8, 8)},
        r"expected a contiguous out of shape \[8, 8, 8, 3\].*\[8, 3, 8, 8\]",
    ),
    ("yuv_to_rgb", {"y": f(7, 9, 1, dtype=torch.uint8)}, r"expected luma of shape \[any, any\], got \[7, 9, 1\]"),
    ("yuv_to_rgb", {"y": f(7, 9, dtype=torch.int32)}, r"expected planes in uint8, uint16 or .*, got torch.int32"),
    ("yuv_to_rgb", {"y": f(7, 9)}, r"expected planes of one dtype, got torch.float32, torch.uint8 and torch.uint8"),
    ("yuv_to_rgb", {"v": None}, r"expected both planes of chroma or none"),
    (
        "yuv_to_rgb",
        {"u": f(4, 4, dtype=torch.uint8)},
        r"expected chroma of one of .*got \[4, 4\] and",
    ),
    ("yuv_to_rgb", {"matrix": "bt470"}, r"expected a matrix of bt601, bt709, bt2020 .*got bt470, left"),
    ("yuv_to_rgb", {"depth": 17}, r"expected 8 to 16 bits, got 17"),
    ("yuv_to_rgb", {"dtype": torch.int32}, r"expected a result in uint8, uint16 or .*, got torch.int32"),
    ("yuv_to_rgb", {"out": f(7, 9, 3)}, r"expected a contiguous out of shape \[7, 9, 3\] in torch.uint8"),
    ("rgb_to_yuv", {"rgb": f(7, 9, 4)}, r"expected RGB of shape \[any, any, 3\], got \[7, 9, 4\]"),
    ("rgb_to_yuv", {"rgb": f(7, 9, 3, dtype=torch.int32)}, r"expected pixels and a dtype .*, got torch.int32"),
    ("rgb_to_yuv", {"siting": "right"}, r"a siting of left, centre, topleft .*got bt709, right and 420"),
    ("rgb_to_yuv", {"subsampling": "411"}, r"a subsampling of 400, 420, 422, 444, got bt709, left and 411"),
    ("rgb_to_yuv", {"depth": 10}, r"expected pixels and a dtype that holds 10 bits, got torch.uint8 and torch.uint8"),
    ("rgb_to_yuv", {"out": (f(7, 9),)}, r"expected 3 planes as out, got 1"),
    ("rgb_to_yuv", {"out": (f(7, 9), f(4, 5), f(4, 5))}, r"expected a contiguous out of shape \[7, 9\] in torch.uint8"),
]


@pytest.mark.parametrize(("op", "change", "message"), REFUSED)
def test_what_does_not_fit_is_refused(op: str, change: dict[str, Any], message: str) -> None:
    arguments = first_case(op)
    with pytest.raises(ValueError, match=message):
        kernels.load(op).run(**arguments | change)


def test_a_gradient_that_does_not_fit_is_refused() -> None:
    package = kernels.load("pixelshuffle_prelu")
    with pytest.raises(ValueError, match=r"expected dy of shape \[1, 4, 4, 16\], got \[1, 2, 2, 64\]"):
        package.backward(f(1, 2, 2, 64), f(16), f(1, 2, 2, 64))
    package = kernels.load("batchnorm_act")
    with pytest.raises(ValueError, match=r"expected dy of shape \[1, 2, 2, 64\], got \[1, 2, 2, 16\]"):
        package.backward(f(1, 2, 2, 64), f(64), f(64), f(64), f(64), f(1, 2, 2, 16))


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(KeyError, match="conv5x5"):
        kernels.load("conv5x5")
    with pytest.raises(KeyError, match="conv5x5"):
        kernels.implementations("conv5x5", torch.device("cpu"))


def m(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def v(size: int) -> Tensor:
    return m(size, dtype=torch.float32)


# Frames with one value more than 32-bit offsets reach, in or out; two halves of it as two frames are welcome.
TOO_LARGE = [
    ("frame_input", {"frames": m(1, 2**15, 2**14, 3), "gain": v(3), "offset": v(3), "dtype": torch.float16}),
    ("head", {"x": m(1, 2**13, 2**12, 4), "weight": m(9, 64, 64), "bias": v(64), "slopes": v(64)}),
    ("conv3x3", {"x": m(1, 2**13, 2**12, 64), "weight": m(9, 64, 16), "bias": v(16)}),
    ("conv3x3", {"x": m(1, 2**13, 2**12, 16), "weight": m(9, 16, 64), "bias": v(64)}),
    (
        "conv3x3_shuffle",
        {"x": m(1, 2**12, 2**11, 64), "weight": m(9, 64, 256), "bias": v(256), "slopes": v(64)},
    ),
    (
        "tail",
        {
            "x": m(1, 2**12, 2**11, 256),
            "weight": m(25, 256, 12),
            "bias": v(12),
            "gain": v(3),
            "offset": v(3),
            "r": 2,
            "dtype": torch.uint8,
        },
    ),
    ("pixelshuffle_prelu", {"x": m(1, 2**12, 2**11, 256), "slopes": v(64)}),
    ("quantise_int8", {"x": m(1, 2**13, 2**12, 64), "inverse": 1.0}),
    (
        "conv3x3_int8",
        {
            "x": m(1, 2**12, 2**11, 64, dtype=torch.int8),
            "weight": m(9, 64, 256, dtype=torch.int8),
            "gain": v(256),
            "bias": v(256),
            "dtype": torch.int8,
            "r": 2,
        },
    ),
    ("conv3x3_stats", {"x": m(1, 2**13, 2**12, 64), "weight": m(16, 3, 3, 64), "stride": 2}),
    ("conv3x3_stats", {"x": m(1, 2**13, 2**12, 16), "weight": m(64, 3, 3, 16)}),
    (
        "batchnorm_act",
        {"x": m(1, 2**13, 2**12, 64), **{name: v(64) for name in ("mean", "variance", "gamma", "beta")}},
    ),
    (
        "training_crops",
        {
            "pixels": m(48, dtype=torch.uint8),
            "table": m(1, 3, dtype=torch.int64),
            "draws": m(1, 4, dtype=torch.int64),
            "lr": m(1, 2**13, 2**13, 3, dtype=torch.float32),
            "crop": 2**15,
            "scale": 4,
        },
    ),
    # Their rows are found by 64-bit offsets.
    (
        "yuv_to_rgb",
        {"y": m(1, 2**30), "u": None, "v": None, "matrix": "bt709", "full": True, "depth": 8, "siting": "left"}
        | {"dtype": torch.uint8},
    ),
    (
        "rgb_to_yuv",
        {"rgb": m(1, 2**30, 3), "matrix": "bt709", "full": True, "depth": 8, "subsampling": "444", "siting": "left"}
        | {"dtype": torch.uint8},
    ),
]


@pytest.mark.parametrize(("op", "arguments"), TOO_LARGE)
def test_frames_beyond_32_bit_offsets_are_refused(op: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected frames of at most 2147483647 values, .* cut them into tiles"):
        kernels.load(op).run(**arguments)


def test_the_limit_counts_a_frame_and_not_a_batch() -> None:
    """Frames are found by 64-bit offsets; shapes alone are looked at, no memory is needed."""
    assert kernels.contract.output_for(m(4, 2**12, 2**11, 64), None, 4, 2**12, 2**11, 64).shape[0] == 4


def test_batches_beyond_32_bit_offsets_are_refused_where_they_are_one() -> None:
    """The kernels for training look at all frames of a batch as one row of pixels."""
    batch, vector = m(4, 2**12, 2**11, 64), v(64)
    said = r"expected .* of at most 2147483647 values in all, got \[4, 4096, 2048, 64\]; take a smaller batch"
    norm, conv = kernels.load("batchnorm_act"), kernels.load("conv3x3_stats")
    for call in (
        lambda: conv.run(batch, m(16, 3, 3, 64)),
        lambda: conv.run(m(4, 2**12, 2**11, 16), m(64, 3, 3, 16)),
        lambda: norm.run(batch, vector, vector, vector, vector),
        lambda: norm.backward(batch, vector, vector, vector, vector, batch),
        lambda: norm.statistics(batch),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_sums_of_rows_beyond_32_bit_offsets_are_not_made() -> None:
    """The two-kernel tail writes more values than it reads or returns; it gives way where they are too many."""
    tail = kernels.load("tail")
    assert tail.row_sums_fit(5000, 5000, 60)
    assert not tail.row_sums_fit(6000, 6000, 60)
    weight = m(25, 16, 12)
    with assumed(90):
        assert tail.rows_weight(weight).shape == (5, 16, 60)
        assert tail.rows_weight(m(25, 16, 48)) is None
        assert tail.rows_weight(m(1, 16, 12)) is None
    with assumed(80):
        assert tail.rows_weight(weight) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_weight": f(5, 256, 12)}, r"expected row_weight of shape \[5, 256, 60\], got \[5, 256, 12\]"),
        (
            {"row_weight": f(5, 256, 60, dtype=torch.float16)},
            r"expected row_weight in torch.float32, got torch.float16",
        ),
        ({"row_sums": f(1, 17, 9, 60).transpose(1, 2)}, r"expected contiguous row_weight and row_sums, got strides"),
        ({"row_sums": f(1, 9, 16, 60)}, r"expected row_sums of shape \[1, 9, 17, 60\], got \[1, 9, 16, 60\]"),
        ({"row_sums": f(1, 9, 17, 60, dtype=torch.float16)}, r"expected row_sums in torch.float32, got torch.float16"),
    ],
)
def test_what_the_two_kernel_tail_is_lent_has_to_fit(change: dict[str, Any], message: str) -> None:
    pytest.importorskip("triton")
    with assumed(90), pytest.raises(ValueError, match=message):
        kernels.load("tail").run(**first_case("tail") | change)


# ---- as torch sees them


def op_cases() -> list[object]:
    return [
        pytest.param(op, case, id=f"{op}: {case.name}")
        for op in kernels.OPS
        # One ordinary case and one of views: a trace of each takes a second.
        for case in (kernels.load(op).CASES[1], kernels.load(op).CASES[-1])
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("op", "case"), op_cases())
def test_operator_is_what_it_says(op: str, case: Case, device: str) -> None:
    """Schema, fake result, autograd and tracing with symbolic shapes, by torch's own check."""
    arguments = case.inputs(device, torch.float32)
    if op in ("conv3x3_stats", "batchnorm_act", "pixelshuffle_prelu"):
        constants = ("mean", "variance")
        arguments = {
            name: v.requires_grad_() if isinstance(v, Tensor) and name not in constants else v
            for name, v in arguments.items()
        }
    if op == "conv3x3_stats":
        # As an operator it returns them.
        arguments = {name: v for name, v in arguments.items() if name not in kernels.load(op).RESULTS}
    torch.library.opcheck(getattr(kernels.load(op), op), (), arguments)


@pytest.mark.parametrize("device", DEVICES)
def test_backward_operator_is_what_it_says(device: str) -> None:
    package = kernels.load("pixelshuffle_prelu")
    x, slopes = torch.randn(1, 3, 2, 64, device=device), torch.randn(16, device=device)
    torch.library.opcheck(package._backward_op, (x, slopes, torch.randn(1, 6, 4, 16, device=device), 2))


@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("what", ["reference", "pixelshuffle_prelu"])
def test_gradcheck_in_float64(what: str, r: int) -> None:
    package = kernels.load("pixelshuffle_prelu")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 3 * r * r, generator=generator, dtype=torch.float64)
    # Away from the kink at zero, where finite differences mean nothing.
    x = (x + 0.1 * x.sign()).requires_grad_()
    slopes = torch.tensor([0.25, -0.5, 1.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, slopes: getattr(package, what)(x, slopes, r), (x, slopes))


# What others work on are no maps [n, h, w, c]; see the test below and `test_colour_kernels.py`.
FRAMED = [op for op in kernels.OPS if op not in ("training_crops", "yuv_to_rgb", "rgb_to_yuv")]


@pytest.mark.parametrize("op", FRAMED)
def test_cases_cover_what_breaks_kernels(op: str) -> None:
    """Odd sizes, one pixel, channels that fill no block, several frames, extremes, views."""
    cases = kernels.load(op).CASES
    given = [case.inputs("cpu", torch.float32) for case in cases]
    frames = [arguments["frames" if op == "frame_input" else "x"] for arguments in given]
    assert any(x.shape[1:3] == (1, 1) for x in frames)
    assert any(x.shape[1] % 2 and x.shape[2] % 2 and x.shape[1] > 1 for x in frames)
    assert any(x.shape[0] > 1 for x in frames)
    assert any(not x.is_contiguous() for x in frames)
    if op != "frame_input":
        large = [float(x.float().abs().max()) > 50 for x in frames if x.is_floating_point() or x.dtype == torch.int8]
        assert any(large), "no case has large values"
        widths = {
            arguments["weight"].shape[-1] if "weight" in arguments else x.shape[-1]
            for arguments, x in zip(given, frames, strict=True)
        }
        assert any(width & (width - 1) for width in widths), "every width is a power of two"
    for case in cases:
        assert case.floor is None or case.reason, f"{case.name} is looser and does not say why"
    assert len({case.name for case in cases}) == len(cases)
    if op in ("head", "conv3x3", "conv3x3_shuffle", "pixelshuffle_prelu", "conv3x3_int8", "batchnorm_act"):
        slopes = torch.cat([arguments["slopes"] for arguments in given if "slopes" in arguments])
        assert slopes.min() < 0
        assert slopes.max() > 1
        assert (slopes == 0).any()


def test_cases_cover_what_breaks_crops() -> None:
    """Every scale, every turn, every border, several images, one LR pixel, extremes, views, pairs."""
    cases = kernels.load("training_crops").CASES
    given = [case.inputs("cpu", torch.float32) for case in cases]
    assert {arguments["scale"] for arguments in given} == {2, 4, 8}
    assert {arguments["lows"] is None for arguments in given} == {False, True}
    assert any(arguments["crop"] == arguments["scale"] for arguments in given)
    assert any(len(arguments["table"]) > 1 for arguments in given)
    assert any(not arguments["pixels"].is_contiguous() for arguments in given)
    for arguments in given:
        assert (arguments["pixels"] == 0).any()
        assert (arguments["pixels"] == 255).any()
        table, scale = arguments["table"] if arguments["lows"] is None else arguments["lows"], arguments["scale"]
        image, y, x, _ = arguments["draws"].unbind(1)
        size = arguments["crop"] if arguments["lows"] is None else arguments["crop"] // scale
        assert (y + size <= table[image, 1]).all()
        assert (x + size <= table[image, 2]).all()
    for pairs in (False, True):
        alike = [arguments for arguments in given if (arguments["lows"] is not None) == pairs]
        assert {int(t) for arguments in alike for t in arguments["draws"][:, 3]} == set(range(8))
    assert len({case.name for case in cases}) == len(cases)


# ---- the cut into tiles


def is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@settings(max_examples=400, deadline=None)
@given(
    sm=st.sampled_from([*ARCHITECTURES, 87, 103, 121, 130]),
    processors=st.integers(1, 200),
    frames=st.integers(1, 64),
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    cin=st.sampled_from([16, 32, 64, 128, 256]) | st.integers(1, 600),
    cout=st.sampled_from([16, 32, 64, 128, 256]) | st.integers(1, 1200),
    itemsize=st.sampled_from([1, 2, 4]),
)
def test_tiles_fit_every_shape(
    sm: int, processors: int, frames: int, height: int, width: int, cin: int, cout: int, itemsize: int
) -> None:
    tiles = choose(sm, processors, frames, height, width, cin, cout, itemsize)
    known = nearest_architecture(sm)
    assert known in SHARED_LIMIT_KIB
    assert known <= sm
    blocks = (tiles.rows, tiles.columns, tiles.outputs, tiles.inputs, tiles.num_warps)
    assert all(is_power_of_two(size) for size in blocks)
    # The least that a matrix instruction takes: 16 by 16 on Ampere, 64 rows for a warp group on Hopper.
    assert tiles.outputs >= 16
    assert tiles.inputs >= 16
    assert tiles.rows * tiles.columns >= 64
    assert tiles.num_warps in (4, 8)
    # No block is larger than its shape needs.
    assert tiles.outputs < 2 * max(cout, 16)
    # Of int8, a product takes 32.
    assert tiles.inputs < 2 * max(cin, 32 if itemsize == 1 else 16)
    assert itemsize > 1 or tiles.inputs >= 32
    shared = tiles.num_stages * (tiles.rows * tiles.columns + tiles.outputs) * tiles.inputs * itemsize
    # A descriptor kernel has its residual and its result pass through shared memory as well.
    shared += tiles.descriptors * 2 * tiles.rows * tiles.columns * tiles.outputs * itemsize
    assert shared + SHARED_BYTES_BESIDES <= SHARED_LIMIT_KIB[known] * 1024
    if tiles.descriptors:
        assert known in (90, 100)
        assert cin * itemsize % 16 == 0
        assert cout * itemsize % 16 == 0
        assert cin == tiles.inputs
        assert cout % tiles.outputs == 0
        assert max(tiles.rows, tiles.columns, tiles.outputs, cin) <= 256  # a side of a descriptor's box


def test_a_gpu_that_is_newer_or_older_than_the_table() -> None:
    assert [nearest_architecture(sm) for sm in (75, 87, 103, 121, 200)] == [80, 86, 100, 120, 120]


def test_small_frames_get_small_tiles_and_large_ones_do_not() -> None:
    for sm in ARCHITECTURES:
        large = choose(sm, 132, 1, 1080, 1920, 64, 64, 2)
        small = choose(sm, 132, 1, 24, 24, 64, 64, 2)
        assert large.rows == 8
        assert small.rows == 4
        assert small.num_warps <= large.num_warps


def test_tiles_for_asks_the_device_of_the_frames() -> None:
    x = torch.empty(1, 24, 24, 64, dtype=torch.float16, device="meta")
    with assumed(90, 132):
        assert launch.tiles_for(x, 64) == choose(90, 132, 1, 24, 24, 64, 64, 2)
        assert launch.processors(x.device) == 132
