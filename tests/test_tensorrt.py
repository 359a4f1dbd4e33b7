"""TensorRT without TensorRT, over a double of either generation: the library found, and engines built."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest
import torch
from conftest import ROOT, script
from models import model_of

from srgan_fast import weights
from srgan_fast.errors import BackendUnavailable, Interrupted, UsageError
from srgan_fast.export import Options, onnx_bytes
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.tensorrt import library
from srgan_fast.tensorrt.build import MOST_PIXELS, BuildOptions, Built, Profile, build, most_pixels
from srgan_fast.tensorrt.session import Engine

ANY = Profile((1, 1, 1), (1, 16, 24), (2, 40, 48))
OPTIONS = BuildOptions((ANY,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    return model_of(Generator(GeneratorConfig(blocks=1, width=8)), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def graphs(model: weights.Model) -> dict[str, bytes]:
    """The network as ONNX: by precision and frames."""
    return {
        f"{precision} {frames}": onnx_bytes(model, Options(precision=precision, frames=frames))
        for precision in ("fp32", "fp16")
        for frames in ("uint8", "float")
    }


def built(graph: bytes, options: BuildOptions = OPTIONS, precision: str = "fp32", **more: Any) -> Built:
    return build(graph, options, device="cpu", precision=precision, **more)


@pytest.fixture(scope="module")
def api() -> Any:
    """The tool that reads the real bindings, where a maintainer has them, and our declaration of them."""
    return script(ROOT / "tools" / "check_trt_api.py")


# --- what is declared of the library, and of whom


def test_the_double_has_what_is_declared(trt: Any, api: Any) -> None:
    """Under the same names, with the same parameters: mypy checks us against the one, tests against the other."""
    wanted, seen = api.declared(), set()
    for name, about in wanted.items():
        owner, _, last = name.rpartition(".")
        holder = trt
        for part in owner.split(".") if owner else ():
            holder = getattr(holder, part, None)
        if holder is None or owner in ("Dims", "ILogger", "IProgressMonitor"):
            continue  # these are callbacks of ours, and a tuple
        member = getattr(holder, last, None)
        if not owner and member is None:
            continue  # an object that only another one gives out
        assert member is not None, name
        seen.add(name)
        if about.kind == "method":
            takes = list(inspect.signature(member).parameters)[1:]
            assert takes[: len(about.parameters)] == [each[0] for each in about.parameters], name
    assert len(seen) > 65


@pytest.mark.parametrize(
    ("name", "said", "match"),
    [
        ("IExecutionContext.execute_async_v3", None, "is not there"),
        (
            "IExecutionContext.execute_async_v3",
            "execute_async_v3(self: t.IExecutionContext, stream: typing.SupportsInt) -> bool",
            r"not as declared, but \(stream: int\) -> bool",
        ),
        (
            "Builder.create_network",
            "create_network(self: t.Builder, flags: int) -> t.INetworkDefinition",
            r"not as declared, but \(flags: int\)",
        ),
        ("IBuilderConfig.max_aux_streams", "(arg0: t.IBuilderConfig) -> int", "cannot be set"),
        ("ICudaEngine.num_io_tensors", "(arg0: t.ICudaEngine) -> str", "a property of str, not a property of int"),
    ],
)
def test_bindings_that_have_changed_are_told(api: Any, name: str, said: str | None, match: str) -> None:
    kind = "property" if str(said).startswith("(") else "method"
    got = None if said is None else {"kind": kind, "settable": False, "said": said}
    assert re.search(match, api.complaint(name, api.declared()[name], got))


# --- the library --------------------------------------------------------------------------------------------------


def refused(match: str) -> None:
    """The reason and the cure, both by `why_not` and by whoever loads it."""
    answer = library.why_not("cuda")
    assert answer is not None
    with pytest.raises(BackendUnavailable, match=match) as caught:
        library.load()
    assert str(caught.value) == f"backend tensorrt is not available: {answer[0]}; {answer[1]}"
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_no_gpu_is_found_before_anything_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} of a library that ends the process")

    monkeypatch.setitem(sys.modules, "tensorrt", Trap("tensorrt"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("needs an NVIDIA GPU and driver, and torch sees none; choose --device cuda on a machine that has one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "the device is cpu" in str(library.why_not("cpu"))
    monkeypatch.setattr(torch.version, "cuda", None)  # torch for AMD calls its GPUs cuda too
    refused("needs an NVIDIA GPU")


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_is_nvidia", lambda device: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    refused(r"it is not installed; pip install 'tensorrt-cu12>=10.12', whose libraries come from NVIDIA's own index")


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(library, "_is_nvidia", lambda device: True)
    assert library.why_not("cuda") is None  # which loads nothing
    with pytest.raises(BackendUnavailable, match=r"cannot be loaded \(libnvinfer.*; pip install --force-reinstall"):
        library.load()


@pytest.mark.parametrize("version", ["8.6.1", "10.11.0.33", "10.9.0.34"])
def test_a_library_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_tensorrt.install(monkeypatch, version)
    refused(f"TensorRT {version} is too old, 10.12 is needed; pip install --upgrade")


@pytest.mark.parametrize("version", [*fake_tensorrt.VERSIONS, "10.12.0.36", "12.0.0.1"])
def test_a_library_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_tensorrt.install(monkeypatch, version)
    assert library.why_not("cuda:1") is None
    assert library.load().__version__ == version


def test_a_library_of_another_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    packages = {"tensorrt-cu12": "11.4.0.106"}

    def version(name: str) -> str:
        if name in packages:
            return packages[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    refused(
        "built for CUDA 12, torch for CUDA 13; pip uninstall tensorrt-cu12, then pip install 'tensorrt-cu13>=10.12'"
    )
    packages["tensorrt-cu13"] = "11.4.0.106"
    assert library.why_not("cuda") is None
    # Not loaded yet: what pip says is enough to refuse it.
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: object())
    packages.update(dict.fromkeys(packages, "10.3.0"))
    assert library.why_not("cuda") == (
        "TensorRT 10.3.0 is too old, 10.12 is needed",
        "pip install --upgrade 'tensorrt-cu13>=10.12'",
    )


def test_one_logger_that_never_raises(trt: Any, graphs: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    Engine(built(graphs["fp32 uint8"]).plan, "cpu")
    built(graphs["fp32 float"])
    assert len(trt.seen.loggers) == 3
    assert len({id(each) for each in trt.seen.loggers}) == 1
    one, severity, since = library.logger(), trt.ILogger.Severity, library.mark()
    with caplog.at_level(logging.DEBUG, library.__name__):
        one.log(severity.WARNING, "a hint")
        one.log(severity.VERBOSE, "a detail")
        for i in range(12):
            one.log(severity.ERROR, f"error\n {i}")
        one.log(severity.INTERNAL_ERROR, "error 11")
    assert [record.levelno for record in caplog.records[:2]] == [logging.INFO, logging.DEBUG]
    assert not any(record.levelno > logging.INFO for record in caplog.records)  # whoever raises it says it
    assert library.said(since) == "; ".join(f"error {i}" for i in range(5, 12))
    assert library.said(library.mark()) == "TensorRT gave no reason"
    one.log(None, object())  # type: ignore[arg-type]


def test_the_gpu_is_told_apart_by_more_than_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    want = {"name": "Fake GPU", "sm": "9.0", "processors": 4, "memory": 1 << 30, "l2": 1 << 20}
    assert library.gpu_identity("cuda") == want | {"cuda": torch.version.cuda}


# --- builds -------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_the_builder(trt: Any, graphs: dict[str, bytes]) -> None:
    static = Profile((1, 30, 40), (1, 30, 40), (1, 30, 40))
    options = BuildOptions((ANY, static), level=5, workspace_bytes=1 << 20)
    built(graphs["fp16 uint8"], precision="fp16")
    built(graphs["fp16 float"], options, precision="fp16")
    plain, other = trt.seen.builds
    assert plain == {
        "version": trt.__version__,
        "gpu": "Fake GPU",
        "level": 3,
        "workspace": 2 << 30,
        "aux_streams": 0,
        "flags": [],
        "preview": ["RUNTIME_ACTIVATION_RESIZE_10_10"],
        "profiles": [((1, 1, 1, 3), (1, 16, 24, 3), (2, 40, 48, 3))],
    }
    assert (other["level"], other["workspace"]) == (5, 1 << 20)
    assert other["profiles"] == [((1, 3, 1, 1), (1, 3, 16, 24), (2, 3, 40, 48)), ((1, 3, 30, 40),) * 3]


@pytest.mark.parametrize("timing", [b"", b"not a timing cache", "stale"])
def test_a_timing_cache_is_taken_up_or_begun_anew(trt: Any, graphs: dict[str, bytes], timing: Any) -> None:
    if timing == "stale":
        other = fake_tensorrt.make(trt.__version__, gpu="Other GPU")
        cache = other.Builder(None).create_builder_config().create_timing_cache(b"")
        cache.about["known"] = ["everything"]
        timing = bytes(cache.serialize())
    first = built(graphs["fp32 uint8"], timing=timing)
    timed = trt.seen.timed
    assert timed > 5
    assert isinstance(first.plan, bytes)
    again = built(graphs["fp32 float"], timing=first.timing)
    assert trt.seen.timed - timed < 5  # the network's layers are known, the ends are new
    assert built(graphs["fp32 uint8"], timing=again.timing).plan == first.plan


def fails(graph: bytes, match: str) -> None:
    with pytest.raises(BackendUnavailable, match=match) as caught:
        built(graph)
    assert "\n" not in str(caught.value)


def test_builds_that_fail_say_why(trt: Any, graphs: dict[str, bytes]) -> None:
    good = graphs["fp32 uint8"]
    fails(good[:1000], "cannot read the network: ")
    trt.switches.parse_errors = ("In node 3 (Foo): UNSUPPORTED_NODE", "In node 7 (Bar): INVALID_NODE")
    fails(good, r"cannot read the network: In node 3 \(Foo\): UNSUPPORTED_NODE; In node 7 \(Bar\)")
    trt.switches.parse_errors = ()
    trt.switches.profile_refused = True
    fails(good, r"refuses the profile 1x1x1 .. 1x16x24 .. 2x40x48: .*IOptimizationProfile is not valid")
    trt.switches.profile_refused = False
    trt.switches.build_error = "Error Code 1: Internal Error (some assertion)"
    fails(good, r"cannot build the engine: Error Code 1: Internal Error \(some assertion\)$")
    for short in ("Could not find any implementation for node {ForeignNode}", "[defaultAllocator.cpp] Out of memory"):
        trt.switches.build_error = short
        fails(good, "cannot build the engine: .*too little GPU memory: take a smaller workspace or smaller largest")
    trt.switches.build_error = ""
    built(good)


def test_a_network_keeps_its_precision(trt: Any, graphs: dict[str, bytes]) -> None:
    with pytest.raises(
        BackendUnavailable, match=f"expected a network in fp32, and TensorRT {trt.__version__} has read"
    ):
        built(graphs["fp16 uint8"])
    trt.switches.loses_types = True
    with pytest.raises(BackendUnavailable, match=r"in fp16, .* in fp32"):
        built(graphs["fp16 uint8"], precision="fp16")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Profile((1, 1, 1), (1, 9, 9), (1, 8, 9)), "rise from 1 on, got 1x1x1 .. 1x9x9 .. 1x8x9"),
        (lambda: Profile((1, 0, 1), (1, 9, 9), (1, 9, 9)), "rise from 1"),
        (
            lambda: Profile((1, 1, 1), (1, 9, 9), (1, 1080, 1920)),
            "at most 2,000,000 LR pixels.*got 1 frames of 1920x1080",
        ),
        (lambda: BuildOptions(()), "first profile that begins with 1 frame of 1x1"),
        (lambda: BuildOptions((replace(ANY, min=(1, 8, 8)),)), "first profile that begins with 1 frame of 1x1"),
        (lambda: BuildOptions((ANY, Profile((1, 1, 1), (1, 1, 1), (3, 40, 48)))), "within the first one.*larger"),
        (lambda: BuildOptions((ANY,), level=6), "level from 0 to 5, got 6"),
        (lambda: BuildOptions((ANY,), workspace_bytes=0), "workspace of at least 1 byte"),
    ],
)
def test_options_that_cannot_be(make: Callable[[], object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make()


def test_no_map_passes_31_bits() -> None:
    for scale, largest_map in {2: 64 * 4, 4: 64 * 16, 8: 64 * 64}.items():
        assert most_pixels(scale) * largest_map < 2**31
    assert most_pixels(4) == MOST_PIXELS


class Watcher:
    """A progress that notes what it is told, and may end the build."""

    def __init__(self, ends_at: int | None = None, fails_at: int | None = None) -> None:
        self.ends_at, self.fails_at = ends_at, fails_at
        self.phases: list[tuple[str, str | None]] = []
        self.over: list[str] = []
        self.steps = 0

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        assert steps > 0
        self.phases.append((name, parent))

    def step(self, name: str, i: int) -> bool:
        self.steps += 1
        if i == self.fails_at:
            raise ZeroDivisionError("a bar that fails")
        return i != self.ends_at

    def done(self, name: str) -> None:
        self.over.append(name)


def test_progress_is_told_and_may_end_the_build(trt: Any, graphs: dict[str, bytes]) -> None:
    watcher = Watcher()
    built(graphs["fp32 uint8"], progress=watcher)
    assert watcher.phases == [("Building an engine", None), ("Timing", "Building an engine")]
    assert watcher.over == ["Timing", "Building an engine"]
    assert watcher.steps > 5
    with pytest.raises(Interrupted, match="no engine was built"):
        built(graphs["fp32 uint8"], progress=Watcher(ends_at=2))
    with pytest.raises(ZeroDivisionError, match="a bar that fails"):
        built(graphs["fp32 uint8"], progress=Watcher(fails_at=2))
    assert len(trt.seen.builds) == 1


def test_ctrl_c_ends_the_build(trt: Any, graphs: dict[str, bytes]) -> None:
    steps = []

    def on_step(i: int) -> None:
        steps.append(i)
        if i == 2:
            signal.raise_signal(signal.SIGINT)  # from a thread of the build, the worst that can be

    trt.switches.on_step, trt.switches.slow_step_s = on_step, 0.03
    with pytest.raises(Interrupted) as caught:
        built(graphs["fp32 uint8"])
    assert caught.value.exit_code == 130
    assert len(steps) < 16  # it did not wait for the end
    assert trt.seen.builds == []
    assert "tensorrt-build" not in {thread.name for thread in threading.enumerate()}
