"""Training on a GPU: a captured step is EagerStep, no wait for the device, flat memory, the CPU's batches."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from srgan_fast.bench.parts import host_waits
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import Batches
from srgan_fast.train.graph_step import GraphStep, make_step
from srgan_fast.train.step import EagerStep
from srgan_fast.train.store import read_images

pytestmark = pytest.mark.gpu

SRRESNET = TrainConfig(
    generator=GeneratorConfig(blocks=2, width=64),
    crop=96,
    batch=4,
    steps=1000,
    learning_rate=1e-3,
    warmup=20,
    clip=0.1,
    precision="fp32",
)
SRGAN = dataclasses.replace(SRRESNET, stage="srgan", content="vgg22")
STAGES = pytest.mark.parametrize("config", [SRRESNET, SRGAN], ids=["srresnet", "srgan"])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])
# Terms and weights of two ways to compute the same steps, relative; the weights by the norm of their difference.
TERM_BOUND, WEIGHT_BOUND = {"fp32": 1e-2, "bf16": 5e-2}, {"fp32": 1e-2, "bf16": 5e-2}


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """cuDNN's deterministic algorithms, and float32 that is float32."""
    cudnn = torch.backends.cudnn
    kept = cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False, False
    yield
    cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def step_of(kind: Any, config: TrainConfig, **options: Any) -> Any:
    torch.manual_seed(0)
    generator = Generator(config.generator)
    discriminator = Discriminator(width=16) if config.stage == "srgan" else None
    content: losses.Content = losses.mse
    if config.content == "vgg22":
        features = VGG19(2, 2)
        for module in features.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        content = losses.PerceptualLoss(features, "mean")
    if isinstance(kind, str):
        return make_step(kind, options.pop("kernels"), generator, content, config, discriminator, device="cuda")  # type: ignore[arg-type]
    return kind(generator, content, config, discriminator, device="cuda", **options)


def batch(number: int, count: int = 4) -> tuple[Tensor, Tensor]:
    # Of 96x96, whose last maps the discriminator pools without a sum: that one is in no fixed order.
    random = torch.Generator("cuda").manual_seed(number)
    lr = torch.rand(count, 3, 24, 24, device="cuda", generator=random)
    return lr, torch.rand(count, 3, 96, 96, device="cuda", generator=random) * 2 - 1


def run(step: EagerStep, steps: range, count: int = 4) -> list[dict[str, Tensor]]:
    return [step(*batch(number, count), number) for number in steps]


def weights_of(step: EagerStep) -> dict[str, Tensor]:
    networks = {"generator": step.generator, "average": step.average}
    if step.discriminator is not None:
        networks["discriminator"] = step.discriminator
    return {
        f"{part}.{name}": value.detach().clone()
        for part, network in networks.items()
        for name, value in network.state_dict().items()
    }


def assert_like(mine: list[dict[str, Tensor]], others: list[dict[str, Tensor]], precision: str) -> None:
    for here, there in zip(mine, others, strict=True):
        assert here.keys() == there.keys()
        for name, value in here.items():
            bound = TERM_BOUND[precision] * (4 if name.endswith("_norm") else 1)
            assert (value - there[name]).abs() <= bound * there[name].abs() + 1e-5, name


def assert_near(mine: EagerStep, other: EagerStep, precision: str) -> None:
    theirs = weights_of(other)
    for name, value in weights_of(mine).items():
        want = theirs[name].float()
        assert (value.float() - want).norm() <= WEIGHT_BOUND[precision] * want.norm() + 1e-3, name


def assert_equal(mine: EagerStep, other: EagerStep) -> None:
    theirs = weights_of(other)
    for name, value in weights_of(mine).items():
        assert torch.equal(value, theirs[name]), name


@STAGES
@PRECISIONS
def test_a_graph_is_the_eager_step(config: TrainConfig, precision: Any) -> None:
    """To the bit where EagerStep repeats itself to the bit, by the tolerance elsewhere; two shapes, one put back."""
    config = dataclasses.replace(config, precision=precision)
    graph = step_of(GraphStep, config, fall_back=False)
    eager, again = step_of(EagerStep, config), step_of(EagerStep, config)
    told = []
    for step in (graph, eager, again):
        terms = run(step, range(10)) + run(step, range(10, 14), count=3)
        kept = copy.deepcopy(step.state())
        terms += run(step, range(14, 16))
        step.restore(kept)
        told.append(terms + run(step, range(14, 30)))
    assert graph.kind == "graph"
    assert len(graph.captured) == 2
    repeats = all(
        torch.equal(a, b) for a, b in zip(weights_of(eager).values(), weights_of(again).values(), strict=True)
    )
    if repeats:
        assert_equal(graph, eager)
        for here, there in zip(told[0], told[1], strict=True):
            assert all(torch.equal(value, there[name]) for name, value in here.items())
    assert_like(told[0], told[1], precision)
    assert_near(graph, eager, precision)


@STAGES
def test_a_capture_leaves_no_trace(config: TrainConfig) -> None:
    step = step_of(GraphStep, config, fall_back=False)
    lr, hr = batch(0)
    run(step, range(3), count=3)
    before = [tensor.clone() for tensor in step._tensors()]
    random = torch.cuda.get_rng_state()
    step._add(lr, hr)
    assert all(torch.equal(a, b) for a, b in zip(before, step._tensors(), strict=True))
    assert torch.equal(random, torch.cuda.get_rng_state())


@STAGES
@PRECISIONS
@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_the_host_waits_for_nothing(kind: Any, config: TrainConfig, precision: Any) -> None:
    step = step_of(kind, dataclasses.replace(config, precision=precision))
    lr, hr = batch(0)
    assert host_waits(lambda: step(lr, hr, 5)) == []
    assert step.kind == kind.kind


@STAGES
def test_memory_stays_over_many_replays(config: TrainConfig) -> None:
    step = step_of(GraphStep, config, fall_back=False)
    held = []
    for number in range(200):
        terms = step(*batch(number), number)
        if number % 50 == 9:
            del terms
            torch.cuda.synchronize()
            held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held == [held[0]] * 4


@STAGES
def test_a_captured_step_goes_back_and_on(config: TrainConfig) -> None:
    """What GraphStep saved, in tensors of the CPU, goes on in a new GraphStep, a captured one and EagerStep."""
    config = dataclasses.replace(config, precision="bf16")
    whole = step_of(GraphStep, config, fall_back=False)
    run(whole, range(10))
    saved = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().cpu().clone(), whole.state())
    terms = run(whole, range(10, 20))
    fresh, captured, eager = (
        step_of(kind, config, **options)
        for kind, options in ((GraphStep, {"fall_back": False}), (GraphStep, {"fall_back": False}), (EagerStep, {}))
    )
    run(captured, range(3))
    for step in (fresh, captured, eager, whole):
        where = [tensor.data_ptr() for tensor in GraphStep._tensors(step)]
        step.restore(saved)
        assert where == [tensor.data_ptr() for tensor in GraphStep._tensors(step)]
        assert_like(run(step, range(10, 20)), terms, "bf16")
        assert_near(step, whole, "bf16")


def test_a_step_moves_between_devices() -> None:
    gpu = step_of(GraphStep, SRGAN, fall_back=False)
    run(gpu, range(3))
    torch.manual_seed(0)
    cpu = EagerStep(Generator(SRGAN.generator), losses.mse, SRGAN, Discriminator(width=16), device="cpu")
    cpu.restore(gpu.state())
    assert_equal(cpu_copy(gpu), cpu)
    gpu.restore(cpu.state())
    assert_equal(cpu_copy(gpu), cpu)


def cpu_copy(step: EagerStep) -> Any:
    """Its networks on the CPU, for a comparison."""
    parts = {name: getattr(step, name) for name in ("generator", "average", "discriminator")}
    return types.SimpleNamespace(**{name: copy.deepcopy(network).cpu() for name, network in parts.items()})


@STAGES
@PRECISIONS
def test_kernels_change_nothing_but_the_rounding(config: TrainConfig, precision: Any) -> None:
    config = dataclasses.replace(config, precision=precision, learning_rate=1e-4)
    by_kernels = step_of(GraphStep, config, kernels=True, fall_back=False)
    plain = step_of(GraphStep, config, kernels=False, fall_back=False)
    assert_like(run(by_kernels, range(5)), run(plain, range(5)), precision)
    assert_near(by_kernels, plain, precision)
    assert by_kernels.kernels
    assert not plain.kernels


def test_what_make_step_chooses() -> None:
    step = step_of("auto", SRGAN, kernels="auto")
    assert isinstance(step, GraphStep)
    run(step, range(2))
    assert step.kind == "graph"
    assert type(step_of("eager", SRGAN, kernels="auto")) is EagerStep


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 256, (100 + 7 * index, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_batches_are_those_of_the_cpu(photos: Path, scale: int, resident: bool) -> None:
    config = dataclasses.replace(SRRESNET, generator=GeneratorConfig(scale=scale, blocks=1, width=8), batch=7)
    store = read_images(photos, config.crop)
    here, there = Batches(store, config, "cuda", resident=resident), Batches(store, config, "cpu")
    try:
        for step in (0, 1, 2, 500, 3):
            for mine, want in zip(here(step), there(step), strict=True):
                assert mine.device.type == "cuda"
                assert torch.equal(mine.cpu(), want)
        if resident:
            assert host_waits(lambda: here(7)) == []
    finally:
        here.close()
        there.close()


def test_blurred_batches_wait_for_nothing(photos: Path) -> None:
    config = dataclasses.replace(SRRESNET, generator=GeneratorConfig(scale=2, blocks=1), degradation="gaussian")
    batches = Batches(read_images(photos, config.crop), config, "cuda", resident=True)
    assert host_waits(lambda: batches(7)) == []
