"""TensorRT itself, on a machine that has it beside a GPU: what its double stands for in all other tests."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from srgan_fast import Upscaler
from srgan_fast.backends.selfcheck import check_frames
from srgan_fast.backends.tensorrt import PRECISIONS
from srgan_fast.bench.engine import judge
from srgan_fast.bench.parts import host_waits
from srgan_fast.errors import BackendUnavailable, Interrupted
from srgan_fast.export import Options, onnx_bytes
from srgan_fast.kernels.parity import agree
from srgan_fast.tensorrt import engines
from srgan_fast.tensorrt.build import build
from srgan_fast.tensorrt.session import Engine
from srgan_fast.weights import load

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

MODEL = "srresnet_x4_small"
OPTIONS = engines.options(4, largest=(96, 64), sizes=((48, 32),), batch=2, level=0)


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, engines.Pair]]:
    """Engines of both precisions in a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRGAN_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        model = load(MODEL)
        yield {
            precision: engines.build(
                model, precision, OPTIONS, "cuda", judge=judge(model, precision, "cuda", lambda said: None)
            )[0]
            for precision in PRECISIONS
        }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32])
def test_frames_of_every_size_are_eagers(precision: str, dtype: torch.dtype) -> None:
    """One pixel, odd, of the fixed size, a batch, and larger than the engine takes, which is cut."""
    fast = Upscaler(MODEL, backend="tensorrt", device="cuda", precision=precision)
    exact = Upscaler(MODEL, backend="eager", device="cuda", precision="fp32")
    levels = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    results = []
    for height, width in ((1, 1), (33, 17), (32, 48), (64, 96), (150, 210)):
        frames = check_frames(height, width).cuda()
        given = (frames * levels).round().to(torch.int32).to(dtype) if levels > 1 else frames.to(dtype)
        results.append((fast(given, layout="NHWC"), exact(given.float() / levels, layout="NHWC")))
    # Compared at the end: what is a view of memory that the next frame takes would be wrong by now.
    for got, want in results:
        # Half a level of uint8 is rounding.
        near = agree(got.float() / levels, want, "fp16" if dtype == torch.uint8 else precision)
        assert near.passed or (dtype == torch.uint8 and near.psnr_db > 55), near


def test_a_frame_waits_for_nothing() -> None:
    upscaler = Upscaler(MODEL, backend="tensorrt", device="cuda", precision="fp16")
    frames = torch.zeros(1, 32, 48, 3, dtype=torch.uint8, device="cuda")
    assert host_waits(lambda: upscaler(frames, layout="NHWC")) == []


def test_callers_on_their_own_streams() -> None:
    """Several threads, each with a stream of its own and frames that are only just being written on it."""
    upscaler = Upscaler(MODEL, backend="tensorrt", device="cuda", precision="fp16")
    given = [(check_frames(30 + i, 50) * 255).to(torch.uint8).cuda() for i in range(4)]
    wants = [upscaler(frames) for frames in given]
    torch.cuda.synchronize()
    right: list[int] = []

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                late = torch.zeros_like(given[i])
                torch.cuda._sleep(200_000)
                late.copy_(given[i])
                right.append(torch.equal(upscaler(late), wants[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80


def test_memory_is_that_of_the_frames(built: dict[str, engines.Pair]) -> None:
    """A small frame takes that of a small frame, not of the largest, and many frames take no more than one."""
    engine = Engine(built["fp16"].plans["uint8"], "cuda")
    assert engine.size_bytes((1, 8, 12)) < engine.size_bytes((2, 64, 96)) / 8
    frames = torch.zeros(2, 64, 96, 3, dtype=torch.uint8, device="cuda")
    out = torch.empty(2, 256, 384, 3, dtype=torch.uint8, device="cuda")
    engine.run(frames, out)
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    for _ in range(200):
        engine.run(frames, out)
    torch.cuda.synchronize()
    assert free - torch.cuda.mem_get_info()[0] < 4 << 20
    assert engine.reusable_bytes == engine.size_bytes((2, 64, 96))


def test_damaged_plans_and_graphs_are_refused(built: dict[str, engines.Pair]) -> None:
    plan = built["fp16"].plans["uint8"]
    for damaged in (b"", plan[:1000], plan[: len(plan) // 2]):
        with pytest.raises(BackendUnavailable, match="cannot load this engine"):
            Engine(damaged, "cuda")
    onnx_graph = onnx_bytes(load(MODEL), Options("fp16", "uint8"))
    with pytest.raises(BackendUnavailable, match="cannot read the network"):
        build(onnx_graph[:2000], OPTIONS, device="cuda", precision="fp16")
    with pytest.raises(BackendUnavailable, match="expected a network in fp32"):
        build(onnx_graph, OPTIONS, device="cuda", precision="fp32")
    assert build(onnx_graph, OPTIONS, device="cuda", precision="fp16", timing=b"not a timing cache").timing


def test_another_process_finds_the_engine(built: dict[str, engines.Pair]) -> None:
    code = (
        "from srgan_fast import Upscaler\n"
        f"print(Upscaler({MODEL!r}, backend='tensorrt', device='cuda', precision='fp16')._backend.engine)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout.strip() == built["fp16"].entry.key, done.stderr


def test_a_build_can_be_stopped(tmp_path: Path) -> None:
    class Stop:
        def phase(self, name: str, parent: str | None, steps: int) -> None:
            pass

        def step(self, name: str, i: int) -> bool:
            return False

        def done(self, name: str) -> None:
            pass

    with pytest.raises(Interrupted):
        engines.build(
            load(MODEL),
            "fp16",
            OPTIONS,
            "cuda",
            judge=lambda pair: pytest.fail("built"),
            where=tmp_path,
            progress=Stop(),
        )
    assert not list(tmp_path.iterdir())


def test_check_passes(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("trt", "check", MODEL)
    assert code == 0, out + err
