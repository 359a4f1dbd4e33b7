"""The end of a run on one page: its curve, its scores, its times, and what it ran on."""

from __future__ import annotations

import json
import logging
import os
import platform
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from srgan_fast.atomic import atomic
from srgan_fast.errors import OutputError

_log = logging.getLogger(__name__)
# Points that a curve of this width can show.
_POINTS = 800
_LOSSES = ("content", "adversarial", "discriminator")
_SCORES = ("val_psnr_db", "val_ssim")


@dataclass
class Curve:
    """The finite values of one name in the log and their steps, as plain numbers: a run may have a million."""

    steps: array[int]
    values: array[float]


class Course:
    """What a report takes from the log of a run, in one pass over it."""

    def __init__(self, steps: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> None:
        self.count = 0
        self.loader_s = self.step_s = 0.0
        self.curves: dict[str, Curve] = {}
        self.rollbacks: list[int] = []
        self._last: Mapping[str, Any] = {}
        self._statistics: Mapping[str, Any] = {}
        for record in steps:
            self.count, self._last = self.count + 1, record
            self.loader_s += record["loader_s"]
            self.step_s += record["step_s"]
            for name in (*_LOSSES, "val_psnr_db"):
                if name in record:
                    curve = self.curves.setdefault(name, Curve(array("q"), array("d")))
                    if record[name] is not None:  # JSON has no infinity and no NaN
                        curve.steps.append(record["step"])
                        curve.values.append(record[name])
        for event in events:
            if event["event"] == "rollback":
                self.rollbacks.append(event["step"])
            if event["event"] == "statistics":
                self._statistics = event
            elif event.get("step", 0) < self._statistics.get("step", 0):
                self._statistics = {}  # of steps that were undone

    def scores(self, position: int) -> dict[str, float]:
        """The validation of the weights after step `position` as they were trained, if there was one."""
        return _scores(self._statistics, position, "_before") or _scores(self._last, position)

    def scores_anew(self, position: int) -> dict[str, float]:
        """The same with batch statistics estimated anew, as an export of that step has found it."""
        return _scores(self._statistics, position)


def _scores(told: Mapping[str, Any], position: int, suffix: str = "") -> dict[str, float]:
    if told.get("step") != position:
        return {}
    return {name: told[name + suffix] for name in _SCORES if told.get(name + suffix) is not None}


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


def rates(course: Course, batch: int) -> dict[str, float]:
    """Images a second over all steps of a run, and the loader's share of their time."""
    total_s = course.loader_s + course.step_s
    if not total_s:
        return {}
    return {"images_per_s": course.count * batch / total_s, "loader_share": course.loader_s / total_s}


def write_report(folder: Path, summary: Mapping[str, Any], course: Course) -> None:
    """Write `report.json`, `report.md`, and `report.png` where matplotlib is installed.

    Raises:  OutputError if one cannot be written
    """
    drawn = find_spec("matplotlib") is not None
    if not drawn:
        _log.warning("no curve in the report: it needs matplotlib; pip install 'srgan-fast[train]'")
    try:
        if drawn:
            draw(course, folder / "report.png")
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


def draw(course: Course, path: Path) -> None:
    """Draw each loss and the validation over the steps, with a line where the run was rolled back.

    Raises:  OSError, of the system
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    losses = [name for name in _LOSSES if name in course.curves]
    validated = course.curves.get("val_psnr_db")
    panels = len(losses) + (validated is not None)
    figure = Figure(figsize=(8, 0.6 + 2.2 * max(1, panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(1, panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, losses, strict=False):
        where, values = thinned(course.curves[name])
        axis.plot(where, values, color="#3b6ea5", linewidth=1)
        axis.set_ylabel(name)
        if min(values, default=0) > 0:
            axis.set_yscale("log")
    if validated is not None:
        axes[-1].plot(validated.steps, validated.values, color="#3b6ea5", marker=".")
        axes[-1].set_ylabel("validation PSNR, dB")
    for axis in axes:
        for step in course.rollbacks:
            axis.axvline(step, color="#b5402c", linewidth=0.8)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


def thinned(curve: Curve) -> tuple[list[float], list[float]]:
    """Steps and values, as means over equal parts where there are more than a picture can show."""
    size = -(-len(curve.steps) // _POINTS) or 1
    parts = [slice(start, start + size) for start in range(0, len(curve.steps), size)]
    where, values = (
        [sum(column[part]) / len(column[part]) for part in parts] for column in (curve.steps, curve.values)
    )
    return where, values


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
