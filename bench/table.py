"""Records as tables, which the command line, the GPU run and the README each print in their own way."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
SPEED_SUITES = ("frame", "kernel", "train", "train_kernel")

_NONE = "-"
_RATES = {
    "frame": ("frames/s", "fps"),
    "train": ("images/s", "images_per_s"),
    "kernel": ("GB/s", "gb_per_s"),
    "train_kernel": ("GB/s", "gb_per_s"),
}
_QUALITIES = {"frame": "PSNR against plain", "train": "first losses", "kernel": "error", "train_kernel": "error"}
_WAYS = ("sm90", "triton", "cudnn", "reference")


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; the first column is read from the left."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The table for a terminal that may know nothing but letters."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        said = [
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
            for pairs in (list(zip(line, widths, strict=True)) for line in lines)
        ]
        return "\n".join([self.title, *(line.rstrip() for line in said), *self.notes]) + "\n"

    def markdown(self) -> str:
        """The table for a README, without its title."""
        lines = ("| " + " | ".join(line) + " |\n" for line in [self.columns, *self.rows])
        head, *rest = lines
        notes = [f"\n{note}.\n" for note in self.notes]
        return "".join([head, "|---" * len(self.columns) + "|\n", *rest, *notes])


def speed_tables(
    records: Iterable[Record], *, with_ids: bool = False, brief: bool = False
) -> list[tuple[Table, Record]]:
    """One table for everything that was timed together, with its first record; the baseline comes first.

    A red gate shows no speed. A brief table has the median, the rate, the speed-up and the quality.
    """
    return [(_speed_table(rows, with_ids, brief), rows[0]) for rows in timed_together(records)]


def timed_together(records: Iterable[Record]) -> list[list[Record]]:
    """The records of the speed suites, those that took turns in one list, its baseline first; oldest first."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for one in records:
        if one["suite"] in SPEED_SUITES:
            groups.setdefault((one["run"], *_together(one)), []).append(one)
    ordered = sorted(
        groups.items(), key=lambda item: (SPEED_SUITES.index(item[1][0]["suite"]), item[1][0]["time"], item[0])
    )
    return [sorted(group, key=_order) for _, group in ordered]


def ceiling_line(records: Iterable[Record]) -> str:
    """The ceilings of a run in one line, or nothing if they are not among the records."""
    known = [one for one in records if one["suite"] == "ceiling"]
    said = {one["name"]: one["derived"] for one in known if "serves" not in one}
    if not {"matmul", "copy"} <= set(said):
        return ""
    tflops, rate = said["matmul"]["tflops"], said["copy"]["gb_per_s"]
    products = {one["dtype"]: one["derived"]["tflops"] for one in known if "serves" in one}
    floor = ", ".join(f"{product:.3g} in {dtype}" for dtype, product in products.items())
    return f"ceilings measured in this run: {tflops:.3g} TFLOP/s (matrix product), {rate:.4g} GB/s (copy)" + (
        f"; floor of training by products of {floor} TFLOP/s\n" if floor else "\n"
    )


def rates_table(records: Iterable[Record]) -> Table:
    """What kernels like this project's may reach on a Hopper GPU."""
    units = {"tflops": "TFLOP/s", "gb_per_s": "GB/s", "us_a_launch": "us a launch"}
    rows = []
    for one in records:
        figure = next((f"{value:.4g} {units[key]}" for key, value in one["derived"].items()), "gate failed")
        rows.append((f"{one['name']} {one['case']}", one["dtype"], figure))
    return Table("rates of kernels like ours", ("rate", "dtype", "measured"), rows)


def winners_table(records: Iterable[Record]) -> Table:
    """Which implementation of an op was the fastest at each shape, by the last run of it, and which one `run` takes."""
    groups: dict[str, dict[str, Record]] = {}
    for rows in timed_together(records):
        if rows[0]["suite"] == "kernel":
            groups[shape_of(rows[0])] = {one["impl"]: one for one in rows if one["quality"]["gate"] == "pass"}
    lines = []
    for what, sides in groups.items():
        mine = {impl: one for impl, one in sides.items() if impl not in ("run", "cudnn")}
        if not mine:
            continue
        won = min(mine.values(), key=lambda one: one["latency_ms"]["p50"])
        times = [_ms(sides[impl]["latency_ms"]["p50"]) if impl in sides else _NONE for impl in _WAYS]
        over = sides["sm90"]["derived"].get("speedup_vs_triton") if "sm90" in sides else None
        took = sides["run"].get("chosen", _NONE) if "run" in sides else _NONE
        fraction = won["derived"].get("matmul_fraction")
        last = [_NONE if over is None else f"{over:.2f}", f"{won['derived']['tflops']:.3g}"]
        last.append(_NONE if fraction is None else f"{fraction:.0%}")
        lines.append((what, won["impl"], took, *times, *last))
    ways = (f"{impl} ms" for impl in _WAYS)
    columns = ("op and shape", "fastest", "run takes", *ways, "sm90 x triton", "TFLOP/s", "of ceiling")
    return Table("the fastest implementation of an op at each shape (cudnn: the convolution alone)", columns, lines)


def memory_table(records: list[Record]) -> Table:
    """Peaks against their plans."""
    rows = []
    for one in records:
        plan, levels = one["plan"], one["quality"]["largest_difference_levels"]
        figures = [f"{one['derived'][key]:.2f}" if one["derived"] else _NONE for key in ("peak_gib", "planned_ratio")]
        cut = f"bands of {plan['band']}" if plan["tile"] is None else f"tiles of {plan['tile']}"
        difference = f"{levels} levels" + ("" if one["quality"]["gate"] == "pass" else ", gate failed")
        rows.append((f"{one['impl']} {one['dtype']}", *figures, cut, difference))
    first = records[0]
    title = f"{first['name']}, {first['shape']['w']}x{first['shape']['h']}, memory"
    return Table(title, ("implementation", "peak GiB", "planned/measured", "cut", "difference from uncut"), rows)


def reuse_table(records: Sequence[Record]) -> Table:
    """Frames of a video with reuse and without, by what changes from one to the next."""
    rows = []
    for one in records:
        derived = one["derived"]
        figures = [f"{derived[key]:.1f}" if derived else _NONE for key in ("p50_off_ms", "p50_on_ms")]
        speedup = f"{derived['speedup']:.2f}x" if derived else f"{_NONE} (gate failed)"
        rows.append((one["pattern"], *figures, speedup, one["reason"] or f"{one['saved']:.0%}"))
    first = records[0]
    title = f"{first['name']}, {first['shape']['w']}x{first['shape']['h']}, {first['impl']} {first['dtype']}, reuse"
    return Table(title, ("what changes", "off ms", "on ms", "speed-up", "pixels not computed"), rows)


def video_table(one: Record) -> Table:
    """What a clip took in each way and in each stage alone; below it what that means, and how its pictures are."""
    raw, derived, shape = one["raw"], one["derived"], one["shape"]
    rows = []
    for name, samples in raw["seconds"].items():
        ms, cpu_ms = (1e3 * statistics.median(values) / raw["frames"] for values in (samples, raw["cpu_s"][name]))
        # Each stage in the chain into nothing, an encoder in its own.
        stage, *codec = name.removeprefix("alone ").split()
        chain = raw["busy_s"][codec[0] if stage == "encode" else "null"]
        worked = chain.get("upscale" if name == "model" else stage)
        in_chain = _NONE if worked is None else _ms(1e3 * worked / raw["frames"])
        figures = (f"{1e3 / ms:.4g}", _ms(ms), _ms(cpu_ms), in_chain) if derived else (_NONE,) * 4
        rows.append((name, *figures))
    shares = {key: value for key, value in derived.items() if "_of_" in key or key.endswith(("_share", "_busy"))}
    notes = [f"{key.replace('_', ' ')}: {value:.0%}" for key, value in shares.items()]
    notes += [f"{key.replace('_', ' ')}: {value:.2f}" for key, value in derived.items() if key.startswith("speedup")]
    if derived:
        peak = f"peak {derived['peak_gib']:.2f} GiB, " if "peak_gib" in derived else ""
        notes.append(f"memory: {peak}grew by {derived['growth_bytes'] / 2**20:.1f} MiB from the first tenth to the end")
    quality = one["quality"]
    said = ", ".join(f"{name} {value:.1f} dB" for name, value in quality["luma_psnr_db"].items())
    gate = "" if quality["gate"] == "pass" else ", gate failed"
    notes.append(f"off by {quality['largest_difference_levels']} levels before encoding; luma in files: {said}{gate}")
    notes += [f"without {name}: {reason}" for name, reason in one["left_out"].items()]
    at_once = f", {shape['n']} at once" if shape["n"] > 1 else ""
    title = f"{one['name']}, {shape['w']}x{shape['h']} LR, {raw['frames']} frames{at_once}, {where(one)}"
    title += f", {raw['cores']} cores, {one['impl']} {one['dtype']}"
    columns = ("way, or stage alone", "frames/s", "ms a frame", "CPU ms a frame", "busy ms in the chain")
    return Table(title, columns, rows, tuple(notes))


def precision_table(records: Sequence[Record], *, with_ids: bool = False) -> Table:
    """What each precision is worth on one set."""
    rows = []
    for one in records:
        derived = one["derived"]
        figures = [
            form.format(derived[key]) if key in derived else _NONE
            for key, form in (
                ("psnr_db", "{:.3f}"),
                ("ssim", "{:.4f}"),
                ("drop_db", "{:.3f}"),
                ("psnr_db_vs_fp32", "{:.1f}"),
                ("max_error_levels", "{:.2f}"),
            )
        ]
        said = one["dtype"] if one["quality"]["gate"] == "pass" else f"{one['dtype']}, gate failed"
        rows.append((said, *figures, *([f"`{one['id']}`"] if with_ids else [])))
    columns = ["precision", "PSNR dB", "SSIM", "lost dB", "PSNR dB against fp32", "largest error of 255"]
    first = records[0]
    return Table(f"{first['name']} on {first['set']}", tuple(columns + ["record"] * with_ids), rows)


def where(one: Record) -> str:
    """The machine of a record."""
    env = one["env"]
    return f"{env['gpu'] or env['cpu']}" if one.get("device") != "cpu" else str(env["cpu"])


def shape_of(one: Record) -> str:
    """What was timed, in words: name and size."""
    shape = one["shape"]
    if one["suite"] == "train":
        return f"training {one['name']}, batch {shape['n']}, crop {shape['h']}"
    if one["suite"] == "train_kernel":
        return f"{one['name']} ({one['case']}), batch {shape['n']} of {shape['w']}x{shape['h']}"
    at_once = f", batch {shape['n']}" if shape["n"] > 1 else ""
    case = f" ({one['case']})" if one["suite"] == "kernel" else ""
    return f"{one['name']}{case}, {shape['w']}x{shape['h']} LR{at_once}"


def quality_of(one: Record) -> str:
    """How good a result is, in a cell."""
    quality = one["quality"]
    if one["suite"] == "frame":
        psnr = quality["psnr_db_vs_plain"]
        said = "equal" if psnr is None else f"{psnr:.1f} dB"
    elif one["suite"] in ("kernel", "train_kernel"):
        said = f"max error {quality['max_error']:.1e} of {quality['max_allowed']:.1e}"
    elif "equal" in quality:
        said = "as on a CPU" if quality["equal"] else "not as on a CPU"
    else:
        said = f"loss within {quality['loss_relative_difference']:.1e}"
    return said if quality["gate"] == "pass" else f"{said}, gate failed"


def _speed_table(rows: list[Record], with_ids: bool, brief: bool) -> Table:
    suite, first = rows[0]["suite"], rows[0]
    rate, quality = _RATES[suite], _QUALITIES[suite]
    # What no row has is no column: records of a CPU know no rival, and older ones no ceiling.
    optional = [
        (title, key, form)
        for title, key, form in (
            ("x channels_last fp16", "speedup_vs_channels_last", "{:.2f}"),
            ("x torch_bf16_folded", "speedup_vs_torch_bf16_folded", "{:.2f}"),
            ("x torch_fp32_folded", "speedup_vs_torch_fp32_folded", "{:.2f}"),
            ("x torch.compile", "speedup_vs_compile", "{:.2f}"),
            ("x fused fp16", "speedup_vs_fused_fp16", "{:.2f}"),
            ("x triton", "speedup_vs_triton", "{:.2f}"),
            ("x cuDNN, bare", "speedup_vs_cudnn", "{:.2f}"),
            ("x eager fp32", "speedup_vs_eager_fp32", "{:.2f}"),
            ("x eager bf16", "speedup_vs_eager_bf16", "{:.2f}"),
            ("x graph", "speedup_vs_graph", "{:.2f}"),
            ("TFLOP/s", "tflops", "{:.3g}"),
            ("of ceiling", "matmul_fraction", "{:.0%}"),
            ("of floor", "floor_fraction", "{:.0%}"),
            ("loader", "loader_share", "{:.1%}"),
        )
        if not brief and any(key in one["derived"] for one in rows)
    ]
    times = ("p50",) if brief else ("p50", "p20", "p80")
    peak, first_call = (
        not brief and any(one.get(key) is not None for one in rows) for key in ("peak_bytes", "first_ms")
    )
    first_call = first_call and suite == "train"
    columns = ["implementation", "p50 ms", *times[1:], rate[0], "speed-up", *(title for title, _, _ in optional)]
    columns += ["ready s"] * first_call + ["peak MiB"] * peak + [quality] + ["record"] * with_ids
    lines = []
    for one in rows:
        derived = one["derived"]
        if one["quality"]["gate"] == "pass":
            speed = [_ms(one["latency_ms"][key]) for key in times]
            speed += [_or_none(derived, rate[1], "{:.4g}"), _or_none(derived, "speedup", "{:.2f}")]
            speed += [_or_none(derived, key, form) for _, key, form in optional]
        else:
            speed = [_NONE] * (len(times) + 2 + len(optional))
        if first_call:
            speed.append(f"{one['compile_s'] + one['first_ms'] / 1e3:.2f}" if "first_ms" in one else _NONE)
        if peak:
            held = one.get("peak_bytes")
            speed.append(_NONE if held is None else f"{held / 2**20:.0f}")
        ids = [f"`{one['id']}`"] if with_ids else []
        lines.append((_label(one), *speed, quality_of(one), *ids))
    title = f"{shape_of(first)}, {where(first)}, {first['env']['threads']} threads"
    missing: dict[str, list[str]] = {}
    for what, reason in first.get("left_out", {}).items():
        missing.setdefault(reason, []).append(what)
    notes = tuple(f"without {', '.join(some)}: {reason}" for reason, some in missing.items())
    return Table(title, tuple(columns), lines, notes)


def _label(one: Record) -> str:
    if one["impl"] == "loop":
        return f"loader and {one['of']} {one['dtype']}"
    if one["impl"] == "loader":
        return "loader"
    return f"{one['impl']} {one['dtype']}" + " (auto)" * one.get("auto", False)


def _or_none(derived: dict[str, float], key: str, form: str) -> str:
    return form.format(derived[key]) if key in derived else _NONE


def _together(one: Record) -> tuple[Any, ...]:
    shape = one["shape"]
    alone = one["dtype"] if one["suite"] in ("kernel", "train_kernel") else ""
    return one["suite"], one["name"], one.get("case", ""), alone, shape["h"] * shape["w"], shape["h"], shape["n"]


def _order(one: Record) -> tuple[Any, ...]:
    base = (one["impl"], one["dtype"]) != (one["baseline"], one.get("baseline_dtype", "fp32"))
    # What makes batches comes after what they are made for.
    return base, one["impl"] in ("loader", "loop"), one["impl"], one["dtype"] != "fp32", one["dtype"]


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"
