"""The figures that follow from raw numbers: one place for those who write records and those who doubt them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

# Implementations (in one dtype, or any) that every other one is held against where they ran beside it: what a user
# would otherwise take, and this project's own without what is new. In figures as `speedup_vs_` and the first name.
_RIVALS: dict[str, dict[str, tuple[str, str | None]]] = {
    "frame": {
        "channels_last": ("channels_last", None),
        "torch_bf16_folded": ("torch_bf16_folded", None),
        "torch_fp32_folded": ("torch_fp32_folded", None),
        "compile": ("compile", None),
        "triton": ("fused-triton", None),
        "fused_fp16": ("fused", "fp16"),
        "tensorrt": ("tensorrt", "fp16"),
    },
    "kernel": {"triton": ("triton", None), "cudnn": ("cudnn", None)},
    "train": {
        "eager_fp32": ("eager", "fp32"),
        "eager_bf16": ("eager", "bf16"),
        "compile": ("compile", None),
        "graph": ("graph", None),
    },
    "train_kernel": {},
}


def ceiling_figures(one: Record) -> dict[str, float]:
    """TFLOP/s of products, GB/s of copies, or microseconds of a launch."""
    p50 = one["latency_ms"]["p50"]
    if "launches" in one:
        return {"us_a_launch": p50 * 1e3 / one["launches"]}
    return {"tflops": one["flops"] / p50 / 1e9} if "flops" in one else {"gb_per_s": one["bytes"] / p50 / 1e6}


def timed_figures(one: Record, beside: Iterable[Record], ceilings: Iterable[Record]) -> dict[str, float]:
    """What the times of one record say, given those measured beside it and the ceilings of its run.

    `speedup` is over the baseline, `speedup_vs_X` over an X that ran beside it and passed its gate. `tflops` and
    `gb_per_s` are the work that the plain network (or op) asks for over the time it took, whoever saved some of it.
    A training step is held against the product in its own precision: `floor_ms` is its work at that rate.

    Raises:  ValueError if the baseline is not there
    """
    p50 = one["latency_ms"]["p50"]
    others = list(beside)
    if one["impl"] in ("loader", "loop"):
        return _loader_figures(one, others)
    wanted = one["baseline"], one.get("baseline_dtype", "fp32")
    base = next((other for other in others if (other["impl"], other["dtype"]) == wanted), None)
    if base is None:
        raise ValueError(f"expected the baseline {wanted[0]} {wanted[1]} beside {one['impl']}, got none; keep both")
    found: dict[str, float] = {"speedup": base["latency_ms"]["p50"] / p50}
    if one["suite"] == "frame":
        found["fps"] = one["shape"]["n"] * 1e3 / p50
    if one["suite"] == "train":
        found["images_per_s"] = one["shape"]["n"] * 1e3 / p50
        found["loss_difference"] = loss_difference(one["losses"], base["losses"])
    for name, (impl, dtype) in _RIVALS[one["suite"]].items():

        def is_rival(other: Record, impl: str = impl, dtype: str | None = dtype) -> bool:
            return other["impl"] == impl and dtype in (None, other["dtype"])

        rival = next((other for other in others if is_rival(other)), None)
        if rival is not None and not is_rival(one) and rival["quality"]["gate"] == "pass":
            found[f"speedup_vs_{name}"] = rival["latency_ms"]["p50"] / p50
            if name == "graph":
                # What the kernels change, and nothing else.
                found["loss_difference_vs_graph"] = loss_difference(one["losses"], rival["losses"])
    best: dict[str, float] = {}
    for each in ceilings:
        if each.get("serves") is None and one["suite"] != "train":
            best |= ceiling_figures(each)
        elif each.get("serves") == one["suite"] and each["dtype"] == one["dtype"]:
            found["floor_ms"] = one["flops"] / ceiling_figures(each)["tflops"] / 1e9
            found["floor_fraction"] = found["floor_ms"] / p50
    for amount, rate, scale, fraction in (
        ("flops", "tflops", 1e9, "matmul_fraction"),
        ("bytes", "gb_per_s", 1e6, "copy_fraction"),
    ):
        if amount in one:
            found[rate] = one[amount] / p50 / scale
            if rate in best:
                found[fraction] = found[rate] / best[rate]
    return found


def _loader_figures(one: Record, beside: list[Record]) -> dict[str, float]:
    """What batches cost: by themselves, and in a loop with the step that the record names, where some of it is hidden.

    `loader_share` is the part of the loop's time that the step alone would not take; noise may make it negative.
    """
    p50 = one["latency_ms"]["p50"]
    found = {"images_per_s": one["shape"]["n"] * 1e3 / p50}
    if one["impl"] == "loop":
        times = {(other["impl"], other["dtype"]): other["latency_ms"]["p50"] for other in beside}
        try:
            alone, loader = times[one["of"], one["dtype"]], times["loader", "uint8"]
        except KeyError as error:
            raise ValueError(f"expected {error.args[0]} beside the loop, got none; keep all") from None
        found |= {"loader_share": 1 - alone / p50, "loader_alone": loader / alone}
    return found


def loss_difference(got: Sequence[Mapping[str, float]], want: Sequence[Mapping[str, float]]) -> float:
    """The largest difference of loss terms over the same steps, relative to the largest value that the term has there.

    That of a discriminator goes to nothing when it wins, and its last digits with it. Terms that only one side has are
    passed over. NaN where one is: `max` would forget it.
    """
    scales = {name: max(abs(terms[name]) for terms in want) for name in want[0]}
    off = [
        abs(mine[name] - theirs[name]) / max(scales[name], 1e-12)
        for mine, theirs in zip(got, want, strict=True)
        for name in mine.keys() & theirs.keys()
    ]
    return math.nan if any(math.isnan(each) for each in off) else max(off)


def checked_figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """What a check of `bench/parts.py` counted, from what it saw."""
    found: dict[str, float] = {}
    if "outcomes" in raw:
        found["failed"] = sum(not passed for passed in raw["outcomes"].values())
    if "host_syncs" in raw:
        found["host_syncs"] = len(raw["host_syncs"])
    if "first_use_s" in raw:
        found["compile_s"] = raw["first_use_s"]["empty cache"] - raw["first_use_s"]["full cache"]
    if "hit_s" in raw:
        found["hit_s"] = raw["hit_s"]
    if "p50_ms" in raw:
        # Of what was timed side by side, where the fast one comes off worst.
        found["least_speedup"] = min(sides["other"] / sides["fast"] for sides in raw["p50_ms"].values())
    if "held_bytes" in raw:
        found["growth_bytes"] = raw["held_bytes"][-1] - raw["held_bytes"][0]
    return found


def reuse_figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """What computing only what changed gains, from milliseconds a frame with it and without."""
    on, off = (statistics.median(raw[side]) for side in ("on_ms", "off_ms"))
    return {"p50_on_ms": on, "p50_off_ms": off, "speedup": off / on}


def video_figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """What a video takes in each way, from the seconds and the CPU seconds of whole passes over its frames.

    `X_fps` of each way X that was timed. `null_of_model` is the whole chain into nothing over the network alone,
    `X_of_cores` the chain into X over what all cores could do of the CPU seconds that its stages take alone,
    `X_of_slowest` over its slowest stage alone, `X_of_floor` over decoding and encoding alone, `speedup_vs_X` the
    command over other ways with the same upscaler. `sleep_of_slowest` has a sleep in the place of the network.
    `conversion_share` is what conversions of colours and queues take alone, of the time of a frame.
    """
    frames = raw["frames"]
    wall = {name: statistics.median(samples) for name, samples in raw["seconds"].items()}
    # The least: threads that spin while they wait for each other take more on a machine that does other work too.
    cpu = {name: min(samples) for name, samples in raw["cpu_s"].items()}
    codecs = [name.removeprefix("floor ") for name in wall if name.startswith("floor ")]
    found = {f"{name.replace(' ', '_')}_fps": frames / each for name, each in wall.items() if "alone" not in name}
    conversions = ("alone upload", "alone download", "alone queues")
    before_encoding = ("alone decode", *conversions)
    chain_cpu_s = cpu["model"] + sum(cpu[name] for name in before_encoding)
    found["null_of_model"] = wall["model"] / wall["null"]
    found["null_of_cores"] = chain_cpu_s / raw["cores"] / wall["null"]
    found["conversion_share"] = sum(wall[name] for name in conversions) / wall["null"]
    slowest = max(raw["sleep_s"] * frames, *(wall[name] for name in before_encoding))
    found["sleep_of_slowest"] = slowest / wall["sleep"]
    for codec in codecs:
        alone = f"alone encode {codec}"
        found[f"{codec}_of_cores"] = (chain_cpu_s + cpu[alone]) / raw["cores"] / wall[codec]
        found[f"{codec}_of_slowest"] = max(wall["model"], wall[alone]) / wall[codec]
        found[f"{codec}_of_floor"] = wall[f"floor {codec}"] / wall[codec]
    for name in ("png", "opencv"):
        if name in wall and "libx264" in wall:
            found[f"speedup_vs_{name}"] = wall[name] / wall["libx264"]
    if "gpu_busy_s" in raw:
        found["gpu_busy"] = raw["gpu_busy_s"] / raw["gpu_wall_s"]
    if "peak_bytes" in raw:
        found["peak_gib"] = raw["peak_bytes"] / 2**30
    found["growth_bytes"] = raw["held_bytes"][-1] - raw["held_bytes"][0]
    return found


def precision_figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """What a precision is worth on a set, as means over its images; `max_error_levels` is the largest, of 255.

    Without `psnr_db_vs_fp32` where a picture is that of fp32, and `training_minutes` where the weights do not say.
    """
    images = raw["images"]

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(images)

    found = {key: mean(each[key] for each in images) for key in ("psnr_db", "ssim")}
    found["drop_db"] = mean(each["plain_psnr_db"] for each in images) - found["psnr_db"]
    found["max_error_levels"] = 255 * max(each["max_error"] for each in images)
    if all(each["mse"] > 0 for each in images):
        found["psnr_db_vs_fp32"] = mean(-10 * math.log10(each["mse"]) for each in images)
    if "training" in raw:
        found["training_minutes"] = raw["training"]["duration_s"] / 60
    return found
