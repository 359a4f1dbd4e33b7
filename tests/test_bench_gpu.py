"""The whole GPU run without a GPU: fake parts in real child processes; what was not run is never passed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import of_tree
from records import cleaned

from srgan_fast.bench import gpu, parts
from srgan_fast.bench import record as records_module
from srgan_fast.bench.claims import judge, load_claims, verify
from srgan_fast.bench.held import held
from srgan_fast.bench.record import ROOT, content_id, record
from srgan_fast.errors import InputError, OutputError, ParityError

FAKES = """
import os, subprocess, sys, time
from srgan_fast.bench.figures import checked_figures
from srgan_fast.bench.parts import NotHere, Part
from srgan_fast.bench.record import record
from srgan_fast.errors import ParityError

def good(emit):
    raw = {"held_bytes": [1, 1]}
    emit(record("parts", "good", raw=raw, derived=checked_figures(raw), quality={"gate": "pass"}))

def bad(emit):
    good(emit)
    print("a line before")
    raise ParityError("3 of 7 failed in /home/someone/secret/file.py")

def crash(emit):
    os.abort()

def hang(emit):
    good(emit)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    time.sleep(600)

def absent(emit):
    raise NotHere("the tool is not found")

PARTS = (
    Part("good", good, 1),
    Part("bad", bad, 1),
    Part("crash", crash, 1),
    Part("absent", absent, 1),
    Part("bare", good, 1, ("no_such_package",)),
    Part("hang", hang, 3),
    Part("long", good, 1000),
    Part("last", good, 1),
)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "fake_parts.py").write_text(FAKES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    sys.modules.pop("fake_parts", None)
    import fake_parts  # type: ignore[import-not-found]

    # A child imports torch, which on a busy machine takes longer than these parts say.
    monkeypatch.setattr(parts.Part, "limit_s", property(lambda part: 15 if part.name == "hang" else 60))
    return fake_parts  # type: ignore[no-any-return]


def outcomes(file: Path) -> dict[str, str]:
    return {one["name"]: one["outcome"] for one in gpu.read(file) if one["suite"] == "gpu"}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_part_that_fails_is_said_and_the_next_one_runs(fakes: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--table", "fake_parts", "--out", str(tmp_path), "--parts", "bad,bare,last"]) == 1
    (file,) = tmp_path.glob("gpu-*.jsonl")
    assert outcomes(file) == {
        "bad": "failed: 3 of 7 failed in file.py",
        "bare": "failed: needs no_such_package, which is not installed",
        "last": "passed",
    }
    assert [one["name"] for one in gpu.read(file) if one["suite"] == "parts"] == ["good"] * 2


@pytest.mark.slow
def test_a_run_survives_what_its_parts_do(
    fakes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Failing, crashing, hanging, absent and too long: each is said, and the parts after it run."""
    code = gpu.main(["--table", "fake_parts", "--out", str(tmp_path), "--budget-s", "300"])
    (file,) = tmp_path.glob("gpu-*.jsonl")
    said = outcomes(file)
    assert code == 1
    assert said == {
        "good": "passed",
        "bad": "failed: 3 of 7 failed in file.py",
        "crash": said["crash"],
        "absent": "not run: the tool is not found",
        "bare": "failed: needs no_such_package, which is not installed",
        "hang": "failed: not done after 15 s",
        "long": said["long"],
        "last": "passed",
    }
    assert said["crash"].startswith("failed: ended by signal 6")
    assert said["long"].startswith("not run: ")
    assert "were left of the budget, it takes about 1000 s" in said["long"]
    # What a part had measured before it failed or was ended is there.
    assert [one["name"] for one in gpu.read(file) if one["suite"] == "parts"] == ["good"] * 4
    printed = capsys.readouterr().out
    assert printed.index("make gpu\n") > printed.index("=== last: passed")
    pid = int(next(line for line in printed.splitlines() if line.startswith("child ")).split()[1])
    for _ in range(50):
        if not alive(pid):
            break
        time.sleep(0.1)
    assert not alive(pid), "what a hanging part had started was left running"
    for one in cleaned(gpu.read(file)):
        verify(one, [])
    # On with what was not reached, in the same file; what failed stays failed.
    assert gpu.unfinished(file, fakes) == ["absent", "long"]


def test_the_budget_ends_and_the_run_goes_on_later(fakes: ModuleType, tmp_path: Path) -> None:
    arguments = ["--table", "fake_parts", "--out", str(tmp_path)]
    assert gpu.main([*arguments, "--parts", "good,last", "--budget-s", "0.5"]) == 0
    (file,) = tmp_path.glob("gpu-*.jsonl")
    assert all(said.startswith("not run: ") for said in outcomes(file).values())
    text = gpu.summary(fakes, gpu.read(file))
    assert "passed" not in text
    assert text.count("not run") == len(fakes.PARTS)
    before = file.read_text()
    assert gpu.main([*arguments, "--parts", "last,good", "--continue", str(file)]) == 0
    assert outcomes(file) == {"good": "passed", "last": "passed"}
    assert file.read_text().startswith(before)
    assert {"good", "last"}.isdisjoint(gpu.unfinished(file, fakes))
    assert len(list(tmp_path.glob("gpu-*.jsonl"))) == 1


def test_a_user_may_stop_it(fakes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(table: ModuleType, name: str, file: Path, limit_s: float) -> str:
        if name == "last":
            raise KeyboardInterrupt
        return "passed"

    monkeypatch.setattr(gpu, "_in_child", stop)
    assert gpu.main(["--table", "fake_parts", "--out", str(tmp_path), "--parts", "bad,last,good"]) == 130
    (file,) = tmp_path.glob("gpu-*.jsonl")
    said = "not run: stopped by the user"
    assert outcomes(file) == {"bad": "passed", "last": said, "good": said}
    assert gpu.unfinished(file, fakes)[-1] == "last"


def test_a_disk_that_fills_adds_no_half_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu.jsonl"
    gpu.append(file, {"id": 1})
    whole = os.write
    monkeypatch.setattr(os, "write", lambda to, line: whole(to, line[:3]))
    with pytest.raises(OutputError, match="No space left"):
        gpu.append(file, {"id": 2})
    assert gpu.read(file) == [{"id": 1}]


def test_one_file_is_one_state_of_the_sources(fakes: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "gpu-old.jsonl"
    for content, said in (("", "no outcome in it"), ("{", "the records of a run"), (None, "the records of a run")):
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError, match=said):
            gpu.unfinished(file if content is not None else tmp_path / "none", fakes)
    old = record("gpu", "good", outcome="passed", seconds=1.0, raw={}, derived={}, quality={"gate": "pass"})
    file.write_text(json.dumps({**old, "env": {**old["env"], "commit": "another"}}) + "\n")
    with pytest.raises(InputError, match="made with commit another"):
        gpu.unfinished(file, fakes)


def test_refusals(fakes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, said in (
        (["--table", "fake_parts", "--out", str(tmp_path / "none")], 4, "expected --out"),
        (["--table", "fake_parts", "--out", str(tmp_path), "--parts", "good,odd"], 2, "got odd"),
        (["--table", "fake_parts", "--continue", str(tmp_path / "none")], 2, "expected --continue"),
    ):
        assert gpu.main(arguments) == code
        assert said in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert gpu.main(["--out", str(tmp_path)]) == 3
        assert "torch sees none" in capsys.readouterr().err


def test_a_bare_machine_can_start_it() -> None:
    """With torch, numpy and pytest only: nothing that is imported needs typer, rich, av, pillow or safetensors."""
    code = (
        "import sys\n"
        "for name in ('typer', 'rich', 'av', 'PIL', 'safetensors', 'hypothesis', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import srgan_fast.bench.gpu, srgan_fast.bench.kernel, srgan_fast.bench.train, srgan_fast.bench.ceiling\n"
        "print(len(srgan_fast.bench.gpu.parts.PARTS))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == str(len(parts.PARTS)), done.stderr


# --- the parts --------------------------------------------------------------------------------------------------


def test_the_table_of_parts() -> None:
    """What a GPU alone can say first, then what the claims are about, within one budget; the rest needs a few."""
    names = [part.name for part in parts.PARTS]
    assert len(set(names)) == len(names)
    assert names[:3] == ["probe", "op_parity_sm90", "ceilings"]
    assert names.index("frame_960x540") < names.index("graph") < names.index("sizes") < names.index("sanitizer_triton")
    after = names[names.index("kernels") + 1 :]
    assert after[:2] == ["train", "train_parity"]
    assert after.index("train_compile") < after.index("train_kernels") < after.index("graph")
    assert sum(part.seconds for part in parts.PARTS[: names.index("compile_480x270") + 1]) <= 480


def test_reports_of_pytest_are_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure/></testcase>'
        '<testcase classname="a" name="broken"><error/></testcase>'
        '<testcase classname="a" name="left"><skipped/></testcase></testsuite></testsuites>'
    )
    assert parts.outcomes_of(report) == ({"a::good": True, "a::bad": False, "a::broken": False}, ["a::left"])


class Odd:
    """An op of which one case is right, one wrong and one breaks."""

    CASES = tuple(
        SimpleNamespace(
            name=name, floor=None, inputs=lambda device, dtype, name=name: {"x": torch.ones(3), "name": name}
        )
        for name in ("right", "wrong", "broken")
    )

    def reference(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return 2 * x

    def run(self, x: torch.Tensor, name: str) -> torch.Tensor:
        if name == "broken":
            raise RuntimeError("an illegal memory access")
        return 2 * x + (name == "wrong")


def test_every_case_of_every_op_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found, left = held({"odd": Odd()}, "cpu", "triton")  # type: ignore[dict-item]
    wanted = {"right": True, "wrong": False, "broken": False}
    assert left == []
    assert found == {f"odd {p}: {name}": good for p in ("fp32", "fp16", "bf16") for name, good in wanted.items()}
    printed = capsys.readouterr().out
    assert "odd fp32: broken: RuntimeError: an illegal memory access" in printed
    assert printed.count("1 of 3") == 3


def test_a_check_that_fails_leaves_no_figure() -> None:
    found: list[dict[str, Any]] = []
    parts._check(found.append, "x", {"outcomes": {"a": True}, "host_syncs": []})
    with pytest.raises(ParityError, match="1 of 2 failed: b"):
        parts._check(found.append, "x", {"outcomes": {"a": True, "b": False}})
    with pytest.raises(ParityError, match="0 of 0"):
        parts._check(found.append, "x", {"outcomes": {}})
    with pytest.raises(ParityError, match="held_bytes"):
        parts._check(found.append, "x", {"held_bytes": [1, 2]}, passed=False)
    assert [one["derived"] for one in found] == [{"failed": 0, "host_syncs": 0}, {}, {}, {}]


def test_a_check_proves_a_claim() -> None:
    found: list[dict[str, Any]] = []
    parts._check(found.append, "memory_flat", {"held_bytes": [7, 7]})
    one = found[0]
    one["env"] |= {"dirty": False, "gpu": "NVIDIA H100"}
    one["id"] = content_id(one)
    promised = next(claim for claim in load_claims() if claim.name == "memory_flat")
    verdict = judge(dataclasses.replace(promised, record=one["id"]), {one["id"]: one})
    assert (verdict.status, verdict.value) == ("proven", 0.0)


@pytest.mark.filterwarnings("ignore")
def test_a_profiler_that_sees_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "DEVICE", "cpu")
    with pytest.raises(ParityError, match="the profiler does not work here"):
        parts.host_waits(lambda: torch.ones(1) + 1)


def test_the_sanitizer_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.shutil, "which", lambda name: None)
    with pytest.raises(parts.NotHere, match="compute-sanitizer is not found"):
        parts.sanitized("triton")(lambda one: None)


# --- the stamp --------------------------------------------------------------------------------------------------


@of_tree
def test_a_stamp_stands_in_for_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy without .git the stamp says commit and state, and a file that changed since makes the tree dirty."""
    for folder in ("bench/results", "srgan_fast"):
        (tmp_path / folder).mkdir(parents=True)
    source = tmp_path / "srgan_fast/model.py"
    source.write_text("a = 1\n")
    monkeypatch.setattr(records_module, "ROOT", tmp_path)
    monkeypatch.setattr(records_module, "STAMP", tmp_path / "bench/results/stamp.json")

    def git(*arguments: str) -> str:
        return {"rev-parse --show-toplevel": str(tmp_path), "rev-parse HEAD": "c0ffee"}.get(" ".join(arguments), "")

    def state() -> tuple[str | None, bool | None]:
        records_module.environment.cache_clear()
        env = records_module.environment()
        return env["commit"], env["dirty"]

    try:
        monkeypatch.setattr(records_module, "_git", git)
        assert state() == ("c0ffee", False)
        records_module.write_stamp()
        monkeypatch.setattr(records_module, "_git", lambda *_: None)
        assert state() == ("c0ffee", False)
        source.write_text("a = 2\n")
        assert state() == ("c0ffee", True)
        records_module.STAMP.unlink()
        assert state() == (None, None)
        with pytest.raises(records_module.OutputError, match="where the \\.git is"):
            records_module.write_stamp()
    finally:
        records_module.environment.cache_clear()
