"""The suites beside the frame's: each op against its reference, training steps, peers; tables and the plot."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from records import cleaned
from small_steps import small_networks
from torch import Tensor

from srgan_fast import kernels
from srgan_fast.backends.probe import Unavailable
from srgan_fast.bench import ceiling, frame, kernel, memory, parts, peers, plot, readme, table, train, work
from srgan_fast.bench.claims import verify
from srgan_fast.bench.figures import ceiling_figures, checked_figures, timed_figures
from srgan_fast.bench.peers import compile as compile_peer
from srgan_fast.bench.record import ROOT, latency
from srgan_fast.cli.bench import bench
from srgan_fast.errors import BackendUnavailable, ParityError, SRGANFastError, UsageError
from srgan_fast.kernels.parity import check_case
from srgan_fast.model import CompactConfig, Generator, GeneratorConfig, SRVGGNetCompact
from srgan_fast.upscaler import Upscaler
from srgan_fast.weights import load, save

pytestmark = pytest.mark.usefixtures("eager_alone")

Record = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, Generator(GeneratorConfig(blocks=1, width=8)), name="tiny", recipe={})
    return str(path)


@dataclass(frozen=True)
class Doubling:
    """An op that keeps the contract of srgan_fast.kernels: y = 2x, with `wrong` added to what is meant to be fast."""

    wrong: float = 0.0

    @property
    def CASES(self) -> tuple[Any, ...]:  # noqa: N802
        return (SimpleNamespace(name="3", floor=None, inputs=lambda device, dtype, seed=0: self._make(1, 3, 1)),)

    @property
    def BENCH_CASES(self) -> dict[str, Callable[..., dict[str, Any]]]:  # noqa: N802
        return {"whole": lambda h, w, n, device, dtype: self._make(h, w, n)}

    def _make(self, h: int, w: int, n: int) -> dict[str, Any]:
        return {"x": torch.rand(n, h, w), "dtype": torch.float32}

    def reference(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return (2 * x).to(dtype)

    def run(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.reference(x, dtype) + self.wrong

    def flops(self, x: Tensor, dtype: torch.dtype) -> int:
        return x.numel()

    def bytes_moved(self, x: Tensor, dtype: torch.dtype) -> int:
        return 2 * x.numel() * 4


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op above as the registry would know it."""
    monkeypatch.setitem(kernels.OPS, "doubling", __name__)


# --- figures ----------------------------------------------------------------------------------------------------


def test_work_is_that_of_the_layers() -> None:
    """Counted by hand for SRResNet x4 with 16 blocks of 64: multiply-adds a LR pixel."""
    by_hand = 243 * 64 + 33 * 9 * 64 * 64 + 9 * 64 * 256 * (1 + 4) + 16 * 81 * 64 * 3
    network = Generator()
    flops, moved = work.forward(network, (2, 3, 5, 7), 2)
    assert flops == 2 * by_hand * 5 * 7 * 2
    maps = (3 + 64) + 33 * 128 + (64 + 256) * (1 + 4) + 16 * (64 + 3)
    weights = sum(p.numel() for name, p in network.named_parameters() if p.dim() == 4)
    assert moved == 2 * (maps * 5 * 7 * 2 + weights)


def test_figures_follow_from_samples() -> None:
    def timed(impl: str, ms: float, gate: str = "pass") -> Record:
        shape = {"n": 2, "h": 1, "w": 1}
        dtype = "fp32" if impl == "plain" else "fp16"
        fields = {"suite": "frame", "impl": impl, "dtype": dtype, "baseline": "plain", "shape": shape}
        return {**fields, "latency_ms": latency([ms]), "flops": 4e9, "bytes": 1e6, "quality": {"gate": gate}}

    ceilings = [
        {"latency_ms": latency([2.0]), "flops": 8e9},
        {"latency_ms": latency([4.0]), "bytes": 2e6},
    ]
    assert [ceiling_figures(one) for one in ceilings] == [{"tflops": 4.0}, {"gb_per_s": 0.5}]
    run = [timed("plain", 8.0), timed("channels_last", 6.0), timed("compile", 3.0), timed("fused", 2.0)]
    assert timed_figures(run[3], run, ceilings) == {
        "speedup": 4.0,
        "speedup_vs_channels_last": 3.0,
        "speedup_vs_compile": 1.5,
        "fps": 1000.0,
        "tflops": 2.0,
        "matmul_fraction": 0.5,
        "gb_per_s": 0.5,
        "copy_fraction": 1.0,
    }
    # What ran beside it and failed its gate is no rival, and without ceilings there are no fractions.
    run[2]["quality"]["gate"] = "fail"
    assert not {"speedup_vs_compile", "matmul_fraction"} & set(timed_figures(run[3], run, []))
    with pytest.raises(ValueError, match="expected the baseline plain fp32"):
        timed_figures(run[3], run[1:], ceilings)


def test_checks_are_counted() -> None:
    raw = {"outcomes": {"a": True, "b": False, "c": False}, "host_syncs": ["x"], "held_bytes": [5, 9, 8]}
    assert checked_figures(raw) == {"failed": 2, "host_syncs": 1, "growth_bytes": 3}


def test_ceilings_are_sound_records() -> None:
    found = cleaned([*ceiling.measure("cpu"), ceiling.product("cpu", "fp32")])
    assert [one["name"] for one in found] == ["matmul", "copy", "matmul"]
    assert [one.get("serves") for one in found] == [None, None, "train"]
    for one in found:
        verify(one, found)
    assert "ceilings measured in this run" in table.ceiling_line(found)


# --- suites -----------------------------------------------------------------------------------------------------


def test_ops_are_timed_beside_their_parity() -> None:
    found = kernel.measure({"doubling": Doubling()}, 5, 7, 3, "cpu", batch=2)
    assert [(one["name"], one["impl"], one["case"]) for one in found] == [
        ("doubling", "reference", "whole"),
        ("doubling", "run", "whole"),
    ]
    assert found[1]["flops"] == 70
    assert found[1]["quality"]["max_error"] <= found[1]["quality"]["max_allowed"]
    run = cleaned([*ceiling.measure("cpu"), *found])
    for one in run:
        verify(one, run)


def test_a_wrong_op_shows_no_speed() -> None:
    reference, fast = kernel.measure({"doubling": Doubling(wrong=0.1)}, 5, 7, 1, "cpu")
    assert reference["quality"]["gate"] == "pass"
    assert (fast["quality"]["gate"], fast["derived"]) == ("fail", {})
    assert "gate failed" in table.speed_tables([reference, fast])[0][0].text()


def test_pixels_are_exactly_their_values() -> None:
    class Pixels(Doubling):
        def reference(self, x: Tensor, dtype: torch.dtype) -> Tensor:
            return x.to(dtype) if dtype.is_floating_point else (x * 255 + 0.5 + self.wrong).floor().to(dtype)

        def run(self, x: Tensor, dtype: torch.dtype) -> Tensor:
            return self.reference(x, dtype)

    arguments = {"x": torch.linspace(0, 0.9, 100), "dtype": torch.uint8}
    assert check_case(Pixels(), arguments, torch.float32).passed
    assert not check_case(Pixels(wrong=0.5), arguments, torch.float32).passed


def test_bench_all_asks_every_suite_for_every_shape(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def asking(suite: str, places: tuple[int, ...]) -> Callable[..., list[Record]]:
        def measure(*given: Any, batch: int = 1, **_: object) -> list[Record]:
            asked.append((suite, *(given[place] for place in places), batch))
            return []

        return measure

    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling()})
    monkeypatch.setattr(train, "STAGES", ("paper-srresnet-mse",))
    for module, suite, places in ((kernel, "kernel", (1, 2)), (frame, "frame", (1, 2)), (train, "train", (0, 1))):
        monkeypatch.setattr(module, "measure", asking(suite, places))
    monkeypatch.setattr(memory, "measure", lambda *given: asked.append(("memory", *given[1:3])) or {"suite": "none"})
    bench(model=tiny, suite="all", size="7x9,20x5", batch="1,2", runs=1)
    shapes = {(9, 7, 1), (5, 20, 1), (9, 7, 2), (5, 20, 2)}
    assert {tuple(one[1:]) for one in asked if one[0] == "kernel"} == shapes
    assert {tuple(one[1:]) for one in asked if one[0] == "frame"} == shapes
    assert [one for one in asked if one[0] == "train"] == [("train", "paper-srresnet-mse", "small", 1)]
    assert [one for one in asked if one[0] == "memory"] == [("memory", 9, 7), ("memory", 5, 20)]


@pytest.mark.slow
def test_bench_all_runs_every_suite(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling()})
    small_networks(monkeypatch)
    monkeypatch.setattr(train, "STAGES", ("paper-srresnet-mse",))
    out = tmp_path / "all.jsonl"
    bench(model=tiny, suite="all", size="7x9,20x5", batch="1,2", runs=1, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {one["suite"] for one in lines} == {"ceiling", "kernel", "frame", "train", "memory"}
    assert len({one["id"] for one in lines}) == len(lines)
    shapes = {(one["shape"]["w"], one["shape"]["h"], one["shape"]["n"]) for one in lines if one["suite"] == "frame"}
    assert shapes == {(7, 9, 1), (20, 5, 1), (7, 9, 2), (20, 5, 2)}
    printed = capsys.readouterr().out
    for said in ("doubling (whole), 20x5 LR, batch 2", "training paper-srresnet-mse, batch 2, crop 32", "peak GiB"):
        assert said in printed


# --- torch.compile and peers ------------------------------------------------------------------------------------


def test_a_compiler_that_hangs_is_ended(tiny: str) -> None:
    with pytest.raises(SRGANFastError, match=r"was not done after 0\.01 s"):
        frame.in_child(0.01, tiny, 9, 7, 1, "cpu")


def test_a_child_measures_as_this_process_does(tiny: str) -> None:
    found = frame.in_child(120, tiny, 9, 7, 1, "cpu", batch=2)
    assert [one["suite"] for one in found[:2]] == ["ceiling"] * 2
    assert {("plain", "fp32"), ("eager", "fp32")} <= {(one["impl"], one["dtype"]) for one in found[2:]}
    assert len({one["run"] for one in found}) == 1
    with pytest.raises(SRGANFastError, match="ended with 2"):
        frame.in_child(120, "nothing", 9, 7, 1, "cpu")


def test_a_compiled_network_takes_its_turns(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of torch.compile, without the minutes that compiling takes."""
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    found = frame.measure(tiny, 9, 7, 1, "cpu", with_peers=["compile"])
    assert (found[-1]["impl"], found[-1]["quality"]["gate"]) == ("compile", "pass")
    eager = next(one for one in found if one["impl"] == "eager")
    assert eager["derived"]["speedup_vs_compile"] > 0
    assert "x torch.compile" in table.speed_tables(found)[0][0].columns


def test_a_peer_that_is_missing_says_so(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_peer, "probe", lambda: Unavailable("torch not installed", "pip install torch"))
    with pytest.raises(BackendUnavailable, match="pip install torch"):
        frame.measure(tiny, 9, 7, 1, "cpu", with_peers=["compile"])
    with pytest.raises(UsageError, match="compile, spandrel"):
        peers.available("tensorflow")
    assert "compile" not in peers.installed()
    assert isinstance(peers.need("torch", "no_such_package"), Unavailable)


@pytest.mark.parametrize("name", ["spandrel", "torch_bf16_folded", "torch_fp32_folded"])
def test_peers_upscale_as_the_plain_network_does(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if isinstance(import_module(f"srgan_fast.bench.peers.{name}").probe(), Unavailable):
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    path = tmp_path / "compact.safetensors"
    save(path, SRVGGNetCompact(CompactConfig(blocks=2, width=16)), name="compact", recipe={})
    model, found = load(path), frame.measure(str(path), 9, 7, 1, "cpu", batch=2, with_peers=[name])
    assert (found[-1]["impl"], found[-1]["quality"]["gate"]) == (name, "pass")
    before = copy.deepcopy(model.network.state_dict())
    peers.available(name).make(model, "cpu")
    assert all(torch.equal(before[key], value) for key, value in model.network.state_dict().items())


# --- the parts of make gpu ---------------------------------------------------------------------------------------


@pytest.fixture
def on_a_cpu(tiny: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parts of the table with a CPU for a GPU and eager for fused; where their records go."""
    monkeypatch.setattr(parts, "DEVICE", "cpu")
    monkeypatch.setattr(parts, "MODEL", tiny)
    monkeypatch.setattr(parts, "FUSED", {"backend": "eager", "device": "cpu", "precision": "fp32"})
    monkeypatch.setattr(parts, "_RUNS", 1)
    monkeypatch.setattr(parts, "_FLAT_FRAMES", 100)
    monkeypatch.setattr(parts, "_TO_1080P", (5, 3))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling()})
    monkeypatch.setattr(kernel, "SIZES", ((5, 3),))
    small_networks(monkeypatch)
    monkeypatch.setattr(parts, "_CROPS", "small")
    return []


def test_timed_parts_keep_what_they_measure(on_a_cpu: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for run in (parts.frames([(7, 9)], (1, 2)), parts.kernels):
        on_a_cpu.clear()
        run(on_a_cpu.append)
        assert [one["suite"] for one in on_a_cpu[:3]][:2] == ["ceiling"] * 2
        found = cleaned(on_a_cpu)
        for one in found:
            verify(one, found)
    printed = capsys.readouterr().out
    for said in ("tiny, 7x9 LR, batch 2", "doubling (whole), 5x3 LR"):
        assert said in printed


def test_a_timed_part_fails_with_its_gates(on_a_cpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "all_ops", lambda: {"doubling": Doubling(wrong=1.0)})
    with pytest.raises(SRGANFastError, match="gates: run fp32 at doubling"):
        parts.kernels(on_a_cpu.append)
    monkeypatch.setitem(parts.FUSED, "backend", "fused")
    with pytest.raises(SRGANFastError, match="no row of fused at 7x9"):
        parts.frames([(7, 9)])(on_a_cpu.append)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(frame, "measure", full)
    with pytest.raises(SRGANFastError, match="did not fit into memory: 7x9 batch 1, 5x5 batch 1"):
        parts.frames([(7, 9), (5, 5)])(on_a_cpu.append)


def test_checks_of_the_engine(on_a_cpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "host_waits", lambda run: [])
    monkeypatch.setattr(parts, "_GRAPH_SIZES", ((3, 2), (1, 1)))
    for run in (parts.parity_by("triton"), parts.graph, parts.memory_flat):
        run(on_a_cpu.append)
    assert [one["name"] for one in on_a_cpu] == ["op_parity_triton", "graph", "memory_flat"]
    assert all(one["quality"]["gate"] == "pass" for one in on_a_cpu)
    assert on_a_cpu[0]["raw"]["architecture"] == "sm_90"
    # Buffers that the next call overwrites: both results are then the second frame's.
    honest, buffer = Upscaler.__call__, torch.zeros(1, 8, 12, 3, dtype=torch.uint8)
    monkeypatch.setattr(Upscaler, "__call__", lambda self, frames, **how: buffer.copy_(honest(self, frames, **how)))
    monkeypatch.setattr(parts, "_GRAPH_SIZES", ((3, 2),))
    with pytest.raises(ParityError, match="1 of 2 failed: 3x2, frame 0"):
        parts.graph(on_a_cpu.append)
    monkeypatch.setattr(Upscaler, "__call__", honest)
    monkeypatch.setattr(parts, "host_waits", lambda run: ["cudaStreamSynchronize"])
    with pytest.raises(ParityError, match="cudaStreamSynchronize"):
        parts.graph(on_a_cpu.append)
    assert [one["derived"] for one in on_a_cpu[-2:]] == [{}, {}]


# --- tables and the plot ----------------------------------------------------------------------------------------


def test_a_plot_knows_its_records(tiny: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, path = frame.measure(tiny, 9, 7, 1, "cpu"), tmp_path / "speed.png"
    assert plot.is_fresh([], path)
    assert not plot.is_fresh(found, path)
    plot.draw(found, path)
    assert plot.is_fresh(found, path)
    assert not plot.is_fresh([], path)
    others = json.loads(json.dumps(found))
    others[1]["derived"]["speedup"] *= 2
    assert not plot.is_fresh(others, path)
    with pytest.raises(UsageError, match="got none"):
        plot.draw([], path)
    readme.draw({}, path)
    assert not path.exists()


def test_a_plot_needs_matplotlib(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'srgan-fast"):
        bench(model=tiny, size="7x9", runs=1, plot=tmp_path / "speed.png")


def test_parts_of_a_gpu_run_are_told_apart() -> None:
    env = {"gpu": "NVIDIA H100", "cpu": "x", "commit": "abcdef0123"}
    parts = [
        {"suite": "gpu", "name": name, "outcome": outcome, "env": env, "time": "2026-11-24T00:00:00+00:00"}
        for name, outcome in (("parity", "passed"), ("train", "not run: the budget ended"), ("parity", "failed: 1"))
    ]
    text = readme.gpu_runs(parts)
    assert "| parity | failed: 1 | NVIDIA H100, 2026-11-24, commit abcdef0 |" in text
    assert "| train | not run: the budget ended |" in text
    assert "passed" not in text


@pytest.mark.slow
def test_the_pytest_benchmark_suites_are_collected() -> None:
    files = [f"bench/suite_{name}.py" for name in ("frame", "kernel", "train")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert all(file in done.stdout for file in files)
