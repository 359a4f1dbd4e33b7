"""Mean opinion scores for the page, as `srgan-fast mos analyse --json` writes them: of humans or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srgan_fast.errors import InputError

_LARGEST = 64 << 20


def read_opinions(path: Path) -> dict[str, Any]:
    """The raters, and for each method its counts by score, its mean and its interval.

    Raises:  InputError for another file, for scores that no human gave, and for counts and means that do not agree
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"expected opinions of at most {_LARGEST >> 20} MB, got more in {path}; check the path")
        content = json.loads(path.read_bytes())
        kind, raters = content["kind"], content["raters"]["used"]
        methods = [_method(entry) for entry in content["methods"]]
    except OSError as error:
        raise InputError(f"expected a readable file, got {path}: {error.strerror}; check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"expected {path} as `srgan-fast mos analyse --json` writes it, got another or a damaged file "
            f"({type(error).__name__}: {str(error)[:80]}); analyse the study again"
        ) from None
    if kind != "opinion" or not isinstance(raters, int) or raters < 1 or not any(m["ratings"] for m in methods):
        got = kind if kind != "opinion" else f"{raters} raters"
        raise InputError(
            f"expected opinions of human raters in {path}, got {str(got)[:40]}; no opinion score is shown without them"
        )
    return {"raters": raters, "methods": [method for method in methods if method["ratings"]]}


def _method(entry: Mapping[str, Any]) -> dict[str, Any]:
    counts = {score: int(entry["counts"][str(score)]) for score in range(1, 6)}
    ratings = sum(counts.values())
    mean = sum(score * count for score, count in counts.items()) / ratings if ratings else math.nan
    if min(counts.values()) < 0 or (ratings and abs(mean - float(entry["mos"])) > 1e-6):
        raise ValueError(f"the counts of {entry['name']} do not give its mean")
    interval = entry.get("ci95")
    ends = None if interval is None else [float(end) for end in interval]
    return {"name": str(entry["name"]), "counts": counts, "ratings": ratings, "mos": mean, "ci95": ends}
