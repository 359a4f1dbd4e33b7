"""The training step as a graph: it is EagerStep to the bit, however often its memory is spoilt; and what is chosen."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture import Recorded, Repeated
from ranks import together
from steps import GAN, TINY, assert_same, batch, everything, networks, run, step_of
from torch import Tensor, nn

from srgan_fast import graph, train
from srgan_fast.errors import BackendUnavailable, UsageError
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, Generator, GeneratorConfig
from srgan_fast.train import graph_step, losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.distributed import ALONE, World
from srgan_fast.train.graph_step import GraphStep, make_step
from srgan_fast.train.step import EagerStep, average_weight, learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


def run_both(
    graph: EagerStep,
    config: TrainConfig,
    content: losses.Content = losses.mse,
    steps: tuple[int, int, int, int] = (18, 21, 23, 25),
) -> None:
    """A captured step and EagerStep have to be the same; between the third number and the second both are put back."""
    start, middle, back, stop = steps
    eager = step_of(EagerStep, config, content)
    told: list[list[dict[str, Tensor]]] = []
    for step in (graph, eager):
        terms = run(step, range(start, middle))
        kept = copy.deepcopy(step.state())
        terms += run(step, range(middle, back))
        step.restore(kept)
        told.append(terms + run(step, range(middle, stop)))
    assert_same(*told)
    assert_same(graph, eager)


# --- the captured step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "executor"),
    [
        (TINY, Recorded),
        (dataclasses.replace(TINY, clip=0.05), Recorded),
        (GAN, Recorded),
        (dataclasses.replace(GAN, clip=0.0), Recorded),
        (GAN, Repeated),
    ],
    ids=["srresnet", "srresnet-clip", "srgan-clip", "srgan", "srgan-repeated"],
)
def test_fifty_replays_are_fifty_steps(config: TrainConfig, executor: type[Recorded]) -> None:
    capture = executor()
    graph = step_of(GraphStep, config, capture=capture, fall_back=False)
    run_both(graph, config, steps=(0, 30, 34, 50))
    assert capture.captures == 2
    assert capture.replays >= 54
    assert graph.kind == "graph"


def test_features_are_captured_too() -> None:
    features = VGG19(2, 2)
    content = losses.PerceptualLoss(features, "mean")
    config = dataclasses.replace(GAN, precision="bf16")
    graph = step_of(GraphStep, config, content, capture=Recorded(), fall_back=False)
    eager = step_of(EagerStep, config, content)
    assert_same(run(graph, range(18, 22)), run(eager, range(18, 22)))
    assert_same(graph, eager)


class Stale(GraphStep):
    def _run(self, lr: Tensor, hr: Tensor) -> Tensor:
        for one in self.captured.values():
            if one.lr.shape == lr.shape:
                one.replay()
                return one.values[0].clone()
        return super()._run(lr, hr)


class HostRate(GraphStep):
    at = 0

    def __call__(self, lr: Tensor, hr: Tensor, step: int) -> dict[str, Tensor]:
        self.at = step
        return super().__call__(lr, hr, step)

    def _look_up(self) -> None:
        self._rate.fill_(learning_rate(self.config, self.at))
        self._weight.fill_(average_weight(self.config, self.at))


class Rebound(GraphStep):
    def _restore_moments(self, name: str, moments: Any) -> None:
        optimiser = self.optimisers[name]
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})


class Handing(GraphStep):
    def _run(self, lr: Tensor, hr: Tensor) -> Tensor:
        super()._run(lr, hr)
        return self.captured[lr.shape, hr.shape].values[0]


class WarmedUp(GraphStep):
    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in super()._tensors() if tensor.dtype != torch.int64]


@pytest.mark.parametrize("fault", [Stale, HostRate, Rebound, Handing, WarmedUp])
def test_planted_faults_are_caught(fault: type[GraphStep]) -> None:
    """A batch not copied in, a rate of the host, moments in new tensors, terms not copied out, counts not put back."""
    graph = step_of(fault, GAN, capture=Recorded(), fall_back=False)
    with pytest.raises(AssertionError):
        run_both(graph, GAN)


def test_a_value_read_by_the_host_ends_a_capture(caplog: pytest.LogCaptureFixture) -> None:
    def content(sr: Tensor, hr: Tensor) -> Tensor:
        loss = losses.mse(sr, hr)
        return loss * float(loss.detach() > -1)

    graph = step_of(GraphStep, TINY, content, capture=Recorded())
    run_both(graph, TINY, content)
    assert graph.kind == "eager"
    assert caplog.text.count("read back to the host") == 1


def test_a_capture_leaves_no_trace() -> None:
    def content(sr: Tensor, hr: Tensor) -> Tensor:
        return losses.mse(sr, hr) + 0 * torch.rand(())  # moves the random state of the process

    class Watching(GraphStep):
        def _add(self, lr: Tensor, hr: Tensor) -> None:
            before = everything(self)
            where = [tensor.data_ptr() for tensor in self._tensors()]
            super()._add(lr, hr)
            assert_same([before], self)
            assert where == [tensor.data_ptr() for tensor in self._tensors()]
            told.append(len(before))

    told: list[int] = []
    graph = step_of(Watching, GAN, content, capture=Repeated(), fall_back=False)
    run(graph, range(19, 21))
    assert len(told) == 2
    assert min(told) > 50


def test_few_graphs_are_kept() -> None:
    capture = Repeated()
    graph = step_of(GraphStep, TINY, capture=capture)
    for count in (1, 2, 3, 4, 1, 5, 1, 2):
        graph(*batch(0, count), 0)
    assert [lr[0] for lr, _ in graph.captured] == [4, 5, 1, 2]
    assert capture.captures == 6


class Counted:
    """Makes replays as a GPU's are, of an executor's; `ended` are those that were."""

    def __init__(self, executor: Recorded) -> None:
        self.executor = executor
        self.made: list[object] = []
        self.ended: list[object] = []

    def __call__(self, work: Any, device: torch.device, stream: object) -> graph.Replay:
        one = types.SimpleNamespace(replay=self.executor(work, device, stream), reset=lambda: self.ended.append(one))
        self.made.append(one)
        return graph.Replay(one, work)


def test_every_graph_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not wanted any more, and one that was wrong; for NCCL would wait for any of them."""
    monkeypatch.setattr(graph_step, "_KEPT", 1)
    capture = Counted(Repeated())
    step = step_of(GraphStep, TINY, capture=capture, fall_back=False)
    for count in (2, 3):
        step(*batch(0, count), 0)
    assert capture.ended == capture.made[:1]
    step.close()
    assert capture.ended == capture.made
    assert len(capture.made) == 2
    wrong = Counted(Wrong())
    step_of(GraphStep, TINY, capture=wrong)(*batch(0), 0)
    assert wrong.ended == wrong.made
    assert len(wrong.made) == 1


# --- several ranks ----------------------------------------------------------------------------------------------


def share_of_a_run(world: World, kind: type[EagerStep], size: int) -> tuple[list[dict[str, float]], list[Any]]:
    """Five steps on the rows of one rank, of networks without normalisation: batches of four in all."""
    config = dataclasses.replace(GAN, generator=GeneratorConfig(blocks=1, width=4, norm="none"))
    torch.manual_seed(world.rank)  # the ranks start from rank 0's weights
    generator, discriminator = Generator(config.generator), Discriminator(width=4)
    for index, module in enumerate(discriminator.features):
        if isinstance(module, nn.BatchNorm2d):
            discriminator.features[index] = nn.Identity()
    options: dict[str, Any] = {} if kind is EagerStep else {"capture": Repeated(), "fall_back": False}
    step = kind(generator, losses.mse, config, discriminator, world=world, **options)
    rows = slice(world.rank * 4 // size, (world.rank + 1) * 4 // size)
    told = [step(*(images[rows] for images in batch(number, 4)), number) for number in range(5)]
    terms = [{name: float(value) for name, value in one.items()} for one in told]
    return terms, [parameter.tolist() for parameter in step.average.parameters()]


@pytest.mark.parametrize("kind", [EagerStep, GraphStep])
def test_two_ranks_are_one_at_twice_the_batch(kind: type[EagerStep]) -> None:
    want, weights = share_of_a_run(ALONE, kind, 1)
    for terms, own in together(share_of_a_run, kind, 2):
        for here, there in zip(terms, want, strict=True):
            assert here.keys() == there.keys()
            for name, value in here.items():
                assert math.isclose(value, there[name], rel_tol=1e-3), name
        for mine, other in zip(own, weights, strict=True):
            assert torch.allclose(torch.tensor(mine), torch.tensor(other), rtol=1e-3, atol=1e-4)


# --- what is given up, and what is chosen -----------------------------------------------------------------------


class Broken(Recorded):
    """Cannot capture."""

    def __call__(self, work: Any, device: torch.device, stream: object) -> Any:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


class Wrong(Recorded):
    """Captures the step of another batch."""

    def __call__(self, work: Any, device: torch.device, stream: object) -> Any:
        replay = super().__call__(work, device, stream)
        held = dict(zip(work.__code__.co_freevars, (cell.cell_contents for cell in work.__closure__), strict=True))

        def other() -> None:
            held["hr"].neg_()
            replay()

        return other


@pytest.mark.parametrize(
    ("executor", "reason"), [(Broken, "RuntimeError: operation not permitted"), (Wrong, "in a replay and")]
)
def test_what_fails_goes_on_eagerly(executor: type[Recorded], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    graph = step_of(GraphStep, GAN, capture=executor())
    run_both(graph, GAN)
    assert graph.kind == "eager"
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert reason in warning.getMessage()
    assert "\n" not in warning.getMessage()


def test_what_was_asked_for_by_name_does_not_fall_back() -> None:
    graph = step_of(GraphStep, GAN, capture=Broken(), fall_back=False)
    before = everything(graph)
    with pytest.raises(BackendUnavailable, match=r"operation not permitted.*--step eager"):
        graph(*batch(0), 0)
    assert_same([before], graph)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Training kernels that are the plain forward pass, slower or wrong if told so."""
    made = types.SimpleNamespace(seconds=0.0, factor=1.0, calls=0, reason=None)

    def forward_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(image: Tensor) -> Tensor:
            made.calls += 1
            time.sleep(made.seconds)
            return made.factor * network(image)

        return forward

    module = types.SimpleNamespace(forward_of=forward_of, why_not=lambda network: made.reason)
    monkeypatch.setitem(sys.modules, "srgan_fast.train.fused", module)
    monkeypatch.setattr(train, "fused", module, raising=False)
    monkeypatch.setattr(graph_step, "why_not_triton", lambda device: None)
    return made


def test_a_step_by_kernels(kernels: types.SimpleNamespace) -> None:
    with_kernels = step_of(EagerStep, GAN, kernels=True)
    assert_same(run(with_kernels, range(3)), run(step_of(EagerStep, GAN), range(3)))
    assert kernels.calls == 3 * 4
    graph = step_of(GraphStep, GAN, kernels=True, capture=Repeated(), fall_back=False)
    assert_same(run(graph, range(3)), run(step_of(EagerStep, GAN), range(3)))
    assert graph.kernels


def test_the_training_kernels_are_captured() -> None:
    """By their references here: the same step but for rounding, and its replays to the bit."""
    config = dataclasses.replace(GAN, generator=GeneratorConfig(blocks=1, width=16))
    graph = step_of(GraphStep, config, kernels=True, capture=Recorded(), fall_back=False)
    eager, plain = step_of(EagerStep, config, kernels=True), step_of(EagerStep, config)
    told = run(graph, range(5))
    assert_same(told, run(eager, range(5)))
    assert_same(graph, eager)
    for mine, other in zip(told, run(plain, range(5)), strict=True):
        for name, value in mine.items():
            assert math.isclose(float(value), float(other[name]), rel_tol=1e-2), name


@pytest.mark.parametrize("slower", [True, False])
def test_the_faster_way_is_kept(
    slower: bool, kernels: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels.seconds = 0.005
    if not slower:  # the plain way is, then
        plain = Generator.forward
        monkeypatch.setattr(Generator, "forward", lambda self, lr: (time.sleep(0.02), plain(self, lr))[1])
        monkeypatch.setattr(
            sys.modules["srgan_fast.train.fused"], "forward_of", lambda network: lambda lr: plain(network, lr)
        )
    capture = Counted(Repeated())
    graph = step_of(GraphStep, TINY, kernels=None, capture=capture, fall_back=False)
    eager = step_of(EagerStep, TINY)
    caplog.set_level(logging.INFO)
    assert_same(run(graph, range(3)), run(eager, range(3)))
    assert_same(graph, eager)
    assert graph.kernels is not slower
    assert ("training kernels" in caplog.text) is not slower
    assert capture.ended == [capture.made[slower]]


def test_kernels_that_are_wrong_are_left_out(kernels: types.SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    kernels.factor = 1.1
    graph = step_of(GraphStep, GAN, kernels=None, capture=Recorded(), fall_back=False)
    run_both(graph, GAN)
    assert not graph.kernels
    assert caplog.text.count("training kernels is left out") == 2  # two shapes
    with pytest.raises(BackendUnavailable, match="in a replay"):
        step_of(GraphStep, GAN, kernels=True, capture=Recorded(), fall_back=False)(*batch(0), 0)


def made_step(kind: Any, kernels: Any, **options: Any) -> EagerStep:
    generator, discriminator = networks(GAN)
    return make_step(kind, kernels, generator, losses.mse, GAN, discriminator, **options)


def test_the_step_that_is_chosen(kernels: types.SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for kind, wanted, with_kernels in (("auto", "auto", False), ("eager", "off", False), ("eager", "on", True)):
        step = made_step(kind, wanted, device="cpu")
        assert (step.kind, step.kernels) == ("eager", with_kernels)
    assert caplog.text.count("a graph needs an NVIDIA GPU") == 1
    with pytest.raises(BackendUnavailable, match=r"device is cpu; give --step auto"):
        made_step("graph", "off")
    kernels.reason = "no kernels for this"
    with pytest.raises(BackendUnavailable, match="no kernels for this; give --kernels off"):
        made_step("eager", "on")
    assert not made_step("eager", "auto").kernels
    assert "training without kernels: no kernels for this" in caplog.text
    with pytest.raises(UsageError, match="got fast and on"):
        made_step("fast", "on")


def test_kernels_need_a_device_that_has_them() -> None:
    with pytest.raises(BackendUnavailable, match="--kernels off"):
        made_step("eager", "on", device="cpu")
