"""The backends that run the exported graph on a CPU: pictures, cuts, what is kept on disk, and what is refused."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from models import model_of
from torch import Tensor

from srgan_fast import Upscaler, weights
from srgan_fast.backends import BACKENDS, exported, select, selfcheck
from srgan_fast.backends import onnx as onnx_backend
from srgan_fast.backends import openvino as openvino_backend
from srgan_fast.backends.eager import EagerBackend
from srgan_fast.backends.onnx import ONNXBackend
from srgan_fast.backends.openvino import OpenVINOBackend
from srgan_fast.backends.probe import Ok, Unavailable
from srgan_fast.backends.selfcheck import Disagrees
from srgan_fast.bench import frame, memory, peers, table
from srgan_fast.cli import check
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.model import (
    CompactConfig,
    Generator,
    GeneratorConfig,
    MSRResNet,
    MSRResNetConfig,
    SRVGGNetCompact,
)

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "paper's layout": lambda: Generator(GeneratorConfig(blocks=1, width=8)),
    "no norm, x8, own slopes": lambda: Generator(
        GeneratorConfig(blocks=1, width=8, scale=8, norm="none", prelu="channel", activation="tanh")
    ),
    "compact": lambda: SRVGGNetCompact(CompactConfig(blocks=1, width=8, scale=2)),
    "msrresnet": lambda: MSRResNet(MSRResNetConfig(blocks=1, width=8, scale=3)),
    "whole frame": lambda: Generator(GeneratorConfig(blocks=1, width=8, scale=2, norm="instance")),
}
CLASSES: dict[str, Any] = {"openvino": OpenVINOBackend, "onnx": ONNXBackend}


@pytest.fixture(scope="module", autouse=True)
def small_check() -> Iterator[None]:
    """A check that costs less than what is tested here, and still meets every tap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "CHECK_SIZE", (9, 13))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> weights.Model:
    return model_of(NETWORKS["paper's layout"](), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ready(model: weights.Model) -> dict[str, Any]:
    """Each backend, made once for the tests that only run it."""
    return {name: create(model, "cpu", "fp32") for name, create in CLASSES.items()}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test, where models are kept in the folder that is returned."""
    monkeypatch.setenv("SRGAN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(openvino_backend._kept, "warned", set())
    return tmp_path / "cache" / "openvino"


def frames(n: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    pixels = torch.randint(0, 256, (n, height, width, 3), generator=torch.Generator().manual_seed(height))
    if dtype == torch.uint16:
        return (pixels * 257).to(torch.int32).to(dtype)
    return (pixels / 255).to(dtype) if dtype.is_floating_point else pixels.to(dtype)


def result_of(backend: Any, lr: Tensor, band: int = 1000) -> Tensor:
    """What a backend makes of frames, into memory of planes, as callers of CHW have it."""
    n, height, width, _ = lr.shape
    scale = backend.info.scale
    out = torch.zeros(n, 3, height * scale, width * scale, dtype=lr.dtype).permute(0, 2, 3, 1)
    backend.run(lr, out, band)
    return out


def levels_off(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


# --- pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_it_equals_eager(name: str, network: str, tmp_path: Path) -> None:
    model = model_of(NETWORKS[network](), tmp_path)
    backend, eager = (
        CLASSES[name](model, "cpu", "auto" if name == "onnx" else "fp32"),
        EagerBackend(model, "cpu", "fp32"),
    )
    assert backend.precision == "fp32"
    assert all(outcome.passed for outcome in backend.check)
    for n, height, width in ((1, 1, 2), (2, 9, 14), (3, 19, 7)):
        for dtype, allowed in ((torch.uint8, 1), (torch.float32, 1e-5)):
            lr = frames(n, height, width, dtype)
            got, want = result_of(backend, lr), result_of(eager, lr)
            assert levels_off(got, want) <= allowed
            # Bands change memory, and nothing else.
            assert levels_off(result_of(backend, lr, band=5), got) <= allowed
            if dtype == torch.uint8 and height > 1:
                assert float((got != want).double().mean()) <= 1e-3


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("dtype", [torch.uint16, torch.float16, torch.float64])
def test_other_dtypes_come_out_of_the_float_graph(
    name: str, dtype: torch.dtype, model: weights.Model, ready: dict[str, Any]
) -> None:
    lr = frames(2, 9, 14, dtype)
    got, want = (result_of(each, lr) for each in (ready[name], EagerBackend(model, "cpu", "fp32")))
    assert got.dtype == dtype
    assert levels_off(got, want) <= {torch.uint16: 1, torch.float16: 1e-3, torch.float64: 1e-5}[dtype]


@pytest.mark.parametrize("name", CLASSES)
def test_tiles_and_a_budget_change_no_pixel(name: str, model: weights.Model) -> None:
    lr = frames(1, 61, 90)
    whole = Upscaler(model, backend=name, device="cpu", precision="fp32")
    tiled = Upscaler(model, backend=name, device="cpu", precision="fp32", tile=23)
    assert tiled.backend_name == name
    assert levels_off(whole(lr), tiled(lr)) <= 1
    floats = frames(1, 61, 90, torch.float32)
    assert levels_off(whole(floats, layout="NHWC"), tiled(floats, layout="NHWC")) <= 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_threads_share_a_backend(name: str, ready: dict[str, Any]) -> None:
    backend = ready[name]
    some = [frames(1, 5 + i, 23 - i) for i in range(8)]
    alone = [result_of(backend, lr) for lr in some]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda lr: result_of(backend, lr), some * 3))
    assert all(torch.equal(got, want) for got, want in zip(together, alone * 3, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("height", "width", "budget"), [(384, 512, None), (384, 512, "700M")])
def test_memory_is_as_planned(name: str, height: int, width: int, budget: str | None) -> None:
    one = memory.measure("srresnet_x4", height, width, "fp32", budget, name)
    assert one["quality"]["gate"] == "pass"
    if budget is None:
        # onnxruntime without its arena gives memory back early, by how much depends on the moment: the plan is safe.
        assert 0.85 <= one["derived"]["planned_ratio"] <= (2.2 if name == "onnx" else 1.2)
    else:
        assert one["bytes"]["peak"] <= 700 << 20


# --- what is kept on disk -----------------------------------------------------------------------------------------


def _never(*_: object) -> Any:
    raise AssertionError("made again")


def test_a_model_is_compiled_once(model: weights.Model, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lr = frames(1, 9, 14)
    want = result_of(OpenVINOBackend(model, "cpu", "fp32"), lr)
    (kept,) = own_cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(openvino_backend.parts, "in_parts", _never)
        patch.setattr(openvino_backend.selfcheck, "wanted", _never)
        again = OpenVINOBackend(model, "cpu", "fp32")
        assert torch.equal(result_of(again, lr), want)
        # What is found on disk is held against eager all the same.
        assert all(outcome.passed for outcome in again.check)
        # Other weights under the same name are another model.
        changed = model_of(NETWORKS["paper's layout"](), own_cache.parent)
        with torch.no_grad():
            next(changed.network.parameters()).mul_(1.5)
        with pytest.raises(AssertionError, match="made again"):
            OpenVINOBackend(changed, "cpu", "fp32")
    assert [path.name for path in own_cache.iterdir()] == [kept.name]


@pytest.mark.parametrize("damage", ["cut short", "one bit"])
def test_a_damaged_entry_is_made_anew(damage: str, model: weights.Model, own_cache: Path) -> None:
    want = result_of(OpenVINOBackend(model, "cpu", "fp32"), frames(1, 9, 14))
    (kept,) = own_cache.iterdir()
    whole = kept.read_bytes()
    bad = {"cut short": whole[:-100], "one bit": bytes([*whole[:-9], whole[-9] ^ 4, *whole[-8:]])}
    kept.write_bytes(bad[damage])
    assert torch.equal(result_of(OpenVINOBackend(model, "cpu", "fp32"), frames(1, 9, 14)), want)
    assert kept.read_bytes()[:22] == whole[:22]
    assert len(kept.read_bytes()) > len(whole) // 2


def test_without_a_safe_folder_nothing_is_kept(
    model: weights.Model, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.mkdir(parents=True)
    own_cache.chmod(0o777)
    assert OpenVINOBackend(model, "cpu", "fp32").name == "openvino"
    assert "compiled models are not kept: others may write into" in caplog.text
    assert not list(own_cache.iterdir())


# --- choices and refusals -----------------------------------------------------------------------------------------


def _off_by(amount: float) -> Callable[..., exported.Run]:
    """A library whose results are off."""
    right = OpenVINOBackend._runner

    def runner(self: OpenVINOBackend, compiled: Any) -> exported.Run:
        run = right(self, compiled)

        def wrong(inputs: tuple[Tensor, ...], out: Tensor) -> None:
            run(inputs, out)
            out.add_(amount) if out.is_floating_point() else out.add_(1)

        return wrong

    return runner


def _broken(name: str) -> None:
    raise ImportError("built for\nanother numpy")


def test_auto_takes_openvino_and_goes_on_where_it_is_missing_or_wrong(
    model: weights.Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = list(BACKENDS)
    assert names.index("fused") < names.index("openvino") < names.index("eager") < names.index("onnx")
    caplog.set_level(logging.INFO)
    assert select("auto", model, "cpu", "auto").name == "openvino"
    with monkeypatch.context() as patch:
        patch.setattr(OpenVINOBackend, "_runner", _off_by(0.01))
        with pytest.raises(Disagrees, match=r"backend openvino disagrees with eager .* take eager, and report it"):
            select("openvino", model, "cpu", "fp32")
        caplog.clear()
        assert select("auto", model, "cpu", "fp32").name == "eager"
        warned = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warned) == 1
        assert "openvino disagrees" in warned[0]
    with monkeypatch.context() as patch:
        for cached in ("_library", "_core"):
            patch.setattr(openvino_backend, cached, getattr(openvino_backend, cached).__wrapped__)
        patch.setattr(exported, "import_module", _broken)
        for name, package in (("openvino", "openvino"), ("onnx", "onnxruntime")):
            said = rf"{package} is installed but cannot be loaded \(built for another numpy\); pip .*\[{name}\]'"
            with pytest.raises(BackendUnavailable, match=said):
                select(name, model, "cpu", "fp32")
        assert select("auto", model, "cpu", "fp32").name == "eager"
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    assert select("auto", model, "cpu", "fp32").name == "eager"
    for name, extra in (("openvino", "openvino"), ("onnx", "onnx")):
        with pytest.raises(
            BackendUnavailable, match=rf"{name} is not available: .* pip install 'srgan-fast\[{extra}\]'"
        ):
            select(name, model, "cpu", "fp32")


def test_signals_come_after_backends_have_gone_in_any_order(model: weights.Model) -> None:
    """OpenVINO changes the stack of a thread's signals; one that is no longer mapped would end this process."""
    first, second = (OpenVINOBackend(model, "cpu", "fp32") for _ in range(2))
    del first
    gc.collect()
    del second
    gc.collect()
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_openvino_reports_nothing(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    program = (
        "import sys, multiprocessing.process as process\n"
        "process.BaseProcess.start = lambda self: sys.exit('a process was started')\n"
        "from srgan_fast.backends import openvino\n"
        "assert 'CPU' in openvino._core().available_devices\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []  # an identity for its user would lie there


def test_a_gpu_is_not_openvinos(model: weights.Model) -> None:
    answer = BACKENDS["openvino"].probe("cuda")
    assert isinstance(answer, Unavailable)
    with pytest.raises(BackendUnavailable, match="runs on the CPU, the device is cuda; give --device cpu"):
        OpenVINOBackend(model, "cuda", "fp32")


@pytest.mark.parametrize("capabilities", [["FP32", "INT8"], ["FP32", "BF16"]])
def test_bf16_is_stated_and_refused_where_it_is_missing(
    capabilities: list[str],
    model: weights.Model,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stated: list[str] = []
    right = OpenVINOBackend._compiled

    def compiled(self: OpenVINOBackend, model: weights.Model) -> Any:
        stated.append(self._settings["INFERENCE_PRECISION_HINT"])
        return right(self, model)

    monkeypatch.setattr(OpenVINOBackend, "_compiled", compiled)
    monkeypatch.setattr(openvino_backend, "_capabilities", lambda: capabilities)
    # Never by itself where eager would not.
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert OpenVINOBackend(model, "cpu", "auto").precision == "fp32"
    assert stated == ["f32"]
    if "BF16" in capabilities:
        assert OpenVINOBackend(model, "cpu", "bf16").precision == "bf16"
        assert stated == ["f32", "bf16"]
    else:
        with pytest.raises(BackendUnavailable, match="no bfloat16 on this CPU, which has FP32, INT8; take fp32"):
            OpenVINOBackend(model, "cpu", "bf16")
    caplog.set_level(logging.WARNING)
    assert select("auto", model, "cpu", "bf16").name == ("openvino" if "BF16" in capabilities else "eager")
    assert caplog.text == ""  # nothing went wrong


def test_what_backends_lack_alike_is_said_once(model: weights.Model) -> None:
    with pytest.raises(
        BackendUnavailable, match=r"not openvino, eager, onnx: int8 is for the backend fused [^;]*; tak"
    ):
        select("auto", model, "cpu", "int8")


@pytest.mark.parametrize("name", CLASSES)
def test_precisions_that_a_cpu_lacks(name: str, model: weights.Model) -> None:
    with pytest.raises(BackendUnavailable, match="fp16 is not available on a CPU"):
        CLASSES[name](model, "cpu", "fp16")
    with pytest.raises(BackendUnavailable, match="int8 is for the backend fused"):
        CLASSES[name](model, "cpu", "int8")
    with pytest.raises(UsageError, match="expected a precision"):
        CLASSES[name](model, "cpu", "fp99")
    if name == "onnx":
        with pytest.raises(BackendUnavailable, match="onnx has no bf16"):
            CLASSES[name](model, "cpu", "bf16")


def test_the_provider_is_the_one_that_was_asked_for(model: weights.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(
            BackendUnavailable, match=r"onnxruntime \(CPU\) shadows onnxruntime-gpu.* pip uninstall both"
        ):
            ONNXBackend(model, "cuda", "fp32")
    # A session that fell back says so only when it is asked.
    monkeypatch.setattr(runtime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"])
    with pytest.raises(BackendUnavailable, match="no CPUExecutionProvider, only OtherExecutionProvider"):
        ONNXBackend(model, "cpu", "fp32")


def test_a_probe_imports_nothing() -> None:
    code = (
        "import sys\nfrom srgan_fast.backends import BACKENDS\n"
        "for entry in BACKENDS.values(): entry.probe('cpu')\n"
        "print([m for m in ('onnx', 'onnxruntime', 'openvino', 'tensorrt') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
    assert isinstance(onnx_backend.probe("cpu"), Ok)


# --- bench and check ----------------------------------------------------------------------------------------------


def test_bench_has_a_row_for_each_and_says_what_auto_is(tiny: Path) -> None:
    """All in one run, each against the fixed baselines, by figures that follow from the samples."""
    found = frame.measure(str(tiny), 9, 7, 2, "cpu")
    rows = {(one["impl"], one["dtype"]): one for one in found}
    names = {"plain", "openvino", "eager", "onnx", *peers.FIXED}
    assert {impl for impl, _ in rows} == names
    assert all(one["quality"]["gate"] == "pass" for one in found)
    (chosen,) = (key for key, one in rows.items() if one["auto"])
    picked = select("auto", weights.load(tiny), "cpu", "auto")
    assert chosen == (picked.name, picked.precision)
    for rival in peers.FIXED:
        base = next(one for one in found if one["impl"] == rival)
        ratio = base["latency_ms"]["p50"] / rows[chosen]["latency_ms"]["p50"]
        assert rows[chosen]["derived"][f"speedup_vs_{rival}"] == pytest.approx(ratio)
        assert f"speedup_vs_{rival}" not in base["derived"]
    (printed, _), *_ = table.speed_tables(found)
    assert sum("(auto)" in row[0] for row in printed.rows) == 1


def test_check_prints_what_each_is_worth(
    model: weights.Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "load", lambda name: model)
    assert all(passed for _, passed in check._exported_parity())
    printed = capsys.readouterr().out
    for said in (
        "openvino fp32 on cpu: pass: max error",
        "onnx fp32 on cpu: pass: max error",
        "openvino bf16 on cpu: ",
    ):
        assert f"parity {said}" in printed
    monkeypatch.setattr(OpenVINOBackend, "_runner", _off_by(0.01))
    assert ("openvino fp32", False) in check._exported_parity()
    assert "parity openvino fp32 on cpu: FAIL: backend openvino disagrees" in capsys.readouterr().out
