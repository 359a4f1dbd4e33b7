"""The suites of training: what a step has to compute, its rows and their gates, its kernels, its parts and options."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from records import cleaned
from small_steps import small
from torch import Tensor, nn

from srgan_fast import weights
from srgan_fast.bench import ceiling, kernel, parts, plot, precision, readme, table, train, train_kernel, work
from srgan_fast.bench.claims import judge, load_claims, verify
from srgan_fast.bench.figures import loss_difference, timed_figures
from srgan_fast.bench.held import exercise
from srgan_fast.bench.record import latency, sources_behind
from srgan_fast.cli.bench import bench
from srgan_fast.errors import BackendUnavailable, ParityError, SRGANFastError, UsageError
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train.data import Batches
from srgan_fast.train.graph_step import make_step
from srgan_fast.train.step import EagerStep

__all__ = ["small"]

Record = dict[str, Any]

NO_GPU = "a graph of the step needs an NVIDIA GPU"


def measured(stage: str = train.STAGES[1], **options: Any) -> dict[str, Record]:
    """The rows of a stage by implementation and dtype."""
    found = train.measure(stage, "small", 1, "cpu", **options)
    return {f"{one['impl']} {one['dtype']}": one for one in found if one["suite"] == "train"}


# --- the floor --------------------------------------------------------------------------------------------------


def test_the_floor_of_the_paper() -> None:
    """GFLOP of a forward pass at batch 16 and a 96x96 crop, and of a step of each stage."""
    lr, hr = (16, 3, 24, 24), (16, 3, 96, 96)
    with torch.device("meta"):
        generator, discriminator, features = Generator(), Discriminator(), VGG19(5, 4)
    passes = [work.forward(network, shape, 2)[0] / 1e9 for network, shape in ((generator, lr), (discriminator, hr))]
    assert passes == [pytest.approx(40.9, abs=0.05), pytest.approx(28.3, abs=0.05)]
    assert work.forward(features, hr, 2)[0] / 1e9 == pytest.approx(114.7, abs=0.05)
    assert work.of_step(generator, discriminator, features, lr, hr) / 1e9 == pytest.approx(693, abs=0.5)
    assert work.of_step(generator, None, None, lr, hr) / 1e9 == pytest.approx(3 * 40.88, abs=0.05)


def timed(impl: str, dtype: str, ms: float, **fields: Any) -> Record:
    losses = [{"content": 2.0}, {"content": 1.0}]
    shape = {"n": 16, "h": 96, "w": 96}
    raw = {"suite": "train", "impl": impl, "dtype": dtype, "baseline": "plain", "shape": shape, "losses": losses}
    return {**raw, "latency_ms": latency([ms]), "flops": 4e9, "quality": {"gate": "pass"}, **fields}


CEILINGS: list[Record] = [
    {"latency_ms": latency([2.0]), "flops": 8e9, "dtype": "fp16"},
    {"latency_ms": latency([4.0]), "flops": 8e9, "dtype": "fp32", "serves": "train"},
    {"latency_ms": latency([1.0]), "flops": 8e9, "dtype": "bf16", "serves": "train"},
]


def test_figures_of_steps_follow_from_samples() -> None:
    others = [{"content": 2.0}, {"content": 1.02}]
    run = [
        timed("plain", "fp32", 16.0),
        timed("eager", "fp32", 12.0),
        timed("eager", "bf16", 8.0),
        timed("compile", "bf16", 4.0),
        timed("graph", "bf16", 2.5),
        timed("graph-kernels", "bf16", 2.0, losses=others),
        timed("loader", "uint8", 0.5),
        timed("loop", "bf16", 2.1, of="graph-kernels"),
    ]
    assert timed_figures(run[5], run, CEILINGS) == pytest.approx(
        {
            "speedup": 8.0,
            "images_per_s": 8000.0,
            "loss_difference": 0.01,
            "speedup_vs_eager_fp32": 6.0,
            "speedup_vs_eager_bf16": 4.0,
            "speedup_vs_compile": 2.0,
            "speedup_vs_graph": 1.25,
            "loss_difference_vs_graph": 0.01,
            # 4 GFLOP by products of 8 TFLOP/s in the precision of the step.
            "floor_ms": 0.5,
            "floor_fraction": 0.25,
            "tflops": 2.0,
        }
    )
    assert timed_figures(run[1], run, CEILINGS)["floor_fraction"] == pytest.approx(2.0 / 12.0)
    assert timed_figures(run[6], run, CEILINGS) == {"images_per_s": 32000.0}
    loop = timed_figures(run[7], run, CEILINGS)
    assert loop == pytest.approx({"images_per_s": 16e3 / 2.1, "loader_share": 0.1 / 2.1, "loader_alone": 0.25})
    with pytest.raises(ValueError, match="beside the loop"):
        timed_figures(run[7], [run[7]], CEILINGS)
    # What serves training is no ceiling of frames.
    frame = {**timed("plain", "fp32", 4.0), "suite": "frame"}
    assert timed_figures(frame, [frame], CEILINGS)["matmul_fraction"] == pytest.approx(0.25)


def test_a_difference_is_one_of_the_largest_value_of_a_term() -> None:
    want = [{"content": 1.0, "discriminator": 2.0}, {"content": 0.5, "discriminator": 0.001}]
    assert loss_difference(want, want) == 0
    # A discriminator that has won leaves nothing to divide by.
    assert loss_difference([want[0], {"content": 0.5, "discriminator": 0.002}], want) == pytest.approx(0.0005)
    assert loss_difference([want[0], {"content": 0.6, "other": 7.0}], want) == pytest.approx(0.1)
    assert math.isnan(loss_difference([{"content": math.nan}, {"content": 0.5}], want))


@pytest.mark.parametrize(
    ("got", "gate"),
    [
        ([1.0, 0.5], "pass"),
        ([1.0, 0.51], "pass"),
        ([1.0, 0.53], "fail"),
        ([1.01, 0.5], "fail"),
        ([1, math.nan], "fail"),
    ],
)
def test_other_losses_are_another_step(got: list[float], gate: str) -> None:
    terms = [{"content": value} for value in got]
    assert train._held(terms, [{"content": 1.0}, {"content": 0.5}], "srgan", "fp32")["gate"] == gate


# --- steps ------------------------------------------------------------------------------------------------------


def test_training_steps_agree_and_are_timed(small: None, tmp_path: Path) -> None:
    """The trainer's step makes the losses of a plain one, adversarial terms and updates included."""
    found = train.measure("paper-srgan-vgg54", "small", 1, "cpu")
    steps = [one for one in found if one["suite"] == "train"]
    names = [(one["impl"], one["dtype"]) for one in steps]
    assert names[:3] == [("plain", "fp32"), ("eager", "fp32"), ("eager", "bf16")]
    assert names[3:] == [("loader", "uint8"), ("loop", "bf16")]
    assert [one["quality"]["gate"] for one in steps] == ["pass"] * 5
    assert set(steps[0]["losses"][0]) == {"content", "adversarial", "discriminator"}
    assert list(steps[0]["left_out"]) == ["graph bf16", "graph-kernels bf16"]
    run = cleaned(found)
    for one in run:
        verify(one, run)
    ((printed, _),) = table.speed_tables(found)
    text = printed.text()
    for said in ("x eager fp32", "of floor", "ready s", "loader and eager bf16", "as on a CPU", "images/s"):
        assert said in text
    assert text.count(f"without graph bf16, graph-kernels bf16: {NO_GPU}") == 1
    assert f"\nwithout graph bf16, graph-kernels bf16: {NO_GPU}" in printed.markdown()
    assert "in bf16 TFLOP/s" in table.ceiling_line([*ceiling.measure("cpu"), *found])
    pytest.importorskip("matplotlib")
    plot.draw(found, tmp_path / "speed.png")
    assert plot.is_fresh(found, tmp_path / "speed.png")
    with pytest.raises(UsageError, match="paper-srresnet-mse"):
        train.measure("paper", "small", 1, "cpu")


class Stale(EagerStep):
    """A step that goes on with the batch that it saw first, as a graph does whose buffers nobody fills."""

    def __call__(self, lr: Tensor, hr: Tensor, step: int) -> dict[str, Tensor]:
        self.first = getattr(self, "first", (lr, hr))
        return super().__call__(*self.first, step)


class Standing(EagerStep):
    """A step that updates nothing."""

    def _update(self, name: str, network: nn.Module, loss: Tensor) -> Tensor:
        return loss.detach()


@pytest.mark.parametrize("wrong", [Stale, Standing])
@pytest.mark.parametrize("stage", train.STAGES)
def test_a_wrong_step_shows_no_speed(
    wrong: type[EagerStep], stage: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(kind: str, kernels: str, *networks: Any, device: str) -> EagerStep:
        return wrong(*networks, device=device)

    monkeypatch.setattr(train, "make_step", make)
    found = measured(stage)
    assert found["plain fp32"]["quality"]["gate"] == "pass"
    for name in ("eager fp32", "eager bf16", "graph bf16", "loop bf16"):
        assert found[name]["quality"]["gate"] == "fail"
        assert found[name]["derived"] == {}


def test_wrong_batches_are_no_loader(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Batches.__call__

    def other(self: Batches, step: int, salt: int = 0) -> tuple[Tensor, Tensor]:
        return honest(self, step + (self.salted if hasattr(self, "salted") else 0), salt)

    def made(*arguments: Any, **options: Any) -> Batches:
        batches = Batches(*arguments, **options)
        batches.salted = int(options.get("resident") is True)  # type: ignore[attr-defined]
        return batches

    monkeypatch.setattr(Batches, "__call__", other)
    monkeypatch.setattr("srgan_fast.train.data.Batches", made)
    found = measured(train.STAGES[0])
    assert {name for name, one in found.items() if one["quality"]["gate"] == "fail"} == {"loader uint8", "loop bf16"}
    assert "not as on a CPU, gate failed" in table.quality_of(found["loader uint8"])


def test_torch_compile_takes_its_turns(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of torch.compile, without the minutes that compiling takes; it starts as all others do."""
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append(type(self).__name__))
    found = measured(compiled=True)
    assert compiled == ["Generator", "Discriminator", "PerceptualLoss"]
    assert (found["compile bf16"]["mode"], found["compile bf16"]["quality"]["gate"]) == ("default", "pass")
    assert found["compile bf16"]["losses"] == found["eager bf16"]["losses"]
    assert found["eager bf16"]["derived"]["speedup_vs_compile"] > 0
    assert found["loop bf16"]["of"] == "eager"


def test_a_compiler_that_fails_is_a_reason(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail(self: nn.Module, mode: str, **_: Any) -> None:
        def call(*_: Any) -> None:
            tried.append(mode)
            raise RuntimeError("no C++ compiler\nand more")

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", fail)
    monkeypatch.setitem(train._COMPILE_MODES, "cpu", ("reduce-overhead", "default"))
    left_out = measured(train.STAGES[0], compiled=True)["plain fp32"]["left_out"]
    assert left_out["compile bf16"] == "RuntimeError: no C++ compiler"
    assert tried == ["reduce-overhead", "default"]
    monkeypatch.setattr(train, "measured_in", lambda *_: (_ for _ in ()).throw(SRGANFastError("not done after 1 s")))
    found = train.in_child(1, train.STAGES[0], "small", 1, "cpu")
    assert found[2]["left_out"]["compile bf16"] == "not done after 1 s"


def test_a_step_of_this_project_that_fails_is_no_reason(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "make_step", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        measured(train.STAGES[0])


def test_a_child_measures_steps() -> None:
    with pytest.raises(SRGANFastError, match="ended with 2"):
        train.measured_in(train.__name__, 120, ["paper", "small", 1, "cpu"], {})


def test_the_step_and_its_kernels_are_behind_the_suite() -> None:
    names = {path.name for path in sources_behind("train")}
    assert {"step.py", "graph_step.py", "fused.py", "losses.py", "features.py", "data.py", "store.py"} <= names


# --- kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """References for kernels, on small maps."""
    monkeypatch.setattr(train_kernel, "why_not_triton", lambda device: None)
    pairs = {
        "BN, skip": train_kernel.Layer(5, 8, skip=True),
        "convolution, PReLU": train_kernel.Layer(6, 8, 16, slope=0.25, learned=True),
        "convolution, LeakyReLU": train_kernel.Layer(7, 8, 16, stride=2, slope=0.2),
        "shuffle": train_kernel.Shuffle(3, 16),
    }
    monkeypatch.setattr(train_kernel, "PAIRS", pairs)


def test_training_kernels_are_timed_against_pytorch(interpreted: None) -> None:
    for name in train_kernel.PAIRS:
        found = cleaned([*ceiling.measure("cpu"), *train_kernel.measure(name, 1, "cpu", batch=2)])
        rows = [one for one in found if one["suite"] == "train_kernel"]
        whole = "forward and backward"
        cases = [("torch", "forward"), ("kernels", "forward"), ("torch", whole), ("kernels", whole)]
        assert [(one["impl"], one["case"]) for one in rows] == cases
        assert {one["quality"]["gate"] for one in rows} == {"pass"}
        for one in found:
            verify(one, found)
    first, second = (printed for printed, _ in table.speed_tables(found))
    assert "shuffle (forward), batch 2 of 3x3" in first.text()
    assert "max error" in second.text()


@pytest.mark.parametrize("what", ["result", "gradient"])
def test_a_wrong_training_kernel_shows_no_speed(what: str, interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = train_kernel.batchnorm_act

    def wrong(x: Tensor, *rest: Any) -> Tensor:
        y = honest(x, *rest)
        return 1.01 * y if what == "result" else y + 0.01 * (x - x.detach())

    monkeypatch.setattr(train_kernel, "batchnorm_act", wrong)
    found = train_kernel.measure("BN, skip", 1, "cpu", batch=2)
    assert [one["quality"]["gate"] for one in found] == ["pass", "fail"] * 2
    assert all(bool(one["derived"]) == (one["impl"] == "torch") for one in found)


def test_what_a_sanitizer_watches(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op, and for Triton forward and backward of every layer that is timed."""
    ran: list[str] = []
    for name in ("batchnorm_act", "conv3x3_stats", "pixelshuffle_prelu"):
        honest = getattr(train_kernel, name)
        monkeypatch.setattr(train_kernel, name, lambda *given, f=honest, n=name: ran.append(n) or f(*given))
    monkeypatch.setattr(kernel, "all_ops", dict)
    exercise("cpu", "sm90")
    assert ran == []
    exercise("cpu", "triton")
    assert ran == ["batchnorm_act", *["conv3x3_stats", "batchnorm_act"] * 2, "pixelshuffle_prelu"]


def test_training_kernels_need_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    with pytest.raises(BackendUnavailable, match=r"no training kernels to time: .*NVIDIA GPU"):
        bench("train_kernel", runs=1)


def test_the_layers_that_are_timed_are_in_the_networks() -> None:
    """Each convolution has its inputs, outputs and stride in one of the two networks, on maps of that size."""
    there: set[tuple[int, ...]] = set()
    with torch.device("meta"):
        networks = ((Generator(), 24), (Discriminator(), 96))
        for network, side in networks:
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    module.register_forward_hook(
                        lambda conv, given, _: there.add(
                            (given[0].shape[-1], conv.in_channels, conv.out_channels, conv.stride[0])
                        )
                    )
            network(torch.empty(2, 3, side, side))
    for name, layer in train_kernel.PAIRS.items():
        if isinstance(layer, train_kernel.Layer) and layer.outputs is not None:
            assert (layer.size, layer.inputs, layer.outputs, layer.stride) in there, name


# --- parts and options ------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_cpu(small: None, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The parts with a CPU for a GPU; where their records go."""
    for name, value in (("DEVICE", "cpu"), ("_RUNS", 1), ("_CROPS", "small"), ("_CROP", 16)):
        monkeypatch.setattr(parts, name, value)
    return []


def eager_for_graph(kind: str, kernels: str, *networks: Any, device: str) -> EagerStep:
    return make_step("eager", "off", *networks, device=device)


def test_a_part_of_training_demands_its_graph(
    on_a_cpu: list[Record], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SRGANFastError, match=f"no row of graph bf16: {NO_GPU}"):
        parts.training(train.STAGES[:1])(on_a_cpu.append)
    assert "without graph bf16" in capsys.readouterr().out
    on_a_cpu.clear()
    monkeypatch.setattr(train, "make_step", eager_for_graph)
    parts.training(train.STAGES)(on_a_cpu.append)
    found = cleaned(on_a_cpu)
    for one in found:
        verify(one, found)
    assert {one["name"] for one in found if one["suite"] == "train"} == set(train.STAGES)


def test_a_record_of_training_proves_its_claim(on_a_cpu: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the claims of training look for is what the part writes; here at another size."""
    monkeypatch.setattr(train, "make_step", eager_for_graph)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: None)
    parts.training(train.STAGES, compiled=True)(on_a_cpu.append)
    for one in on_a_cpu:
        one["env"]["gpu"] = "NVIDIA H100"
        one["env"]["amx"] = True
    records = {one["id"]: one for one in cleaned(on_a_cpu)}
    claims = [claim for claim in load_claims() if claim.suite == "train"]
    assert len(claims) == 11
    for claim in claims:
        assert (claim.where["n"], claim.where["h"]) == (16, 96)
        where = {**claim.where, "n": 2, "h": 32}
        fitting = [
            one["id"]
            for one in records.values()
            if all({**one.get("shape", {}), **one}.get(key) == want for key, want in where.items())
        ]
        assert len(fitting) == 1, claim.name
        changes = {"where": where, "record": fitting[0], "at_least": -math.inf, "at_most": math.inf}
        assert judge(dataclasses.replace(claim, **changes), records).value is not None


def test_the_part_of_kernels_says_whether_they_pay(
    on_a_cpu: list[Record], interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts.train_kernels(on_a_cpu.append)
    last = on_a_cpu[-1]
    assert (last["name"], last["quality"]["gate"]) == ("train_kernels_pay", "pass")
    assert set(last["raw"]["p50_ms"]) == set(train_kernel.PAIRS)
    assert last["derived"]["least_speedup"] > 0
    assert {one["name"] for one in on_a_cpu if one["suite"] == "kernel"} == {"training_crops"}


def test_no_test_is_no_proof() -> None:
    with pytest.raises(ParityError, match="expected tests with the marker gpu"):
        parts.tests("x", "test_no_such*.py", "gpu")(lambda one: None)


def test_a_suite_may_be_named_first(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "steps.jsonl"
    bench("train", size="small", runs=1, out=out)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert {one["name"] for one in found if one["suite"] == "train"} == set(train.STAGES)
    assert len({one["id"] for one in found}) == len(found)
    assert "training paper-srgan-vgg54, batch 2, crop 32" in capsys.readouterr().out


def test_steps_are_compiled_in_a_process_of_their_own(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(train, "in_child", lambda *arguments: asked.append(arguments) or [])
    bench("train", compiled=True, compile_limit_s=7, runs=2)
    assert asked == [(7, stage, "small", 2, "cpu") for stage in train.STAGES]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"named": "train", "suite": "frame"}, "name it once"),
        ({"named": "steps"}, "train_kernel, reuse, video, precision or all"),
        ({"named": "train", "size": "64x64"}, "small, paper or all"),
        ({"named": "kernel", "compiled": True}, "--compile to frame and train"),
    ],
)
def test_bench_refuses(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bench(**options)


# --- quality ----------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> Callable[..., list[Record]]:
    """Precision records of a network on two images, with what its file says of its training."""
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(tmp_path / f"set/{number}.png")

    def measure(**recipe: Any) -> list[Record]:
        path = tmp_path / "tiny.safetensors"
        torch.manual_seed(0)
        weights.save(path, Generator(GeneratorConfig(blocks=1, width=16)), name="tiny", recipe=recipe)
        return cleaned(precision.measure(str(path), tmp_path / "set", precisions=("fp32",)))

    return measure


def test_a_model_has_a_record_of_its_quality(trained: Callable[..., list[Record]]) -> None:
    """Its PSNR as `evaluate` has it, and the minutes of training where the weights say them."""
    (one,) = trained(duration_s=5400.0, device="NVIDIA H100", steps_done=10)
    verify(one, [one])
    images = one["raw"]["images"]
    assert one["derived"]["psnr_db"] == pytest.approx(sum(each["psnr_db"] for each in images) / 2)
    assert one["derived"]["training_minutes"] == 90
    assert "tiny (90 minutes of training on NVIDIA H100) on set" in readme.precisions([one])
    (silent,) = trained()
    assert "training_minutes" not in silent["derived"]
    assert "minutes of training" not in readme.precisions([silent])
    promised = next(claim for claim in load_claims() if claim.name == "set5_srresnet_x4_small")
    about = {"name": "tiny", "set": "set", "lr": "imresize"}
    changed = {"where": {**promised.where, **about}, "record": one["id"], "at_least": 1.0}
    assert judge(dataclasses.replace(promised, **changed), {one["id"]: one}).status == "proven"
