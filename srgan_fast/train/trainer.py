"""The loop: batches -> steps -> log, validation, checkpoints -> weights."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from srgan_fast.resize import imresize_down
from srgan_fast.train import checkpoint, losses
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import CropDataset, read_folder
from srgan_fast.train.init import interpolating_init
from srgan_fast.train.step import EagerStep

_RATIO_BATCHES = 10


class Trainer:
    """One training run in one folder: `log.jsonl`, `step_*.ckpt`, and in the end NAME.safetensors.

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
        if config.stage == "srgan" and initial is None and not resume:
            raise UsageError("the srgan stage starts from a trained SRResNet; give one as --init")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {out}: {error.strerror}; name a folder that can be written") from error
        if not resume and checkpoint.checkpoints(out):
            raise UsageError(f"{out} holds checkpoints of a run; give --resume, or another folder")
        images, self.skipped = read_folder(data, config.crop)
        self.dataset = CropDataset(images, config)
        self.validation = _validation_pairs(validation, config.generator.scale) if validation is not None else []
        torch.manual_seed(config.seed)
        self.step = EagerStep(
            _generator(config, initial),
            _content(config, vgg_weights, squeezenet_weights),
            config,
            Discriminator() if config.stage == "srgan" else None,
        )
        self.position = 0
        if resume:
            self.position, state = checkpoint.load(out, config)
            self.step.restore(state)

    def run(self, progress: Callable[[int, dict[str, float]], None] = lambda step, terms: None) -> Path:
        """Train to the end and return the weights file.

        Raises:  TrainingError when a loss is not finite; Interrupted after Ctrl-C or SIGTERM, with all saved
        """
        ratio = self._term_ratio()
        saved = self.position
        with _stop_requests() as stop, (self.out / "log.jsonl").open("a") as log:
            self._log(log, {"event": "start", "step": self.position, "terms": ratio, "skipped": len(self.skipped)})
            while self.position < self.config.steps:
                start = time.perf_counter()
                lr, hr = self.dataset.batch(self.position)
                loaded = time.perf_counter()
                terms = {key: float(value) for key, value in self.step(lr, hr, self.position).items()}
                bad = [key for key, value in terms.items() if not math.isfinite(value)]
                if bad:
                    raise TrainingError(
                        f"the {bad[0]} loss is {terms[bad[0]]} at step {self.position}; the last good checkpoint is of"
                        f" step {saved}; lower --learning-rate or give --clip, and resume"
                    )
                self.position += 1
                record = {
                    "step": self.position,
                    **terms,
                    "loader_s": loaded - start,
                    "step_s": time.perf_counter() - loaded,
                }
                if self.validation and self.position % self.validate_every == 0:
                    record |= self.validate()
                self._log(log, record)
                progress(self.position, terms)
                if stop():
                    self._save()
                    raise Interrupted(f"stopped after step {self.position}, saved in {self.out}; go on with --resume")
                if self.position % self.save_every == 0:
                    self._save()
                    saved = self.position
        self._save()
        return self.export(ratio)

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

    def export(self, ratio: dict[str, float]) -> Path:
        """Write the averaged generator as a weights file with its recipe."""
        path = self.out / f"{self.name}.safetensors"
        recipe = {
            **asdict(self.config),
            "images": len(self.dataset.images),
            "steps_done": self.position,
            "terms": ratio,
        }
        if self.validation:
            recipe |= self.validate()
        weights.save(path, self.step.average, name=self.name, recipe=recipe, source="srgan-fast train")
        return path

    def _term_ratio(self) -> dict[str, float]:
        """The weighted terms of the generator's loss over ten batches, before training: who will steer."""
        totals: dict[str, float] = {}
        step = self.step
        with torch.no_grad():
            for network in filter(None, (step.generator, step.discriminator)):
                network.eval()  # looking must not move the statistics of batch normalisation
            for index in range(_RATIO_BATCHES):
                lr, hr = self.dataset.batch(index)
                for name, term in step.generator_terms(step.generator(lr), hr).items():
                    weight = self.config.adversarial_weight if name == "adversarial" else 1.0
                    totals[name] = totals.get(name, 0.0) + weight * float(term) / _RATIO_BATCHES
            for network in filter(None, (step.generator, step.discriminator)):
                network.train()
        return totals

    def _save(self) -> None:
        checkpoint.save(self.out, self.position, self.step.state(), self.config)

    @staticmethod
    def _log(file: Any, record: dict[str, Any]) -> None:
        file.write(json.dumps(record) + "\n")
        file.flush()


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


def _generator(config: TrainConfig, initial: Path | None) -> Generator:
    generator = Generator(config.generator)
    if initial is not None:
        model = weights.load(initial)
        if not isinstance(model.network, Generator) or model.network.config != config.generator:
            raise UsageError(f"expected --init to be a generator of {config.generator}, got {model.info.config}")
        generator.load_state_dict(model.network.state_dict())
    elif config.init == "interpolating":
        interpolating_init(generator)
    return generator


def _content(config: TrainConfig, vgg: Path | None, squeezenet: Path | None) -> losses.Content:
    if config.content == "mse":
        return losses.mse
    if config.content == "squeezenet":
        return losses.PerceptualLoss(load_squeezenet(squeezenet), config.vgg_reduction)
    layer = {"vgg22": (2, 2), "vgg54": (5, 4)}[config.content]
    return losses.PerceptualLoss(load_vgg19(*layer, vgg, config.vgg_input), config.vgg_reduction)


def _validation_pairs(folder: Path, scale: int) -> list[tuple[Tensor, Tensor]]:
    images, _ = read_folder(folder, 11 + 2 * scale)
    pairs = []
    for image in images:
        hr = image[:, : image.shape[1] // scale * scale, : image.shape[2] // scale * scale]
        pairs.append((imresize_down(hr, scale), hr))
    return pairs
