"""The figures that follow from raw numbers: one place for those who write records and those who doubt them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]

# Implementations (in one dtype, or any) that every other one is held against where they ran beside it: what a user
# would otherwise take, and this project's own without what is new. In figures as `speedup_vs_` and the first name.
_RIVALS: dict[str, dict[str, tuple[str, str | None]]] = {
    "frame": {
        "channels_last": ("channels_last", None),
        "compile": ("compile", None),
        "triton": ("fused-triton", None),
        "fused_fp16": ("fused", "fp16"),
    },
    "kernel": {"triton": ("triton", None), "cudnn": ("cudnn", None)},
    "train": {},
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

    Raises:  ValueError if the baseline is not there
    """
    p50 = one["latency_ms"]["p50"]
    others = list(beside)
    wanted = one["baseline"], one.get("baseline_dtype", "fp32")
    base = next((other for other in others if (other["impl"], other["dtype"]) == wanted), None)
    if base is None:
        raise ValueError(f"expected the baseline {wanted[0]} {wanted[1]} beside {one['impl']}, got none; keep both")
    found: dict[str, float] = {"speedup": base["latency_ms"]["p50"] / p50}
    if one["suite"] == "frame":
        found["fps"] = one["shape"]["n"] * 1e3 / p50
    if one["suite"] == "train":
        found["steps_per_s"] = 1e3 / p50
    for name, (impl, dtype) in _RIVALS[one["suite"]].items():

        def is_rival(other: Record, impl: str = impl, dtype: str | None = dtype) -> bool:
            return other["impl"] == impl and dtype in (None, other["dtype"])

        rival = next((other for other in others if is_rival(other)), None)
        if rival is not None and not is_rival(one) and rival["quality"]["gate"] == "pass":
            found[f"speedup_vs_{name}"] = rival["latency_ms"]["p50"] / p50
    best: dict[str, float] = {}
    for each in ceilings:
        best |= ceiling_figures(each)
    for amount, rate, scale, fraction in (
        ("flops", "tflops", 1e9, "matmul_fraction"),
        ("bytes", "gb_per_s", 1e6, "copy_fraction"),
    ):
        if amount in one:
            found[rate] = one[amount] / p50 / scale
            if rate in best:
                found[fraction] = found[rate] / best[rate]
    return found


def checked_figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """What a check of `bench/parts.py` counted, from what it saw."""
    found: dict[str, float] = {}
    if "outcomes" in raw:
        found["failed"] = sum(not passed for passed in raw["outcomes"].values())
    if "host_syncs" in raw:
        found["host_syncs"] = len(raw["host_syncs"])
    if "first_use_s" in raw:
        found["compile_s"] = raw["first_use_s"]["empty cache"] - raw["first_use_s"]["full cache"]
    if "p50_ms" in raw:
        # Of what was timed side by side, where the fast one comes off worst.
        found["least_speedup"] = min(sides["other"] / sides["fast"] for sides in raw["p50_ms"].values())
    if "held_bytes" in raw:
        found["growth_bytes"] = raw["held_bytes"][-1] - raw["held_bytes"][0]
    return found


def precision_figures(raw: Mapping[str, Any]) -> dict[str, float]:
    """What a precision is worth on a set, as means over its images; `max_error_levels` is the largest, of 255.

    Without `psnr_db_vs_fp32` where a picture is that of fp32.
    """
    images = raw["images"]

    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(images)

    found = {key: mean(each[key] for each in images) for key in ("psnr_db", "ssim")}
    found["drop_db"] = mean(each["plain_psnr_db"] for each in images) - found["psnr_db"]
    found["max_error_levels"] = 255 * max(each["max_error"] for each in images)
    if all(each["mse"] > 0 for each in images):
        found["psnr_db_vs_fp32"] = mean(-10 * math.log10(each["mse"]) for each in images)
    return found
