"""The loop: batches -> steps -> log, validation, checkpoints -> weights."""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from srgan_fast import weights
from srgan_fast.errors import Interrupted, OutputError, TrainingError, UsageError
from srgan_fast.evaluate.metrics import score
from srgan_fast.features import load_squeezenet, load_vgg19
from srgan_fast.model import Discriminator, Generator
from srgan_fast.train import checkpoint, losses
from srgan_fast.train.board import Board
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import Batches, degrade
from srgan_fast.train.init import can_normalise, interpolating_init, normalised
from srgan_fast.train.step import EagerStep
from srgan_fast.train.store import SUFFIX, ImageStore, open_pack, read_images, read_pairs

_log = logging.getLogger(__name__)
_FIRST_BATCHES = 10
_SAMPLES = 4


class Trainer:
    """One training run in one folder: `log.jsonl`, `step_*.ckpt`, and in the end NAME.safetensors.

    With degradation pairs the images are `data`/train/high and low, and `data`/val is the validation set if it exists
    and no other is given. `terms` holds the weighted loss terms measured before the first step.

    Raises:  UsageError, InputError from the choices and the data; CheckpointError if `resume` finds nothing to resume
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Path,
        out: Path,
        *,
        name: str = "model",
        resume: bool = False,
        initial: Path | None = None,
        validation: Path | None = None,
        vgg_weights: Path | None = None,
        squeezenet_weights: Path | None = None,
        save_every: int = 1000,
        validate_every: int = 1000,
    ) -> None:
        self.config, self.out, self.name = config, out, name
        self.save_every, self.validate_every = save_every, validate_every
        if min(save_every, validate_every) < 1:
            raise UsageError(f"expected intervals of at least 1 step, got {min(save_every, validate_every)}")
        if config.stage == "srgan" and initial is None and not resume:
            raise UsageError("the srgan stage starts from a trained SRResNet; give one as --init")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {out}: {error.strerror}; name a folder that can be written") from error
        if not resume and checkpoint.checkpoints(out):
            raise UsageError(f"{out} holds checkpoints of a run; give --resume, or another folder")
        if config.degradation == "pairs":
            store = _store(data if data.suffix == SUFFIX else data / "train", config, config.crop)
            if validation is None and (data / "val").is_dir():
                validation = data / "val"
        else:
            store = _store(data, config, config.crop)
        self.skipped, self.batches = store.skipped, Batches(store, config)
        self.validation = _validation_pairs(validation, config) if validation is not None else []
        torch.manual_seed(config.seed)
        generator, self.initial = _generator(config, initial, self.batches)
        self.step = EagerStep(
            generator,
            _content(config, vgg_weights, squeezenet_weights),
            config,
            Discriminator() if config.stage == "srgan" else None,
        )
        self.position, self._digest = 0, store.digest()
        if resume:
            self.position, state = checkpoint.load(out, config)
            self.step.restore(state)
            self.terms: dict[str, float] = state["terms"]
            self.initial = state["initial"]
            if state["images"] != self._digest:
                _log.warning("the images have changed since the checkpoint: the run goes on with other batches")
        else:
            self.terms = self._measure_terms()

    def run(self, progress: Callable[[int, dict[str, float]], None] = lambda step, terms: None) -> Path:
        """Train to the end and return the weights file.

        Raises:  TrainingError when a loss is not finite; Interrupted after Ctrl-C or SIGTERM, with all saved
        """
        saved = self.position
        with _stop_requests() as stop, self._records() as record_line, self._board() as board:
            record_line({"event": "start", "step": self.position, "terms": self.terms, "skipped": len(self.skipped)})
            while self.position < self.config.steps:
                start = time.perf_counter()
                lr, hr = self.batches(self.position)
                loaded = time.perf_counter()
                terms = {key: float(value) for key, value in self.step(lr, hr, self.position).items()}
                bad = [key for key, value in terms.items() if not math.isfinite(value)]
                if bad:
                    raise self._diverged(f"the {bad[0]} loss is {terms[bad[0]]} at step {self.position}", saved)
                self.position += 1
                record = {
                    "step": self.position,
                    **terms,
                    "loader_s": loaded - start,
                    "step_s": time.perf_counter() - loaded,
                }
                if self.position % self.validate_every == 0:
                    if self.validation:
                        record |= self.validate()
                    if board.open:
                        board.samples(self.position, *self._samples())
                record_line(record)
                board.scalars(self.position, {key: value for key, value in record.items() if key != "step"})
                progress(self.position, terms)
                if stop():
                    self._save(saved)
                    raise Interrupted(f"stopped after step {self.position}, saved in {self.out}; go on with --resume")
                if self.position % self.save_every == 0:
                    self._save(saved)
                    saved = self.position
        self._save(saved)
        return self.export()

    def validate(self) -> dict[str, float]:
        """Mean PSNR and SSIM (y601) of the averaged generator on whole images, in float32."""
        scale = self.config.generator.scale
        scores = []
        for lr, hr in self.validation:
            with torch.inference_mode():
                sr = self.step.average(lr[None] / 255.0)[0].float()
            pixels = (sr + 1).mul(127.5).clamp(0, 255).add(0.5).floor().to(torch.uint8)
            scores.append(score(hr, pixels, "y601", scale))
        count = len(scores)
        return {
            "val_psnr_db": sum(s.psnr_db for s in scores) / count,
            "val_ssim": sum(s.ssim for s in scores) / count,
        }

    def export(self) -> Path:
        """Write the averaged generator as a weights file with its recipe."""
        path = self.out / f"{self.name}.safetensors"
        recipe = {
            **asdict(self.config),
            "images": len(self.batches.store),
            "steps_done": self.position,
            "terms": self.terms,
            "initial": self.initial,
        }
        if self.validation:
            recipe |= self.validate()
        weights.save(path, self.step.average, name=self.name, recipe=recipe, source="srgan-fast train")
        return path

    def _measure_terms(self) -> dict[str, float]:
        """The weighted terms of the generator's loss over ten batches, before training: who will steer."""
        totals: dict[str, float] = {}
        # On a copy in training mode: batch statistics as in a real step, and the run's own stay untouched.
        step = copy.copy(self.step)
        step.generator, step.discriminator = copy.deepcopy((step.generator, step.discriminator))
        with torch.no_grad():
            for index in range(_FIRST_BATCHES):
                lr, hr = self.batches(index)
                for name, term in step.generator_terms(step.generator(lr), hr).items():
                    weight = self.config.adversarial_weight if name == "adversarial" else 1.0
                    totals[name] = totals.get(name, 0.0) + weight * float(term) / _FIRST_BATCHES
        return totals

    def _samples(self) -> tuple[Tensor, Tensor, Tensor]:
        """Crops that the run is watched on: of the validation images, or of the first batch where there are none."""
        size, scale = self.config.crop // self.config.generator.scale, self.config.generator.scale
        lr, hr = self.batches(0)
        large = [pair for pair in self.validation if min(pair[0].shape[1:]) >= size]
        if large:
            lows, highs = [], []
            for low, high in large[:_SAMPLES]:
                y, x = (low.shape[1] - size) // 2, (low.shape[2] - size) // 2
                lows.append(low[:, y : y + size, x : x + size])
                highs.append(high[:, y * scale : (y + size) * scale, x * scale : (x + size) * scale])
            lr, hr = torch.stack(lows) / 255.0, torch.stack(highs) / 127.5 - 1.0
        with torch.inference_mode():
            sr = self.step.average(lr[:_SAMPLES]).float()
        return lr[:_SAMPLES], sr, hr[:_SAMPLES]

    def _save(self, saved: int) -> None:
        if not self.step.is_finite():
            raise self._diverged(f"the weights are not finite after step {self.position}", saved)
        state = self.step.state() | {"terms": self.terms, "images": self._digest, "initial": self.initial}
        checkpoint.save(self.out, self.position, state, self.config)

    @staticmethod
    def _diverged(what: str, saved: int) -> TrainingError:
        kept = f"the last good checkpoint is of step {saved}" if saved else "no checkpoint was due before it"
        again = "resume" if saved else "start again in a new folder"
        return TrainingError(f"{what}; {kept}; lower --learning-rate or give --clip, and {again}")

    @contextmanager
    def _records(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        path = self.out / "log.jsonl"
        try:
            file = path.open("a")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; name a folder that can be written") from error

        def write(record: dict[str, Any]) -> None:
            try:
                file.write(json.dumps(record) + "\n")
                file.flush()
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}; make room and resume") from error

        try:
            yield write
        finally:
            with suppress(OSError):  # closing tries once more to write what just failed
                file.close()

    @contextmanager
    def _board(self) -> Iterator[Board]:
        board = Board(self.out / "tensorboard", self.position)
        try:
            yield board
        finally:
            board.close()


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag that the loop looks at between steps; a second Ctrl-C stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever embeds us handles signals
        before = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _generator(config: TrainConfig, initial: Path | None, batches: Batches) -> tuple[Generator, dict[str, str] | None]:
    """The network as training finds it, and whose weights those are: name and digest, or None for fresh ones."""
    if initial is None:
        generator = Generator(config.generator)
        if config.init == "interpolating":
            interpolating_init(generator)
        return generator, None
    model = weights.load(initial)
    source = model.network
    if isinstance(source, Generator) and source.config == config.generator:
        generator = source.train().requires_grad_()
    elif isinstance(source, Generator) and can_normalise(source.config, config.generator):
        _log.warning("%s has no batch normalisation: it is added, with the statistics of ten batches", initial.name)
        generator = normalised(source, config.generator, (batches(i)[0] for i in range(_FIRST_BATCHES)))
    else:
        raise UsageError(f"expected --init to be a generator of {config.generator}, got {model.info.config}")
    return generator, {"name": model.info.name, "digest": model.info.digest}


def _content(config: TrainConfig, vgg: Path | None, squeezenet: Path | None) -> losses.Content:
    if config.content == "mse":
        return losses.mse
    if config.content == "squeezenet":
        return losses.PerceptualLoss(load_squeezenet(squeezenet), config.vgg_reduction)
    layer = {"vgg22": (2, 2), "vgg54": (5, 4)}[config.content]
    return losses.PerceptualLoss(load_vgg19(*layer, vgg, config.vgg_input), config.vgg_reduction)


def _validation_pairs(folder: Path, config: TrainConfig) -> list[tuple[Tensor, Tensor]]:
    scale = config.generator.scale
    smallest = 11 + 2 * scale  # SSIM's window inside the border that a score leaves out
    store = _store(folder, config, smallest)
    if store.lows is not None:
        return [(store.low(index), store.image(index)) for index in range(len(store))]
    pairs = []
    for index in range(len(store)):
        image = store.image(index)
        hr = image[:, : image.shape[1] // scale * scale, : image.shape[2] // scale * scale]
        pairs.append((degrade(hr, config), hr))
    return pairs


def _store(source: Path, config: TrainConfig, smallest: int) -> ImageStore:
    if source.suffix == SUFFIX:
        return open_pack(source, smallest)
    if config.degradation == "pairs":
        return read_pairs(source, config.generator.scale, smallest)
    return read_images(source, smallest)
