"""The kernels for sm_90a on a Hopper GPU: what the emulator shows elsewhere, shown on the hardware."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srgan_fast import kernels
from srgan_fast.backends.fused import FusedBackend
from srgan_fast.backends.program import run_all
from srgan_fast.kernels import hopper
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.parity import check_op
from srgan_fast.weights import load

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu() -> torch.device:
    device = torch.device("cuda", torch.cuda.current_device())
    reason = hopper.why_not(device)
    if kernels.architecture(device) != hopper.SM:
        pytest.skip("not a Hopper GPU")
    assert reason is None, reason
    return device


def test_a_layout_of_the_tiles_is_read_rightly(gpu: torch.device) -> None:
    runtime = hopper.runtime_for(gpu)
    assert runtime is not None
    print("wrong values by layout:", sm90.wrong_values(runtime))
    assert sm90.preferred_layout(runtime) is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", kernels.ON_HOPPER)
def test_every_case_holds_and_no_kernel_is_left_out(op: str, dtype: torch.dtype, gpu: torch.device) -> None:
    with kernels.only("sm90"):
        reports = check_op(op, str(gpu), dtype)
    assert [f"{name}: {report}" for name, report in reports if not report.passed] == []
    assert hopper.failures(gpu) == []


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 270, 480), (3, 37, 131)])
def test_a_replay_equals_the_launches_one_by_one(size: tuple[int, int, int], gpu: torch.device) -> None:
    n, height, width = size
    with kernels.only("sm90"):
        backend = FusedBackend(load("srresnet_x4"), str(gpu), "fp16")
        random = torch.Generator().manual_seed(0)
        frames = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=random).to(gpu)
        replayed = torch.empty(n, 4 * height, 4 * width, 3, dtype=torch.uint8, device=gpu)
        for _ in range(3):
            replayed.zero_()
            backend.run(frames, replayed, height)
        calls, views = backend.bound(n, height, width, torch.uint8)
        views["frames"].copy_(frames)
        torch.cuda.synchronize(gpu)
        run_all(calls)
        torch.cuda.synchronize(gpu)
        assert torch.equal(views["pixels"], replayed)


def test_an_error_of_a_kernel_names_the_op_and_the_shape(gpu: torch.device) -> None:
    # An illegal address ends a process's use of the GPU, so it happens in another one.
    child = """
import torch
from srgan_fast import kernels
from srgan_fast.kernels import hopper
from srgan_fast.kernels.cases import Draw
draw = Draw("cuda", torch.float16)
x, weight, bias = draw.normal(1, 9, 17, 64), draw.weight(9, 64, 64), draw.vector(64)
offer = kernels.load("conv3x3").sm90.offer("conv3x3", x, weight, bias, None, None, torch.empty_like(x))
hopper._memory(offer.runtime).trusted[offer.kernels[0].source] = None
bias.data_ptr = lambda: 16
with kernels.only("sm90"):
    kernels.load("conv3x3").run(x, weight, bias)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode != 0
    assert "DriverError: conv3x3 of 1x9x17" in done.stderr, done.stderr


def test_a_capture_of_what_has_not_run_yet_finds_nothing_out(gpu: torch.device) -> None:
    """A check or a timing inside would be captured too, or break the capture: the Triton kernel runs instead."""
    op = kernels.load("conv3x3")
    arguments = next(case for case in op.CASES if case.name == "1x9x17, 64 to 64, slopes channel").inputs(
        str(gpu), torch.float16
    )
    arguments["x"] = arguments["x"].repeat(1, 3, 5, 1)  # a shape that no other test has
    with kernels.only("triton"):
        want = op.run(**arguments)
    before, out = hopper.calls(gpu), torch.empty_like(want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op.run(**arguments, out=out)
    graph.replay()
    assert torch.equal(out, want)
    assert hopper.calls(gpu) == before
