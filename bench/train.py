"""How fast a training step is: each of the trainer's own against plain float32 PyTorch, from the same weights on.

Batches lie on the device. What making them costs has rows of its own: `loader` by itself, and `loop` in turns with the
step that is meant to be the fastest.
"""

from __future__ import annotations

import copy
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgan_fast.bench import ceiling, work
from srgan_fast.bench.child import answer, measured_in
from srgan_fast.bench.device import float32, is_cuda, peak_bytes, rest_bytes, synchronise
from srgan_fast.bench.figures import loss_difference, timed_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, interleave
from srgan_fast.errors import SRGANFastError, UsageError
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, Generator
from srgan_fast.train import losses
from srgan_fast.train.config import PRESETS, TrainConfig
from srgan_fast.train.graph_step import GraphStep, make_step
from srgan_fast.train.step import EagerStep

# Batch and crop.
SIZES = {"small": (4, 32), "paper": (16, 96)}
STAGES = ("paper-srresnet-mse", "paper-srgan-vgg54")

# How far the loss terms of the first step, and those of the steps that follow updates, may be from plain float32's.
# bfloat16 keeps eight bits; and with a discriminator the first updates decide much and are little more than signs (so
# Adam begins), which the least rounding turns.
_FIRST_BOUND = {"fp32": 1e-3, "bf16": 2e-2}
_LOSS_BOUND = {"srresnet": {"fp32": 1e-3, "bf16": 1e-2}, "srgan": {"fp32": 2e-2, "bf16": 5e-2}}
_LOSSES = ("content", "adversarial", "discriminator")
_STEPS_HELD = 4

# More than anyone times; schedules are as long as a run.
_STEPS = 20_000
# Photographs that batches are cut from, and their sides.
_IMAGES, _SIDE = 64, 256

_WARM_UP = 3

# What torch.compile is told, best first; a mode that does not take these networks leaves them to the next. The first
# has CUDA graphs, which these small launches need most; max-autotune adds minutes of trials of its convolutions.
_COMPILE_MODES = {"cuda": ("reduce-overhead", "default"), "cpu": ("default",)}

_log = logging.getLogger(__name__)

Run = Callable[[], dict[str, Tensor]]
Key = tuple[str, str]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Made:
    """A step that is ready, and what a record says of how it came to be."""

    step: Callable[[Tensor, Tensor, int], dict[str, Tensor]]
    said: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Start:
    """What all sides start from; each trains its own copy, on the same batches."""

    config: TrainConfig
    generator: Generator
    discriminator: Discriminator | None
    content: losses.Content
    batches: tuple[tuple[Tensor, Tensor], ...]
    device: str

    def copies(self) -> tuple[Generator, losses.Content, Discriminator | None]:
        return copy.deepcopy(self.generator), copy.deepcopy(self.content), copy.deepcopy(self.discriminator)

    def flops(self) -> int:
        features = self.content.features if isinstance(self.content, losses.PerceptualLoss) else None
        assert features is None or isinstance(features, nn.Module)
        lr, hr = (tuple(batch.shape) for batch in self.batches[0])
        return work.of_step(self.generator, self.discriminator, features, lr, hr)


def measure(
    stage: str, size: str, runs: int, device: str, *, compiled: bool = False, left_out: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Time a step of one of `STAGES` at one of `SIZES`, plain first. Features are untrained: they cost the same.

    One record each; the ceilings of the run come with them. What cannot run here is named in the first record of the
    steps, with its reason; `left_out` adds to that.

    Raises:  UsageError for another stage or size
    """
    start = begin(stage, size, device)
    made: dict[Key, Made] = {}
    candidates: dict[Key, Run] = {}
    fields: dict[Key, dict[str, Any]] = {}
    missing = dict(left_out or {})
    with float32(device):
        for key, make in makers(start, compiled=compiled).items():
            rest = rest_bytes(device)
            try:
                made[key], candidates[key], fields[key] = _ready(make, start, rest)
            except Exception as error:
                # Compilers and captures fail in ways of their own, and the other rows are worth as much without them.
                if key[0] in ("plain", "eager"):
                    raise
                missing[" ".join(key)] = _reason(error)
        want = fields["plain", "fp32"]["losses"]
        held = {key: _held(fields[key]["losses"], want, start.config.stage, key[1]) for key in candidates}
        # In turns with the fastest that is this project's own.
        loader, looped = _Loader(start), [key for key in candidates if key[0] != "compile"][-1]
        timed: dict[Key, Callable[[], object]] = dict(candidates)
        timed["loader", "uint8"] = loader.run
        timed["loop", looped[1]] = loader.loop(made[looped])
        calls = {key: calls_for(run, device) for key, run in timed.items()}
        samples = interleave(timed, runs, device=device, calls=calls)
        synchronise(device)
    held["loader", "uint8"] = loader.quality()
    held["loop", looped[1]] = held[looped] if loader.quality()["gate"] == "pass" else loader.quality()
    fields["loader", "uint8"] = {}
    fields["loop", looped[1]] = {"of": looped[0]}
    fields["plain", "fp32"] |= {"left_out": missing} if missing else {}
    batch, crop = SIZES[size]
    raw: list[dict[str, Any]] = [
        {
            "suite": "train",
            "impl": key[0],
            "baseline": "plain",
            "dtype": key[1],
            "device": torch.device(device).type,
            "shape": {"n": batch, "h": crop, "w": crop},
            "latency_ms": latency(values),
            "timing": {"clock": "wall, synchronised", "calls": calls[key], "l2": "not flushed"},
            **fields[key],
            "quality": held[key],
        }
        for key, values in samples.items()
    ]
    ceilings = [ceiling.product(device, precision) for precision in ("fp32", "bf16")]
    found = []
    for one in raw:
        derived = timed_figures(one, raw, ceilings) if one["quality"]["gate"] == "pass" else {}
        found.append(record("train", stage, **{key: v for key, v in one.items() if key != "suite"}, derived=derived))
    return [*ceilings, *found]


def in_child(limit_s: float, *arguments: Any) -> list[dict[str, Any]]:
    """`measure` with torch.compile, in a process of its own; without it, and with the reason, where that fails."""
    try:
        return measured_in(__spec__.name, limit_s, arguments, {"compiled": True})
    except SRGANFastError as error:
        return measure(*arguments, left_out={"compile bf16": str(error)})


def begin(stage: str, size: str, device: str) -> _Start:
    """Networks and two batches of a stage, the same whenever it is called.

    Raises:  UsageError for a stage or size that is none
    """
    if stage not in STAGES or size not in SIZES:
        raise UsageError(
            f"expected a stage of {', '.join(STAGES)} and a size of {', '.join(SIZES)}, got {stage} {size}"
        )
    batch, crop = SIZES[size]
    config = replace(PRESETS[stage], batch=batch, crop=crop, steps=_STEPS)
    random = torch.Generator().manual_seed(0)
    batches = []
    for light in (1.0, 0.25):
        # By turns, and unlike, so that a step which goes on with what it saw first has other losses.
        hr = torch.rand(batch, 3, crop, crop, generator=random) * light
        batches.append((F.avg_pool2d(hr, config.generator.scale).to(device), (hr * 2 - 1).to(device)))
    torch.manual_seed(0)
    content: losses.Content = losses.mse
    if config.content == "vgg54":
        features = VGG19(5, 4).to(device).eval().requires_grad_(False)
        # Maps as large as a trained network's, which PyTorch's own start would let fade over 16 layers.
        for conv in features.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
        content = losses.PerceptualLoss(features, config.vgg_reduction)
    discriminator = Discriminator().to(device) if config.stage == "srgan" else None
    return _Start(config, Generator(config.generator).to(device), discriminator, content, tuple(batches), device)


def makers(start: _Start, *, compiled: bool = False) -> dict[Key, Callable[[], Made]]:
    """Functions that make a step of each implementation and precision ready, plain first, the fastest last."""
    found: dict[Key, Callable[[], Made]] = {
        ("plain", "fp32"): lambda: _plain(start),
        ("eager", "fp32"): lambda: _own(start, "eager", "off", "fp32"),
        ("eager", "bf16"): lambda: _own(start, "eager", "off", "bf16"),
    }
    if compiled:
        found["compile", "bf16"] = lambda: _compiled(start)
    found["graph", "bf16"] = lambda: _own(start, "graph", "off", "bf16")
    found["graph-kernels", "bf16"] = lambda: _own(start, "graph", "on", "bf16")
    return found


def turns(made: Made, start: _Start) -> Run:
    """One step a call, its batches by turns."""
    numbers = itertools.count()

    def run() -> dict[str, Tensor]:
        number = next(numbers) % _STEPS
        return made.step(*start.batches[number % len(start.batches)], number)

    return run


def _ready(make: Callable[[], Made], start: _Start, rest: int) -> tuple[Made, Run, dict[str, Any]]:
    """A step that has made its first steps, what runs the next, and what there is to say of the first."""
    began = time.perf_counter()
    made = make()
    run = turns(made, start)
    compile_s = time.perf_counter() - began
    began = time.perf_counter()
    terms = [_numbers(run())]
    first_ms = (time.perf_counter() - began) * 1e3
    terms += [_numbers(run()) for _ in range(_STEPS_HELD - 1)]
    fields = {
        "compile_s": compile_s,
        "first_ms": first_ms,
        "losses": terms,
        "peak_bytes": peak_bytes(run, start.device, rest),
        "flops": start.flops(),
        **made.said,
    }
    if isinstance(made.step, GraphStep):
        fields["variant"] = str(next(iter(made.step.captured.values())).variant)
    for _ in range(_WARM_UP if is_cuda(start.device) else 0):
        run()
    return made, run, fields


def _own(start: _Start, kind: Literal["eager", "graph"], kernels: Literal["on", "off"], precision: Precision) -> Made:
    step = _step(start, kind, kernels, precision)
    return Made(step, {"kind": step.kind, "kernels": step.kernels})


def _step(
    start: _Start, kind: Literal["eager", "graph"], kernels: Literal["on", "off"], precision: Precision
) -> EagerStep:
    generator, content, discriminator = start.copies()
    config = replace(start.config, precision=precision)
    return make_step(kind, kernels, generator, content, config, discriminator, device=start.device)


def _compiled(start: _Start) -> Made:
    """The eager step with its networks compiled, in the best mode that takes them."""
    modes = _COMPILE_MODES[torch.device(start.device).type]
    for mode in modes:
        step = _step(start, "eager", "off", "bf16")
        for network in (step.generator, step.discriminator, step.content):
            if isinstance(network, nn.Module):
                network.compile(mode=mode, dynamic=False)
        try:
            for number in range(2):
                step(*start.batches[number], number)
            synchronise(start.device)
            break
        except Exception as error:
            if mode == modes[-1]:
                raise
            _log.warning("torch.compile, mode %s: %s; going on with the next", mode, _reason(error))
            torch._dynamo.reset()
    # The steps that it took to compile are undone: all start from the same weights, at the same addresses.
    _reset(step, start.copies())
    return Made(step, {"kind": step.kind, "kernels": step.kernels, "mode": mode})


def _reset(step: EagerStep, fresh: tuple[Generator, losses.Content, Discriminator | None]) -> None:
    generator, _, discriminator = fresh
    for mine, theirs in ((step.generator, generator), (step.average, generator), (step.discriminator, discriminator)):
        if mine is not None and theirs is not None:
            mine.load_state_dict(theirs.state_dict())
    for optimiser in step.optimisers.values():
        for state in optimiser.state.values():
            for value in state.values():
                value.zero_()


def _plain(start: _Start) -> Made:
    """The step as a reader of the paper writes it: float32, NCHW, Adam as it comes, no average."""
    generator, content, discriminator = start.copies()
    rate, weight = start.config.learning_rate, start.config.adversarial_weight
    adam = torch.optim.Adam(generator.train().parameters(), lr=rate)
    judge: torch.optim.Optimizer | None = None
    if discriminator is not None:
        judge = torch.optim.Adam(discriminator.train().parameters(), lr=rate)

    def update(optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        optimiser.zero_grad()
        loss.backward(inputs=list(network.parameters()))  # type: ignore[no-untyped-call]
        optimiser.step()

    def step(lr: Tensor, hr: Tensor, _number: int) -> dict[str, Tensor]:
        sr, terms = generator(lr), {}
        if discriminator is not None and judge is not None:
            terms["discriminator"] = (
                F.softplus(-discriminator(hr)).mean() + F.softplus(discriminator(sr.detach())).mean()
            )
            update(judge, terms["discriminator"], discriminator)
        total = terms["content"] = content(sr, hr)
        if discriminator is not None:
            terms["adversarial"] = F.softplus(-discriminator(sr)).mean()
            total = total + weight * terms["adversarial"]
        update(adam, total, generator)
        return {name: term.detach() for name, term in terms.items()}

    return Made(step)


class _Loader:
    """Batches of random photographs that lie on the device."""

    def __init__(self, start: _Start) -> None:
        # Here, for they need safetensors, which a machine that has a GPU may lack until then.
        from srgan_fast.train.data import Batches
        from srgan_fast.train.store import ImageStore

        random = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (_IMAGES, 3, _SIDE, _SIDE), dtype=torch.uint8, generator=random)
        table = torch.tensor([[number * 3 * _SIDE * _SIDE, _SIDE, _SIDE] for number in range(_IMAGES)])
        store = ImageStore(pixels.flatten(), table)
        self.batches = Batches(store, start.config, start.device, resident=True)
        self.expected = Batches(store, start.config, "cpu")
        self.numbers = itertools.count()

    def run(self) -> object:
        return self.batches(next(self.numbers))

    def loop(self, made: Made) -> Callable[[], object]:
        def run() -> object:
            number = next(self.numbers) % _STEPS
            return made.step(*self.batches(number), number)

        return run

    def quality(self) -> dict[str, Any]:
        """Whether batches have the values that they have on a CPU."""
        equal = all(
            torch.equal(mine.cpu(), theirs)
            for number in range(_STEPS_HELD)
            for mine, theirs in zip(self.batches(number), self.expected(number), strict=True)
        )
        return {"gate": "pass" if equal else "fail", "equal": equal}


def _numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(terms[name]) for name in _LOSSES if name in terms}


def _held(got: list[dict[str, float]], want: list[dict[str, float]], stage: str, precision: str) -> dict[str, Any]:
    """Whether the losses of the first steps are those of plain float32; a NaN is within no bound."""
    first, worst = loss_difference(got[:1], want[:1]), loss_difference(got, want)
    passed = first <= _FIRST_BOUND[precision] and worst <= _LOSS_BOUND[stage][precision]
    return {
        "gate": "pass" if passed else "fail",
        "first_loss_difference": first,
        "loss_relative_difference": worst,
    }


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, SRGANFastError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


if __name__ == "__main__":
    answer(measure)
