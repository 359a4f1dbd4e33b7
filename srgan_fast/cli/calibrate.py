"""srgan-fast calibrate: a model -> the same weights with int8 scales, found on images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from srgan_fast.errors import UsageError
from srgan_fast.outputs import check_file, same


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model or a weights file.")],
    images: Annotated[
        Path, typer.Option(help="Folder of originals; they are made small as for training.", readable=False)
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.", readable=False)],
    percentile: Annotated[
        str, typer.Option(help="Of a tensor's values, those within int8's range in percent; or amax: all.")
    ] = "99.99",
    limit_db: Annotated[float, typer.Option(help="The most PSNR that int8 may lose on the images.")] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Let --out be the model's own file.")] = False,
) -> None:
    """Find the scales that --precision int8 needs; nothing is written if int8 loses too much."""
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
