"""The end of a run on one page: its curve, its scores, its times, and what it ran on."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from srgan_fast.atomic import atomic
from srgan_fast.errors import OutputError
from srgan_fast.train.log import read_log

_log = logging.getLogger(__name__)
# Points that a curve of this width can show.
_POINTS = 800


def environment(device: torch.device) -> dict[str, Any]:
    """What a duration means nothing without."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return found


def rates(folder: Path, batch: int) -> dict[str, float]:
    """Images a second over all steps of a run, and the loader's share of their time.

    Raises:  OSError, of the system
    """
    steps, _ = read_log(folder)
    loader_s, step_s = (sum(line[name] for line in steps) for name in ("loader_s", "step_s"))
    total_s = loader_s + step_s
    return {"images_per_s": len(steps) * batch / total_s, "loader_share": loader_s / total_s} if total_s else {}


def write_report(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write `report.json`, `report.md`, and `report.png` where matplotlib is installed.

    Raises:  OutputError if one cannot be written
    """
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        _log.warning("no curve in the report: it needs matplotlib; pip install 'srgan-fast[train]'")
    try:
        if drawn:
            draw(*read_log(folder), folder / "report.png")
        with atomic(folder / "report.json") as file:
            file.write((json.dumps(summary, indent=2) + "\n").encode())
        with atomic(folder / "report.md") as file:
            file.write(page(summary, drawn=drawn).encode())
    except OSError as error:
        raise OutputError(f"cannot write the report in {folder}: {error.strerror}; make room and resume") from error


def page(summary: Mapping[str, Any], *, drawn: bool) -> str:
    """The report as Markdown: a table a part of the summary, and the curve."""
    lines = [f"# {summary['name']}", ""]
    lines += ["![loss and validation by step](report.png)", ""] if drawn else []
    plain = {key: value for key, value in summary.items() if not isinstance(value, Mapping)}
    for title, part in {"run": plain, **{k: v for k, v in summary.items() if isinstance(v, Mapping)}}.items():
        if part:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {key} | {_shown(value)} |" for key, value in part.items()]
            lines.append("")
    return "\n".join(lines)


def draw(steps: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each loss and the validation over the steps, with a line where the run was rolled back.

    Raises:  OSError, of the system
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [name for name in ("content", "adversarial", "discriminator") if steps and name in steps[-1]]
    validated = [line for line in steps if line.get("val_psnr_db") is not None]
    panels = len(losses) + bool(validated)
    figure = Figure(figsize=(8, 0.6 + 2.2 * max(1, panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, losses, strict=False):
        where, values = thinned([(line["step"], line[name]) for line in steps])
        axis.plot(where, values, color="#3b6ea5", linewidth=1)
        axis.set_ylabel(name)
        if min(values, default=0) > 0:
            axis.set_yscale("log")
    if validated:
        points = [(line["step"], line["val_psnr_db"]) for line in validated]
        axes[-1].plot(*zip(*points, strict=True), color="#3b6ea5", marker=".")
        axes[-1].set_ylabel("validation PSNR, dB")
    for axis in axes:
        for event in events:
            if event["event"] == "rollback":
                axis.axvline(event["step"], color="#b5402c", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def thinned(points: Sequence[tuple[int, float | None]]) -> tuple[list[float], list[float]]:
    """Steps and values, as means over equal parts where there are more than a picture can show."""
    finite = [(step, value) for step, value in points if value is not None]
    size = -(-len(finite) // _POINTS) or 1
    parts = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [sum(step for step, _ in part) / len(part) for part in parts], [
        sum(value for _, value in part) / len(part) for part in parts
    ]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    """The name of the CPU and its cores: Linux tells it in a file only."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
