"""The results of an analysis for people and for programs: remarks, tables of values, a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srgan_fast.atomic import atomic
from srgan_fast.errors import OutputError, UsageError
from srgan_fast.evaluate.mos import LABELS
from srgan_fast.evaluate.mos.store import Rating
from srgan_fast.evaluate.mos.study import Study

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
SIMULATION = "SIMULATION, no opinion scores: these ratings were made by programs"
_RATERS_BT500 = 15
_SIGNIFICANT = 0.05


def who(results: Mapping[str, Any]) -> str:
    """How many raters and ratings there were, and of what kind."""
    raters = results["raters"]
    kind = "simulated" if results["kind"] == "simulation" else "human"
    text = f"{_count(raters['used'], f'{kind} rater')}, {_count(results['ratings'], 'rating')}"
    if raters["unfinished"]:
        text += f"; {raters['unfinished']} did not finish"
    return text


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know to take the figures for what they are."""
    found = []
    raters, tests = results["raters"], results["tests"]
    if results["kind"] == "simulation":
        found.append(SIMULATION)
    if raters["other_kind"]:
        others = "humans" if results["kind"] == "simulation" else "programs (simulated)"
        found.append(f"{_count(raters['other_kind'], 'rater')} that were {others} left out")
    if raters["used"] < _RATERS_BT500:
        found.append(f"BT.500 asks for at least {_RATERS_BT500} raters, here there were {raters['used']}")
    if not results["calibration_images"]:
        found.append("raters were not calibrated: the study was prepared without --calibration")
    smallest, images = tests["smallest_p_by_image"], results["images"]
    if smallest > _SIGNIFICANT:
        found.append(
            f"{images} images: the smallest possible two-sided p by image is {smallest:g}, so that no difference can "
            f"be significant at {_SIGNIFICANT}"
        )
    elif smallest * tests["comparisons"] > _SIGNIFICANT:
        found.append(
            f"{images} images: the smallest p by image is {smallest:.2g}, {smallest * tests['comparisons']:.2g} after "
            f"Holm's correction for {tests['comparisons']} comparisons, so that by itself none can be significant at "
            f"{_SIGNIFICANT}"
        )
    for key, text in (
        ("pictures_that_did_not_fit", "were of a picture larger than the rater's window"),
        ("pictures_zoomed", "were given while the page was zoomed"),
    ):
        if results[key]:
            found.append(f"{results[key]} of {_count(results['ratings'], 'rating')} {text}")
    rejected = results["screening"]["rejected"]
    if rejected:
        done = "left out" if results["screening"]["applied"] else "kept; --screened leaves them out"
        found.append(f"BT.500's screening rejects {_count(len(rejected), 'rater')} ({', '.join(rejected)}), {done}")
    else:
        found.append("BT.500's screening rejects nobody")
    retest = results["retest"]
    if retest is None:
        found.append("test-retest unknown: no picture was rated twice")
    else:
        found.append(
            f"test-retest over {_count(retest['pairs'], 'pair')}: {retest['equal']:.0%} equal, "
            f"{retest['within_one']:.0%} within 1, mean change {retest['mean_difference']:+.2f}, Wilcoxon p "
            f"{retest['p']:.3g}" + ("" if retest["spearman"] is None else f", Spearman {retest['spearman']:.2f}")
        )
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def stimuli_csv(results: Mapping[str, Any]) -> str:
    """One line a method, over all images (`*`), then one a picture."""
    kind = {"kind": results["kind"], "raters": results["raters"]["used"]}
    rows = [{**kind, "method": row["name"], "image": "*", **row} for row in results["methods"]]
    rows += [{**kind, **row} for row in results["stimuli"]]
    columns = ("kind", "raters", "method", "image", "ratings", "mos", "sd", "ci95_low", "ci95_high", "dmos", "rank")
    for row in rows:
        row["ci95_low"], row["ci95_high"] = row["ci95"] or (None, None)
    return _csv(columns, rows)


def ratings_csv(study: Study, ratings: Sequence[Rating]) -> str:
    """Every rating of the test, of every origin, for statistics of one's own."""
    where = {stimulus.id: stimulus for stimulus in study.test}
    rows = []
    for rating in ratings:
        stimulus = where[rating.stimulus]
        seen = {**vars(rating.circumstances), "fits": int(rating.circumstances.fits)}
        rows.append({**vars(rating), "image": stimulus.image, "method": stimulus.method, **seen})
    columns = ("rater", "origin", "position", "image", "method", "repeat", "score", "changes", "elapsed_ms")
    return _csv((*columns, "width", "height", "ratio", "zoom", "fits", "rated_utc"), rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def check_plot(path: Path) -> None:
    """Refuse a format that cannot be drawn, before any work.

    Raises:  UsageError
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"expected a plot of {', '.join(PLOT_SUFFIXES)}, got {path.name}; name it so")


def plot(path: Path, results: Mapping[str, Any]) -> None:
    """Draw the scores with their intervals, and the histogram of each method with its mean marked.

    Raises:  OutputError if it cannot be written
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    simulated = results["kind"] == "simulation"
    rows = sorted(results["methods"], key=lambda row: row["mos"] or 0.0)
    figure = Figure(figsize=(8, 1.2 + 0.9 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), 2, width_ratios=(3, 2))
    scores = figure.add_subplot(grid[:, 0])
    for height, row in enumerate(rows):
        if row["mos"] is None:
            continue
        low, high = row["ci95"] or (row["mos"], row["mos"])
        scores.plot([low, high], [height, height], color="#3b6ea5", linewidth=2)
        scores.plot([row["mos"]], [height], color="#3b6ea5", marker="o")
        scores.annotate(f"{row['mos']:.2f}", (row["mos"], height), (0, 7), textcoords="offset points", ha="center")
    names = [row["name"].replace("$", r"\$") for row in rows]  # matplotlib takes what is between two for a formula
    scores.set_yticks(range(len(rows)), names)
    scores.set_ylim(-0.5, len(rows) - 0.5)
    scores.set_xlim(0.8, 5.2)
    scores.set_xticks(list(LABELS), [f"{score}\n{label}" for score, label in LABELS.items()])
    scores.set_xlabel("simulated mean score" if simulated else "mean opinion score, 95% interval over ratings")
    scores.grid(axis="x", alpha=0.3)
    for height, row in enumerate(rows):
        bars = figure.add_subplot(grid[len(rows) - 1 - height, 1])
        counts = [row["counts"][str(score)] for score in LABELS]
        bars.bar(list(LABELS), counts, color="#9db7d2", width=0.8)
        if row["mos"] is not None:
            bars.axvline(row["mos"], color="#b5402c", linewidth=1.5)
        bars.set_xlim(0.4, 5.6)
        bars.set_xticks(list(LABELS))
        bars.set_yticks([])
        bars.set_ylabel(names[height], rotation=0, ha="right", va="center")
        bars.tick_params(labelbottom=height == 0)
    figure.suptitle(f"{SIMULATION}\n{who(results)}" if simulated else who(results), fontsize=10)
    kind = path.suffix.lower()[1:]
    metadata: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    try:
        with atomic(path) as file:
            figure.savefig(file, format=kind, dpi=110, metadata=metadata[kind])
    except OSError as error:
        raise OutputError(f"expected to write {path}, got: {error.strerror}; choose another place") from error
