"""srgan-fast calibrate: a model -> the same weights with int8 scales, found on images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from srgan_fast.cli.options import HR, ModelArgument
from srgan_fast.errors import UsageError
from srgan_fast.outputs import check_file, same


def calibrate(
    model: ModelArgument,
    images: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help=f"{HR}; LR is made from them as for training.", readable=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Weights file to write, a .safetensors.", readable=False)],
    percentile: Annotated[
        str,
        typer.Option(
            metavar="PERCENT", help="Share of a tensor's values that is within int8's range, in percent; amax is all."
        ),
    ] = "99.99",
    limit_db: Annotated[float, typer.Option(help="Most PSNR that int8 may lose on the images, in dB.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out be the model's own file.")] = False,
) -> None:
    """Find the scales that --precision int8 needs, and write a model with them; not if int8 loses too much."""
    if out.suffix != ".safetensors":
        raise UsageError(f"expected an --out called *.safetensors, got {out.name}; name it so")
    # Refused before the minutes that it takes, not after.
    check_file("--out", out)
    if same(Path(model), out) and not overwrite:
        raise UsageError(f"the model and --out are the same file: {out}; name another, or add --overwrite")
    try:
        share = 100.0 if percentile == "amax" else float(percentile)
    except ValueError:
        raise UsageError(f"expected --percentile like 99.99, or amax, got {percentile!r}") from None

    from rich.console import Console
    from rich.text import Text

    from srgan_fast import weights
    from srgan_fast.evaluate.calibrate import calibrate as run

    loaded = weights.load(model)
    with Console(stderr=True).status("calibrating") as status:
        found = run(
            loaded,
            images,
            percentile=share,
            limit_db=limit_db,
            on_image=lambda said: status.update(Text(f"calibrating: {said}")),
        )
    weights.save_model(out, replace(loaded, calibration=found))
    images_said = f"{found.images} image{'s' * (found.images != 1)}"
    print(f"{images_said}, {len(found.scales)} scales at {percentile if share < 100 else 'the largest value'}")
    print(f"fp32 {found.psnr_db:.3f} dB, int8 {found.drop_db:.3f} dB less (limit {found.limit_db:g})")
    print(f"-> {out} (digest {found.weights[:16]})")
