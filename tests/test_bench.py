"""Records hold what they promise; a result that fails its gate has no speed-up; the tolerance rule can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srgan_fast.bench import frame
from srgan_fast.bench.record import latency, record
from srgan_fast.kernels.parity import compare
from srgan_fast.model import Generator, GeneratorConfig
from srgan_fast.weights import save

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    save(path, Generator(GeneratorConfig(blocks=1, width=8)), name="tiny", recipe={})
    return str(path)


def test_percentiles() -> None:
    times = latency([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (times["p20"], times["p50"], times["p80"]) == pytest.approx((1.8, 3.0, 4.2))
    assert times["samples"] == [5.0, 1.0, 2.0, 4.0, 3.0]


def test_a_record_is_json_with_an_id() -> None:
    one = json.loads(json.dumps(record("frame", "x", latency_ms=latency([1.0]))))
    assert len(one["id"]) == 12
    assert one["env"]["torch"] == str(torch.__version__)
    assert one["env"]["sources"]


def test_frame_bench_measures_each_path(tiny: str) -> None:
    records = frame.measure(tiny, 9, 7, 2, "cpu")
    assert [(r["impl"], r["dtype"]) for r in records] == [("plain", "fp32"), ("eager", "fp32"), ("eager", "bf16")]
    for one in records:
        assert len(one["latency_ms"]["samples"]) == 2
        assert one["quality"]["gate"] == "pass"
        want = records[0]["latency_ms"]["p50"] / one["latency_ms"]["p50"]
        assert one["derived"]["speedup"] == pytest.approx(want)


def test_a_red_gate_shows_no_speed(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_psnr_db", lambda a, b: 12.0)
    assert all("speedup" not in one["derived"] for one in frame.measure(tiny, 9, 7, 1, "cpu"))


def committed() -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(RESULTS.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_committed_records_are_sound() -> None:
    for one in committed():
        assert one["env"]["dirty"] is False, one["id"]
        times = one["latency_ms"]
        assert times["p50"] == pytest.approx(float(np.median(times["samples"])))
        assert one["quality"]["gate"] in ("pass", "fail")


def test_the_tolerance_rule_passes_rounding_and_fails_mistakes() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(40, 60, dtype=torch.float64), torch.randn(60, 50, dtype=torch.float64)
    a, b = a.float().double(), b.float().double()
    truth, plain = a @ b, (a.float() @ b.float()).double()
    assert compare((b.float().T @ a.float().T).T, plain, truth, torch.float32).passed
    wrong = plain.clone()
    wrong[3, 4] += 0.01
    assert not compare(wrong, plain, truth, torch.float32).passed
    wrong[3, 4] = float("nan")
    assert not compare(wrong, plain, truth, torch.float32).passed
    assert not compare(plain * 1.001, plain, truth, torch.float32).passed
