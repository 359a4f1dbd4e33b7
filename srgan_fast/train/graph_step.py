"""The training step as one CUDA graph: GraphStep, and the choice between it and EagerStep.

A step is hundreds of small launches, which take the host longer than the GPU. A graph makes them one. What is captured
is EagerStep's own work, over buffers that each batch is copied into; rates, counters and moments are tensors there.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from srgan_fast import graph
from srgan_fast.errors import BackendUnavailable, ParityError, UsageError
from srgan_fast.kernels import why_not_triton
from srgan_fast.model import Discriminator, Generator
from srgan_fast.train import losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.distributed import ALONE, World
from srgan_fast.train.step import EagerStep, random_state, restore_random

_log = logging.getLogger(__name__)

Capture = Callable[[graph.Work, torch.device, torch.cuda.Stream | None], graph.Work]

# Shapes whose graphs are kept: a run has one, and a last, smaller batch at most another.
_KEPT = 4
# How far a term may be from the plain step's, relative, beside twice what bfloat16 changes there; and how far a
# network's gradient may be, by its norm. In float32 GPUs round to TF32 inside convolutions, each kernel its own way.
_TERM_FLOOR = {False: 1e-3, True: 1e-2}
_GRADIENT_FLOOR = {False: 2e-2, True: 5e-2}
_SMALL = 1e-6
_ROUNDS, _REPLAYS = 5, 4


@dataclass(frozen=True)
class Variant:
    """A way to compute the step: by the training kernels or not, the content term on a second stream or not."""

    kernels: bool
    aside: bool

    def __str__(self) -> str:
        names = ["training kernels"] * self.kernels + ["a second stream"] * self.aside
        return " and ".join(names) or "plain PyTorch"


@dataclass(frozen=True)
class Captured:
    """A captured step and the buffers that it reads and writes; `values` holds the tensor of its terms."""

    variant: Variant
    lr: Tensor
    hr: Tensor
    replay: graph.Work
    values: list[Tensor]
    gradients: list[Tensor]

    def free(self) -> None:
        """End the graph, whoever still holds it: an error does, by its frames, and NCCL waits for graphs to end."""
        if isinstance(self.replay, graph.Replay):
            self.replay.free()


@dataclass(frozen=True)
class _Outcome:
    """What a step computed: its terms, and the gradient and running statistics of each network."""

    terms: dict[str, Tensor]
    parts: dict[str, Tensor]


class GraphStep(EagerStep):
    """EagerStep's work captured for each shape of batch, and replayed.

    Before a shape is captured, all state is put aside, and put back after the warm-up and a comparison with the plain
    step: training goes on as if nothing had been tried. With `kernels` None both ways are captured and the faster one
    kept; so is the content term on a second stream, beside the discriminator. What cannot be captured, or does not
    agree, is given up with a warning, and the run goes on as EagerStep; without `fall_back` it raises.

    Raises:  BackendUnavailable at the first step of a shape, without `fall_back`
    """

    def __init__(
        self,
        generator: Generator,
        content: losses.Content,
        config: TrainConfig,
        discriminator: Discriminator | None = None,
        *,
        device: torch.device | str | None = None,
        world: World = ALONE,
        kernels: bool | None = False,
        capture: Capture = graph.capture,
        fall_back: bool = True,
    ) -> None:
        super().__init__(generator, content, config, discriminator, device=device, world=world, kernels=bool(kernels))
        self.kind = "graph"
        self.captured: dict[tuple[torch.Size, torch.Size], Captured] = {}
        self._capture, self._fall_back = capture, fall_back
        self._stream = graph.stream_for(self.device)
        # A second stream has something to do beside the discriminator, and only features are worth one.
        beside = discriminator is not None and isinstance(content, nn.Module)
        self._second = graph.stream_for(self.device) if beside else None
        self._variants = [
            Variant(by_kernels, aside)
            for by_kernels in ((False, True) if kernels is None else (kernels,))
            for aside in ((False, True) if self._second is not None else (False,))
        ]

    def _run(self, lr: Tensor, hr: Tensor) -> Tensor:
        if self.kind == "eager":
            return super()._run(lr, hr)
        key = (lr.shape, hr.shape)
        if key not in self.captured:
            try:
                self._add(lr, hr)
            except (BackendUnavailable, ParityError) as error:
                if not self._fall_back:
                    raise BackendUnavailable(f"this step cannot be a graph: {error}; give --step eager") from error
                _log.warning("the step is EagerStep in plain PyTorch from here on, and no graph: %s", error)
                self.kind, self.kernels = "eager", False
                return super()._run(lr, hr)
        one = self.captured[key] = self.captured.pop(key)  # the last one is the newest in use
        self.kernels = one.variant.kernels
        one.lr.copy_(lr, non_blocking=True)
        one.hr.copy_(hr, non_blocking=True)
        one.replay()
        return one.values[0].clone()

    def close(self) -> None:
        """End the graphs: NCCL lets go of a world only when no graph holds its messages any more."""
        while self.captured:
            self.captured.popitem()[1].free()

    def _add(self, lr: Tensor, hr: Tensor) -> None:
        """Capture the step for a shape; all state is as it was afterwards.

        Raises:  BackendUnavailable where it cannot be captured, ParityError where it does not agree
        """
        with self._ordered():
            lr, hr = (image.to(self.device).clone(memory_format=torch.channels_last) for image in (lr, hr))
            before = [tensor.detach().clone() for tensor in self._tensors()]
            random = random_state()

            def rewind() -> None:
                with torch.no_grad():
                    for tensor, value in zip(self._tensors(), before, strict=True):
                        tensor.copy_(value)
                for optimiser in self.optimisers.values():
                    optimiser.zero_grad(set_to_none=True)
                restore_random(random)

            try:
                found = self._agreeing(lr, hr, rewind)
                best = found[0] if len(found) == 1 else self._fastest(found)
            finally:
                rewind()
        for one in found:
            if one is not best:
                one.free()
        while len(self.captured) >= _KEPT:
            self.captured.pop(next(iter(self.captured))).free()
        self.captured[lr.shape, hr.shape] = best
        del found, one
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # of the warm-up and of the variants that lost
        _log.info("the step of %d LR images of %dx%d is a graph: %s", len(lr), lr.shape[3], lr.shape[2], best.variant)

    def _ordered(self) -> Any:
        return nullcontext() if self._stream is None else graph.Ordered(self._stream, ())

    def _tensors(self) -> list[Tensor]:
        """All that a step changes."""
        found = [self._row]
        for network in (self.average, *(network for _, network in self._trained())):
            found += [*network.parameters(), *network.buffers()]
        for optimiser in self.optimisers.values():
            found += [tensor for moments in optimiser.state.values() for tensor in moments.values()]
        return found

    def _agreeing(self, lr: Tensor, hr: Tensor, rewind: graph.Work) -> list[Captured]:
        """The variants that can be captured and whose replay is the plain step.

        Raises:  BackendUnavailable or ParityError with the reason of the first if there is none
        """
        plain = self._plain(lr, hr, self._bf16, rewind)
        # What the precision itself changes says how far two ways to compute in it may be apart.
        truth = self._plain(lr, hr, False, rewind) if self._bf16 else plain
        found: list[Captured] = []
        reasons: list[Exception] = []
        for variant in self._variants:
            reason: Exception | None = None
            one: Captured | None = None
            try:
                one = self._captured(variant, lr, hr)
                rewind()
                one.replay()
                _hold(self._outcome(one.values[0], one.gradients), plain, truth, self._bf16)
                found.append(one)
            except ParityError as error:
                reason = error
            except Exception as error:  # a compiler, cuDNN, a library of messages: whatever cannot be captured
                lines = str(error).strip().splitlines()
                reason = BackendUnavailable(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")
            rewind()
            if self.world.agree(reason is not None):
                if one is not None:
                    one.free()
                if reason is None:
                    found.pop()
                    reason = BackendUnavailable("another rank could not capture it")
                reasons.append(reason)
                if len(self._variants) > 1:
                    _log.warning("the step by %s is left out: %s", variant, reason)
        if not found:
            raise reasons[0]
        return found

    def _captured(self, variant: Variant, lr: Tensor, hr: Tensor) -> Captured:
        values: list[Tensor] = []
        gradients: list[Tensor] = []

        def work() -> None:
            with self._as(variant):
                values[:] = [self._work(lr, hr)]
            gradients[:] = self._gradients()

        return Captured(variant, lr, hr, self._capture(work, self.device, self._stream), values, gradients)

    @contextmanager
    def _as(self, variant: Variant) -> Iterator[None]:
        kept = self.kernels, self._aside
        self.kernels, self._aside = variant.kernels, self._second if variant.aside else None
        try:
            yield
        finally:
            self.kernels, self._aside = kept

    def _plain(self, lr: Tensor, hr: Tensor, bf16: bool, rewind: graph.Work) -> _Outcome:
        kept, self._bf16 = self._bf16, bf16
        try:
            with self._as(Variant(kernels=False, aside=False)):
                outcome = self._outcome(self._work(lr, hr), self._gradients())
        finally:
            self._bf16 = kept
        rewind()
        return outcome

    def _gradients(self) -> list[Tensor]:
        return [p.grad for _, network in self._trained() for p in network.parameters() if p.grad is not None]

    def _outcome(self, values: Tensor, gradients: list[Tensor]) -> _Outcome:
        parts: dict[str, Tensor] = {}
        left = iter(gradients)
        for name, network in self._trained():
            own = [next(left).reshape(-1) for _ in network.parameters()]
            parts[f"the gradient of the {name}"] = torch.cat(own)
            seen = [buffer.reshape(-1) for buffer in network.buffers() if buffer.is_floating_point()]
            if seen:
                parts[f"the running statistics of the {name}"] = torch.cat(seen)
        return _Outcome(dict(zip(self._names, values.tolist(), strict=True)), parts)

    def _fastest(self, found: list[Captured]) -> Captured:
        seconds: list[list[float]] = [[] for _ in found]
        for _ in range(_ROUNDS):
            for one, taken in zip(found, seconds, strict=True):
                taken.append(self._seconds(one.replay))
        medians = [statistics.median(taken) for taken in seconds]
        return found[self.world.share(medians.index(min(medians)))]

    def _seconds(self, replay: graph.Work) -> float:
        self._synchronise()
        start = time.perf_counter()
        for _ in range(_REPLAYS):
            replay()
        self._synchronise()
        return time.perf_counter() - start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _hold(got: _Outcome, plain: _Outcome, truth: _Outcome, bf16: bool) -> None:
    """Hold a replay against the plain step of its precision, and that against float32.

    Raises:  ParityError for the first thing that is too far off
    """
    for name, want in plain.terms.items():
        allowed = 2 * abs(want - truth.terms[name]) + _TERM_FLOOR[bf16] * abs(want) + _SMALL
        # Where the plain step is not finite there is nothing to hold to; the trainer will find it so.
        if math.isfinite(want) and not abs(got.terms[name] - want) <= allowed:
            raise ParityError(f"{name} is {got.terms[name]:g} in a replay and {want:g} in the plain step")
    for name, part in plain.parts.items():
        size = float(part.norm())
        off = float((got.parts[name] - part).norm())
        bound = 2 * float((part - truth.parts[name]).norm()) + _GRADIENT_FLOOR[bf16] * size + _SMALL
        if math.isfinite(size) and not off <= bound:
            raise ParityError(f"{name} is off by {off:g} in a replay, of {size:g} in the plain step")


def make_step(
    kind: Literal["auto", "eager", "graph"],
    kernels: Literal["auto", "on", "off"],
    generator: Generator,
    content: losses.Content,
    config: TrainConfig,
    discriminator: Discriminator | None = None,
    *,
    device: torch.device | str | None = None,
    world: World = ALONE,
    fall_back: bool | None = None,
) -> EagerStep:
    """The step of a run; `auto` is a graph on a GPU and EagerStep elsewhere, with kernels where a graph is faster so.

    `fall_back` says whether a graph that cannot be becomes EagerStep; None: unless graph or kernels are asked for here.

    Raises:  BackendUnavailable for what was asked for by name and cannot be here; UsageError for a name that is none
    """
    if kind not in ("auto", "eager", "graph") or kernels not in ("auto", "on", "off"):
        raise UsageError(f"expected a step of auto, eager, graph and kernels auto, on, off, got {kind} and {kernels}")
    where = torch.device(device) if device is not None else next(generator.parameters()).device
    if kind == "graph" and where.type != "cuda":
        raise BackendUnavailable(
            f"a graph of the step needs an NVIDIA GPU, and the device is {where}; give --step auto"
        )
    networks = [generator] if discriminator is None else [generator, discriminator]
    missing = _no_kernels(where, networks) if kernels != "off" else None
    if kernels == "on" and missing is not None:
        raise BackendUnavailable(f"{missing}; give --kernels off")
    if kernels == "auto" and missing is not None:
        _log.info("training without kernels: %s", missing)
    if kind == "eager" or where.type != "cuda":
        if kind == "auto":
            _log.info("training by EagerStep: a graph needs an NVIDIA GPU, and the device is %s", where)
        # Without a graph to time them in, kernels are the user's choice alone.
        on = kernels == "on"
        return EagerStep(generator, content, config, discriminator, device=where, world=world, kernels=on)
    return GraphStep(
        generator,
        content,
        config,
        discriminator,
        device=where,
        world=world,
        kernels=None if kernels == "auto" and missing is None else kernels == "on",
        fall_back=kind == "auto" and kernels != "on" if fall_back is None else fall_back,
    )


def _no_kernels(device: torch.device, networks: list[Any]) -> str | None:
    reason = why_not_triton(device)
    if reason is not None:
        return reason[0]
    from srgan_fast.train.fused import why_not

    return next((why for network in networks if (why := why_not(network)) is not None), None)
