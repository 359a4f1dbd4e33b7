"""The loop: batches -> steps -> log, validation, checkpoints -> weights."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srgan_fast import weights
from srgan_fast.errors import BackendUnavailable, CheckpointError, Interrupted, OutputError, TrainingError, UsageError
from srgan_fast.model import Discriminator, Generator
from srgan_fast.stop import TimeLimit, stop_requests
from srgan_fast.train import checkpoint, losses
from srgan_fast.train.board import Board
from srgan_fast.train.checkpoint import Checkpoint
from srgan_fast.train.config import TrainConfig
from srgan_fast.train.data import Batches
from srgan_fast.train.distributed import World, join, leave, synchronised
from srgan_fast.train.graph_step import make_step
from srgan_fast.train.init import initial_generator
from srgan_fast.train.log import RunLog, read_events, read_steps
from srgan_fast.train.meter import Meter
from srgan_fast.train.report import Course, environment, rates, write_report
from srgan_fast.train.statistics import normalises, reestimated
from srgan_fast.train.step import EagerStep, bf16_pays, learning_rate
from srgan_fast.train.store import read_source, training_part
from srgan_fast.train.validation import middle_crops, read_validation, validate

_log = logging.getLogger(__name__)
_FIRST_BATCHES = 10
_SAMPLES = 4
# Batches that statistics for inference are taken from: 295,000 positions of a map with the paper's.
_STATISTICS = 32
# Rollbacks to one checkpoint: other batches may save a run once or twice, then it is the recipe that diverges.
_ROLLBACKS = 3
# Steps between two looks at the terms: a look waits for the device, which costs a CPU nothing.
_LOG_EVERY = {"cpu": 1, "cuda": 50}

Progress = Callable[[int, Mapping[str, Any]], None]


class Trainer:
    """One training run in one folder: `train.jsonl`, `step_*.ckpt`, and in the end NAME.safetensors and a report.

    `data` is a folder of images or a pack. With degradation pairs it holds train/high and train/low, and `data`/val is
    the validation set if it exists and no other is given. `terms` holds the weighted loss terms measured before the
    first step, `summary` after the last one what the report says. Under torchrun each rank makes a Trainer, and rank 0
    writes; restarted by it, a run resumes by itself. A `world` goes with its `device`, as `join` gives them; without
    one the trainer joins, and leaves in `close`.

    Raises:  UsageError, InputError from the choices and the data; BackendUnavailable for a device, a step or kernels
             that cannot be; CheckpointError if `resume` finds nothing to resume
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Path | str,
        out: Path | str,
        *,
        name: str = "model",
        resume: bool = False,
        initial: Path | str | None = None,
        validation: Path | str | None = None,
        vgg_weights: Path | str | None = None,
        squeezenet_weights: Path | str | None = None,
        save_every: int = 1000,
        validate_every: int = 1000,
        device: torch.device | str = "auto",
        step: str = "auto",
        kernels: str = "auto",
        time_limit_s: float | None = None,
        log_every: int | None = None,
        resident: bool | None = None,
        world: World | None = None,
    ) -> None:
        data, out = Path(data), Path(out)
        features = losses.features_file(config, {"vgg": vgg_weights, "squeezenet": squeezenet_weights})
        initial, validation, features = (
            None if given is None else Path(given) for given in (initial, validation, features)
        )
        self.config, self.out, self.name = config, out, name
        self.save_every, self.validate_every = save_every, validate_every
        smallest = min(save_every, validate_every, save_every if log_every is None else log_every)
        if smallest < 1:
            raise UsageError(f"expected intervals of at least 1 step, got {smallest}")
        if config.stage == "srgan" and initial is None and not resume:
            raise UsageError("the srgan stage starts from a trained SRResNet; give one as --init")
        self._limit = TimeLimit(time_limit_s)
        self._closing = ExitStack()
        made: list[Path] = []
        try:
            if world is None:
                self.world, self.device = join(str(device))
                self._closing.callback(leave, self.world)
            else:
                self.world, self.device = world, torch.device(device)
            self.log_every = log_every or _LOG_EVERY[self.device.type]
            if self.device.type == "cuda":
                # Every batch has one shape: cuDNN may try out what is fastest for it, as where steps are timed.
                self._closing.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
                torch.backends.cudnn.benchmark = True
            if self.world.main:
                made = _make_folder(out)
            found = self._found(resume=resume)
            pairs = config.degradation == "pairs"
            training = training_part(data, pairs=pairs)
            self.store = read_source(training, config.crop, config.generator.scale if pairs else None)
            self.batches = Batches(
                self.store, config, self.device, rank=self.world.rank, ranks=self.world.size, resident=resident
            )
            self._closing.callback(self.batches.close)
            if validation is None and pairs and (data / "val").is_dir():
                validation = data / "val"
            self.validation = read_validation(validation, config) if validation is not None else []
            self._digest = self.store.digest()
            self.position, self.salt, self._in_a_row = 0, 0, 0
            self._saved: int | None = None
            self._seconds = 0.0
            self.summary: dict[str, Any] = {}
            self.initial: dict[str, str] | None = None
            self.step = self._make_step(found, initial, features, step, kernels)
            self._closing.callback(self.step.close)
            self.terms: dict[str, float] = {}
            if found is None:
                self.terms = self._measure_terms()
            else:
                self._go_on_from(found)
        except BaseException:
            self.close()
            for folder in made:
                with suppress(OSError):  # no longer empty, then it is not for us to remove
                    folder.rmdir()
            raise

    def close(self) -> None:
        """Free the step's graphs and what reads ahead, and leave the world if it was joined here."""
        self._closing.close()

    def run(self, progress: Progress = lambda step, record: None) -> Path | None:
        """Train to the end and return the weights file; None if the time limit came first, with all saved.

        `progress` gets each step with its line of `train.jsonl`.

        Raises:  TrainingError when the run diverges again and again; Interrupted after Ctrl-C or SIGTERM, all saved
        """
        with stop_requests() as asked, ExitStack() as opened:
            self._began = time.monotonic() - self._seconds
            self._open_records(opened)
            self._meter = Meter(self.device, self.log_every)
            if self._saved is None:
                self._save()  # so that there is always one to go back to
            self._meter.start()
            while self.position < self.config.steps:
                lr, hr = self.batches(self.position, self.salt)
                self._meter.loaded()
                self._meter.add(self.step(lr, hr, self.position))
                self.position += 1
                looked = self._due(self.log_every, self.save_every, self.validate_every)
                if looked and not self._look(progress):
                    continue
                if self._due(self.save_every):
                    self._save()
                # Several ranks agree only where they wait for the device anyway.
                if (looked or self.world.size == 1) and self._stops(asked, progress):
                    return None
            return self.export()

    def validate(self) -> dict[str, float]:
        """Mean PSNR and SSIM (y601) of the averaged generator on whole images, in float32."""
        return validate(self.step.average, self.validation) if self.validation else {}

    def export(self) -> Path:
        """Write the averaged generator as a weights file with its recipe, and the report of the run.

        Where it has batch statistics they are estimated anew on the run's batches, and kept unless they are worse on
        the validation images; the training state stays as it is.
        """
        path = self.out / f"{self.name}.safetensors"
        if self.world.main:
            network, course = self.step.average, Course(read_steps(self.out), read_events(self.out))
            # A run that had ended may be exported again without its validation images.
            scores = self.validate() if self.validation else course.scores(self.position)
            statistics: dict[str, Any] = {}
            if normalises(network):
                network, scores, statistics = self._settled(network, scores, course)
                self._tell({"event": "statistics", "step": self.position, **statistics})
            around = environment(self.device)
            recipe = {
                **asdict(self.config),
                "images": len(self.store),
                "steps_done": self.position,
                "terms": self.terms,
                "initial": self.initial,
                "duration_s": self._seconds,
                "device": around["device"],
                **scores,
            }
            weights.save(path, network, name=self.name, recipe=recipe, source="srgan-fast train")
            self.summary = {
                "name": self.name,
                "steps": self.position,
                "images": len(self.store),
                "duration_s": self._seconds,
                **rates(course, self.config.batch),
                "rollbacks": self.salt,
                "scores": scores,
                "statistics": statistics,
                "terms before training": self.terms,
                "environment": self._conditions() | around,
                "recipe": asdict(self.config),
            }
            write_report(self.out, self.summary, course)
        self.world.barrier()
        return path

    def _settled(
        self, network: Generator, before: dict[str, float], course: Course
    ) -> tuple[Generator, dict[str, float], dict[str, Any]]:
        """The averaged generator with the batch statistics to save, its scores, and what became of both."""
        found = reestimated(network, (self.batches(index, self.salt)[0] for index in range(_STATISTICS)))
        after = validate(found, self.validation) if self.validation else course.scores_anew(self.position)
        told = {"batches": _STATISTICS} | {f"{key}_before": value for key, value in before.items()} | after
        if after and after["val_psnr_db"] < before["val_psnr_db"]:
            return network, before, told | {"kept": "before"}
        return found, after, told | {"kept": "anew"}

    def _found(self, *, resume: bool) -> Checkpoint | None:
        """The checkpoint to go on from, which rank 0 reads for all; None for a run from the beginning."""
        # torchrun starts ranks again by the command of the first start. Each machine counts its own restarts, and none
        # when machines come or go: for that a job that may restart is given `resume` from the beginning.
        restarted = self.world.agree(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0")
        may_restart = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        found = None
        if self.world.main:
            if resume or restarted:
                found = checkpoint.newest(self.out)
            elif checkpoint.checkpoints(self.out):
                raise UsageError(f"{self.out} holds checkpoints of a run; give --resume, or another folder")
            if found is not None:
                checkpoint.check(found, self.config)
            elif resume and not (restarted or may_restart):
                damaged = checkpoint.checkpoints(self.out)
                cure = "remove them to begin anew, or name another folder" if damaged else "start without --resume"
                raise CheckpointError(f"expected a checkpoint in {self.out}, found none that is whole; {cure}")
        return self.world.share(found)

    def _make_step(
        self, found: Checkpoint | None, initial: Path | None, features: Path | None, kind: str, kernels: str
    ) -> EagerStep:
        torch.manual_seed(self.config.seed)
        # Any: networks with statistics of all ranks are modules of torch's own making.
        generator: Any
        if found is None:
            # Of the whole batch and on the CPU: all ranks and devices start alike.
            whole = Batches(self.store, self.config)
            first = (whole(index)[0] for index in range(_FIRST_BATCHES))
            generator, self.initial = initial_generator(self.config, initial, first)
        else:
            generator = Generator(self.config.generator)
        content = losses.content_loss(self.config, features)
        discriminator: Any = Discriminator() if self.config.stage == "srgan" else None
        if self.config.sync_bn:
            generator = synchronised(generator, self.device)
            discriminator = discriminator and synchronised(discriminator, self.device)

        # Any: make_step refuses what is none of its words.
        def make(kind: Any, kernels: Any) -> EagerStep:
            where: dict[str, Any] = {"device": self.device, "world": self.world}
            return make_step(
                kind, kernels, generator, content, self.config, discriminator, **where, fall_back=fall_back
            )

        # By what is asked for now, not by what `auto` came to before.
        fall_back = kind != "graph" and kernels != "on"
        before = _as_before(found, self.device, kind, kernels)
        try:
            return make(*before)
        except BackendUnavailable as error:
            if before == (kind, kernels):
                raise
            _log.warning("%s: the run goes on in another way than before", error)
            return make(kind, kernels)

    def _go_on_from(self, found: Checkpoint) -> None:
        """Take up the state of a checkpoint, and say what is not as it was."""
        self._restore(found)
        self.salt, self._seconds = found.salt, found.state["seconds"]
        self.terms, self.initial = found.state["terms"], found.state["initial"]
        if not self.world.main:
            return
        if found.state["images"] != self._digest:
            _log.warning("the images have changed since the checkpoint: the run goes on with other batches")
        if different := checkpoint.differences(found, self._conditions()):
            _log.warning("equal in value, not in bits: resumed with a difference in %s", different)

    def _restore(self, found: Checkpoint) -> None:
        self.step.restore(found.state)
        self.position = self._saved = found.step

    def _conditions(self) -> dict[str, Any]:
        precision = "bf16" if bf16_pays(self.config.precision, self.device) else "fp32"
        return checkpoint.conditions(self.device, precision, self.world.size, self.step.kind, kernels=self.step.kernels)

    def _measure_terms(self) -> dict[str, float]:
        """The weighted terms of the generator's loss over ten batches, before training: who will steer."""
        totals: dict[str, Tensor] = {}
        # On a copy in training mode: batch statistics as in a real step, and the run's own stay untouched.
        step = copy.copy(self.step)
        step.generator, step.discriminator = copy.deepcopy((step.generator, step.discriminator))
        with torch.no_grad():
            for index in range(_FIRST_BATCHES):
                lr, hr = self.batches(index)
                for name, term in step.generator_terms(step.generator(lr), hr).items():
                    weight = self.config.adversarial_weight if name == "adversarial" else 1.0
                    totals[name] = totals.get(name, 0.0) + weight * term.double() / _FIRST_BATCHES
        self.world.mean_(*totals.values())
        return {name: float(total) for name, total in totals.items()}

    def _open_records(self, opened: ExitStack) -> None:
        self._records: RunLog | None = None
        self._board: Board | None = None
        if not self.world.main:
            return
        self._records = opened.enter_context(RunLog(self.out, self.position))
        checkpoint.clean(self.out)
        self._board = Board(self.out / "tensorboard", self.position)
        opened.callback(self._board.close)
        event = {"event": "start" if self._saved is None else "resume", "step": self.position, "salt": self.salt}
        known = {"terms": self.terms, "skipped": len(self.store.skipped), "conditions": self._conditions()}
        self._tell(event | known)

    def _tell(self, *records: Mapping[str, Any]) -> None:
        if self._records is not None:
            self._records.write(*records)

    def _due(self, *intervals: int) -> bool:
        return self.position == self.config.steps or any(self.position % interval == 0 for interval in intervals)

    def _look(self, progress: Progress) -> bool:
        """Read what the steps since the last look have told; false if the run went back because of it."""
        records: list[dict[str, Any]] = []
        first = self.position - self._meter.waiting + 1
        for step, told in enumerate(self._meter.read(), first):
            bad = [name for name, value in told.items() if not math.isfinite(value)]
            if bad:
                self._tell(*records)
                self._roll_back(f"{bad[0]} is {told[bad[0]]} at step {step}")
                return False
            speed = {"images_per_s": self.config.batch / (told["loader_s"] + told["step_s"])}
            records.append({"step": step, **told, "learning_rate": learning_rate(self.config, step - 1), **speed})
        if self.world.main and records:
            if self._due(self.validate_every):
                records[-1] |= self.validate()
                self._show_samples()
            self._tell(*records)
            self._draw(records)
        for record in records:
            progress(record["step"], record)
        self._meter.start()
        return True

    def _roll_back(self, why: str) -> None:
        """Return to the last good checkpoint and go on from it with other batches.

        Raises:  TrainingError if that has not helped
        """
        found = self.world.share(checkpoint.newest(self.out) if self.world.main else None)
        advice = "resume with a lower --learning-rate or with --clip"
        if found is None:
            raise TrainingError(f"{why}, and there is no checkpoint; start again with a lower --learning-rate")
        if self._in_a_row == _ROLLBACKS:
            raise TrainingError(
                f"{why}; {_ROLLBACKS} rollbacks to step {found.step} with other batches ended alike; {advice}"
            )
        self._in_a_row += 1
        reached = self.position
        self._restore(found)
        self.salt += 1
        if self.world.main:
            # With the new salt: a resume from here must not try the same batches again.
            checkpoint.save(self.out, self._checkpoint())
            event = {"event": "rollback", "step": self.position, "from": reached, "salt": self.salt, "why": why}
            self._tell(event)
            if self._board is not None:
                self._board.go_back(self.position)
            _log.warning("%s: back to step %d, on with other batches (rollback %d)", why, self.position, self.salt)
        self._meter.start()

    def _save(self) -> None:
        """Save the run as it stands, or roll it back where its weights are spoilt."""
        if self._saved == self.position:
            return
        if self.world.agree(not self.step.is_finite()):
            self._roll_back(f"the weights are not finite after step {self.position}")
            return
        self._in_a_row, self._saved = 0, self.position
        self._seconds = time.monotonic() - self._began
        if self._records is not None:
            self._records.sync()
            checkpoint.save(self.out, self._checkpoint())
        self._meter.start()

    def _checkpoint(self) -> Checkpoint:
        known = {"terms": self.terms, "images": self._digest, "initial": self.initial, "seconds": self._seconds}
        return Checkpoint(self.position, self.salt, self.step.state() | known, asdict(self.config), self._conditions())

    def _stops(self, asked: Callable[[], bool], progress: Progress) -> bool:
        """Save and say true if the time is over.

        Raises:  Interrupted after a request to stop, all saved
        """
        stop, late = self.world.agree(asked()), self.world.agree(self._limit.passed)
        if not (stop or late) or self.position == self.config.steps:
            return False
        if self._meter.waiting == 0 or self._look(progress):
            self._save()
        if stop:
            raise Interrupted(f"stopped after step {self.position}, saved in {self.out}; go on with --resume")
        return True

    def _draw(self, records: list[dict[str, Any]]) -> None:
        """A point a look on each curve: the mean over its steps."""
        if self._board is None or not self._board.open:
            return
        values = {}
        for name in records[-1].keys() - {"step"}:
            found = [record[name] for record in records if name in record]
            values[name] = sum(found) / len(found)
        for name in ("loader", "step"):
            values[f"{name}_ms"] = 1000 * values.pop(f"{name}_s")
        self._board.scalars(self.position, values)

    def _show_samples(self) -> None:
        """Crops that the run is watched on: of the validation images, or of the first batch where there are none."""
        if self._board is None or not self._board.open:
            return
        lr, hr = middle_crops(self.validation, self.config, _SAMPLES) or self.batches(0)
        lr, hr = lr[:_SAMPLES].to(self.device), hr[:_SAMPLES]
        with torch.inference_mode():
            sr = self.step.average(lr).float()
        self._board.samples(self.position, lr.cpu(), sr.cpu(), hr.cpu())


def _as_before(found: Checkpoint | None, device: torch.device, kind: str, kernels: str) -> tuple[str, str]:
    """What `auto` is to mean for the step and the kernels: what it was before, so that the run goes on to the bit."""
    # At step 0 nothing has been tried yet; and another kind of device has another best way.
    if found is None or found.step == 0 or (found.conditions.get("device", "cpu") == "cpu") != (device.type == "cpu"):
        return kind, kernels
    was = found.conditions
    if kind == "auto" and was.get("step") == "eager":
        kind = "eager"
    if kernels == "auto":
        kernels = "on" if was.get("kernels") else "off"
    return kind, kernels


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it that are missing; which, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; name a folder that can be written") from error
    if not os.access(folder, os.W_OK | os.X_OK):  # found out now, not when all images are decoded
        raise OutputError(f"cannot write in {folder}; check its permissions, or name another folder")
    return missing
