"""srgan-fast train: a folder of images in, checkpoints and weights out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from srgan_fast.errors import UsageError


def train(
    data: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="A folder of HR images, or of train/ and val/ pairs.", readable=False),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the run.", readable=False)],
    preset: Annotated[str, typer.Option(help="A recipe; see the README.")] = "paper-srresnet-mse",
    name: Annotated[str, typer.Option(help="The name of the weights file.")] = "model",
    init: Annotated[
        Path | None, typer.Option(help="A generator to start from (needed by the srgan stage).", readable=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of OUT.")] = False,
    validation: Annotated[Path | None, typer.Option(help="A folder of HR images to score on.", readable=False)] = None,
    vgg_weights: Annotated[Path | None, typer.Option(help="torchvision's vgg19 file.", readable=False)] = None,
    squeezenet_weights: Annotated[Path | None, typer.Option(help="A SqueezeNet 1.0 file.", readable=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    crop: Annotated[int | None, typer.Option(help="HR pixels a side, instead of the preset's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the preset's.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm, instead of the preset's.")] = None,
    content: Annotated[str | None, typer.Option(help="mse, vgg22, vgg54 or squeezenet.")] = None,
    degradation: Annotated[str | None, typer.Option(help="How LR is made: bicubic, gaussian, or read: pairs.")] = None,
    vgg_reduction: Annotated[
        str | None, typer.Option(help="Feature losses: paper sums over channels, mean averages.")
    ] = None,
    vgg_input: Annotated[str | None, typer.Option(help="What the VGG weights expect: torchvision or caffe.")] = None,
    adversarial_weight: Annotated[float | None, typer.Option(help="Of the srgan stage (the paper: 1e-3).")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the preset's.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Residual blocks, instead of the preset's.")] = None,
    width: Annotated[int | None, typer.Option(help="Feature maps, instead of the preset's.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1000,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 1000,
) -> None:
    """Train SRResNet or SRGAN by a preset; Ctrl-C saves, --resume goes on as if nothing had happened."""
    from srgan_fast.train.config import PRESETS

    if preset not in PRESETS:
        raise UsageError(f"expected a preset of {', '.join(PRESETS)}, got {preset!r}")
    if not name or Path(name).name != name:  # found out now, not after the last step
        raise UsageError(f"expected --name to be the name of a file without a folder, got {name!r}")
    config = PRESETS[preset]
    if degradation is None and config.degradation == "gaussian" and _holds_pairs(data):
        print(f"LR is read: {data} holds train/high and train/low (--degradation gaussian makes it from HR)")
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
    chosen: dict[str, Any] = {option: value for option, (value, _) in choices.items()}
    chosen |= {"steps": steps, "batch": batch, "crop": crop, "learning_rate": learning_rate}
    chosen |= {"clip": clip, "seed": seed, "adversarial_weight": adversarial_weight}
    shape: dict[str, Any] = {
        key: value for key, value in {"blocks": blocks, "width": width}.items() if value is not None
    }
    try:
        chosen["generator"] = dataclasses.replace(config.generator, **shape) if shape else None
    except ValueError as error:
        raise UsageError(f"{error}; change --blocks or --width") from error
    config = dataclasses.replace(config, **{key: value for key, value in chosen.items() if value is not None})

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from srgan_fast.train.trainer import Trainer

    trainer = Trainer(
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
    )
    console = Console(stderr=True)
    counts = f"{len(trainer.batches.store)} images, {len(trainer.skipped)} skipped"
    print(f"{counts}; step {trainer.position} of {config.steps}")
    for skipped in trainer.skipped[:5]:
        print(f"skipped {skipped.path.name}: {skipped.reason}")
    total = sum(trainer.terms.values())
    shares = ", ".join(
        f"{key} {value:.3e} ({value / total:.1%})" if total else f"{key} 0" for key, value in trainer.terms.items()
    )
    print(f"weighted loss terms over ten batches before training: {shares}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=config.steps, completed=trainer.position)

        def show(step: int, terms: dict[str, float]) -> None:
            said = " ".join(f"{key} {value:.5f}" for key, value in terms.items())
            bar.update(task, completed=step, description=said)

        path = trainer.run(show)
    print(f"trained {config.steps} steps -> {path}")


def _holds_pairs(data: Path) -> bool:
    return all((data / "train" / part).is_dir() for part in ("high", "low"))
