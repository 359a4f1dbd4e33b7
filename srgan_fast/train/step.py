"""One training step as a function of (lr, hr, step): EagerStep, plain PyTorch on any device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast.model import Discriminator, Generator
from srgan_fast.train import losses
from srgan_fast.train.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of a step: a linear warm-up, then the decay that the config names."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    start, end = config.learning_rate, config.final_learning_rate
    if config.decay == "drop":
        return start if step < config.steps // 2 else end
    if config.decay == "cosine":
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return start


def bf16_pays(precision: str) -> bool:
    """Whether to compute in bfloat16: as asked, or for `auto` where the CPU has AMX."""
    return precision == "bf16" or (precision == "auto" and torch.cpu._is_amx_tile_supported())


class EagerStep:
    """Update the discriminator if there is one, then the generator, then the moving average of the generator.

    `content` maps (sr, hr) to a scalar. The networks are moved to channels_last and trained in place.
    """

    def __init__(
        self,
        generator: Generator,
        content: Callable[[Tensor, Tensor], Tensor],
        config: TrainConfig,
        discriminator: Discriminator | None = None,
    ) -> None:
        self.config, self.content = config, content
        self.generator, self.discriminator = _prepare(generator), discriminator and _prepare(discriminator)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        # The rate lives in a tensor, which a captured graph can read too.
        self.rate = torch.tensor(config.learning_rate, device=next(generator.parameters()).device)
        self.optimisers = {"generator": self._adam(self.generator)}
        if self.discriminator is not None:
            self.optimisers["discriminator"] = self._adam(self.discriminator)

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr=self.rate, betas=(0.9, 0.999), fused=True)

    def __call__(self, lr: Tensor, hr: Tensor, step: int) -> dict[str, Tensor]:
        """Make one step and return its loss terms as detached scalars.

        Shapes:  lr [n, 3, h, w], hr [n, 3, h*scale, w*scale]
        Units:   lr in [0, 1], hr in [-1, 1]
        """
        self.rate.fill_(learning_rate(self.config, step))
        lr = lr.contiguous(memory_format=torch.channels_last)
        hr = hr.contiguous(memory_format=torch.channels_last)
        terms: dict[str, Tensor] = {}
        with self._autocast(lr):
            sr = self.generator(lr)
            if self.discriminator is not None:
                judged = losses.discriminator(self.discriminator(hr), self.discriminator(sr.detach()))
        if self.discriminator is not None:
            self._update("discriminator", self.discriminator, judged)
            terms["discriminator"] = judged.detach()
        # Not in the same context: it remembers the weights in bfloat16 as they were before the update.
        with self._autocast(lr):
            terms |= self.generator_terms(sr, hr)
        total = terms["content"]
        if "adversarial" in terms:
            total = total + self.config.adversarial_weight * terms["adversarial"]
        self._update("generator", self.generator, total)
        self._follow(step)
        return {name: term.detach() for name, term in terms.items()}

    def _autocast(self, lr: Tensor) -> torch.autocast:
        return torch.autocast(lr.device.type, torch.bfloat16, enabled=bf16_pays(self.config.precision))

    def generator_terms(self, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
        """The terms of the generator's loss, unweighted, with gradients."""
        terms = {"content": self.content(sr, hr)}
        if self.discriminator is not None:
            terms["adversarial"] = losses.adversarial(self.discriminator(sr))
        return terms

    def _update(self, name: str, network: nn.Module, loss: Tensor) -> None:
        optimiser = self.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        # Only this network's gradients: the generator's loss passes through the discriminator.
        torch.autograd.backward(loss, inputs=list(network.parameters()))
        if self.config.clip:
            nn.utils.clip_grad_norm_(network.parameters(), self.config.clip)
        optimiser.step()

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        # A young average would remember the initial weights: the window grows with the run.
        decay = min(self.config.ema, (1 + step) / (10 + step))
        for mine, new in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mine.lerp_(new, 1 - decay)
        for mine, new in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(new)

    def is_finite(self) -> bool:
        """Whether every weight is finite: a finite loss says nothing of the update that followed it."""
        networks = [self.generator, self.average] + ([self.discriminator] if self.discriminator is not None else [])
        return all(bool(torch.isfinite(value).all()) for network in networks for value in network.state_dict().values())

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, and the random state of the process."""
        state: dict[str, Any] = {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "random": torch.get_rng_state(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
            for group in optimiser.param_groups:
                group["lr"] = self.rate  # loading made a copy
        torch.set_rng_state(state["random"])


def _prepare(network: Any) -> Any:
    return network.to(memory_format=torch.channels_last).train()
