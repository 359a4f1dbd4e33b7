"""`srgan-fast evaluate`: score a method on a folder of HR images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    hr_folder: Annotated[Path, typer.Argument(metavar="HR_FOLDER", help="Folder of original images.", readable=False)],
    method: Annotated[str | None, typer.Option(help="bicubic or nearest, instead of a network.")] = None,
    model: Annotated[str | None, typer.Option(help="A bundled model.", show_default="srresnet_x4")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A weights file, ours or a community checkpoint.", readable=False)
    ] = None,
    protocol: Annotated[str, typer.Option(help="Any of y601, paper and rgb, with commas.")] = "y601",
    lr: Annotated[
        Path | None,
        typer.Option(help="Folder of LR images: equal stem, or STEM_*LR*. Made from HR otherwise.", readable=False),
    ] = None,
    scale: Annotated[int | None, typer.Option(help="How much larger.", show_default="the model's, or 4")] = None,
    precision: Annotated[str, typer.Option(help="What the network computes in: fp32, bf16, fp16 or auto.")] = "fp32",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE|-", help="Write the scores as JSON; - prints only that.", readable=False),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with crops.", readable=False)
    ] = None,
) -> None:
    """Score a method on a folder of HR images: PSNR and SSIM by named protocols."""
    import json
    from typing import Any

    from rich.console import Console
    from rich.table import Table

    from srgan_fast.errors import OutputError
    from srgan_fast.evaluate.benchmark import Comparison
    from srgan_fast.evaluate.benchmark import evaluate as run
    from srgan_fast.evaluate.report import Report, write_text

    only_json = json_file is not None and str(json_file) == "-"
    for target in (None if only_json else json_file, report):
        # Found out before the work, not after it.
        if target is not None and (target.is_dir() or not target.parent.is_dir()):
            raise OutputError(
                f"expected a file in a folder that exists, got {target}; make the folder or choose another"
            )

    pieces = Report()
    with Console(stderr=True).status("evaluating") as status:

        def on_image(comparison: Comparison) -> None:
            status.update(f"evaluating: {comparison.name} done")
            if report is not None:
                pieces.add(comparison)

        results = run(
            hr_folder,
            method=method,
            model=model,
            weights=weights,
            protocol=[name.strip() for name in protocol.split(",") if name.strip()],
            lr_folder=lr,
            scale=scale,
            precision=precision,
            on_image=on_image,
        )
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    if report is not None:
        pieces.write(report, results)
    if only_json:
        print(text, end="")
        return
    if json_file is not None:
        write_text(json_file, text)

    table = Table(title=f"{results['method']} x{results['scale']}, {results['precision']}", title_justify="left")
    table.add_column("image", overflow="fold")
    for name in results["mean"]:
        table.add_column(f"{name}\nPSNR dB", justify="right")
        table.add_column(f"{name}\nSSIM", justify="right")

    def row(label: str, scores: dict[str, dict[str, Any]]) -> None:
        cells = []
        for value in scores.values():
            cells.append("inf" if value["psnr_db"] is None else f"{value['psnr_db']:.3f}")
            cells.append(f"{value['ssim']:.4f}")
        table.add_row(label, *cells)

    for entry in results["images"]:
        row(entry["name"], entry["scores"])
    table.add_section()
    row("mean", results["mean"])
    Console().print(table)
    for written in (json_file, report):
        if written is not None:
            print(f"wrote {written}")
