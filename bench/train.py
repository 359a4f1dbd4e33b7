"""How fast a training step is: the trainer's own against plain float32 PyTorch, on the same batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srgan_fast.bench import ceiling
from srgan_fast.bench.device import float32, peak_bytes, rest_bytes, synchronise
from srgan_fast.bench.figures import timed_figures
from srgan_fast.bench.record import latency, record
from srgan_fast.bench.timer import calls_for, interleave
from srgan_fast.errors import UsageError
from srgan_fast.features import VGG19
from srgan_fast.model import Discriminator, Generator
from srgan_fast.train import losses
from srgan_fast.train.config import PRESETS, TrainConfig
from srgan_fast.train.step import EagerStep

# Batch and crop.
SIZES = {"small": (4, 32), "paper": (16, 96)}
STAGES = ("paper-srresnet-mse", "paper-srgan-vgg54")

# The loss terms of the first two steps, relative to plain float32: the second follows an update. GPU kernels for
# gradients add in no fixed order, and bfloat16 keeps eight bits.
_LOSS_BOUND = {"fp32": 1e-3, "bf16": 5e-2}
_STEPS_HELD = 2

Step = Callable[[], dict[str, Tensor]]
Key = tuple[str, str]


@dataclass(frozen=True)
class _Networks:
    """What both sides start from; each trains its own copy."""

    generator: Generator
    discriminator: Discriminator | None
    content: losses.Content


def measure(stage: str, size: str, runs: int, device: str) -> list[dict[str, Any]]:
    """Time a step of one of `STAGES` at one of `SIZES`, plain first. Features are untrained: they cost the same.

    Raises:  UsageError for another stage or size
    """
    waiting = steps(stage, size, device)
    batch, crop = SIZES[size]
    candidates: dict[Key, Step] = {}
    made: dict[Key, dict[str, Any]] = {}
    first: dict[Key, list[dict[str, float]]] = {}
    with float32(device):
        for key, make in waiting.items():
            rest = rest_bytes(device)
            step = candidates[key] = make()
            start = time.perf_counter()
            first[key] = [_numbers(step())]
            first_ms = (time.perf_counter() - start) * 1e3
            first[key] += [_numbers(step()) for _ in range(_STEPS_HELD - 1)]
            made[key] = {"first_ms": first_ms, "peak_bytes": peak_bytes(step, device, rest)}
        calls = {key: calls_for(step, device) for key, step in candidates.items()}
        samples = interleave(candidates, runs, device=device, calls=calls)
    synchronise(device)
    raw: list[dict[str, Any]] = [
        {
            "suite": "train",
            "impl": impl,
            "baseline": "plain",
            "dtype": precision,
            "device": torch.device(device).type,
            "shape": {"n": batch, "h": crop, "w": crop},
            "latency_ms": latency(values),
            "timing": {"clock": "wall, synchronised", "calls": calls[impl, precision], "l2": "not flushed"},
            **made[impl, precision],
            "quality": _compare_losses(first[impl, precision], first["plain", "fp32"], precision),
        }
        for (impl, precision), values in samples.items()
    ]
    found = []
    for one in raw:
        derived = timed_figures(one, raw, ceiling.measure(device)) if one["quality"]["gate"] == "pass" else {}
        found.append(record("train", stage, **{key: v for key, v in one.items() if key != "suite"}, derived=derived))
    return found


def steps(stage: str, size: str, device: str) -> dict[Key, Callable[[], Step]]:
    """Functions that make a step of each implementation and precision ready, all from the same weights and batch.

    Raises:  UsageError for a stage or size that is none
    """
    if stage not in STAGES or size not in SIZES:
        raise UsageError(
            f"expected a stage of {', '.join(STAGES)} and a size of {', '.join(SIZES)}, got {stage} {size}"
        )
    batch, crop = SIZES[size]
    config = replace(PRESETS[stage], batch=batch, crop=crop)
    random = torch.Generator().manual_seed(0)
    hr = torch.rand(batch, 3, crop, crop, generator=random)
    lr = F.avg_pool2d(hr, config.generator.scale).to(device)
    hr = (hr * 2 - 1).to(device)
    networks = _networks(config, device)
    return {
        ("plain", "fp32"): lambda: _plain(networks, config, lr, hr),
        ("eager", "fp32"): lambda: _eager(networks, config, lr, hr, "fp32"),
        ("eager", "bf16"): lambda: _eager(networks, config, lr, hr, "bf16"),
    }


def _networks(config: TrainConfig, device: str) -> _Networks:
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
    return _Networks(Generator(config.generator).to(device), discriminator, content)


def _eager(
    networks: _Networks, config: TrainConfig, lr: Tensor, hr: Tensor, precision: Literal["fp32", "bf16"]
) -> Step:
    generator, discriminator = copy.deepcopy(networks.generator), copy.deepcopy(networks.discriminator)
    step = EagerStep(generator, networks.content, replace(config, precision=precision), discriminator)
    return lambda: step(lr, hr, 0)


def _plain(networks: _Networks, config: TrainConfig, lr: Tensor, hr: Tensor) -> Step:
    """The step as a reader of the paper writes it: float32, NCHW, Adam as it comes, no average."""
    generator, discriminator = copy.deepcopy(networks.generator).train(), copy.deepcopy(networks.discriminator)
    adam = torch.optim.Adam(generator.parameters(), lr=config.learning_rate)
    judge: torch.optim.Optimizer | None = None
    if discriminator is not None:
        judge = torch.optim.Adam(discriminator.train().parameters(), lr=config.learning_rate)

    def update(optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
        optimiser.zero_grad()
        loss.backward(inputs=list(network.parameters()))  # type: ignore[no-untyped-call]
        optimiser.step()

    def step() -> dict[str, Tensor]:
        sr, terms = generator(lr), {}
        if discriminator is not None and judge is not None:
            terms["discriminator"] = (
                F.softplus(-discriminator(hr)).mean() + F.softplus(discriminator(sr.detach())).mean()
            )
            update(judge, terms["discriminator"], discriminator)
        total = terms["content"] = networks.content(sr, hr)
        if discriminator is not None:
            terms["adversarial"] = F.softplus(-discriminator(sr)).mean()
            total = total + config.adversarial_weight * terms["adversarial"]
        update(adam, total, generator)
        return {name: term.detach() for name, term in terms.items()}

    return step


def _numbers(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(term) for name, term in terms.items()}


def _compare_losses(got: list[dict[str, float]], want: list[dict[str, float]], precision: str) -> dict[str, Any]:
    pairs = [(mine[name], theirs[name]) for mine, theirs in zip(got, want, strict=True) for name in theirs]
    off = [abs(a - b) / max(abs(b), 1e-12) for a, b in pairs]
    worst = max(off)
    # Each by itself: `max` forgets a NaN that is not the first.
    passed = all(each <= _LOSS_BOUND[precision] for each in off)
    return {"gate": "pass" if passed else "fail", "loss_relative_difference": worst}
