"""Speeds as a picture, which carries the digest of the records that it shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from srgan_fast.atomic import atomic
from srgan_fast.bench.table import Record, shape_of, timed_together, where
from srgan_fast.errors import OutputError, UsageError

KEY = "srgan-fast records"

# Bars in one panel are compared with each other; more panels than this no longer fit a page.
_MOST_PANELS = 12


def draw(records: Iterable[Record], path: Path) -> None:
    """Draw the speed-up of everything that was timed together, a panel a size, as PNG.

    Raises:  UsageError if matplotlib is missing or nothing was timed; OutputError if the file cannot be written
    """
    require()
    panels = _panels(records)
    if not panels:
        raise UsageError("expected records of frames, kernels or training with a figure to draw, got none")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + sum(0.6 + 0.28 * len(rows) for _, rows in panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[1 + len(rows) for _, rows in panels])[:, 0]
    for axis, (title, rows) in zip(axes, panels, strict=True):
        names = [name for name, _, _ in rows]
        bars = axis.barh(range(len(rows)), [speedup for _, speedup, _ in rows], color="#3b6ea5")
        # Three digits, but no power of ten for what takes seconds.
        told = [f"{speedup:.2f}x, {p50:{'.0f' if p50 >= 100 else '.3g'}} ms" for _, speedup, p50 in rows]
        axis.bar_label(bars, told, padding=3, fontsize=8)
        axis.set_yticks(range(len(rows)), names, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
        axis.margins(x=0.25)
        axis.tick_params(axis="x", labelsize=8)
    axes[-1].set_xlabel("speed-up over the first row, p50", fontsize=8)
    try:
        with atomic(path) as file:
            figure.savefig(file, format="png", dpi=110, metadata={KEY: fingerprint(panels), "Software": None})
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; name a file that can be written") from error


def require() -> None:
    """Refuse a plot before anything is measured for it.

    Raises:  UsageError if matplotlib is missing
    """
    if find_spec("matplotlib") is None:
        raise UsageError("a plot needs matplotlib, which is not installed; pip install 'srgan-fast[bench]'")


def is_fresh(records: Iterable[Record], path: Path) -> bool:
    """Whether a picture shows these records, or is absent where there is nothing to show; needs no matplotlib."""
    panels = _panels(records)
    if not panels or not path.is_file():
        return not panels and not path.exists()
    from PIL import Image

    with Image.open(path) as image:
        return bool(image.info.get(KEY) == fingerprint(panels))


def fingerprint(panels: list[tuple[str, list[tuple[str, float, float]]]]) -> str:
    """The digest of what is drawn."""
    return hashlib.sha256(json.dumps(panels).encode()).hexdigest()[:16]


def _panels(records: Iterable[Record]) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Titles, and rows of name, speed-up and p50; the newest first, the baseline first in each."""
    newest = sorted(timed_together(records), key=lambda group: group[0]["time"], reverse=True)
    return [
        (
            f"{shape_of(group[0])}, {where(group[0])}",
            [
                (f"{one['impl']} {one['dtype']}", one["derived"]["speedup"], one["latency_ms"]["p50"])
                for one in group
                if "speedup" in one["derived"]
            ],
        )
        for group in newest[:_MOST_PANELS]
    ]
