"""One training step as a function of (lr, hr, step): EagerStep, plain PyTorch on any device.

All of the step is `_work`, which reads nothing but tensors that stay where they are: a graph can be captured from it as
it is (`graph_step`), and no call waits for the device.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from srgan_fast.errors import UsageError
from srgan_fast.model import Discriminator, Generator
from srgan_fast.train import losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.distributed import ALONE, World

# What a step tells, in this order; those of the discriminator only where there is one.
_TERMS = ("content", "generator_norm")
_TERMS_OF_TWO = ("content", "adversarial", "discriminator", "d_real", "d_fake", "discriminator_norm", "generator_norm")


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


def average_weight(config: TrainConfig, step: int) -> float:
    """How much of the new weights the moving average takes in at a step."""
    # A young average would remember the initial weights: the window grows with the run.
    return 1 - min(config.ema, (1 + step) / (10 + step))


def schedule(config: TrainConfig) -> Tensor:
    """`learning_rate` and `average_weight` of every step, for a device to look them up.

    Shapes:  [steps, 2]
    Dtypes:  float32
    """
    # In doubles and operation by operation as they are written above: the same bits, a million steps in no time.
    step = torch.arange(config.steps, dtype=torch.float64)
    start, end, warmup = config.learning_rate, config.final_learning_rate, config.warmup
    rate = torch.full_like(step, start)
    if config.decay == "drop":
        rate[config.steps // 2 :] = end
    elif config.decay == "cosine":
        done = ((step - warmup) / max(1, config.steps - warmup)).clamp_max(1.0)
        # By the cosine of `math`: torch's own may round otherwise.
        wave = torch.tensor([math.cos(angle) for angle in (math.pi * done).tolist()], dtype=torch.float64)
        rate = end + (start - end) * 0.5 * (1 + wave)
    rate[:warmup] = (start * (step + 1) / max(1, warmup))[:warmup]
    weight = 1 - ((1 + step) / (10 + step)).clamp_max(config.ema)
    return torch.stack([rate, weight], 1).to(torch.float32)


def bf16_pays(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: as asked, or for `auto` on a GPU since sm_80 and on a CPU with AMX."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        # Older tensor cores have no bfloat16: it would be emulated there.
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported()


class EagerStep:
    """Update the discriminator if there is one, then the generator, then the moving average of the generator.

    `content` maps (sr, hr) to a scalar. The networks are moved to `device` (by default the generator's) and to
    channels_last, and trained in place; with `kernels` they are computed by the training kernels. The batches of a
    world's ranks are parts of one batch.
    """

    kind: str = "eager"

    def __init__(
        self,
        generator: Generator,
        content: losses.Content,
        config: TrainConfig,
        discriminator: Discriminator | None = None,
        *,
        device: torch.device | str | None = None,
        world: World = ALONE,
        kernels: bool = False,
    ) -> None:
        self.config, self.content, self.world, self.kernels = config, content, world, kernels
        self.device = torch.device(device) if device is not None else next(generator.parameters()).device
        self.generator = self._place(generator).train()
        self.discriminator = discriminator and self._place(discriminator).train()
        if isinstance(content, nn.Module):
            self._place(content)
        # Reducers first: they give all ranks the weights of rank 0.
        self._reducers = {name: world.reducer(network) for name, network in self._trained()}
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._table = schedule(config).to(self.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._row = torch.zeros(2, device=self.device)
        self._rate, self._weight = self._row.unbind()
        self.optimisers = {name: self._adam(network) for name, network in self._trained()}
        self._bf16 = bf16_pays(config.precision, self.device)
        # Content on a stream of its own, beside the discriminator; only a graph knows whether it pays.
        self._aside: torch.cuda.Stream | None = None

    def _place(self, network: Any) -> Any:
        return network.to(device=self.device, memory_format=torch.channels_last)

    @property
    def _names(self) -> tuple[str, ...]:
        return _TERMS if self.discriminator is None else _TERMS_OF_TWO

    def _trained(self) -> Iterator[tuple[str, nn.Module]]:
        yield "generator", self.generator
        if self.discriminator is not None:
            yield "discriminator", self.discriminator

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        """Adam whose rate, step and moments are tensors that exist from the start and never move."""
        adam = torch.optim.Adam(
            network.parameters(),
            lr=self._rate,
            betas=(0.9, 0.999),
            fused=True,
            capturable=self.device.type == "cuda",
        )
        for parameter in network.parameters():
            adam.state[parameter] = {
                "step": torch.zeros((), device=self.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        return adam

    def __call__(self, lr: Tensor, hr: Tensor, step: int) -> dict[str, Tensor]:
        """Make one step; its terms as detached scalars on the device, averaged over the ranks.

        `content`, and with a discriminator `adversarial`, `discriminator` and the mean probabilities `d_real` and
        `d_fake`: before the update; norms of the gradients before clipping.

        Shapes:  lr [n, 3, h, w], hr [n, 3, h*scale, w*scale]
        Units:   lr in [0, 1], hr in [-1, 1]
        Cost:    the host waits for nothing
        Raises:  UsageError for a step that the config does not have
        """
        if not 0 <= step < self.config.steps:
            raise UsageError(f"expected a step in 0..{self.config.steps - 1}, got {step}; raise steps to go on")
        self._position.fill_(step)
        return self._named(self._run(lr, hr))

    def _run(self, lr: Tensor, hr: Tensor) -> Tensor:
        wanted: dict[str, Any] = {"device": self.device, "memory_format": torch.channels_last, "non_blocking": True}
        return self._work(lr.to(**wanted), hr.to(**wanted))

    def _named(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, values.unbind(), strict=True))

    def _work(self, lr: Tensor, hr: Tensor) -> Tensor:
        """The whole step, but for the number of it; the terms in the order of their names."""
        self._look_up()
        terms: dict[str, Tensor] = {}
        with self._autocast():
            sr = self._form(self.generator)(lr)
        content = self._content_aside(sr, hr)
        if self.discriminator is not None:
            judge = self._form(self.discriminator)
            with self._autocast():
                real, fake = judge(hr), judge(sr.detach())
                loss = losses.discriminator(real, fake)
            terms["discriminator"] = loss
            for name, logits in (("d_real", real), ("d_fake", fake)):
                terms[name] = torch.sigmoid(logits.detach().float()).mean()
            terms["discriminator_norm"] = self._update("discriminator", self.discriminator, loss)
        # Not in the same context: it remembers the weights in bfloat16 as they were before the update.
        with self._autocast():
            terms |= self.generator_terms(sr, hr, content)
        total = terms["content"]
        if "adversarial" in terms:
            total = total + self.config.adversarial_weight * terms["adversarial"]
        terms["generator_norm"] = self._update("generator", self.generator, total)
        if self.discriminator is not None:
            # It has looked at the generator's pictures since its own update.
            self._reducers["discriminator"].average_statistics()
        self._follow()
        values = torch.stack([terms[name].detach().float() for name in self._names])
        self.world.mean_(values)
        return values

    def _look_up(self) -> None:
        """The rate and the weight of this step, on the device: what the host knows, a graph knows of its capture."""
        self._row.copy_(self._table.index_select(0, self._position)[0])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    def _form(self, network: Generator | Discriminator) -> Callable[[Tensor], Tensor]:
        if not self.kernels:
            return network
        # Imported where it is needed: a step without kernels needs none of their packages.
        from srgan_fast.train.fused import forward_of

        return forward_of(network)

    def _content_aside(self, sr: Tensor, hr: Tensor) -> Tensor | None:
        """The content term on its own stream, where there is one; its gradient is then computed there too."""
        if self._aside is None:
            return None
        self._aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._aside), self._autocast():
            return self.content(sr, hr)

    def generator_terms(self, sr: Tensor, hr: Tensor, content: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the generator's loss, unweighted, with gradients; `content` where it is under way already."""
        terms: dict[str, Tensor] = {}
        if self.discriminator is not None:
            with _constant(self.discriminator):
                logits = self._form(self.discriminator)(sr)
            terms["adversarial"] = losses.adversarial(logits)
        if content is None:
            content = self.content(sr, hr)
        elif self._aside is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._aside)
        return terms | {"content": content}

    def _update(self, name: str, network: nn.Module, loss: Tensor) -> Tensor:
        """Follow the gradient, and return its norm."""
        optimiser, parameters = self.optimisers[name], list(network.parameters())
        optimiser.zero_grad(set_to_none=True)
        # Only this network's gradients: the generator's loss passes through the discriminator.
        torch.autograd.backward(loss, inputs=parameters)
        self._reducers[name].finish()
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)
        optimiser.step()
        return norm

    @torch.no_grad()
    def _follow(self) -> None:
        mine, new = list(self.average.parameters()), list(self.generator.parameters())
        apart = torch._foreach_sub(new, mine)
        torch._foreach_mul_(apart, self._weight)
        torch._foreach_add_(mine, apart)
        # Statistics and counts apart: copies of one dtype are one launch.
        pairs = list(zip(self.average.buffers(), self.generator.buffers(), strict=True))
        for dtype in {buffer.dtype for buffer, _ in pairs}:
            kept, seen = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
            torch._foreach_copy_(kept, seen)

    def is_finite(self) -> bool:
        """Whether every weight is finite: a finite loss says nothing of the update that followed it."""
        networks = [self.average] + [network for _, network in self._trained()]
        return all(bool(torch.isfinite(value).all()) for network in networks for value in network.state_dict().values())

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, and the random state of the process on every device.

        The tensors are those in use: the next step changes them.
        """
        state: dict[str, Any] = {
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "random": random_state(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned, on this device or another; every tensor stays where it is."""
        self.average.load_state_dict(state["average"])
        for name, network in self._trained():
            network.load_state_dict(state[name])
            self._restore_moments(name, state["optimisers"][name]["state"])
        restore_random(state["random"])

    def close(self) -> None:
        """Free what would be in the way of leaving the world; nothing here."""

    def _restore_moments(self, name: str, moments: dict[int, dict[str, Tensor]]) -> None:
        # Not by load_state_dict, which puts new tensors in place of those that a captured step works on.
        optimiser = self.optimisers[name]
        parameters = optimiser.param_groups[0]["params"]
        for index, parameter in enumerate(parameters):
            for key, value in optimiser.state[parameter].items():
                value.copy_(moments[index][key])


def random_state() -> dict[str, Any]:
    """The state of torch's random generators: of the CPU, and of every GPU if CUDA is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random(state: dict[str, Any]) -> None:
    """Go back to what `random_state` returned; GPUs that are not here any more are left out."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available():
        for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one.cpu(), index)


@contextmanager
def _constant(network: nn.Module) -> Iterator[None]:
    """Inside, a network's weights are constants: a loss that passes through it has no gradients of them to compute.

    PyTorch's own layers see that from `inputs=` of a backward pass; operators written in Python do not.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
