"""srgan-fast train: a folder of images in, checkpoints and weights out."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srgan_fast.cli.options import Device
from srgan_fast.errors import MemoryBudgetError, UsageError

if TYPE_CHECKING:
    from srgan_fast.train.trainer import Trainer

_PRESET, _LOSS = "Instead of the preset's", "Losses, instead of the preset's"
_OFTEN, _RUNS = "How often", "How it runs"
_RESIDENT = {"auto": None, "device": True, "host": False}


def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Folder of HR images or of pairs, or a .pack of them.", readable=False),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the run, made if it is missing.", readable=False)
    ],
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="Recipe to follow; docs/training.md has the list.")
    ] = "paper-srresnet-mse",
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Generator to start from: a bundled model or a weights file; the srgan stage needs one.",
            show_default="none",
            readable=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of OUT.")] = False,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder of HR images to score on as it trains.", show_default="none", readable=False
        ),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the weights file, without a suffix.")] = "model",
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Save and stop after so long; --resume goes on.", show_default="no limit"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train in all.", rich_help_panel=_PRESET)] = None,
    batch: Annotated[int | None, typer.Option(help="Crops in a step, of all ranks.", rich_help_panel=_PRESET)] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a crop in HR pixels.", rich_help_panel=_PRESET)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Learning rate at the start.", rich_help_panel=_PRESET)
    ] = None,
    clip: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient; 0 clips nothing.", rich_help_panel=_PRESET)
    ] = None,
    degradation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How LR comes about: bicubic or gaussian makes it, pairs reads it.",
            rich_help_panel=_PRESET,
        ),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Residual blocks of the generator.", rich_help_panel=_PRESET)
    ] = None,
    width: Annotated[int | None, typer.Option(help="Feature maps of the generator.", rich_help_panel=_PRESET)] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What a step computes in: auto, fp32 or bf16.", rich_help_panel=_PRESET),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of weights, crops and their order.", rich_help_panel=_PRESET)
    ] = None,
    content: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Content loss: mse, vgg22, vgg54 or squeezenet.", rich_help_panel=_LOSS),
    ] = None,
    adversarial_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the adversarial loss of the srgan stage; the paper: 1e-3.", rich_help_panel=_LOSS),
    ] = None,
    pixel_weight: Annotated[
        float | None,
        typer.Option(help="Weight of an MSE beside a loss of features; the paper: 0.", rich_help_panel=_LOSS),
    ] = None,
    vgg_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of VGG19 by torchvision, which vgg22 and vgg54 need; see `srgan-fast data`.",
            rich_help_panel=_LOSS,
            readable=False,
        ),
    ] = None,
    squeezenet_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of SqueezeNet 1.0, which squeezenet needs.",
            rich_help_panel=_LOSS,
            readable=False,
        ),
    ] = None,
    vgg_reduction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How a loss of features is reduced: paper sums over channels, mean averages.",
            rich_help_panel=_LOSS,
        ),
    ] = None,
    vgg_input: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the weights of VGG19 expect: torchvision or caffe.", rich_help_panel=_LOSS
        ),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two checkpoints.", rich_help_panel=_OFTEN)] = 1000,
    validate_every: Annotated[int, typer.Option(help="Steps between two validations.", rich_help_panel=_OFTEN)] = 1000,
    log_every: Annotated[
        int | None,
        typer.Option(
            help="Steps between two looks at the losses.", show_default="1, on a GPU 50", rich_help_panel=_OFTEN
        ),
    ] = None,
    device: Device = "auto",
    step: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How a step runs: auto, eager, or graph (one CUDA graph).", rich_help_panel=_RUNS
        ),
    ] = "auto",
    kernels: Annotated[
        str,
        typer.Option(metavar="NAME", help="Whether the training kernels run: auto, on or off.", rich_help_panel=_RUNS),
    ] = "auto",
    data_on: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Where the images are held: auto, device, or host, which is read ahead.",
            rich_help_panel=_RUNS,
        ),
    ] = "auto",
    sync_bn: Annotated[
        bool,
        typer.Option(
            "--sync-bn", help="Normalise batches over all ranks; for ranks see torchrun.", rich_help_panel=_RUNS
        ),
    ] = False,
) -> None:
    """Train SRResNet or SRGAN by a preset; Ctrl-C saves, and --resume goes on as if nothing had happened."""
    from srgan_fast.train.config import PRESETS
    from srgan_fast.train.store import holds_pairs

    if preset not in PRESETS:
        raise UsageError(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}")
    if not name or Path(name).name != name:  # found out now, not after the last step
        raise UsageError(f"expected --name to be the name of a file without a folder, got {name!r}")
    config = PRESETS[preset]
    if degradation is None and config.degradation == "gaussian" and _holds_pairs(data):
        print(f"LR is read: {data} holds pairs{' (--degradation gaussian makes LR from HR)' if data.is_dir() else ''}")
        degradation = "pairs"
    choices: dict[str, tuple[str | None, tuple[str, ...]]] = {
        "content": (content, ("mse", "vgg22", "vgg54", "squeezenet")),
        "degradation": (degradation, ("bicubic", "gaussian", "pairs")),
        "precision": (precision, ("auto", "fp32", "bf16")),
        "vgg_reduction": (vgg_reduction, ("paper", "mean")),
        "vgg_input": (vgg_input, ("torchvision", "caffe")),
    }
    for option, (value, allowed) in choices.items():
        if value is not None and value not in allowed:
            raise UsageError(f"expected --{option.replace('_', '-')} out of {', '.join(allowed)}, got {value!r}")
    ways = {"--step": (step, ("auto", "eager", "graph")), "--kernels": (kernels, ("auto", "on", "off"))}
    for flag, (word, known) in (ways | {"--data-on": (data_on, tuple(_RESIDENT))}).items():
        if word not in known:
            raise UsageError(f"expected {flag} out of {', '.join(known)}, got {word!r}")
    chosen: dict[str, Any] = {option: value for option, (value, _) in choices.items()}
    chosen |= {"steps": steps, "batch": batch, "crop": crop, "learning_rate": learning_rate}
    chosen |= {"clip": clip, "seed": seed, "sync_bn": sync_bn or None}
    chosen |= {"adversarial_weight": adversarial_weight, "pixel_weight": pixel_weight}
    shape: dict[str, Any] = {
        key: value for key, value in {"blocks": blocks, "width": width}.items() if value is not None
    }
    try:
        chosen["generator"] = dataclasses.replace(config.generator, **shape) if shape else None
    except ValueError as error:
        raise UsageError(f"{error}; change --blocks or --width") from error
    config = dataclasses.replace(config, **{key: value for key, value in chosen.items() if value is not None})
    if config.degradation != "pairs" and holds_pairs(data):
        print(f"trained on {data / 'train' / 'high'} alone, LR made from it; --degradation pairs reads LR")

    from torch import OutOfMemoryError

    from srgan_fast.train.trainer import Trainer

    try:
        with closing(
            Trainer(
                config,
                data,
                out,
                name=name,
                resume=resume,
                initial=init,
                validation=validation,
                vgg_weights=vgg_weights,
                squeezenet_weights=squeezenet_weights,
                save_every=save_every,
                validate_every=validate_every,
                device=device,
                step=step,
                kernels=kernels,
                time_limit_s=time_limit,
                log_every=log_every,
                resident=_RESIDENT[data_on],
            )
        ) as trainer:
            _run(trainer, again="the same command" if resume else "the same command with --resume")
    except OutOfMemoryError as error:
        raise MemoryBudgetError(
            "the GPU has not enough memory for this run; lower --batch or --crop, or give --data-on host"
        ) from error


def _run(trainer: Trainer, again: str) -> None:
    from srgan_fast.cli.progress import Progress

    if not trainer.world.main:
        # One rank speaks for all; what ends another one is still said.
        logging.getLogger("srgan_fast").setLevel(logging.ERROR)
        trainer.run()
        return
    _introduce(trainer)
    steps = trainer.config.steps
    with Progress(steps, trainer.position) as progress:
        path = trainer.run(progress)
    if path is None:
        print(f"the time limit came at step {trainer.position} of {steps}, saved in {trainer.out}; {again} goes on")
    else:
        _conclude(trainer, path)


def _introduce(trainer: Trainer) -> None:
    """What the run is made of, before the first step."""
    skipped = trainer.store.skipped
    print(f"{len(trainer.store)} images, {len(skipped)} skipped; step {trainer.position} of {trainer.config.steps}")
    for one in skipped[:5]:
        print(f"skipped {one.path.name}: {one.reason}")
    step, world = trainer.step, trainer.world
    ranks = f", rank 0 of {world.size}" if world.size > 1 else ""
    where = "held there" if trainer.batches.resident else "read ahead from the host"
    print(f"step {step.kind}{' with kernels' if step.kernels else ''} on {step.device}{ranks}; images {where}")
    total = sum(trainer.terms.values())
    shares = ", ".join(
        f"{key} {value:.3e} ({value / total:.1%})" if total else f"{key} 0" for key, value in trainer.terms.items()
    )
    print(f"weighted loss terms over ten batches before training: {shares}", flush=True)


def _conclude(trainer: Trainer, path: Path) -> None:
    """What came out of the run, after the last step."""
    summary = trainer.summary
    scores, statistics = summary["scores"], summary["statistics"]
    if statistics:
        effect = ""
        if scores:
            effect = f": validation {statistics['val_psnr_db_before']:.3f} -> {statistics['val_psnr_db']:.3f} dB"
            effect += ", so those of training are kept" if statistics["kept"] == "before" else ""
        print(f"batch statistics estimated anew on {statistics['batches']} batches{effect}")
    if scores:
        print(f"validation: {scores['val_psnr_db']:.3f} dB, SSIM {scores['val_ssim']:.4f} (y601)")
    if "images_per_s" in summary:
        print(f"{summary['images_per_s']:.1f} images/s, the loader took {summary['loader_share']:.1%} of it")
    print(f"trained {trainer.config.steps} steps -> {path}; report in {trainer.out / 'report.md'}")


def _holds_pairs(data: Path) -> bool:
    from srgan_fast.train.store import SUFFIX, holds_pairs, open_pack

    if data.suffix == SUFFIX:
        return open_pack(data).lows is not None
    return holds_pairs(data)
