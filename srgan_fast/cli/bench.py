"""srgan-fast bench: how fast this machine upscales, beside how exact the result is."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srgan_fast.errors import OutputError, UsageError

if TYPE_CHECKING:
    from rich.table import Table


def bench(
    model: Annotated[str, typer.Option(help="A bundled model or a weights file.")] = "srresnet_x4",
    suite: Annotated[str, typer.Option(help="frame (speed) or memory (the peak of a process of its own).")] = "frame",
    size: Annotated[str, typer.Option(help="LR size, width x height.")] = "128x128",
    runs: Annotated[int, typer.Option(help="frame: timed runs of each candidate, interleaved.")] = 5,
    device: Annotated[str, typer.Option(help="frame: auto, cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="memory: auto, fp32 or bf16.")] = "auto",
    memory: Annotated[str | None, typer.Option(help="memory: the budget, such as 3G.")] = None,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the records as JSON Lines.", readable=False)
    ] = None,
) -> None:
    """Measure speed, or memory, beside quality; a result that fails its quality gate shows no figure."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)
    if not match:
        raise UsageError(f"expected --size like 128x128, got {size!r}; give width x height in LR pixels")
    if runs < 1:
        raise UsageError(f"expected --runs of at least 1, got {runs}; 5 is the default")
    if suite not in ("frame", "memory"):
        raise UsageError(f"expected --suite frame or memory, got {suite!r}")
    if suite == "frame" and (memory is not None or precision != "auto"):
        raise UsageError("--memory and --precision belong to --suite memory; the frame suite times every precision")
    if out is not None:
        # Refused before the minutes that the measurement takes, not after.
        _refuse(out)
    height, width = int(match[2]), int(match[1])
    from rich.console import Console

    if suite == "frame":
        from srgan_fast.bench import frame

        records = frame.measure(model, height, width, runs, device)
        table = _frame_table(records, size)
    else:
        from srgan_fast.bench import memory as memory_suite

        records = [memory_suite.measure(model, height, width, precision, memory)]
        table = _memory_table(records, size)
    Console().print(table)
    if out is not None:
        _append(out, "".join(json.dumps(one) + "\n" for one in records))


def _append(out: Path, text: str) -> None:
    """Add the lines to a file: all, or none."""
    size = out.stat().st_size if out.is_file() else None
    try:
        with out.open("a") as file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            if size is not None:
                os.truncate(out, size)
            elif out.is_file():
                out.unlink()
        raise OutputError(f"cannot write {out}: {error.strerror}; name a file that can be written") from error


def _frame_table(records: list[dict[str, Any]], size: str) -> Table:
    from rich.table import Table

    env = records[0]["env"]
    table = Table(title=f"{records[0]['name']}, {size}, {env['gpu'] or env['cpu']}, {env['threads']} threads")
    for column in ("implementation", "p50 ms", "p20", "p80", "frames/s", "speed-up", "PSNR against plain"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    for one in records:
        psnr = one["quality"]["psnr_db_vs_plain"]
        quality = "equal" if psnr is None else f"{psnr:.1f} dB"
        if one["quality"]["gate"] == "pass":
            speed = [f"{one['latency_ms'][key]:.1f}" for key in ("p50", "p20", "p80")]
            speed += [f"{one['derived'][key]:.2f}" for key in ("fps", "speedup")]
        else:
            speed, quality = ["-"] * 5, f"{quality}, gate failed"
        table.add_row(f"{one['impl']} {one['dtype']}", *speed, quality)
    return table


def _memory_table(records: list[dict[str, Any]], size: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{records[0]['name']}, {size}, memory")
    for column in ("implementation", "peak GiB", "planned/measured", "cut", "difference from uncut"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    for one in records:
        plan, levels = one["plan"], one["quality"]["largest_difference_levels"]
        figures = [f"{one['derived'][key]:.2f}" if one["derived"] else "-" for key in ("peak_gib", "planned_ratio")]
        cut = f"bands of {plan['band']}" if plan["tile"] is None else f"tiles of {plan['tile']}"
        difference = f"{levels} levels" + ("" if one["quality"]["gate"] == "pass" else ", gate failed")
        table.add_row(f"{one['impl']} {one['dtype']}", *figures, cut, difference)
    return table


def _refuse(out: Path) -> None:
    if out.is_dir() or not out.parent.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        raise OutputError(f"expected --json to name a file that can be written, got {out}; name another")
