"""The cache of TensorRT's engines: what is found, why nothing is, what is published, and by whom of several at once."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest

from srgan_fast import export, private
from srgan_fast.errors import BackendUnavailable, OutputError, ParityError, UsageError
from srgan_fast.export.graph import FRAMES
from srgan_fast.tensorrt import engines, library
from srgan_fast.tensorrt.engines import Findings, Missing, Pair
from srgan_fast.weights import Model, load

GOOD = Findings(("64x64: pass",), {"64x64": {"tensorrt": 1.0, "fused": 2.0}})
OPTIONS = engines.options(4, largest=(64, 48))
FIX = "run `srgan-fast trt build --weights FILE` (takes minutes)"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(tmp_path))
    return private.folder("engines")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load(tiny)


def made(model: Model, options: Any = OPTIONS, *, precision: str = "fp16", **more: Any) -> tuple[Pair, bool]:
    return engines.build(model, precision, options, "cpu", **{"judge": lambda pair: GOOD} | more)


def reason(model: Model, precision: str = "fp16") -> str:
    found = engines.find(model, precision, "cpu")
    assert isinstance(found, Missing)
    return f"{found.reason}; {found.fix}"


def names(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


# --- found again


def test_what_was_built_is_found(fake: Any, folder: Path, model: Model) -> None:
    assert reason(model) == f"no engine for this model and GPU; {FIX}"
    built, new = made(model)
    assert new
    assert names(folder) == [".json", ".plan", ".plan", ".timing"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    found = engines.find(model, "fp16", "cpu")
    assert isinstance(found, Pair)
    assert (found.plans, found.entry) == (built.plans, built.entry)
    # By what the first of the two has timed, the second had nothing left to time.
    assert [each["flags"] for each in fake.seen.builds] == [[], []]
    again, new = made(model)
    assert (again.entry, new, len(fake.seen.builds)) == (built.entry, False, 2)
    _, new = made(model, rebuild=True)
    assert (new, len(fake.seen.builds)) == (True, 4)


def test_a_hit_writes_no_graph_and_costs_little(
    fake: Any, folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(model)
    monkeypatch.setattr(export, "onnx_bytes", lambda *_: pytest.fail("a graph was written"))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        assert isinstance(engines.find(model, "fp16", "cpu"), Pair)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5


def test_other_sources_that_write_the_same_graph_find_it_and_others_do_not(
    fake: Any, folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(model)
    monkeypatch.setattr(engines, "_recipe", lambda: "another")
    assert isinstance(engines.find(model, "fp16", "cpu"), Pair)
    honest = export.onnx_bytes
    monkeypatch.setattr(export, "onnx_bytes", lambda *given: honest(*given) + b"\x00")
    assert reason(model).startswith("engine was built from another graph, by srgan-fast ")
    assert reason(model).endswith(f"; rebuild: {FIX}")


def test_the_newest_is_found_and_an_older_one_if_that_is_damaged(fake: Any, folder: Path, model: Model) -> None:
    old, _ = made(model)
    (folder / f"{old.entry.key}.json").write_bytes(engines._sidecar(replace(old.entry, built="2020-01-01T00:00:00")))
    new, _ = made(model, engines.options(4, largest=(64, 48), level=1))
    assert new.entry.key != old.entry.key
    found = engines.find(model, "fp16", "cpu")
    assert isinstance(found, Pair)
    assert found.entry.key == new.entry.key
    (folder / new.entry.plan_name("float")).unlink()
    found = engines.find(model, "fp16", "cpu")
    assert isinstance(found, Pair)
    assert found.entry.key == old.entry.key


# --- why nothing is


def test_another_model_and_another_precision(fake: Any, folder: Path, model: Model) -> None:
    made(model)
    assert reason(model, "fp32") == (
        "no engine for this model and GPU in fp32, only in fp16; run `srgan-fast trt build --weights FILE --precision"
        " fp32` (takes minutes)"
    )
    other = load("srresnet_x4_small")
    assert reason(other) == (
        "no engine for this model and GPU; run `srgan-fast trt build srresnet_x4_small` (takes minutes)"
    )
    # The same weights read otherwise are another network.
    assert reason(replace(model, info=replace(model.info, input_range=(-1.0, 1.0)))).startswith("no engine for this")


def test_another_version_another_gpu_and_another_of_the_same_name(
    fake: Any, folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(model)
    said = "engine was built by TensorRT 11.4.0.106 on Fake GPU, this is {}; rebuild: " + FIX
    fake_tensorrt.install(monkeypatch, "10.13.3.9")
    assert reason(model) == said.format("10.13.3.9 on Fake GPU")
    fake_tensorrt.install(monkeypatch)
    here = library.gpu_identity("cpu")
    monkeypatch.setattr(library, "gpu_identity", lambda device: {**here, "name": "Other", "memory": 5})
    assert reason(model) == said.format("11.4.0.106 on Other")
    monkeypatch.setattr(library, "gpu_identity", lambda device: {**here, "memory": 5, "l2": 6})
    assert reason(model) == said.format("11.4.0.106 on Fake GPU with another memory, l2")


def test_no_library(fake: Any, folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made(model)
    monkeypatch.undo()
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(folder.parent))
    assert reason(model).startswith("it needs an NVIDIA GPU and driver")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 1000), "has 1000 bytes of"),
    "empty": (lambda path: os.truncate(path, 0), "has 0 bytes of"),
    "altered": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "was altered"),
    "gone": (lambda path: path.unlink(), "is not there, or not the user's own"),
    "open to others": (lambda path: path.chmod(0o666), "is not there, or not the user's own"),
    "a link": (lambda path: path.symlink_to(path.rename(path.with_name("x"))), "is not there, or not the user's own"),
}


@pytest.mark.parametrize(("damage", "frames"), list(zip(DAMAGE, itertools.cycle(FRAMES))))
def test_a_damaged_plan_is_never_loaded(damage: str, frames: str, fake: Any, folder: Path, model: Model) -> None:
    built, _ = made(model)
    path = folder / built.entry.plan_name(frames)
    harm, said = DAMAGE[damage]
    harm(path)
    assert f"its plan {path.name} {said}" in reason(model)
    # It is built again where it is asked for, not taken for one that is there.
    again, new = made(model)
    assert new
    assert isinstance(engines.find(model, "fp16", "cpu"), Pair)
    assert again.plans == built.plans


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"fp16"', '"fp32"', "its sidecar was altered"),
        ('"format": 1', '"format": 2', "it is of another version of srgan-fast"),
        ('"key": "', '"key": 1, "', "its sidecar is damaged"),
        ("{", "[", "its sidecar is damaged"),
    ],
)
def test_a_damaged_sidecar_is_no_engine(old: str, new: str, said: str, fake: Any, folder: Path, model: Model) -> None:
    built, _ = made(model)
    path = folder / f"{built.entry.key}.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert reason(model).startswith("no engine for this model and GPU; ")
    (damaged,) = engines.entries()
    assert said in (engines.why_not(damaged, "cpu") or "")


def test_a_sidecar_of_one_key_is_not_another_ones(fake: Any, folder: Path, model: Model) -> None:
    built, _ = made(model)
    path = folder / f"{built.entry.key}.json"
    path.rename(folder / f"{'0' * 32}.json")
    assert reason(model).startswith("no engine for this model and GPU; ")


def test_a_folder_that_others_may_write_into_is_refused(fake: Any, folder: Path, model: Model) -> None:
    made(model)
    folder.chmod(0o777)
    assert "others may write into" in reason(model)
    assert "SRGAN_FAST_CACHE" in reason(model)
    for use in (lambda: made(model), engines.entries, lambda: engines.clean(lambda each: True)):
        with pytest.raises(BackendUnavailable, match="others may write into"):
            use()


# --- what is published


@pytest.mark.parametrize("trouble", ["disagrees", "build", "full", "stopped"])
def test_what_fails_publishes_nothing_and_gives_the_lock_back(
    trouble: str, fake: Any, folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(pair: Pair) -> Findings:
        raise {"disagrees": ParityError("off"), "stopped": KeyboardInterrupt()}[trouble]

    expected: type[BaseException] = {"disagrees": ParityError, "stopped": KeyboardInterrupt}.get(
        trouble, BackendUnavailable
    )
    more: dict[str, Any] = {"judge": judge} if trouble in ("disagrees", "stopped") else {}
    if trouble == "build":
        fake.switches.build_error = "out of memory"
    if trouble == "full":
        honest, expected = private.write, OutputError

        def write(path: Path, content: bytes) -> None:
            if path.suffix == ".plan":
                raise OutputError("no room")
            honest(path, content)

        monkeypatch.setattr(private, "write", write)
    with pytest.raises(expected):
        made(model, **more)
    assert names(folder) == ([] if trouble == "build" else [".timing"])
    assert reason(model).startswith("no engine for this model and GPU; ")


def test_a_rebuild_that_fails_leaves_what_was_there(fake: Any, folder: Path, model: Model) -> None:
    built, _ = made(model)
    fake.switches.build_error = "no"
    with pytest.raises(BackendUnavailable):
        made(model, rebuild=True)
    assert engines.find(model, "fp16", "cpu") == built


def test_auto_wants_engines_that_were_held_and_are_faster(fake: Any, folder: Path, model: Model) -> None:
    entry = made(model, judge=lambda pair: Findings((), {}))[0].entry
    assert entry.why_not_auto == "its engine was not held against the other backends on this GPU"
    entry = replace(entry, agreement=["64x64: pass"])
    for speed, said in (
        ({"64x64": {"tensorrt": 1.0}}, "its engine was not held against"),
        ({"64x64": {"tensorrt": 1.0, "eager": 9.0, "fused": 1.5}}, None),
        ({"64x64": {"tensorrt": 1.0, "fused": 1.0}}, "fused was 1.00 times as fast at 64x64"),
        ({"64x64": {"tensorrt": 1.0, "fused": 2.0}, "480x270": {"tensorrt": 1.02, "fused": 1.0}}, None),
        (
            {"64x64": {"tensorrt": 1.0, "fused": 2.0}, "480x270": {"tensorrt": 1.5, "fused": 1.2, "eager": 3.0}},
            "fused was 1.25 times as fast at 480x270",
        ),
    ):
        got = replace(entry, speed_ms=speed).why_not_auto
        assert (said is None) == (got is None), got
        assert said is None or said in str(got)


# --- options


def test_options_serve_every_frame_up_to_the_largest() -> None:
    (dynamic,) = engines.options(4).profiles
    assert (dynamic.min, dynamic.opt, dynamic.max) == ((1, 1, 1), (1, 270, 480), (1, 540, 960))
    dynamic, fixed = engines.options(4, sizes=((1280, 720),), batch=2).profiles
    assert (dynamic.max, dynamic.opt) == ((2, 720, 1280), (2, 270, 480))
    assert (fixed.min, fixed.opt, fixed.max) == ((1, 720, 1280), (2, 720, 1280), (2, 720, 1280))
    (small,) = engines.options(4, largest=(100, 80)).profiles
    assert (small.opt, small.max) == ((1, 80, 100), (1, 80, 100))
    # What does not fit is made to, where nobody asked for it, and refused where somebody did.
    (eight,) = engines.options(8, batch=4).profiles
    n, h, w = eight.max
    assert 400_000 < n * h * w <= 500_000
    with pytest.raises(UsageError, match="at most 2,000,000 LR pixels at once, got 1 frames of 1920x1080"):
        engines.options(4, largest=(1920, 1080))
    with pytest.raises(UsageError, match="at most 2,000,000 LR pixels at once"):
        engines.options(4, sizes=((1920, 1080),))
    with pytest.raises(UsageError, match="within the first one"):
        engines.options(4, sizes=((480, 270),), largest=(320, 270))


# --- clean


def test_clean_removes_what_is_ours_and_wanted_gone(fake: Any, folder: Path, model: Model) -> None:
    keys = {precision: made(model, precision=precision)[0].entry.key for precision in ("fp16", "fp32")}
    strangers = [folder / "photo.plan", folder / "notes.json", folder / "film.timing"]
    orphans = [folder / f"{number * 32}-uint8-{number * 16}.plan" for number in "01"]
    for path in (*strangers, *orphans):
        path.write_bytes(b"x")
    for path in (*strangers, orphans[0]):
        os.utime(path, (0, 0))
    gone = engines.clean(lambda each: each.key == keys["fp16"])
    assert [each.key for each in gone] == [keys["fp16"]]
    assert [each.key for each in engines.entries()] == [keys["fp32"]]
    assert (orphans[0].exists(), orphans[1].exists()) == (False, True)
    assert ".timing" in {path.suffix for path in set(folder.iterdir()) - set(strangers)}
    engines.clean(lambda each: True)
    assert set(folder.iterdir()) == {*strangers, orphans[1]}


# --- several at once

BUILD = """
import sys
import fake_tensorrt, pytest
from srgan_fast.tensorrt import engines
from srgan_fast.weights import load

fake = fake_tensorrt.install(pytest.MonkeyPatch())
fake.switches.on_step = lambda i: print("builds", flush=True)
fake.switches.slow_step_s = 60
engines.build(load(sys.argv[1]), "fp16", engines.options(4, largest=(64, 48)), "cpu", judge=None)
"""


def test_one_builds_and_who_waits_takes_its_result_and_a_killed_process_holds_nobody_up(
    fake: Any, folder: Path, model: Model, tiny: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", BUILD, str(tiny)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "builds\n"
        waiting = threading.Barrier(3)
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(made, model, on_wait=waiting.wait) for _ in range(2)]
            waiting.wait(timeout=60)
            assert names(folder) == [".lock"]
            assert not any(one.done() for one in both)
            first.send_signal(signal.SIGKILL)
            (one, mine), (other, theirs) = (each.result(timeout=60) for each in both)
    assert sorted((mine, theirs)) == [False, True]
    assert one == other
    assert len(fake.seen.builds) == 2
    assert names(folder) == [".json", ".plan", ".plan", ".timing"]
