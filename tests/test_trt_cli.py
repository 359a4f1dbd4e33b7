"""`srgan-fast trt` on a double of TensorRT, and which backend runs when something is wrong with its engines."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest

from srgan_fast import private
from srgan_fast.bench import engine, parts
from srgan_fast.bench.figures import timed_figures
from srgan_fast.cli import check
from srgan_fast.errors import BackendUnavailable, ParityError
from srgan_fast.tensorrt import engines, library
from srgan_fast.upscaler import Upscaler
from srgan_fast.weights import load

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]
HERE = ("--device", "cpu")  # which passes for a GPU


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(engine, "_RUNS", 2)
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(tmp_path))
    return private.folder("engines")


def published(tiny: Path, precision: str = "fp16", **options: Any) -> None:
    """Engines of which somebody says that they are good."""
    found = engines.Findings(("pass",), {"40x32": {"tensorrt": 1.0, "eager": 2.0}})
    some = engines.options(4, largest=(40, 32), **options)
    engines.build(load(tiny), precision, some, "cpu", judge=lambda pair: found)


@pytest.fixture
def build(run: Run, tiny: Path) -> Run:
    """The command for a small engine in fp32, which eager has here too; more options go behind it."""

    def call(*more: object) -> tuple[int, str, str]:
        options = ("--weights", tiny, "--largest", "40x32", "--precision", "fp32", *HERE)
        return run("trt", "build", *options, *more)

    return call


def test_built_listed_and_removed(
    fake: Any, folder: Path, tiny: Path, build: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = build("--size", "24x16", "--batch", 2, "--level", 1, "--workspace", "64M", "--leaky-relu")
    assert (code, err.splitlines()[0]) == (0, "Building an engine"), err
    assert fake.seen.misuses == []
    assert [(each["level"], each["workspace"]) for each in fake.seen.builds] == [(1, 64 << 20)] * 2
    assert re.match(r"[0-9a-f]{32}  tiny fp32, \d+\.\d MiB, built 20\d\d-.* UTC in \d+\.\d s\n", out)
    assert "  frames   1 of 1x1 to 2 of 40x32, tuned for 2 of 40x32\n" in out
    assert "  frames   1 of 24x16 to 2 of 24x16, tuned for 2 of 24x16\n" in out
    for size in ("40x32", "24x16"):
        assert re.search(rf"  agrees   {size}: pass: max error .* dB", out)
        assert re.search(rf"  speed    {size}: \d+\.\d+ ms, \d+\.\d\d times as fast as \w+\n", out)
    assert re.search(r"  here     usable, (and taken by auto|but not taken by auto: when its engine was built)", out)
    # All of it is in the sidecar.
    code, listed, _ = run("trt", "list", *HERE)
    assert code == 0
    assert re.fullmatch(re.escape(out) + rf"1 pair of engines, 0\.\d MiB in {folder}\n", listed)
    code, again, _ = build("--size", "24x16", "--batch", 2, "--level", 1, "--workspace", "64M", "--leaky-relu")
    assert again == f"there already; --rebuild builds it again\n{out}"
    assert len(fake.seen.builds) == 2
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal: bars, one inside another, gone at the end
    code, _, bars = build(
        "--size", "24x16", "--batch", 2, "--level", 1, "--workspace", "64M", "--leaky-relu", "--rebuild"
    )
    assert (code, len(fake.seen.builds)) == (0, 4)
    for said in ("Building an engine", "  Timing", "holding against eager at 24x16"):
        assert said in bars
    monkeypatch.delenv("FORCE_COLOR")
    (folder / "mine.txt").touch()
    code, gone, _ = run("trt", "clean", out[:12])
    removed = rf"removed {out[:32]} tiny fp32\n1 pair of engines removed, 0\.\d MiB, from {folder}\n"
    assert code == 0
    assert re.fullmatch(removed, gone)
    published(tiny)
    assert re.match(r"removed \w+ tiny fp16\n1 pair of engines removed", run("trt", "clean", "--all")[1])
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "wrong": lambda picture: picture[:, ::-1],
    "not finite": lambda picture: picture if picture.dtype == np.uint8 else picture * np.float32("nan"),
    # The engine for uint8 alone.
    "pixels": lambda picture: picture // 2 if picture.dtype == np.uint8 else picture,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_engines_that_disagree_are_not_kept(damage: str, fake: Any, folder: Path, build: Run) -> None:
    fake.switches.damage = DAMAGE[damage]
    code, out, err = build()
    assert (code, out) == (6, "")
    assert re.search(
        r"backend tensorrt disagrees with eager .* srgan-fast check --report; the engines are not kept$", err
    )
    assert not engines.entries()


def test_refusals(fake: Any, run: Run, build: Run, tiny: Path) -> None:
    for arguments, said in (
        (("build", "srresnet_x4", "--weights", tiny), "expected MODEL or --weights, got both"),
        (("build", "--precision", "bf16"), "expected --precision fp16 or fp32, got 'bf16'"),
        (("build", "--batch", 0), "expected --batch of at least 1, got 0"),
        (("build", "--size", "480"), "expected --size like 480x270, got '480'"),
        (("build", "--largest", "0x4"), "expected --largest like 480x270, got '0x4'"),
        (("build", "--largest", "2000x1500", *HERE), "expected at most 2,000,000 LR pixels at once"),
        (("build", "--workspace", "much", *HERE), "expected a memory budget such as 2G"),
        (("build", "--level", 6, *HERE), "expected a level from 0 to 5, got 6"),
        (("build", "no_such_model", *HERE), "expected a weights file or one of the bundled models"),
        (("clean",), "expected one of KEY, --all and --unusable"),
        (("clean", "--all", "--unusable"), "expected one of KEY, --all and --unusable"),
        (("clean", "0123"), "expected a key of an engine, or the first characters of just one, got '0123'"),
    ):
        code, out, err = run("trt", *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err, arguments


def test_without_a_gpu_all_is_said_and_nothing_removed(
    fake: Any, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tiny)
    monkeypatch.setattr(library, "_is_nvidia", lambda device: False)
    said = "it needs an NVIDIA GPU and driver, and torch sees none"
    for arguments in (("build",), ("check",), ("clean", "--unusable")):
        code, out, err = run("trt", *arguments)
        assert code == 3
        assert f"backend tensorrt is not available: {said}" in err
    code, out, _ = run("trt", "list")
    assert (code, out.splitlines()[-2]) == (0, f"  here     not usable: {said}")
    assert len(engines.entries()) == 1


def test_unusable_ones_are_removed(fake: Any, folder: Path, run: Run, tiny: Path) -> None:
    published(tiny)
    published(tiny, level=1)
    first, second = engines.entries()
    os.truncate(folder / first.plan_name("float"), 9)  # type: ignore[union-attr]
    (folder / f"{'0' * 32}.json").write_text("{}")
    assert "  here     not usable: its plan" in run("trt", "list", *HERE)[1]
    code, out, _ = run("trt", "clean", "--unusable", *HERE)
    assert (code, out.splitlines()[:2]) == (0, [f"removed {'0' * 32}", f"removed {first.key} tiny fp16"])
    assert engines.entries() == [second]


def test_a_folder_that_others_may_write_into(fake: Any, folder: Path, run: Run, build: Run) -> None:
    folder.chmod(0o777)
    for code, out, err in (build(), run("trt", "list", *HERE), run("trt", "clean", "--all")):
        assert (code, out) == (3, "")
        assert re.search(r"others may write into .*engines; chmod go-w .* set SRGAN_FAST_CACHE to a folder", err)


def test_check_is_a_report_that_keeps_nothing(fake: Any, folder: Path, run: Run, tiny: Path) -> None:
    code, out, err = run("trt", "check", tiny, *HERE)
    assert code == 0, err
    for said in (
        r"^srgan-fast \S+ trt check, Python \S+, Linux",
        r"^torch \S+, CUDA .*, onnx \d",
        r"^TensorRT 11\.4\.0\.106, driver ",
        r"^GPU: name Fake GPU, sm 9\.0, processors 4, memory 1073741824",
        r"^TensorRT: ok, ",
        r"^holding against eager at 64x64$",
        r"^  agrees   64x64: pass: max error ",
        r"^.*tiny.* fp16: ok, \d",
        r"^.*tiny.* fp32: ok, \d",
        r"^all passed; ",
    ):
        assert re.search(said, out, re.MULTILINE), said
    fake.switches.damage = DAMAGE["wrong"]
    code, out, err = run("trt", "check", tiny, *HERE)
    assert code == 6
    assert re.search(r"^.*tiny.* fp16: FAIL after \d.*: ParityError: backend tensorrt disagrees", out, re.MULTILINE)
    fake.switches.build_error = "Error Code 2: out of memory"
    code, out, err = run("trt", "check", tiny, *HERE)
    assert code == 3
    assert re.search(r"^.*tiny.* fp16: FAIL after \d.*: BackendUnavailable: .*too little GPU memory", out, re.MULTILINE)
    assert not list(folder.iterdir())


INTERRUPTED = """
import sys
import fake_tensorrt, pytest
fake = fake_tensorrt.install(pytest.MonkeyPatch())
fake.switches.on_step = lambda i: print("builds", flush=True)
fake.switches.slow_step_s = 0.3
from srgan_fast.cli import main
main()
"""


def test_ctrl_c_leaves_nothing_half_written(folder: Path, tiny: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", INTERRUPTED, "trt", "build", "--weights", str(tiny), "--largest", "40x32", *HERE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
    assert process.stdout is not None
    assert process.stdout.readline() == "builds\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.strip("builds\n") == ""
    assert err.splitlines()[-1] == "srgan-fast: stopped; no engine was built, and none is kept"
    assert not list(folder.iterdir())


# --- which backend runs


def older(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    fake_tensorrt.install(monkeypatch, version)


def spoil_plan(folder: Path, harm: Callable[[bytes], bytes]) -> None:
    path = next(folder.glob("*-uint8-*.plan"))
    path.write_bytes(harm(path.read_bytes()))


def forge(folder: Path) -> None:
    """A plan that its sidecar vouches for, and that TensorRT does not take."""
    (entry,) = engines.entries()
    assert isinstance(entry, engines.Entry)
    forged = b"not a plan"
    entry.plans["uint8"] = {"sha256": engines._sha256(forged), "bytes": len(forged)}
    private.write(folder / entry.plan_name("uint8"), forged)
    private.write(folder / f"{entry.key}.json", engines._sidecar(entry))


TROUBLE: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], object], str]] = {
    "truncated": (lambda folder, _: spoil_plan(folder, lambda plan: plan[:-9]), "bytes of"),
    "altered": (lambda folder, _: spoil_plan(folder, lambda plan: plan[:-1] + b"\0"), "was altered"),
    "forged": (lambda folder, _: forge(folder), "TensorRT 11.4.0.106 cannot load this engine"),
    "open folder": (lambda folder, _: folder.chmod(0o777), "others may write into"),
    "another version": (
        lambda _, patch: older(patch, "10.13.3.9"),
        "engine was built by TensorRT 11.4.0.106 on Fake GPU, this is 10.13.3.9 on Fake GPU",
    ),
    "too old": (lambda _, patch: older(patch, "10.3.0"), "TensorRT 10.3.0 is too old, 10.12 is needed"),
    "no library": (lambda _, patch: patch.setattr("importlib.util.find_spec", lambda name: None), "not installed"),
    "no GPU": (lambda _, patch: patch.setattr(library, "_is_nvidia", lambda device: False), "needs an NVIDIA GPU"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_with_trouble_auto_goes_on_and_an_explicit_one_stops(
    trouble: str,
    fake: Any,
    folder: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load(tiny)
    published(tiny)
    assert Upscaler(model, device="cpu").backend_name == "tensorrt"
    make, said = TROUBLE[trouble]
    make(folder, monkeypatch)
    with caplog.at_level(logging.INFO):
        assert Upscaler(model, device="cpu").backend_name != "tensorrt"
    assert said in caplog.text
    with pytest.raises(BackendUnavailable, match=re.escape(said)) as caught:
        Upscaler(model, device="cpu", backend="tensorrt")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


# --- where it is measured


def test_the_part_of_make_gpu(fake: Any, folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that passes for a GPU; frames and tests are those of other parts, with other arguments."""
    asked: list[Any] = []
    for name, value in {"DEVICE": "cpu", "MODEL": str(tiny), "_TO_1080P": (24, 16), "_TO_4K": (40, 32)}.items():
        monkeypatch.setattr(parts, name, value)
    for name in ("frames", "tests"):
        monkeypatch.setattr(parts, name, lambda *how: lambda emit: asked.append(how))
    found: list[dict[str, Any]] = []
    parts.tensorrt(found.append)
    assert asked == [(((24, 16), (40, 32)),), ("tensorrt_tests", "test_*.py", "gpu and tensorrt")]
    (checked,) = found
    assert (checked["name"], checked["derived"]["failed"], len(checked["raw"]["outcomes"])) == ("tensorrt", 0, 2)
    assert 0 < checked["derived"]["hit_s"] < 0.5
    # Engines that are found are not those that were built.
    monkeypatch.setattr(engines, "find", lambda *_: engines.Missing("none", "build some"))
    with pytest.raises(ParityError, match="expected the engines that were built"):
        parts.tensorrt(found.append)
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    with pytest.raises(parts.NotHere, match="tensorrt is not installed"):
        parts.tensorrt(found.append)


def test_a_rival_is_named_where_it_ran() -> None:
    def one(impl: str, dtype: str, p50: float) -> dict[str, Any]:
        shape = {"n": 1, "h": 270, "w": 480}
        fields = {"suite": "frame", "baseline": "plain", "quality": {"gate": "pass"}, "shape": shape}
        return {**fields, "impl": impl, "dtype": dtype, "latency_ms": {"p50": p50}}

    run = [one("plain", "fp32", 8.0), one("fused", "fp16", 1.0), one("tensorrt", "fp16", 2.0)]
    assert timed_figures(run[1], run, [])["speedup_vs_tensorrt"] == 2.0
    assert timed_figures(run[2], run, [])["speedup_vs_fused_fp16"] == 0.5
    assert "speedup_vs_tensorrt" not in timed_figures(run[1], run[:2], [])


def test_check_holds_the_engines_that_there_are(
    fake: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published(tiny)
    model = load(tiny)
    monkeypatch.setattr("srgan_fast.weights.load", lambda name: model)
    assert check._tensorrt_parity() == [("tensorrt fp16", True)]
    out = capsys.readouterr().out
    assert re.search(r"^parity tensorrt fp16 on cpu: pass: max error .*; taken by auto$", out, re.MULTILINE)
    assert "parity tensorrt fp32 on cpu: not known: no engine for this model and GPU in fp32" in out
    fake.switches.damage = DAMAGE["wrong"]
    assert check._tensorrt_parity() == [("tensorrt fp16", False)]
