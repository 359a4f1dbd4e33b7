"""TensorRT without TensorRT: engines run over a double of the library, and the backend that is made of two of them."""

from __future__ import annotations

import inspect
import logging
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_runtime
import fake_tensorrt
import numpy as np
import onnx
import pytest
import torch
from models import model_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from srgan_fast import Upscaler, backends, graph, weights
from srgan_fast.backends.eager import EagerBackend
from srgan_fast.backends.tensorrt import TensorRTBackend
from srgan_fast.errors import BackendUnavailable, ShapeError, UsageError
from srgan_fast.export import Options, onnx_bytes
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.tensorrt import engines, library, session
from srgan_fast.tensorrt.build import BuildOptions, Profile, build
from srgan_fast.tensorrt.session import Engine

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = BuildOptions((Profile((1, 1, 1), (1, 16, 24), (2, 40, 48)), Profile((1, 30, 40), (2, 30, 40), (2, 30, 40))))
DTYPES = {"uint8": torch.uint8, "float": torch.float32}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    return model_of(Generator(GeneratorConfig(blocks=1, width=8)), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def graphs(model: weights.Model) -> dict[str, bytes]:
    return {frames: onnx_bytes(model, Options("fp32", frames)) for frames in ("uint8", "float")}


def plan_of(onnx_graph: bytes) -> bytes:
    return build(onnx_graph, OPTIONS, device="cpu", precision="fp32").plan


def lr_frames(dtype: torch.dtype, n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    if dtype == torch.uint16:
        return (pixels.to(torch.int32) * 257).to(dtype)
    return pixels if dtype == torch.uint8 else (pixels / 255).to(dtype)


def picture(engine: Any, lr: Tensor) -> Tensor:
    n, height, width, _ = lr.shape
    out = torch.full((n, 4 * height, 4 * width, 3), 99, dtype=lr.dtype)
    engine.run(lr, out)
    return out


def expect_equal(got: Tensor, lr: Tensor, eager: EagerBackend) -> None:
    """The picture of eager, up to the rounding of sums in another order."""
    want = torch.empty(got.shape, dtype=got.dtype)
    eager.run(lr, want, lr.shape[1])
    off = (got.double() - want.double()).abs()
    assert off.max() <= (1e-5 if got.dtype.is_floating_point else 1)
    assert (off > 1e-5).double().mean() <= 1e-3


# --- what an engine has to keep: each of these is held against engines that are broken on purpose, further below


class OneStream:
    """A GPU's stream that is acted: what is done on it, and what not, in the order in which it is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.inside = False
        self.kept: tuple[Tensor, ...] = ()
        stream, outer = types.SimpleNamespace(cuda_stream=77, synchronize=lambda: self.note("waited")), self

        class Ordered:
            def __init__(self, given: object, tensors: tuple[Tensor, ...]) -> None:
                assert given is stream
                outer.kept = tensors

            def __enter__(self) -> None:
                outer.inside = True

            def __exit__(self, *error: object) -> None:
                outer.inside = False

        class Copies(TorchDispatchMode):
            @classmethod
            def _should_skip_dynamo(cls) -> bool:
                return False  # True would load torch._dynamo, which takes seconds

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if func is torch.ops.aten.copy_.default:
                    outer.note("copied")
                return func(*args, **(kwargs or {}))

        self.watched = Copies
        monkeypatch.setattr(graph, "stream_for", lambda device: stream)
        monkeypatch.setattr(graph, "Ordered", Ordered)

    def note(self, what: str) -> None:
        self.events.append(what if self.inside or what == "waited" else f"{what} elsewhere")

    def ran(self, picture: Any) -> Any:
        self.note("ran")
        return picture


class Judges:
    """Each takes the class of an engine, and fails where it does not keep its word."""

    def __init__(
        self, trt: Any, model: weights.Model, graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.trt, self.graphs, self.monkeypatch = trt, graphs, monkeypatch
        self.eager = EagerBackend(model, "cpu", "fp32")

    def all(self) -> list[Callable[[Any], None]]:
        return [self.refusals, self.failures, self.stream, self.sizes, self.pictures]

    def pictures(self, kind: Any) -> None:
        """All sizes and both kinds of frames, over memory that grows, each more than once."""
        for frames, dtype in DTYPES.items():
            engine = kind(plan_of(self.graphs[frames]), "cpu")
            for again in range(2):
                for n, height, width in ((1, 1, 1), (2, 5, 33), (2, 40, 48), (1, 12, 7)):
                    lr = lr_frames(dtype, n, height, width, seed=again)
                    expect_equal(picture(engine, lr), lr, self.eager)
            # A result in memory of another order, as for a caller who wants channels first.
            lr = lr_frames(dtype, 2, 5, 33)
            out = torch.empty(2, 3, 20, 132, dtype=dtype).permute(0, 2, 3, 1)
            engine.run(lr, out)
            expect_equal(out, lr, self.eager)
        assert self.trt.seen.misuses == []

    def sizes(self, kind: Any) -> None:
        """One context and one graph for each size of late, all in one block of memory."""
        engine = kind(plan_of(self.graphs["uint8"]), "cpu")
        lr = [lr_frames(torch.uint8, 1, 4 + i, 9) for i in range(20)]
        contexts = self.trt.seen.contexts
        for each in reversed(lr):
            picture(engine, each)
        assert self.trt.seen.contexts == contexts + len(lr)
        assert self.trt.seen.static_contexts == 0
        assert len(engine._ready) == 16
        assert len({id(ready.context) for ready in engine._ready.values()}) == 16
        assert {ready.out.untyped_storage().data_ptr() for ready in engine._ready.values()} == {
            engine._memory.untyped_storage().data_ptr()
        }
        for each in lr[:16]:
            picture(engine, each)
        assert self.trt.seen.contexts == contexts + len(lr)
        for each in (lr[19], lr[15]):
            expect_equal(picture(engine, each), each, self.eager)
        assert self.trt.seen.contexts == contexts + len(lr) + 1
        assert engine.reusable_bytes == engine.size_bytes((1, 23, 9))
        # The narrowest profile is tuned best.
        for height, profile in ((30, 1), (29, 0)):
            picture(engine, lr_frames(torch.uint8, 2, height, 40))
            assert self.trt.seen.executed[-1] == (0, (2, height, 40, 3), profile)

    def stream(self, kind: Any) -> None:
        """Everything on the engine's own stream, after the caller's, and no context gone before its work is done."""
        with self.monkeypatch.context() as patched:
            acted = OneStream(patched)
            patched.setattr(self.trt.switches, "damage", acted.ran)
            engine = kind(plan_of(self.graphs["uint8"]), "cpu")
            lr, out = lr_frames(torch.uint8, 1, 8, 9), torch.empty(1, 32, 36, 3, dtype=torch.uint8)
            engine.run(lr, out)
            acted.events.clear()
            with acted.watched():
                engine.run(lr, out)
            assert acted.events == ["copied", "ran", "copied"]
            assert [id(each) for each in acted.kept] == [id(lr), id(out)]
            assert {stream for stream, *_ in self.trt.seen.executed[-4:]} == {77}
            # First the memory grows, then there are too many sizes.
            for shapes in ([(1, 20, 20)], [(1, 2, i) for i in range(1, 17)]):
                acted.events.clear()
                for shape in shapes:
                    picture(engine, lr_frames(torch.uint8, *shape))
                assert acted.events.count("waited") == 1
            acted.events.clear()
            del engine
            assert acted.events == ["waited"]
        assert self.trt.seen.misuses == []

    def failures(self, kind: Any) -> None:
        """What TensorRT says of failure by False, None or an exception."""
        plan, lr = plan_of(self.graphs["uint8"]), lr_frames(torch.uint8, 1, 8, 9)
        for switch, value, match in (
            ("no_context", True, "makes no execution context: .*OutOfMemory.*too little GPU memory"),
            ("refused_address", "sr", "takes no address for sr: Error Code 3: no address can be set for sr"),
            ("enqueue_fails", True, "fails to run: Error Code 3: the context is not ready to run"),
            (
                "infer_error",
                "shape inference failed\nand so on",
                r"fails with frames of \(1, 8, 9\): shape inference failed; ",
            ),
        ):
            with self.monkeypatch.context() as patched:
                patched.setattr(self.trt.switches, switch, value)
                engine = kind(plan, "cpu")
                with pytest.raises(BackendUnavailable, match=match) as caught:
                    picture(engine, lr)
                assert "\n" not in str(caught.value)
            picture(engine, lr)

    def refusals(self, kind: Any) -> None:
        """Frames that it does not take."""
        engine = kind(plan_of(self.graphs["float"]), "cpu")
        assert engine.range == ((1, 1, 1), (2, 40, 48))
        for shape, said in {(1, 41, 48): "1 of 48x41", (1, 40, 49): "1 of 49x40", (3, 9, 8): "3 of 8x9"}.items():
            with pytest.raises(ShapeError, match=f"expected 1 to 2 frames from 1x1 to 48x40, got {said}; take smaller"):
                picture(engine, lr_frames(torch.float32, *shape))
        for dtype in (torch.uint8, torch.float16):
            with pytest.raises(ShapeError, match=r"expected frames and out in torch\.float32"):
                picture(engine, lr_frames(dtype, 1, 8, 9))


@pytest.mark.parametrize("judge", [each.__name__ for each in Judges.all(Judges.__new__(Judges))])
def test_an_engine_keeps_its_word(
    judge: str, trt: Any, model: weights.Model, graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    getattr(Judges(trt, model, graphs, monkeypatch), judge)(Engine)


def passes(judge: Callable[[Any], None], kind: Any) -> bool:
    try:
        judge(kind)
    except (Exception, pytest.fail.Exception):
        return False
    return True


FAULTS = {
    "no address is given": ("context.set_tensor_address(name, tensor.data_ptr())", "True"),
    "the result goes where the frames are": (
        "((self._input, lr), (self._output, hr))",
        "((self._input, lr), (self._output, lr))",
    ),
    "no memory is given": ("context.set_device_memory(working.data_ptr(), working.numel())", "pass"),
    "the parts lie on each other": ("start += _aligned(size)", "start += 0"),
    "memory begins anywhere": ("-self._memory.data_ptr() % _ALIGNMENT", "-self._memory.data_ptr() % _ALIGNMENT + 8"),
    "too little memory": ("plan.size_bytes > self._memory.numel()", "self._memory.numel() == 0"),
    "old graphs are kept when memory grows": ("            self._ready.clear()\n", ""),
    "the caller's stream": (
        "with self._enqueue, torch.inference_mode(), self._inside(frames, out):",
        "with self._enqueue, torch.inference_mode():",
    ),
    "the default stream": ("return 0 if self._stream is None else self._stream.cuda_stream", "return 0"),
    "the caller's memory is not kept": ("self._inside(frames, out)", "self._inside(frames)"),
    "a context goes before its work": (
        "            self._settle()\n            self._ready.popitem(last=False)",
        "            self._ready.popitem(last=False)",
    ),
    "memory goes before its work": (
        "            self._settle()\n            self._ready.clear()",
        "            self._ready.clear()",
    ),
    "an engine goes before its work": ("        with suppress(Exception):\n            self._settle()", "        pass"),
    "memory for the largest frames": (
        "trt.ExecutionContextAllocationStrategy.USER_MANAGED",
        "trt.ExecutionContextAllocationStrategy.STATIC",
    ),
    "the graph of another size": (
        "if frames in self._ready:",
        "if self._ready:\n            frames = next(iter(self._ready))",
    ),
    "floats with channels last": (
        "            lr, hr = lr.permute(0, 2, 3, 1), hr.permute(0, 2, 3, 1)\n",
        "            lr, hr = (each.view(each.shape[0], *each.shape[2:], 3) for each in (lr, hr))\n",
    ),
    "an engine holds itself": ("handle = self._handle()", "handle = self._handle()\n        self._own = self"),
    "the frames of before": ("            ready.frames.copy_(frames)\n", ""),
    "the outcome of a run is ignored": (
        'checked(context.execute_async_v3(handle), "TensorRT fails to run", since)',
        "context.execute_async_v3(handle)",
    ),
    "the widest profile": ("narrowest = min(candidates", "narrowest = max(candidates"),
    "the profile stays the first": ("context.set_optimization_profile_async(narrowest, self._handle())", "True"),
    "all sizes are kept": ("if len(self._ready) > _MOST_GRAPHS:", "if False:"),
    "what was used last goes first": ("self._ready.move_to_end(frames)", "self._ready.move_to_end(frames, last=False)"),
    "any dtype is copied": ("if not frames.dtype == out.dtype == self.dtype:", "if False:"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_engines_that_are_broken_are_caught(
    fault: str, model: weights.Model, graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake_tensorrt.install(monkeypatch)
    monkeypatch.setattr(graph, "capture", fake_runtime.capture)
    old, new = FAULTS[fault]
    source = inspect.getsource(session)
    assert source.count(old) == 1, f"{fault}: the text is not there, or not once"
    broken = types.ModuleType("broken_session")
    monkeypatch.setitem(sys.modules, "broken_session", broken)
    exec(compile(source.replace(old, new), "broken_session", "exec"), broken.__dict__)
    assert not all(passes(judge, broken.Engine) for judge in Judges(trt, model, graphs, monkeypatch).all())


# --- engines that cannot be loaded, and several threads


def test_plans_that_are_not_for_here(trt: Any, graphs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(graphs["uint8"])

    def refused(plan: bytes, match: str) -> None:
        with pytest.raises(BackendUnavailable, match=match) as caught:
            Engine(plan, "cpu")
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)

    again = "; build it again with srgan-fast trt build$"
    for damaged in (b"", plan[:20], plan[: len(plan) // 2], plan[:-1], plan[:200] + b"?" + plan[201:]):
        refused(damaged, f"^TensorRT {trt.__version__} cannot load this engine: .*Serialization.*{again}")
    with monkeypatch.context() as patched:
        fake_tensorrt.install(patched, "10.14.1.48")
        refused(
            plan, f"^TensorRT 10.14.1.48 cannot load this engine: .*expecting library version {trt.__version__}{again}"
        )
        other = fake_tensorrt.make(trt.__version__, gpu="Other GPU")
        patched.setitem(sys.modules, "tensorrt", other)
        patched.setattr(library, "_logger", None)
        refused(plan, f"the engine was generated on Fake GPU{again}")
    shape, kinds = ["batch", "height", "width", 3], {"lr": onnx.TensorProto.UINT8, "sr": onnx.TensorProto.FLOAT}
    ends = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, kind in kinds.items()]
    nodes = [onnx.helper.make_node("Cast", ["lr"], ["sr"], to=onnx.TensorProto.FLOAT)]
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "foreign", ends[:1], ends[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    refused(
        plan_of(foreign.SerializeToString()),
        "takes and gives frames, uint8 or float32, got one of .*UINT8 lr, .*FLOAT sr",
    )


def test_threads_share_an_engine(trt: Any, model: weights.Model, graphs: dict[str, bytes]) -> None:
    engine, eager = Engine(plan_of(graphs["uint8"]), "cpu"), EagerBackend(model, "cpu", "fp32")
    lrs = [lr_frames(torch.uint8, 1, 6 + i % 2, 9 + i, seed=i) for i in range(4)]
    results: dict[int, list[Tensor]] = {}
    start = threading.Barrier(len(lrs))

    def work(i: int) -> None:
        start.wait()
        results[i] = [picture(engine, lrs[i]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(lrs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, lr in enumerate(lrs):
        assert len(results[i]) == 10
        for each in results[i]:
            expect_equal(each, lr, eager)


# --- the backend


@pytest.fixture
def cached(trt: Any, model: weights.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Build engines into a folder of their own, with what was found about them; no backend beside them but eager."""
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(backends, "BACKENDS", {name: backends.BACKENDS[name] for name in ("tensorrt", "eager")})

    def make(precision: str = "fp32", speed_ms: dict[str, float] | None = None) -> engines.Pair:
        found = engines.Findings(("16x24: pass",), {"24x16": speed_ms} if speed_ms else {})
        return engines.build(model, precision, OPTIONS, "cpu", judge=lambda pair: found)[0]

    return make


@pytest.mark.parametrize("trt", ["11.4.0.106"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64])
def test_the_backend_equals_eager(cached: Any, model: weights.Model, dtype: torch.dtype) -> None:
    """Batches beyond the engine's, frames beyond it and far below it: windows end where the frame does."""
    cached()
    ours = Upscaler(model, backend="tensorrt", device="cpu", precision="fp32")
    assert (ours.backend_name, ours.precision) == ("tensorrt", "fp32")
    eager = Upscaler(model, backend="eager", device="cpu", precision="fp32")
    # Pixels may round the other way, floats have the rounding of their dtype.
    most = torch.finfo(dtype).eps + 1e-5 if dtype.is_floating_point else 1
    for n, height, width in ((5, 9, 7), (1, 1, 1), (1, 90, 3), (2, 67, 101)):
        lr = lr_frames(dtype, n, height, width)
        got, want = (upscaler(lr, layout="NHWC").double() for upscaler in (ours, eager))
        off = (got - want).abs()
        assert off.max() <= most, (n, height, width)
        assert off.mean() < most / 100
    assert ours.plan(9, 7, count=5).frames == 2
    assert ours.plan(67, 101).tile is not None
    with pytest.raises(UsageError, match="leave --tile out"):
        Upscaler(model, backend="tensorrt", device="cpu", precision="fp32", tile=40)(np.zeros((90, 90, 3), np.uint8))


def test_what_the_backend_holds_is_known(cached: Any, model: weights.Model) -> None:
    backend = TensorRTBackend(model, "cpu", "fp32", pair=cached())
    (check,) = backend.check
    assert check.passed
    assert check.psnr_db > 90
    before = backend.reusable_bytes
    assert 0 < before < backend.footprint.peak_bytes(40, 48, 40)
    backend.run(lr_frames(torch.uint8, 2, 40, 48), torch.empty(2, 160, 192, 3, dtype=torch.uint8), 40)
    assert before < backend.reusable_bytes <= 2 * backend.footprint.peak_bytes(40, 48, 40)


def test_precisions(cached: Any, model: weights.Model, trt: Any) -> None:
    cached("fp16")
    assert TensorRTBackend(model, "cpu", "auto").precision == "fp16"
    for precision, kind, match in (
        ("fp32", BackendUnavailable, "only in fp16; run"),
        ("bf16", UsageError, "got 'bf16'"),
    ):
        with pytest.raises(kind, match=match):
            TensorRTBackend(model, "cpu", precision)


def test_an_explicit_backend_never_falls_back(
    cached: Any, model: weights.Model, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(match: str) -> None:
        with pytest.raises(BackendUnavailable, match=match) as caught:
            Upscaler(model, backend="tensorrt", device="cpu", precision="fp32")
        assert caught.value.exit_code == 3
        assert "\n" not in str(caught.value)

    refused("^backend tensorrt is not available: no engine for this model and GPU; run `srgan-fast trt build")
    assert trt.seen.builds == []
    pair = cached()  # judged by nobody, which is enough for who asks for it
    Upscaler(model, backend="tensorrt", device="cpu", precision="fp32")
    swapped = engines.Pair(pair.entry, {"uint8": pair.plans["float"], "float": pair.plans["uint8"]})
    with pytest.raises(
        BackendUnavailable, match=r"engine for torch\.uint8, got one for torch\.float32; build it again"
    ):
        TensorRTBackend(model, "cpu", "fp32", pair=swapped)
    trt.switches.damage = lambda picture: picture + picture.dtype.type(8 if picture.dtype == np.uint8 else 0.1)
    refused("^backend tensorrt disagrees with eager on this device .*; take eager, and report it")
    trt.switches.damage = lambda picture: picture[:, ::-1] if picture.dtype == np.uint8 else picture
    refused("its uint8 pixels are not its floats rounded")
    monkeypatch.setattr(library, "_is_nvidia", lambda device: False)
    refused("^backend tensorrt is not available: it needs an NVIDIA GPU and driver, and the device is cpu; choose")


def test_auto_takes_engines_that_were_found_faster(
    cached: Any, model: weights.Model, trt: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def chosen(precision: str = "fp32") -> tuple[str, str, bool]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "srgan_fast.backends"):
            name = Upscaler(model, device="cpu", precision=precision).backend_name
        return name, caplog.text, any(record.levelno >= logging.WARNING for record in caplog.records)

    def passed_over(reason: str, *, loudly: bool = False, precision: str = "fp32") -> None:
        name, text, warned = chosen(precision)
        assert name == "eager"
        assert f"not tensorrt: {reason}" in text
        assert warned == loudly

    passed_over("no engine for this model and GPU")
    passed_over("it runs in fp16 or fp32, not in bf16", precision="bf16")
    cached()
    passed_over("its engine was not held against the other backends on this GPU")
    for path in engines.private.folder("engines").glob("*.json"):
        path.unlink()
    cached(speed_ms={"tensorrt": 2.0, "fused": 1.0})
    passed_over("when its engine was built, fused was 2.00 times as fast at 24x16")
    for path in engines.private.folder("engines").glob("*.json"):
        path.unlink()
    cached(speed_ms={"tensorrt": 1.0, "fused": 2.0})
    assert chosen()[0] == "tensorrt"
    trt.switches.damage = lambda picture: picture * 0
    passed_over("backend tensorrt disagrees with eager", loudly=True)
    trt.switches.damage = lambda picture: picture
    trt.switches.no_context = True
    passed_over("TensorRT makes no execution context", loudly=True)
    assert len(trt.seen.builds) == 6  # those of `cached` alone
