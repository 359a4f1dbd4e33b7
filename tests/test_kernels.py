"""Every op against its reference: on the CPU through Triton's interpreter, on a GPU as it is.

The same tests run on both. The interpreter multiplies the bit patterns of bfloat16 as if they were integers (Triton 3.6
to 3.9), so bfloat16 is held to its reference on a GPU only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ahead_of_time import assumed
from op_parity import FLOATS, Guarded, case_of, judge, judge_backward, name_of

from srgan_fast import kernels
from srgan_fast.kernels import parity
from srgan_fast.kernels.cases import Case, in_double


def places() -> list[Any]:
    """Device and dtype, by marker."""
    interpreted = [
        pytest.param("cpu", dtype, marks=pytest.mark.interpreter, id=f"interpreter-{name_of(dtype)}")
        for dtype in FLOATS[:2]
    ]
    native = [pytest.param("cuda", dtype, marks=pytest.mark.gpu, id=f"gpu-{name_of(dtype)}") for dtype in FLOATS]
    return [*interpreted, *native]


everywhere = pytest.mark.parametrize(("device", "dtype"), places())
half_everywhere = pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)],
)


def op_cases(*ops: str) -> list[object]:
    return [pytest.param(op, case, id=f"{op}: {case.name}") for op in ops for case in kernels.load(op).CASES]


def cases_everywhere(*ops: str, usual: torch.dtype) -> pytest.MarkDecorator:
    """Every case everywhere. Interpreted it is long in a dtype other than the usual one, but for an op's first case."""
    found = []
    for op in ops:
        for number, case in enumerate(kernels.load(op).CASES):
            for place in places():
                device, dtype = place.values
                long = device == "cpu" and dtype != usual and number > 0
                marks = [*place.marks, *[pytest.mark.slow] * long]
                found.append(pytest.param(op, case, *place.values, marks=marks, id=f"{op}: {case.name}-{place.id}"))
    return pytest.mark.parametrize(("op", "case", "device", "dtype"), found)


@pytest.fixture
def hopper(device: str) -> Iterator[None]:
    """Tiles and kernels of sm_90, which the interpreter can pretend to be and a GPU has to be."""
    if device == "cpu":
        with assumed(90):
            yield
    elif kernels.architecture(torch.device(device)) in (90, 100):
        yield
    else:
        pytest.skip("this GPU takes the pointer kernels, which are tested by themselves")


@pytest.fixture
def ampere() -> Iterator[None]:
    """Tiles and kernels of sm_80, which every later GPU runs too."""
    with assumed(80):
        yield


@cases_everywhere(*kernels.OPS, usual=torch.float16)
@pytest.mark.usefixtures("ampere")
def test_op_equals_its_reference(op: str, case: Case, device: str, dtype: torch.dtype) -> None:
    """By pointers and in one kernel: what runs on every architecture."""
    judgement = judge(op, case, device, dtype)
    assert judgement.passed, judgement


@cases_everywhere("conv3x3", "tail", usual=torch.float16)
@pytest.mark.usefixtures("hopper")
def test_op_equals_its_reference_on_hopper(op: str, case: Case, device: str, dtype: torch.dtype) -> None:
    """By tensor descriptors, and the tail in two kernels."""
    judgement = judge(op, case, device, dtype)
    assert judgement.passed, judgement


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
@pytest.mark.parametrize(("op", "case"), op_cases("head", "conv3x3_shuffle"))
def test_op_equals_its_reference_on_this_gpu(op: str, case: Case, dtype: torch.dtype) -> None:
    """With the tiles that are chosen for the GPU that is there."""
    judgement = judge(op, case, "cuda", dtype)
    assert judgement.passed, judgement


@pytest.mark.interpreter
@pytest.mark.parametrize(
    # Persistent programs are Hopper's alone: on sm_80 few processors change no tile of such small frames.
    ("sm", "processors"),
    [pytest.param(80, 3, marks=pytest.mark.slow), (80, 1000), (90, 3), (90, 1000)],
)
@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("head", "1x7x6, 9x9 to 36"),
        ("conv3x3", "1x9x17, 64 to 64, slopes channel"),
        ("conv3x3", "1x3x7, 64 to 256, slopes channel"),
        ("conv3x3_shuffle", "2x3x5, 16 to 16, x2"),
        ("tail", "2x6x5x64, 5x5, x2, float32"),
        ("conv3x3_stats", "2x10x11, 16 to 16, bias 30, values of 0.1"),
        ("batchnorm_act", "2x9x7, 64 channels, slope channel, skip"),
    ],
)
def test_a_finer_cut_changes_nothing(op: str, name: str, sm: int, processors: int) -> None:
    """GPUs of some multiprocessors: smaller tiles, and persistent programs that take several or none."""
    with assumed(sm, processors):
        judgement = judge(op, case_of(op, name), "cpu", torch.float16)
    assert judgement.passed, judgement


@everywhere
@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("name", ["2x8x16, 64 to 64, residual", "1x7x5, 16 to 16, slopes -0.5, residual"])
def test_conv3x3_writes_over_its_residual(name: str, device: str, dtype: torch.dtype) -> None:
    check_residual_in_place(name, device, dtype)


@everywhere
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("name", ["2x8x16, 64 to 64, residual", "1x7x5, 16 to 16, slopes -0.5, residual"])
def test_conv3x3_writes_over_its_residual_on_hopper(name: str, device: str, dtype: torch.dtype) -> None:
    check_residual_in_place(name, device, dtype)


def check_residual_in_place(name: str, device: str, dtype: torch.dtype) -> None:
    package = kernels.load("conv3x3")
    arguments = case_of("conv3x3", name).inputs(device, dtype)
    plain, truth = package.reference(**arguments), package.reference(**in_double(arguments))
    memory = Guarded(plain, 7.0)
    residual = memory.inside.copy_(arguments["residual"])
    result = package.run(**arguments | {"residual": residual}, out=residual)
    assert result is residual
    report = parity.compare(result, plain, truth, dtype)
    assert report.passed, report
    assert not memory.problems()


@everywhere
@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("which", ["x", "weight", "residual", "out"])
def test_conv3x3_takes_memory_that_descriptors_cannot(which: str, device: str, dtype: torch.dtype) -> None:
    """A view that starts between two 16-byte words, as a slice of a larger buffer may."""
    package = kernels.load("conv3x3")
    arguments = case_of("conv3x3", "1x7x5, 16 to 16, slopes -0.5, residual").inputs(device, dtype)
    plain, truth = package.reference(**arguments), package.reference(**in_double(arguments))
    arguments["out"] = torch.full_like(plain, float("nan"), memory_format=torch.contiguous_format)
    kept = arguments[which]
    arguments[which] = torch.cat([kept.new_zeros(1), kept.reshape(-1)])[1:].view(kept.shape)
    assert arguments[which].data_ptr() % 16
    report = parity.compare(package.run(**arguments), plain, truth, dtype)
    assert report.passed, report


@half_everywhere
def test_tail_keeps_a_nan(device: str) -> None:
    """A float frame shows what went wrong before it; a self-check depends on that."""
    package = kernels.load("tail")
    arguments = case_of("tail", "2x6x5x64, 5x5, x2, float32").inputs(device, torch.float16)
    arguments["x"][0, 0, 0, 0] = float("nan")
    for sm in (80, 90) if device == "cpu" else (80,):
        with assumed(sm):
            result = package.run(**arguments)
        # The 5x5 window around the first map reaches 3 x 3 maps of the frame, so 6 x 6 pixels.
        assert torch.isnan(result[0, :6, :6]).all()
        assert not torch.isnan(result[1]).any()
        assert int(torch.isnan(result).sum()) == 6 * 6 * 3


@pytest.mark.interpreter
@pytest.mark.usefixtures("ampere")
def test_crops_come_from_beyond_32_bit_offsets() -> None:
    """Of 2 GiB only the pages of the last image are ever touched."""
    package = kernels.load("training_crops")
    arguments = case_of("training_crops", "x4, behind other bytes").inputs("cpu", torch.float32)
    image, beyond = arguments["pixels"][1001:], 2**31 + 1001
    pixels = torch.empty(beyond + len(image), dtype=torch.uint8)
    pixels[beyond:] = image
    far = arguments | {
        "pixels": pixels,
        "table": arguments["table"] + torch.tensor([2**31, 0, 0]),
        "lr": torch.zeros_like(arguments["lr"]),
    }
    assert torch.equal(package.run(**far), package.reference(**arguments))
    assert torch.equal(far["lr"], arguments["lr"])


@cases_everywhere("pixelshuffle_prelu", "batchnorm_act", usual=torch.float32)
@pytest.mark.usefixtures("ampere")
def test_gradients_equal_those_of_the_reference(op: str, case: Case, device: str, dtype: torch.dtype) -> None:
    for name, judgement in judge_backward(op, case, device, dtype).items():
        assert judgement.passed, f"{name}: {judgement}"


@half_everywhere
def test_gradients_flow_through_the_operator(device: str) -> None:
    package = kernels.load("pixelshuffle_prelu")
    given = case_of("pixelshuffle_prelu", "1x2x3, 16 channels, x3").inputs(device, torch.float32)
    x, slopes = given["x"].requires_grad_(), given["slopes"].requires_grad_()
    y = package.pixelshuffle_prelu(x, slopes, 3)
    dx, dslopes = torch.autograd.grad(y.square().sum(), (x, slopes))
    wanted = package.backward(x.detach(), slopes.detach(), 2 * y.detach(), 3)
    torch.testing.assert_close((dx, dslopes), wanted, rtol=0, atol=0)


@half_everywhere
def test_gradients_at_zero_are_those_of_pytorch(device: str) -> None:
    package = kernels.load("pixelshuffle_prelu")
    x = torch.zeros(1, 2, 2, 64, device=device)
    slopes = torch.full((16,), 0.25, device=device)
    dy = torch.ones(1, 4, 4, 16, device=device)
    dx, dslopes = package.backward(x, slopes, dy)
    assert torch.equal(dx, torch.full_like(x, 0.25))
    assert torch.equal(dslopes, torch.zeros_like(slopes))


@half_everywhere
def test_the_sum_of_gradients_has_one_order(device: str) -> None:
    case = case_of("pixelshuffle_prelu", "2x9x7, 64 channels, x2")
    package, given = kernels.load("pixelshuffle_prelu"), case.inputs(device, torch.float32)
    dy = torch.randn(2, 18, 14, 64, generator=torch.Generator().manual_seed(2)).to(device)
    first, second = (package.backward(given["x"], given["slopes"], dy) for _ in range(2))
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("op", "argument", "dtype"),
    [
        *((op, "bias", torch.float16) for op in ("head", "tail", "conv3x3_shuffle")),
        *((op, "slopes", torch.float16) for op in ("head", "conv3x3_shuffle")),
        *((op, name, torch.float64) for op in ("frame_input", "tail") for name in ("gain", "offset")),
        *((op, name, torch.int32) for op, name in (("frame_input", "frames"), ("head", "x"), ("tail", "dtype"))),
    ],
)
def test_dtypes_that_a_kernel_would_misread_are_refused(op: str, argument: str, dtype: torch.dtype) -> None:
    """Hand-written kernels have addresses alone: a vector of 16 bits would be read as one of 32, beyond its end."""
    case = kernels.load(op).CASES[-2 if op == "head" else 1]
    arguments = case.inputs("cpu", torch.float32)
    value = arguments[argument]
    arguments[argument] = value.to(dtype) if isinstance(value, torch.Tensor) else dtype
    with pytest.raises(ValueError, match=rf"^expected (a )?\w+ in .*, got {dtype}$"):
        kernels.load(op).run(**arguments)
