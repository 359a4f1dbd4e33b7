"""What `make gpu` does on a GPU, as a table in the order of its worth: each part runs in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from srgan_fast.errors import ParityError, SRGANFastError

Emit = Callable[[dict[str, Any]], None]

MODEL, DEVICE = "srresnet_x4", "cuda"
FUSED: dict[str, Any] = {"backend": "fused", "device": DEVICE, "precision": "fp16"}
# Rounds of an interleaved measurement.
_RUNS = 15
# Where one round of all candidates takes a second and more, and its spread is small.
_MANY_PIXELS, _FEW_RUNS = 1_000_000, 5
_FLAT_FRAMES, _VIDEO_RUNS = 1000, 3
# One pixel, odd sizes, and two of those that are timed.
_GRAPH_SIZES = ((1, 1), (33, 17), (64, 64), (480, 270))
# Height, width and frames of what ops are held on beside their own cases: one pixel, ragged and several, a large one.
_HELD_SHAPES = ((1, 1, 1), (17, 33, 3), (270, 480, 1))
# The size of `bench/train.py` that bars are about, and its crop.
_CROPS, _CROP = "paper", 96
_FOR_TRAINING = ("conv3x3_stats", "batchnorm_act", "training_crops")
# The marks of tests, as pytest selects by them.
_GPU, _TENSORRT = "gpu and not tensorrt", "gpu and tensorrt"
_SRRESNET, _SRGAN = "paper-srresnet-mse", "paper-srgan-vgg54"


class NotHere(SRGANFastError):
    """A part cannot run on this machine, and that is no fault of what it would test."""


@dataclass(frozen=True)
class Part:
    """One entry of the table: `seconds` is what it should take, `packages` what it imports beside torch and numpy."""

    name: str
    run: Callable[[Emit], None]
    seconds: float
    packages: tuple[str, ...] = ()

    @property
    def limit_s(self) -> float:
        """When it is taken to hang: estimates are made elsewhere, and compilers differ."""
        return 3 * self.seconds


# --- equality ---------------------------------------------------------------------------------------------------


def tests(name: str, pattern: str, marked: str) -> Callable[[Emit], None]:
    """A part that runs the tests which need a GPU and are marked so, of the files that fit a pattern."""

    def run(emit: Emit) -> None:
        from srgan_fast.bench import SITE
        from srgan_fast.bench.record import ROOT

        # Only the files that have such tests: what others import may not be installed here.
        files = [str(path) for path in sorted((ROOT / "tests").glob(pattern)) if "mark.gpu" in path.read_text()]
        if not files:
            raise ParityError("expected tests with the marker gpu, got none")
        environment = {**os.environ, "SRGAN_FAST_REQUIRE_GPU": "1", "PYTHONPATH": str(ROOT)}
        start = f"import sys; sys.path.append({str(SITE)!r}); import pytest; sys.exit(pytest.main())"
        environment.pop("TRITON_INTERPRET", None)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            # Warnings of a newer or older PyTorch are no failure of a kernel.
            # A file that needs what is not installed fails by itself.
            options = ["-m", marked, "-W", "default", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
            options.append(f"--junitxml={report}")
            subprocess.run([sys.executable, "-c", start, *options, *files], cwd=ROOT, env=environment, check=False)
            if not report.is_file():
                raise ParityError("expected a report from pytest, got none; see what it printed")
            outcomes, skipped = outcomes_of(report)
        _check(emit, name, {"outcomes": outcomes, "skipped": skipped})

    return run


def outcomes_of(report: Path) -> tuple[dict[str, bool], list[str]]:
    """Of a JUnit report of pytest: whether each test passed, and which were skipped."""
    outcomes, skipped = {}, []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        if case.find("skipped") is not None:
            skipped.append(name)
        else:
            outcomes[name] = case.find("failure") is None and case.find("error") is None
    return outcomes, skipped


def probe(emit: Emit) -> None:
    """The layouts that this GPU reads rightly, the checks of its kernels, and what the first use of a network takes."""
    from srgan_fast.bench import probe

    _needs_hopper()
    with tempfile.TemporaryDirectory() as folder:
        raw = probe.measure(MODEL, DEVICE, [_TO_1080P, _TO_4K], Path(folder))
    print(f"layout {raw['layout']}, wrong values {raw['wrong_values']}, NVRTC {raw['nvrtc']}", flush=True)
    print(f"first use {raw['first_use_s']} s, {len(raw['outcomes'])} kernels checked", flush=True)
    for said in raw["failures"]:
        print(said, flush=True)
    _check(emit, "probe", raw, passed=raw["layout"] is not None)


def parity_by(implementation: str) -> Callable[[Emit], None]:
    """A part that holds each op by one implementation, in every precision, on its cases and as frames need it."""

    def run(emit: Emit) -> None:
        import torch

        from srgan_fast.bench.held import held
        from srgan_fast.bench.kernel import all_ops

        if implementation == "sm90":
            _needs_hopper()
        architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
        outcomes, left = held(all_ops(), DEVICE, implementation, _HELD_SHAPES)
        _check(
            emit, f"op_parity_{implementation}", {"outcomes": outcomes, "skipped": left, "architecture": architecture}
        )

    return run


def _needs_hopper() -> None:
    import torch

    from srgan_fast.kernels import hopper

    reason = hopper.why_not(torch.device(DEVICE))
    if reason is not None:
        raise NotHere(f"kernels for sm_90a do not run here: {reason[0]}")


def graph(emit: Emit) -> None:
    """The fused backend: each frame its own result, equal to plain float32; and no wait of the host inside."""
    import torch

    from srgan_fast.bench.frame import compare_pixels, makers
    from srgan_fast.upscaler import Upscaler
    from srgan_fast.weights import load

    model = load(MODEL)
    upscaler = Upscaler(model, **FUSED)
    outcomes: dict[str, bool] = {}
    random = torch.Generator(DEVICE).manual_seed(0)
    for width, height in _GRAPH_SIZES:
        pair = [
            torch.randint(0, 256, (1, height, width, 3), device=DEVICE, dtype=torch.uint8, generator=random)
            for _ in range(2)
        ]
        # Both calls before both looks: a result that is a view of the graph's buffers is overwritten by the next.
        results = [upscaler(frames, layout="NHWC") for frames in pair]
        for number, (frames, result) in enumerate(zip(pair, results, strict=True)):
            plain = makers(model, frames, DEVICE)["plain", "fp32"]()()
            quality = compare_pixels(result.cpu().numpy(), plain.cpu().numpy(), "fp16")
            outcomes[f"{width}x{height}, frame {number}"] = quality["gate"] == "pass"
    frames = torch.zeros(1, *reversed(_TO_1080P), 3, device=DEVICE, dtype=torch.uint8)
    waits = host_waits(lambda: upscaler(frames, layout="NHWC"))
    _check(emit, "graph", {"outcomes": outcomes, "host_syncs": waits}, passed=not waits)


def host_waits(run: Callable[[], object], calls: int = 10) -> list[str]:
    """The runtime calls in which the host waited for the GPU while `run` was called, by a profiler's trace."""
    from torch.profiler import ProfilerActivity, profile, record_function

    from srgan_fast.bench.device import synchronise

    run()
    synchronise(DEVICE)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        with record_function("calls"):
            for _ in range(calls):
                run()
        synchronise(DEVICE)
    events = trace.events() or []
    window = next(e.time_range for e in events if e.name == "calls" and e.device_type.name == "CPU")
    inside = [event for event in events if window.start <= event.time_range.start <= window.end]
    if not any(event.name.startswith("cu") for event in inside):
        raise ParityError("expected a trace with calls of the CUDA runtime, got none; the profiler does not work here")
    # cudaMemcpy without Async waits too.
    return [event.name for event in inside if "Synchronize" in event.name or event.name == "cudaMemcpy"]


def memory_flat(emit: Emit) -> None:
    """A thousand frames through the fused backend hold no more memory at the end than after the first ten."""
    import torch

    from srgan_fast.bench.device import synchronise
    from srgan_fast.upscaler import Upscaler

    upscaler = Upscaler(MODEL, **FUSED)
    frames = torch.zeros(1, *reversed(_TO_1080P), 3, device=DEVICE, dtype=torch.uint8)
    held_bytes = []
    for number in range(_FLAT_FRAMES + 10):
        upscaler(frames, layout="NHWC")
        if number % 100 == 9:
            synchronise(DEVICE)
            held_bytes.append(torch.cuda.memory_reserved())
    _check(emit, "memory_flat", {"held_bytes": held_bytes}, passed=held_bytes[-1] <= held_bytes[0])


def sanitized(implementation: str) -> Callable[[Emit], None]:
    """A part that runs ops by one implementation under compute-sanitizer: stray accesses, races in shared memory."""

    def run(emit: Emit) -> None:
        from srgan_fast.bench import held

        program = shutil.which("compute-sanitizer")
        if program is None:
            raise NotHere("compute-sanitizer is not found")
        if implementation == "sm90":
            _needs_hopper()
        # Without PyTorch's cache of memory each tensor is an allocation, whose end the tool knows.
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        outcomes = {}
        for tool in ("memcheck", "racecheck"):
            watched = [sys.executable, "-m", held.__name__, DEVICE, implementation]
            command = [program, "--tool", tool, "--error-exitcode", "9", *watched]
            outcomes[tool] = subprocess.run(command, env=environment, check=False).returncode == 0
        _check(emit, f"sanitizer_{implementation}", {"outcomes": outcomes})

    return run


def _check(emit: Emit, name: str, raw: dict[str, Any], *, passed: bool = True) -> None:
    """Emit what a check saw; fail if an outcome is not as it should be."""
    from srgan_fast.bench.figures import checked_figures
    from srgan_fast.bench.record import record

    failed = [key for key, good in raw.get("outcomes", {}).items() if not good]
    # Nothing looked at is nothing proven.
    passed = passed and not failed and raw.get("outcomes") != {}
    derived = checked_figures(raw) if passed else {}
    emit(record("parts", name, raw=raw, derived=derived, quality={"gate": "pass" if passed else "fail"}))
    if not passed:
        rest = {key: value for key, value in raw.items() if key not in ("outcomes", "skipped")}
        raise ParityError(f"{len(failed)} of {len(raw.get('outcomes', {}))} failed: {', '.join(failed[:3])} {rest}")


# --- speed ------------------------------------------------------------------------------------------------------


def tensorrt(emit: Emit) -> None:
    """TensorRT: its tests, engines that are held against eager and timed, what finding them costs, frames beside ours.

    The engines stay where `srgan-fast trt build` keeps them, and are taken from there if they are there already.
    """
    from srgan_fast.bench.engine import judge
    from srgan_fast.tensorrt import engines, library
    from srgan_fast.weights import load

    if find_spec("tensorrt") is None:
        raise NotHere("tensorrt is not installed")
    library.load()
    model = load(MODEL)
    options = engines.options(model.info.scale, sizes=(_TO_1080P, _TO_4K), largest=_TO_4K)
    judged = judge(model, "fp16", DEVICE, partial(print, flush=True))
    built, _ = engines.build(model, "fp16", options, DEVICE, judge=judged)
    start = time.perf_counter()
    found = engines.find(model, "fp16", DEVICE)
    hit_s = time.perf_counter() - start
    if not isinstance(found, engines.Pair) or found.entry.key != built.entry.key:
        raise ParityError(f"expected the engines that were built, {built.entry.key}, got {found}")
    print(f"built in {built.entry.build_seconds} s, found in {hit_s:.3f} s", flush=True)
    outcomes = {line: "pass" in line for line in built.entry.agreement}
    _check(emit, "tensorrt", {"outcomes": outcomes, "hit_s": hit_s, "build_s": built.entry.build_seconds})
    frames((_TO_1080P, _TO_4K))(emit)
    tests("tensorrt_tests", "test_*.py", _TENSORRT)(emit)


def ceilings(emit: Emit) -> None:
    """What this GPU can do at best."""
    from srgan_fast.bench import ceiling

    for one in ceiling.measure(DEVICE):
        emit(one)
        print(one["name"], one["derived"], flush=True)


def ceilings_and_rates(emit: Emit) -> None:
    """What this GPU can do at best, and what it gives to kernels like ours."""
    import torch

    from srgan_fast.bench import rates
    from srgan_fast.bench.table import rates_table
    from srgan_fast.kernels import hopper

    ceilings(emit)
    reason = hopper.why_not(torch.device(DEVICE))
    if reason is not None:
        print(f"no rates: {reason[0]}", flush=True)
        return
    found = rates.measure(DEVICE)
    for one in found:
        emit(one)
    print(rates_table(found).text(), flush=True)
    red = [f"{one['name']} {one['case']}" for one in found if one["quality"]["gate"] != "pass"]
    _settle(red, [])


def frames(
    sizes: Iterable[tuple[int, int]], batches: Iterable[int] = (1,), *, compiled: bool = False
) -> Callable[[Emit], None]:
    """A part that times frames: every backend against plain PyTorch and its tunings, torch.compile where asked for."""
    wanted = [(size, batch) for batch in batches for size in sizes]
    with_peers = ("compile",) if compiled else ()

    def run(emit: Emit) -> None:
        import torch

        from srgan_fast.bench import frame

        ceilings(emit)
        red, unfit = [], []
        for (width, height), batch in wanted:
            try:
                runs = _RUNS if width * height * batch <= _MANY_PIXELS else _FEW_RUNS
                found = frame.measure(MODEL, height, width, runs, DEVICE, batch=batch, with_peers=with_peers)
            except torch.OutOfMemoryError:
                unfit.append(f"{width}x{height} batch {batch}")
            else:
                red += emitted(emit, found)
                if not any(one["impl"] == FUSED["backend"] for one in found):
                    red.append(f"no row of {FUSED['backend']} at {width}x{height}")
            torch.cuda.empty_cache()
        _settle(red, unfit)

    return run


def kernels(emit: Emit) -> None:
    """Each op by each implementation, and whether what `run` chooses is anywhere slower than the portable one."""
    import torch

    from srgan_fast.bench import kernel
    from srgan_fast.bench.held import compile_ahead
    from srgan_fast.bench.table import shape_of
    from srgan_fast.kernels import ON_HOPPER

    ceilings(emit)
    # Those for training are timed at its sizes, in a part of their own.
    ops = {name: op for name, op in kernel.all_ops().items() if name not in _FOR_TRAINING}
    makers = [(op, case) for name, op in ops.items() if name in ON_HOPPER for case in op.BENCH_CASES.values()]
    shapes = [(height, width, 1, DEVICE, torch.float16) for width, height in kernel.SIZES]
    compile_ahead(DEVICE, ((op, partial(make, *shape)) for op, make in makers for shape in shapes))
    red: list[str] = []
    unfit: list[str] = []
    pairs: dict[str, dict[str, float]] = {}
    for name, op in ops.items():
        for width, height in kernel.SIZES:
            try:
                found = kernel.measure({name: op}, height, width, _RUNS, DEVICE)
            except torch.OutOfMemoryError:
                unfit.append(f"{name} {width}x{height}")
                torch.cuda.empty_cache()
                continue
            red += emitted(emit, found)
            p50_ms = {(shape_of(one), one["impl"]): one["latency_ms"]["p50"] for one in found}
            pairs |= {
                what: {"fast": p50_ms[what, "run"], "other": p50_ms[what, "triton"]}
                for what, impl in p50_ms
                if impl == "sm90" and (what, "triton") in p50_ms
            }
            torch.cuda.empty_cache()
    if pairs:
        _check(emit, "sm90_never_slower", {"p50_ms": pairs})
    _settle(red, unfit)


def training(stages: Iterable[str], *, compiled: bool = False) -> Callable[[Emit], None]:
    """A part that times steps of stages as in the paper: every way to make them, torch.compile where asked for."""
    wanted = list(stages)

    def run(emit: Emit) -> None:
        from srgan_fast.bench import train

        ceilings(emit)
        red: list[str] = []
        for stage in wanted:
            found = train.measure(stage, _CROPS, _RUNS, DEVICE, compiled=compiled)
            red += emitted(emit, found)
            # A graph that cannot be captured is a fault here; a compiler that gives up is its own affair.
            missing = next(one for one in found if one.get("impl") == "plain").get("left_out", {})
            red += [f"no row of {what}: {why}" for what, why in missing.items() if what.startswith("graph")]
        _settle(red, [])

    return run


def train_kernels(emit: Emit) -> None:
    """Each training kernel against PyTorch's own functions, and whether it pays; and the batches' kernel."""
    from srgan_fast.bench import kernel, train_kernel

    ceilings(emit)
    red: list[str] = []
    pairs: dict[str, dict[str, float]] = {}
    for name in train_kernel.PAIRS:
        found = train_kernel.measure(name, _RUNS, DEVICE)
        red += emitted(emit, found)
        whole = {one["impl"]: one["latency_ms"]["p50"] for one in found if one["case"] == "forward and backward"}
        pairs[name] = {"fast": whole["kernels"], "other": whole["torch"]}
    crops = {name: op for name, op in kernel.all_ops().items() if name == "training_crops"}
    red += emitted(emit, kernel.measure(crops, _CROP, _CROP, _RUNS, DEVICE))
    _check(emit, "train_kernels_pay", {"p50_ms": pairs})
    _settle(red, [])


def video(size: tuple[int, int], frames: int, *, encoders: bool) -> Callable[[Emit], None]:
    """A part that times a clip from file to file: through the chain into nothing, or with each encoder too."""

    def run(emit: Emit) -> None:
        from srgan_fast.bench.table import video_table
        from srgan_fast.bench.video import measure

        (width, height), codecs = size, None if encoders else ()
        one = measure(MODEL, height, width, frames, _VIDEO_RUNS, DEVICE, FUSED["precision"], codecs=codecs)
        emit(one)
        print(video_table(one).text(), flush=True)
        _settle([f"{one['impl']} at {width}x{height}"] if one["quality"]["gate"] != "pass" else [], [])

    return run


def emitted(emit: Emit, found: Sequence[dict[str, Any]]) -> list[str]:
    """Emit and print records that were timed together; the names of those whose gate is red."""
    from srgan_fast.bench.table import shape_of, speed_tables

    for one in found:
        emit(one)
    for table, _ in speed_tables(found):
        print(table.text(), flush=True)
    return [f"{one['impl']} {one['dtype']} at {shape_of(one)}" for one in found if one["quality"]["gate"] != "pass"]


def _settle(red: list[str], unfit: list[str]) -> None:
    said = [f"gates: {', '.join(red)}"] if red else []
    said += [f"did not fit into memory: {', '.join(unfit)}"] if unfit else []
    if said:
        raise SRGANFastError("; ".join(said))


# LR sizes; x4 they are 1080p and 4K.
_SMALL, _TO_1080P, _TO_4K = (64, 64), (480, 270), (960, 540)
_OTHERS = ((128, 128), (320, 180), (640, 360), (1920, 1080))
# The largest size in batches takes minutes in float32: `srgan-fast bench --device cuda` has it.
_BATCHED = (_SMALL, *_OTHERS[:3], _TO_1080P, _TO_4K)
_WEIGHTS = ("safetensors",)

PARTS = (
    Part("probe", probe, 60, ("triton", *_WEIGHTS)),
    Part("op_parity_sm90", parity_by("sm90"), 45, ("triton",)),
    Part("ceilings", ceilings_and_rates, 25),
    Part("frame_480x270", frames([_TO_1080P]), 35, _WEIGHTS),
    Part("frame_960x540", frames([_TO_4K]), 40, _WEIGHTS),
    Part("kernels", kernels, 75, ("triton",)),
    Part("train", training((_SRRESNET, _SRGAN)), 60, ("triton", *_WEIGHTS)),
    Part("train_parity", tests("train_parity", "test_train*.py", _GPU), 50, ("pytest", "triton", *_WEIGHTS)),
    Part("compile_480x270", frames([_TO_1080P], compiled=True), 90, ("triton", *_WEIGHTS)),
    Part("train_compile", training((_SRRESNET,), compiled=True), 100, ("triton", *_WEIGHTS)),
    Part("train_kernels", train_kernels, 45, ("triton",)),
    Part("sanitizer_sm90", sanitized("sm90"), 60, ("triton",)),
    Part("graph", graph, 30, ("triton", *_WEIGHTS)),
    Part("parity", tests("parity", "test_*.py", _GPU), 90, ("pytest", "triton")),
    Part("op_parity_triton", parity_by("triton"), 60, ("triton",)),
    Part("memory_flat", memory_flat, 25, ("triton", *_WEIGHTS)),
    Part("video_480x270", video(_TO_1080P, _FLAT_FRAMES, encoders=False), 60, ("triton", "av", *_WEIGHTS)),
    Part("video_960x540", video(_TO_4K, _FLAT_FRAMES, encoders=False), 100, ("triton", "av", *_WEIGHTS)),
    Part("video_encoders", video(_TO_1080P, 200, encoders=True), 75, ("triton", "av", *_WEIGHTS)),
    Part("video_encoders_4k", video(_TO_4K, 60, encoders=True), 90, ("triton", "av", *_WEIGHTS)),
    Part("tensorrt", tensorrt, 300, ("pytest", "triton", *_WEIGHTS)),
    Part("compile_960x540", frames([_TO_4K], compiled=True), 90, ("triton", *_WEIGHTS)),
    Part("frame_64x64", frames([_SMALL]), 20, _WEIGHTS),
    Part("compile_64x64", frames([_SMALL], compiled=True), 80, ("triton", *_WEIGHTS)),
    Part("sizes", frames(_OTHERS), 60, _WEIGHTS),
    Part("batches", frames(_BATCHED, (4, 8)), 120, _WEIGHTS),
    Part("train_compile_srgan", training((_SRGAN,), compiled=True), 150, ("triton", *_WEIGHTS)),
    Part("sanitizer_triton", sanitized("triton"), 120, ("triton",)),
)
