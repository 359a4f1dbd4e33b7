"""What `make gpu` says of the kernels for sm_90a, without a GPU: rates in the emulator, the rest by a fake runtime."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulated
import pytest
import torch
from ahead_of_time import sass
from records import cleaned
from test_hopper import Noting
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.bench import ceiling, frame, gpu, kernel, parts, probe, rates, table
from srgan_fast.bench.claims import Claim, judge, verify
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.held import exercise, held
from srgan_fast.bench.record import latency
from srgan_fast.errors import BackendUnavailable, ParityError, SRGANFastError
from srgan_fast.kernels import hopper, nvrtc
from srgan_fast.kernels.conv3x3 import sm90
from srgan_fast.kernels.nvrtc import Specialisation
from srgan_fast.kernels.parity import Report

Record = dict[str, Any]

CPU = torch.device("cpu")
needs_emulator = pytest.mark.skipif(emulated.COMPILER is None, reason=emulated.NO_COMPILER)
needs_nvrtc = pytest.mark.skipif(nvrtc.why_not() is not None, reason="; ".join(nvrtc.why_not() or ()))


# --- rates ------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little of each rate as still shows that it is done."""
    for name, value in (
        ("_RUNS", 1),
        ("_WIDTHS", (64,)),
        ("_ROUNDS", 2),
        ("_LOADS", 8),
        ("_WORKING_SETS_MIB", (1,)),
        ("_LINKS", 3),
    ):
        monkeypatch.setattr(rates, name, value)


@needs_emulator
def test_rates_are_sound_records(few: None) -> None:
    with hopper.emulated(emulated.Emulated(processors=2)):
        found = cleaned(rates.measure("cpu"))
    names = ["products", "products", "l2_reads", "launches", "launches"]
    assert [one["name"] for one in found] == names
    assert all(one["quality"]["gate"] == "pass" for one in found)
    # 36 products of 64x64x16 a round, two rounds, two warpgroups, two blocks; int8 is twice as deep.
    by_hand = 2 * 64 * 64 * 16 * 36 * 2 * 2 * 2
    assert [one["flops"] for one in found[:2]] == [by_hand, 2 * by_hand]
    assert found[2]["bytes"] == 64 * 10 * 32 * 2 * 8 * 2
    for one in found:
        verify(one, found)
    printed = table.rates_table(found).text()
    for said in ("m64n64k16", "working set 1 MiB", "us a launch", "one after another"):
        assert said in printed


@needs_emulator
@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("d[i] = 0;", "d[i] = 1;", {"products"}),
        ("barrier, 0, 0, 0, box)", "barrier, 0, 0, 1, box)", {"l2_reads"}),
        ("*p.count += 1", "*p.count += 2", {"launches"}),
    ],
)
def test_a_rate_of_something_else_is_no_rate(old: str, new: str, wrong: set[str], few: None) -> None:
    with hopper.emulated(emulated.Emulated(mutations={"rates/sm90.cu": (old, new)})):
        found = rates.measure("cpu")
    assert {one["name"] for one in found if one["quality"]["gate"] == "fail"} == wrong
    assert all(bool(one["derived"]) == (one["name"] not in wrong) for one in found)


def test_rates_need_the_hardware() -> None:
    with pytest.raises(BackendUnavailable, match="Hopper GPU"):
        rates.measure("cpu")


@needs_nvrtc
@pytest.mark.parametrize("n", [pytest.param(n, marks=pytest.mark.slow if n < 256 else ()) for n in rates._WIDTHS])
@pytest.mark.parametrize(("kind", "element"), [("fp16", "HGMMA"), ("int8", "IGMMA")])
def test_products_follow_one_another_in_machine_code(kind: str, element: str, n: int) -> None:
    said = sass(nvrtc.compile_cubin(rates._product(kind, n)).image)
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)", said)
    at = [number for number, name in enumerate(code) if name == element]
    assert len(at) == 36
    # Between two of them nothing but the next one's descriptors and the count of rounds: no wait, no move of a sum.
    assert set(code[at[0] : at[-1]]) <= {element, "UMOV", "UIADD3", "ULOP3", "R2UR", "ISETP", "NOP"}
    assert not {"LDL", "STL"} & set(code)


# --- ops by implementation ---------------------------------------------------------------------------------------


@dataclass
class Doubling:
    """An op with three implementations: y = 2x. That for sm_90 takes frames of more than one pixel."""

    runtime: Noting
    passes: bool = True
    wrong: float = 0.0

    @property
    def CASES(self) -> tuple[Any, ...]:  # noqa: N802
        def case(size: int) -> SimpleNamespace:
            return SimpleNamespace(name=f"{size}", floor=None, inputs=lambda device, dtype: self._make(size, dtype))

        return case(1), case(5)

    @property
    def BENCH_CASES(self) -> dict[str, Callable[..., dict[str, Any]]]:  # noqa: N802
        return {"whole": lambda h, w, n, device, dtype: self._make(n * h * w, dtype)}

    def _make(self, size: int, dtype: torch.dtype) -> dict[str, Any]:
        return {"x": torch.rand(size).to(dtype)}

    def reference(self, x: Tensor) -> Tensor:
        return 2 * x

    def run(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        report = Report(self.passes, 4.9, 0.1, 1.0, 1e-3)
        mine = hopper.Kernel("doubling", Specialisation("doubling/sm90.cu", "doubling"), 0, lambda _: report)
        offer = hopper.Offer(
            self.runtime, (mine,), f"doubling of {len(x)}", lambda to: [None, to.copy_(2 * x + self.wrong)][0]
        )
        if not hopper.take(offer if len(x) > 1 else "too small", lambda to: to.copy_(2 * x), out):
            out.copy_(2 * x)
        return out

    def flops(self, x: Tensor) -> int:
        return x.numel()

    def bytes_moved(self, x: Tensor) -> int:
        return 2 * x.nbytes


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Noting]:
    """A Hopper GPU that launches nothing, for CPU tensors."""
    # The op has its own fallback, so no Triton is needed for it.
    ways: dict[str, str | None] = {"sm90": None, "triton": None, "reference": None}
    monkeypatch.setattr(kernels, "implementations", lambda op, device: dict(ways))
    monkeypatch.setattr(kernels, "ON_HOPPER", ("doubling",))
    monkeypatch.setattr("srgan_fast.bench.held.ON_HOPPER", ("doubling",))
    noting = Noting()
    with hopper.emulated(noting):
        yield noting


def timed(op: Doubling) -> list[Record]:
    return cleaned([*ceiling.measure("cpu"), *kernel.measure({"doubling": op}, 5, 7, 3, "cpu")])


def test_each_implementation_is_timed_beside_what_run_chooses(runtime: Noting) -> None:
    found = timed(Doubling(runtime))
    sides = {one["impl"]: one for one in found if one["suite"] == "kernel"}
    assert list(sides) == ["reference", "sm90", "triton", "run"]
    assert {impl: one["chosen"] for impl, one in sides.items()} == {
        "reference": "reference",
        "sm90": "sm90",
        "triton": "triton",
        "run": "sm90",
    }
    assert {"speedup_vs_triton", "matmul_fraction", "tflops"} <= set(sides["sm90"]["derived"])
    assert "speedup_vs_triton" not in sides["triton"]["derived"]
    for one in found:
        verify(one, found)


def test_a_kernel_that_fails_its_check_has_no_row(runtime: Noting, caplog: pytest.LogCaptureFixture) -> None:
    sides = {one["impl"]: one for one in timed(Doubling(runtime, passes=False)) if one["suite"] == "kernel"}
    assert list(sides) == ["reference", "triton", "run"]
    assert sides["run"]["chosen"] == "triton"
    assert "no row of sm90: doubling disagrees" in caplog.text


def test_a_wrong_result_is_that_of_its_implementation(runtime: Noting) -> None:
    sides = {one["impl"]: one for one in timed(Doubling(runtime, wrong=0.1)) if one["suite"] == "kernel"}
    gates = {impl: one["quality"]["gate"] for impl, one in sides.items()}
    assert gates == {"reference": "pass", "sm90": "fail", "triton": "pass", "run": "fail"}
    assert sides["sm90"]["derived"] == {}


def test_cudnn_does_the_convolution_alone() -> None:
    arguments = kernels.load("conv3x3").BENCH_CASES["64 to 64, PReLU"](5, 7, 2, "cpu", torch.float32)
    side = kernel._bare(arguments)
    assert side.report.passed
    assert side.report.max_allowed > 0
    assert isinstance(side.run(), Tensor)


def test_parity_by_sm90_counts_what_it_takes(runtime: Noting, capsys: pytest.CaptureFixture[str]) -> None:
    ops: dict[str, Any] = {"doubling": Doubling(runtime), "other": None}
    outcomes, left = held(ops, "cpu", "sm90", [(3, 3, 1)])
    taken = [f"doubling {p}: {case}" for p in ("fp16", "bf16") for case in ("5", "whole, 1x3x3")]
    assert outcomes == dict.fromkeys((*taken, "doubling runs by sm90"), True)
    assert left == ["doubling fp16: 1", "doubling bf16: 1"]
    assert "ops by sm90" in capsys.readouterr().out
    failing: dict[str, Any] = {"doubling": Doubling(Noting(), passes=False)}
    with hopper.emulated(failing["doubling"].runtime):
        assert held(failing, "cpu", "sm90")[0] == {"doubling runs by sm90": False}


def test_the_summary_says_who_won(runtime: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "DEVICE", "cpu")
    monkeypatch.setattr(parts, "_RUNS", 1)
    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling(runtime)})
    monkeypatch.setattr(kernel, "SIZES", ((7, 5),))
    found: list[Record] = []
    parts.kernels(found.append)
    never = cleaned(found)[-1]
    assert never["name"] == "sm90_never_slower"
    (sides,) = never["raw"]["p50_ms"].values()
    assert never["derived"] == {"least_speedup": sides["other"] / sides["fast"]}
    verify(never, [])
    raw = {"choices": {"conv3x3 of 1x270x480": "sm90"}}
    said = gpu.winners([*found, {"suite": "parts", "name": "probe", "raw": raw}])
    rows = [line.split() for line in said.splitlines()]
    assert ["conv3x3", "of", "1x270x480", "sm90"] in rows
    (won,) = [row for row in rows if row[:2] == ["doubling", "(whole),"]]
    assert won[5] == "sm90"  # what run takes
    assert gpu.winners([]) == ""


def test_a_frame_without_the_new_kernels_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is held to Triton: the first one, which captures a graph, is not the one that makes the backend."""
    seen: list[str | None] = []

    class Noted:
        def __init__(self, *_: object, backend: str, **__: object) -> None:
            seen.append(kernels.forced())

        def __call__(self, frames: Tensor, layout: str) -> Tensor:
            seen.append(kernels.forced())
            return frames

    monkeypatch.setattr(frame, "Upscaler", Noted)
    monkeypatch.setattr(frame, "BACKENDS", {"fused": SimpleNamespace(probe=lambda device: frame.Ok())})
    model: Any = SimpleNamespace(calibration=None)
    monkeypatch.setattr(hopper, "why_not", lambda device: ("no Hopper GPU", "none"))
    assert ("fused-triton", "fp16") not in frame.makers(model, torch.zeros(0), "cuda")
    monkeypatch.setattr(hopper, "why_not", lambda device: None)
    makers = frame.makers(model, torch.zeros(0), "cuda")
    makers["fused-triton", "fp16"]()()
    makers["fused", "fp16"]()()
    assert seen == ["triton", "triton", None, None]


def test_a_frame_is_held_against_the_project_itself() -> None:
    def one(impl: str, dtype: str, ms: float) -> Record:
        shape = {"n": 1, "h": 1, "w": 1}
        fields = {"suite": "frame", "impl": impl, "dtype": dtype, "baseline": "plain", "shape": shape}
        return {**fields, "latency_ms": latency([ms]), "quality": {"gate": "pass"}}

    run = [one("plain", "fp32", 8.0), one("fused", "fp32", 6.0), one("fused-triton", "fp16", 4.0)]
    run += [one("fused", "fp16", 2.0), one("fused", "int8", 1.0)]
    figures = [timed_figures(each, run, []) for each in run]
    assert [each.get("speedup_vs_triton") for each in figures] == [0.5, 4 / 6, None, 2.0, 4.0]
    assert [each.get("speedup_vs_fused_fp16") for each in figures] == [0.25, 2 / 6, 0.5, None, 2.0]


def test_a_time_may_be_promised(runtime: Noting) -> None:
    found = timed(Doubling(runtime))
    one = next(one for one in found if one["suite"] == "kernel" and one["impl"] == "sm90")
    records = {each["id"]: each for each in found}
    promised: dict[str, Any] = {"name": "x", "says": "x", "suite": "kernel", "where": {}, "evidence": "a::b"}
    claim = Claim(**promised, quantity="p50_ms", record=one["id"], at_most=1e6)
    assert judge(claim, records).value == one["latency_ms"]["p50"]
    with pytest.raises(ValueError, match="at most 1e-09"):
        judge(Claim(**promised, quantity="p50_ms", record=one["id"], at_most=1e-9), records)


# --- first use --------------------------------------------------------------------------------------------------

SAID = {
    "layout": "kShifted",
    "wrong_values": {"kShifted": 0, "kFlat": 3, "kBoxes": 0},
    "nvrtc": "13.0",
    "checks": {"a": None, "b": "b disagrees"},
    "choices": {"conv3x3 of 1x270x480": "sm90"},
}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What processes were asked for, the first of which takes 9 s and the others 2 s."""
    asked: list[dict[str, Any]] = []
    honest = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "env" not in options:  # git, asked for the environment of a record
            return honest(command, **options)
        asked.append({"command": command, "cache": options["env"].get("SRGAN_FAST_CACHE")})
        said = {**SAID, "first_use_s": 9.0 if len(asked) == 1 else 2.0}
        return SimpleNamespace(returncode=0, stderr="", stdout=f"a word of a compiler\n{json.dumps(said)}\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(parts, "DEVICE", "cpu")
    monkeypatch.setattr(parts, "_needs_hopper", lambda: None)
    return asked


def test_the_first_use_is_taken_over_an_empty_and_a_full_cache(
    processes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Record] = []
    with pytest.raises(ParityError, match="1 of 2 failed: b"):
        parts.probe(found.append)
    assert "b disagrees" in capsys.readouterr().out
    assert (found[0]["quality"]["gate"], found[0]["derived"]) == ("fail", {})
    assert processes[0] == processes[1]
    assert not Path(str(processes[0]["cache"])).exists()
    monkeypatch.setitem(SAID, "checks", {"a": None})
    processes.clear()
    parts.probe(found.append)
    (good,) = cleaned(found[1:])
    assert good["derived"] == {"failed": 0, "compile_s": 7.0}
    assert (good["raw"]["layout"], good["raw"]["nvrtc"]) == ("kShifted", "13.0")
    verify(good, [])
    monkeypatch.setitem(SAID, "layout", None)
    with pytest.raises(ParityError, match="layout"):
        parts.probe(found.append)


def test_a_first_use_that_fails_says_why(processes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=6, stderr="a\nbackend fused disagrees\n", stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SRGANFastError, match=r"ended with 6 \(backend fused disagrees\)"):
        parts.probe(lambda one: None)


def test_a_first_use_is_what_a_process_found(
    runtime: Noting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    op = Doubling(runtime)

    class Small:
        def __init__(self, model: str, **options: str) -> None:
            assert (model, options["backend"]) == ("m", "fused")

        def __call__(self, frames: Tensor, layout: str) -> Tensor:
            return op.run(frames.flatten().float())

    monkeypatch.setattr(probe, "Upscaler", Small)
    monkeypatch.setattr(sm90, "_probe", lambda _: [5, 0, 0])
    monkeypatch.setattr(nvrtc, "version", lambda: "12.8")
    assert probe.main(["m", "cpu", "3x2", "5x4"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["layout"], said["nvrtc"]) == ("kFlat", "12.8")
    assert said["wrong_values"] == {"kShifted": 5, "kFlat": 0, "kBoxes": 0}
    assert said["checks"] == {"doubling/sm90.cu: doubling": None}
    assert said["choices"] == {"doubling of 18": "sm90", "doubling of 60": "sm90"}
    assert said["first_use_s"] > 0


def test_other_gpus_are_told_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.main(["m", "cpu", "3x2"]) != 0
    assert "expected a Hopper GPU" in capsys.readouterr().err
    monkeypatch.setattr(parts, "DEVICE", "cpu")
    monkeypatch.setattr(parts.shutil, "which", lambda name: "/usr/bin/true")
    for part in (parts.probe, parts.parity_by("sm90"), parts.sanitized("sm90")):
        with pytest.raises(parts.NotHere, match="sm_90a do not run here"):
            part(lambda one: None)
    found: list[Record] = []
    parts.ceilings_and_rates(found.append)
    assert {one["suite"] for one in found} == {"ceiling"}


def test_the_sanitizer_watches_one_implementation(
    processes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.shutil, "which", lambda name: f"/opt/{name}")
    found: list[Record] = []
    parts.sanitized("sm90")(found.append)
    assert [one["command"][2] for one in processes] == ["memcheck", "racecheck"]
    assert {one["command"][-1] for one in processes} == {"sm90"}
    assert (found[0]["name"], found[0]["derived"]) == ("sanitizer_sm90", {"failed": 0})


def test_what_the_sanitizer_watches_is_run(runtime: Noting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling(runtime)})
    exercise("cpu", "sm90")
    assert hopper.calls(CPU) == 1
    exercise("cpu", "triton")
    assert hopper.calls(CPU) == 1
    failing = Noting()
    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling(failing, passes=False)})
    with hopper.emulated(failing), pytest.raises(ParityError, match="doubling disagrees"):
        exercise("cpu", "sm90")
