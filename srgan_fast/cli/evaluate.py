"""`srgan-fast evaluate`: score methods on a folder of HR images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from srgan_fast.cli.options import BUNDLED, METHOD, METHODS, WEIGHTS, HRFolder, LRFolder, Scale


def evaluate(
    hr_folder: HRFolder,
    method: Annotated[list[str] | None, typer.Option(metavar=METHOD, help=METHODS, show_default="srresnet_x4")] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"{BUNDLED}; may be repeated.")] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help=f"{WEIGHTS}; may be repeated.", readable=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="How to measure: y601, paper or rgb, several with commas between.",
            show_default="y601; all with --report",
        ),
    ] = None,
    lr: LRFolder = None,
    scale: Scale = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="What networks compute in: auto, fp32, bf16; on a GPU fp16.")
    ] = "fp32",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE|-", help="Write the scores as JSON; - prints only that.", readable=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page with scores and pictures.", readable=False),
    ] = None,
    mos: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Put opinion scores on the page, from `srgan-fast mos analyse --json`.",
            readable=False,
        ),
    ] = None,
) -> None:
    """Score methods on a folder of HR images: PSNR and SSIM by named protocols."""
    import json
    from typing import Any

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from srgan_fast.errors import UsageError
    from srgan_fast.evaluate.benchmark import DEFAULT_MODEL, Choice, Comparison, evaluate_all
    from srgan_fast.evaluate.metrics import PROTOCOLS
    from srgan_fast.evaluate.report import Report, read_opinions
    from srgan_fast.evaluate.sets import recognise
    from srgan_fast.outputs import check_file, write

    choices = [Choice.parse(text) for text in method or []]
    choices += [Choice(model=name) for name in model or []] + [Choice(weights=path) for path in weights or []]
    if protocol is None:
        protocol = "y601" if report is None else ",".join(PROTOCOLS)
    if mos is not None and report is None:
        raise UsageError("expected --report with --mos, which goes on that page; add --report FILE.html")
    opinions = None if mos is None else read_opinions(mos)
    only_json = json_file is not None and str(json_file) == "-"
    for option, target in (("--json", None if only_json else json_file), ("--report", report)):
        if target is not None:
            check_file(option, target)

    pieces = Report()
    with Console(stderr=True).status("evaluating") as status:

        def on_image(comparison: Comparison) -> None:
            status.update(Text(f"evaluating: {comparison.name} done"))
            if report is not None:
                pieces.add(comparison)

        results = evaluate_all(
            hr_folder,
            choices or [Choice(model=DEFAULT_MODEL)],
            protocol=[name.strip() for name in protocol.split(",") if name.strip()],
            lr_folder=lr,
            scale=scale,
            precision=precision,
            on_image=on_image,
        )
    text = json.dumps(results if len(results) > 1 else results[0], indent=2, allow_nan=False) + "\n"
    if report is not None:
        pieces.write(report, results, known=recognise(hr_folder), opinions=opinions)
    if only_json:
        print(text, end="")
        return
    if json_file is not None:
        write(json_file, text)

    def row(table: Table, label: str, scores: dict[str, dict[str, Any]]) -> None:
        cells = []
        for value in scores.values():
            cells.append("inf" if value["psnr_db"] is None else f"{value['psnr_db']:.3f}")
            cells.append(f"{value['ssim']:.4f}")
        table.add_row(Text(label), *cells)

    for result in results:
        title = f"{result['method']} x{result['scale']}, {result['precision']}"
        table = Table(title=Text(title), title_justify="left")
        table.add_column("image", overflow="fold")
        for name in result["mean"]:
            table.add_column(f"{name}\nPSNR dB", justify="right")
            table.add_column(f"{name}\nSSIM", justify="right")
        for entry in result["images"]:
            row(table, entry["name"], entry["scores"])
        table.add_section()
        row(table, "mean", result["mean"])
        Console().print(table)
        if result.get("other_images"):
            print(f"{result['other_images']} other images in the folder of {result['method']} were left alone")
    for written in (json_file, report):
        if written is not None:
            print(f"wrote {written}")
