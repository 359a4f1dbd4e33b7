"""srgan-fast bench: how fast this machine upscales, beside how exact the result is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from srgan_fast.errors import OutputError, UsageError


def bench(
    model: Annotated[str, typer.Option(help="A bundled model or a weights file.")] = "srresnet_x4",
    size: Annotated[str, typer.Option(help="LR size, width x height.")] = "128x128",
    runs: Annotated[int, typer.Option(help="Timed runs of each candidate, interleaved.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the records as JSON Lines.")
    ] = None,
) -> None:
    """Time the plain network and every backend on one frame; a result that fails its quality gate has no speed-up."""
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise UsageError(f"expected --size like 128x128, got {size!r}")
    if runs < 1:
        raise UsageError(f"expected --runs of at least 1, got {runs}")
    from rich.console import Console
    from rich.table import Table

    from srgan_fast.bench.frame import measure

    records = measure(model, int(match[2]), int(match[1]), runs, device)
    table = Table(title=f"{model}, {size}, {records[0]['env']['gpu'] or records[0]['env']['cpu']}")
    for column in ("implementation", "p50 ms", "p20", "p80", "frames/s", "speed-up", "quality"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    for one in records:
        times, quality = one["latency_ms"], one["quality"]
        psnr = quality["psnr_db_vs_plain"]
        table.add_row(
            f"{one['impl']} {one['dtype']}",
            *(f"{times[key]:.1f}" for key in ("p50", "p20", "p80")),
            f"{one['derived']['fps']:.2f}",
            f"{one['derived']['speedup']:.2f}" if "speedup" in one["derived"] else "-",
            f"{quality['gate']}, " + ("equal" if psnr is None else f"{psnr:.1f} dB"),
        )
    Console().print(table)
    if out is not None:
        try:
            with out.open("a") as file:
                file.writelines(json.dumps(one) + "\n" for one in records)
        except OSError as error:
            raise OutputError(f"cannot write {out}: {error.strerror}; name a folder that can be written") from error
