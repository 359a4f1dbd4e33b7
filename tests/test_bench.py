"""Records hold what they promise; a red gate shows no speed; claims are believed only as far as their records go."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import of_tree
from records import cleaned

from srgan_fast import weights
from srgan_fast.bench import ceiling, claims, frame, memory, plot, readme
from srgan_fast.bench import record as records_module
from srgan_fast.bench.claims import Claim, judge, load_claims, load_records, verify
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.record import ROOT, content_id, latency, record, source_digest, sources_behind
from srgan_fast.bench.timer import interleave
from srgan_fast.cli.bench import _append, bench
from srgan_fast.cli.check import check
from srgan_fast.errors import BackendUnavailable, InputError, MemoryBudgetError, OutputError, ParityError, UsageError
from srgan_fast.kernels import parity
from srgan_fast.weights import load

pytestmark = pytest.mark.usefixtures("eager_alone")

Record = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tiny: Path) -> str:
    """As users name weights: a string."""
    return str(tiny)


@pytest.fixture(scope="module")
def measured(tiny: str) -> list[Record]:
    return frame.measure(tiny, 9, 7, 3, "cpu")


@pytest.fixture
def clean(measured: list[Record]) -> dict[str, Record]:
    """The measured records as they would be from a clean tree, through JSON as in a file."""
    ceilings, frames = json.loads(json.dumps([ceiling.measure("cpu"), measured]))
    for one in frames:
        # Twice as fast as plain, whatever the machine did meanwhile.
        one["latency_ms"] = latency([8.0, 10.0, 12.0] if one["impl"] == "plain" else [4.0, 5.0, 6.0])
    for one in frames:
        one["derived"] = timed_figures(one, frames, ceilings)
    return {one["id"]: one for one in cleaned([*ceilings, *frames])}


@pytest.fixture
def fast(clean: dict[str, Record]) -> Record:
    return next(one for one in clean.values() if (one.get("impl"), one["dtype"]) == ("eager", "fp32"))


def claim(one: Record, **changes: Any) -> Claim:
    where = {"impl": "eager", "dtype": "fp32", "h": 9, "w": 7}
    fields = {"name": "c", "says": "faster", "suite": "frame", "where": where, "quantity": "speedup", "at_least": 1.5}
    return Claim(**{**fields, "record": one["id"], "evidence": "tests/a.py::b", **changes})


# --- timing and records -----------------------------------------------------------------------------------------


def test_percentiles() -> None:
    times = latency([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (times["p20"], times["p50"], times["p80"]) == pytest.approx((1.8, 3.0, 4.2))
    assert times["samples"] == [5.0, 1.0, 2.0, 4.0, 3.0]
    values = np.random.default_rng(0).random(14).tolist()
    want = np.percentile(values, [20, 50, 80])
    assert [latency(values)[key] for key in ("p20", "p50", "p80")] == pytest.approx(want)


def test_candidates_take_turns() -> None:
    ran: list[str] = []
    now = iter(range(100))
    costs = {"a": lambda: ran.append("a"), "b": lambda: ran.append("b"), "c": lambda: ran.append("c")}
    samples = interleave(costs, 3, clock=lambda: float(next(now)))
    assert "".join(ran) == "abccbaabc"
    assert samples == {key: [1e3] * 3 for key in "abc"}


def test_a_record_is_json_with_an_id() -> None:
    one = json.loads(json.dumps(record("frame", "x", latency_ms=latency([1.0]))))
    assert one["id"] == content_id(one)
    assert one["env"]["torch"] == str(torch.__version__)
    assert {"id", "run", "time", "suite", "name", "env", "command"} <= set(one)
    wanted = {"cpu", "amx", "threads", "gpu", "driver", "clocks_mhz", "cuda", "torch", "triton", "tensorrt", "commit"}
    assert wanted | {"dirty", "sources"} <= set(one["env"])


def test_no_checkout_no_claim_of_a_clean_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git or a stamp, or inside a repository that is another's, nothing can be said of the tree."""
    monkeypatch.setattr(records_module, "STAMP", tmp_path / "stamp.json")
    records_module.environment.cache_clear()
    for answer in (None, "/somewhere/else"):
        monkeypatch.setattr(records_module, "_git", lambda *_, said=answer: said)
        env = records_module.environment()
        assert (env["commit"], env["dirty"]) == (None, None)
        records_module.environment.cache_clear()


@of_tree
def test_sources_behind_a_suite() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in sources_behind("frame")}
    behind = {"bench/frame.py", "bench/timer.py", "kernels/parity.py", "srgan_fast/model.py", "srgan_fast/upscaler.py"}
    assert behind | {"srgan_fast/backends/eager.py", "srgan_fast/tiling.py"} <= names
    assert not [name for name in names if name.startswith(("srgan_fast/cli", "srgan_fast/train", "tests"))]
    with pytest.raises(ValueError, match="a suite that has a file"):
        sources_behind("magic")


@of_tree
def test_the_digest_follows_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("bench", "kernels/add", "srgan_fast"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bench/frame.py").write_text("from srgan_fast import model\n")
    for name in ("srgan_fast/model.py", "srgan_fast/other.py", "kernels/add/sm90.cu"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(records_module, "ROOT", tmp_path)

    def digest() -> str:
        source_digest.cache_clear()
        return source_digest("frame")

    try:
        first = digest()
        (tmp_path / "srgan_fast/other.py").write_text("# not imported by the suite\n")
        assert digest() == first
        (tmp_path / "srgan_fast/model.py").write_text("# changed\n")
        second = digest()
        (tmp_path / "kernels/add/sm90.cu").write_text("// changed\n")
        assert len({first, second, digest()}) == 3
    finally:
        source_digest.cache_clear()


# --- suites -----------------------------------------------------------------------------------------------------


def test_frame_bench_measures_each_path(measured: list[Record]) -> None:
    assert [(r["impl"], r["dtype"]) for r in measured] == [("plain", "fp32"), ("eager", "fp32"), ("eager", "bf16")]
    assert len({one["id"] for one in measured}) == 3
    for one in measured:
        assert one["run"] == measured[0]["run"]
        assert len(one["latency_ms"]["samples"]) == 3
        assert one["quality"]["gate"] == "pass"
        assert one["compile_s"] > 0
        want = measured[0]["latency_ms"]["p50"] / one["latency_ms"]["p50"]
        assert one["derived"]["speedup"] == pytest.approx(want)


def test_a_red_gate_shows_no_speed(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_maker", lambda *_: lambda: lambda: torch.zeros(1, 36, 28, 3, dtype=torch.uint8))
    plain, *others = frame.measure(tiny, 9, 7, 1, "cpu")
    assert plain["quality"]["gate"] == "pass"
    assert all(one["derived"] == {} and one["quality"]["gate"] == "fail" for one in others)
    table = readme.speeds([plain, *others])
    assert table.count("| - | - | - | - | - | - | - |") == table.count("gate failed") == 2


@pytest.mark.parametrize("values", [48, 3072, 786432])
def test_the_fp32_gate_admits_rounding_edges_only(values: int) -> None:
    plain = np.full(values, 100, np.uint8)
    allowed = 4 + values // 1000
    for count, step, gate in ((0, 1, "pass"), (allowed, 1, "pass"), (allowed + 1, 1, "fail"), (1, 2, "fail")):
        result = plain.copy()
        result[:count] += step
        assert frame.compare_pixels(result, plain, "fp32")["gate"] == gate


def test_bf16_does_not_pass_for_fp32() -> None:
    """The gate of fp32 sees what rounding to bfloat16 does, and the gate of bf16 sees worse than that."""
    values = np.random.default_rng(0).random(3000)
    plain = np.floor(values * 255 + 0.5).astype(np.uint8)
    rounded = np.floor(torch.from_numpy(values).bfloat16().double().numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
    assert frame.compare_pixels(rounded, plain, "bf16")["gate"] == "pass"
    assert frame.compare_pixels(rounded, plain, "fp32")["gate"] == "fail"
    assert frame.compare_pixels(plain // 16 * 16, plain, "bf16")["gate"] == "fail"


def test_a_device_that_is_not_there(tiny: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU"):
        frame.measure(tiny, 9, 7, 1, "cuda")


def test_memory_is_bounded_and_planned(tiny: str) -> None:
    """A process of its own stays within its budget, cut into tiles where it must, and the picture is the uncut one."""
    free = memory.measure(tiny, 300, 400, "fp32", None)
    assert free["quality"] == {"gate": "pass", "largest_difference_levels": 0}
    result = 300 * 400 * 16 * 3
    budget = free["bytes"]["rest"] + result + (40 << 20)
    bound = memory.measure(tiny, 300, 400, "fp32", str(budget))
    assert bound["quality"]["gate"] == "pass"
    assert bound["bytes"]["peak"] <= budget
    assert bound["bytes"]["planned"] <= 40 << 20
    assert bound["derived"]["peak_gib"] == bound["bytes"]["peak"] / 2**30


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_three_gibibytes_hold_six_megapixels(precision: str) -> None:
    """The promise at its full size with `make soak`; a sixth of each side, in a sixth of the budget, otherwise."""
    soak = os.environ.get("SRGAN_FAST_SOAK") == "1"
    height, width, budget = (2000, 3000, "3G") if soak else (334, 500, "512M")
    one = memory.measure("srresnet_x4", height, width, precision, budget)
    assert one["quality"]["gate"] == "pass"
    assert one["bytes"]["peak"] <= (3 << 30 if soak else 512 << 20)
    if soak:
        assert 0.85 <= one["derived"]["planned_ratio"] <= 1.15


# --- commands ---------------------------------------------------------------------------------------------------


def test_bench_prints_a_table_and_appends_records(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "records.jsonl"
    for _ in range(2):
        bench(model=tiny, size="7x9", runs=1, out=out)
    printed = capsys.readouterr().out
    assert "plain fp32" in printed
    assert "eager bf16" in printed
    assert "ceilings measured in this run" in printed
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["suite"] for one in lines] == (["ceiling"] * 2 + ["frame"] * 3) * 2
    assert lines[2]["shape"] == {"n": 1, "c": 3, "h": 9, "w": 7, "scale": 4}
    assert all(one["id"] == content_id(one) for one in lines)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"size": "128"}, UsageError, "480x270"),
        ({"size": "0x9"}, UsageError, "480x270"),
        ({"runs": 0}, UsageError, "at least 1"),
        ({"suite": "videos"}, UsageError, "train, memory, train_kernel, reuse, video, precision or all"),
        ({"suite": "video", "frames": 1}, UsageError, "--frames of at least 2"),
        ({"suite": "video"}, UsageError, "even width and height"),
        ({"suite": "video", "plot": Path("a.png")}, UsageError, "video measures none"),
        ({"suite": "precision"}, UsageError, "expected --hr"),
        ({"hr": Path("Set5")}, UsageError, "and with it alone"),
        ({"suite": "precision", "hr": Path("no/such")}, InputError, "expected a folder of images"),
        ({"suite": "precision", "hr": Path("Set5"), "plot": Path("a.png")}, UsageError, "precision measures none"),
        ({"size": "64x64,12"}, UsageError, "480x270"),
        ({"batch": "1,0"}, UsageError, "--batch like"),
        ({"suite": "train", "peers": True}, UsageError, "--suite frame"),
        ({"suite": "memory", "plot": Path("a.png")}, UsageError, "shows speeds"),
        ({"plot": Path("no/such/folder.png")}, OutputError, "--plot"),
        ({"memory": "1G"}, UsageError, "--suite memory"),
        ({"model": "none"}, UsageError, "srresnet_x4"),
        ({"suite": "memory", "memory": "1M"}, MemoryBudgetError, "--memory"),
        ({"out": Path("no/such/folder.jsonl")}, OutputError, "--json"),
        ({"out": Path()}, OutputError, "--json"),
    ],
)
def test_bench_refuses(tiny: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        bench(**{"model": tiny, "size": "7x9", "runs": 1, **options})


def test_check_fails_when_a_path_disagrees(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(tiny)
    monkeypatch.setattr(weights, "load", lambda name: model)
    check()
    printed = capsys.readouterr().out
    assert "backend eager: available" in printed
    assert f"model srresnet_x4: digest {model.info.digest[:16]}\n" in printed
    assert "FAIL" not in printed
    for path in ("eager fp32", "banded fp32", "tiled fp32", "eager bf16", "banded bf16", "tiled bf16"):
        assert f"parity {path} on cpu: pass" in printed
    honest = parity.compare
    monkeypatch.setattr(parity, "compare", lambda fast, *rest, **options: honest(fast + 0.1, *rest, **options))
    with pytest.raises(ParityError, match="eager fp32 on cpu, eager bf16 on cpu"):
        check()
    assert "parity eager fp32 on cpu: FAIL" in capsys.readouterr().out


# --- claims -----------------------------------------------------------------------------------------------------


def test_a_sound_record_proves_a_claim(clean: dict[str, Record], fast: Record) -> None:
    verdict = judge(claim(fast), clean)
    assert (verdict.status, verdict.value) == ("proven", 2.0)
    row = readme.claim_table([verdict]).splitlines()[-1]
    assert row.startswith(f"| faster | at least 1.5 | 2.00 | proven, `{fast['id']}`")


def test_a_claim_may_name_its_gpu(clean: dict[str, Record], fast: Record) -> None:
    for one in clean.values():
        one["env"]["gpu"] = "NVIDIA H100 80GB HBM3"
        one["id"] = content_id(one)
    records = {one["id"]: one for one in clean.values()}
    assert judge(claim(fast, needs={"gpu": "H100"}), records).status == "proven"
    with pytest.raises(ValueError, match="something else"):
        judge(claim(fast, needs={"gpu": "H200"}), records)


def test_changed_sources_make_a_claim_stale(
    clean: dict[str, Record], fast: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "source_digest", lambda suite: "another")
    assert judge(claim(fast), clean).status == "stale"


def test_unproven_shows_no_figure(fast: Record) -> None:
    row = readme.claim_table([judge(claim(fast, record="unproven"), {})]).splitlines()[-1]
    assert row == "| faster | at least 1.5 | - | unproven; evidence: `tests/a.py::b` |"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"record": "000000000000"}, "expected a record"),
        ({"at_least": 2.5}, "expected at least 2.5"),
        ({"at_least": 1.0, "at_most": 1.5}, "expected 1 to 1.5"),
        ({"where": {"dtype": "bf16"}}, "something else"),
        ({"where": {"h": 128}}, "something else"),
        ({"suite": "memory"}, "something else"),
        ({"needs": {"gpu": True}}, "something else"),
        ({"needs": {"gpu": "H100"}}, "something else"),
        ({"quantity": "roofline"}, "has no roofline"),
    ],
)
def test_a_claim_that_its_record_does_not_bear(
    clean: dict[str, Record], fast: Record, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        judge(claim(fast, **changes), clean)


def _dirty(one: Record) -> None:
    one["env"]["dirty"] = True


def _unknown(one: Record) -> None:
    one["env"]["dirty"] = None


def _p50(one: Record) -> None:
    one["latency_ms"]["p50"] = 4.0


def _speedup(one: Record) -> None:
    one["derived"]["speedup"] = 4.0


def _no_samples(one: Record) -> None:
    one["latency_ms"]["samples"] = []


def _other_process(one: Record) -> None:
    one["run"] = "another"


def _no_work(one: Record) -> None:
    del one["flops"]


def _red(one: Record) -> None:
    one["quality"]["gate"] = "fail"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_dirty, "clean tree"),
        (_unknown, "clean tree"),
        (_p50, "expected p50 = 5"),
        (_speedup, "expected speedup = 2"),
        (_no_samples, "samples above 0"),
        (_other_process, "expected the baseline plain fp32"),
        (_red, "no figures beside a failed gate"),
        (_no_work, "expected figures for which the raw numbers are there"),
    ],
)
def test_unsound_records_are_refused(
    clean: dict[str, Record], fast: Record, change: Callable[[Record], None], said: str
) -> None:
    wrong = copy.deepcopy(fast)
    change(wrong)
    with pytest.raises(ValueError, match="the line was edited"):
        verify(wrong, clean.values())
    wrong["id"] = content_id(wrong)
    with pytest.raises(ValueError, match=said):
        verify(wrong, clean.values())


def test_claims_need_a_bar_and_evidence(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    head = '[c]\nsays = "s"\nsuite = "frame"\nwhere = {}\nquantity = "speedup"\nrecord = "unproven"\n'
    path.write_text(head + 'evidence = "tests/a.py::b"\n')
    with pytest.raises(ValueError, match="at_least or at_most"):
        load_claims(path)
    path.write_text(head + 'evidence = "trust me"\nat_least = 2\n')
    with pytest.raises(ValueError, match="a test as the evidence"):
        load_claims(path)


def test_records_are_read_once(fast: Record, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(fast) + "\n")
    assert load_records(tmp_path) == {fast["id"]: fast}
    (tmp_path / "b.jsonl").write_text(json.dumps(fast) + "\n")
    with pytest.raises(ValueError, match="each record once"):
        load_records(tmp_path)


# --- what is committed ------------------------------------------------------------------------------------------


@of_tree
def test_committed_claims_and_records_hold() -> None:
    records = load_records()
    for one in records.values():
        verify(one, records.values())
    for each in load_claims():
        judge(each, records)
        if each.evidence:
            path, _, name = each.evidence.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), f"{each.name} names a test that does not exist"


@of_tree
def test_the_readme_is_fresh() -> None:
    text = readme.README.read_text()
    assert readme.filled(text) == text, "run python -m srgan_fast.bench.readme"
    assert readme.EVERYTHING.read_text() == readme.everything(load_records())
    assert plot.is_fresh(readme.shown(load_records()), readme.PLOT)
    with pytest.raises(ValueError, match="once each"):
        readme.filled("no marks")


@of_tree
def test_records_that_the_docs_name_are_there() -> None:
    """And what docs/scale.md computes from two of them follows from these."""
    known = load_records()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for name in re.findall(r"`([0-9a-f]{12})`", path.read_text()):
            assert name in known, f"{path.name} names a record that is not there: {name}"
    text = (ROOT / "docs" / "scale.md").read_text()
    cited = re.findall(r"([\d.]+) ms in (fp32|bf16)\s+\(`([0-9a-f]{12})`\)", text)
    p50 = {dtype: known[name]["latency_ms"]["p50"] for _, dtype, name in cited}
    assert [f"{p50[dtype]:.1f}" for dtype in ("fp32", "bf16")] == [ms for ms, _, _ in cited]
    rows = re.findall(r"^\| (\d+)x(\d+) \| (\d+) \| (\d+) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for width, height, *hours in rows:
        # 25 frames a second: seconds of work for a second of video.
        fp32, bf16 = (int(width) * int(height) / 128**2 * 25 * p50[dtype] / 1e3 for dtype in ("fp32", "bf16"))
        assert hours == [f"{fp32:.0f}", f"{bf16:.0f}", f"{round(bf16 * 10) * 1000:,}"]


def test_a_record_does_not_say_where_files_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["srgan-fast", "bench", "--runs", "9", "--json", "/home/someone/out.jsonl"])
    assert record("frame", "x")["command"] == "srgan-fast bench --runs 9 --json out.jsonl"


def test_records_are_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.jsonl"

    def full(self: Path, mode: str = "r") -> io.TextIOWrapper:
        with open(self, mode) as file:
            file.write("half a rec")
        raise OSError(errno.ENOSPC, "No space left on device")

    path.write_text("before\n")
    monkeypatch.setattr(Path, "open", full)
    for _ in range(2):
        with pytest.raises(OutputError, match="No space left"):
            _append(path, "a record\n")
        monkeypatch.undo()
        assert not path.exists() or path.read_text() == "before\n"
        path.unlink(missing_ok=True)
        monkeypatch.setattr(Path, "open", full)
