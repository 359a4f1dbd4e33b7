"""What the project promises, held against the records that prove it.

A record is believed only if nothing in it contradicts itself: its id is the digest of its content, its percentiles
and ratios follow from its samples, its tree was clean, its quality gate passed.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from srgan_fast.bench.figures import (
    ceiling_figures,
    checked_figures,
    precision_figures,
    reuse_figures,
    timed_figures,
    video_figures,
)
from srgan_fast.bench.memory import derive
from srgan_fast.bench.record import content_id, latency, source_digest

FOLDER = Path(__file__).resolve().parent
CLAIMS, RESULTS = FOLDER / "claims.toml", FOLDER / "results"

Record = dict[str, Any]
# Suites whose figures follow from what a record has under `raw`, by what makes them.
_FROM_RAW: dict[str, Callable[[Record], dict[str, float]]] = {
    "precision": precision_figures,
    "reuse": reuse_figures,
    "video": video_figures,
    "gpu": checked_figures,
    "parts": checked_figures,
}
Status = Literal["proven", "stale", "unproven"]


@dataclass(frozen=True)
class Claim:
    """One promised figure: what it says, its bar, and the record (or the test) that stands behind it."""

    name: str
    says: str
    suite: str
    where: dict[str, Any]
    quantity: str
    record: str
    evidence: str
    at_least: float = -math.inf
    at_most: float = math.inf
    needs: dict[str, bool | str] = field(default_factory=dict)

    @property
    def bar(self) -> str:
        """The bar in words."""
        if math.isinf(self.at_most):
            return f"at least {self.at_least:g}"
        if math.isinf(self.at_least):
            return f"at most {self.at_most:g}"
        return f"{self.at_least:g} to {self.at_most:g}"


@dataclass(frozen=True)
class Verdict:
    """What a claim is worth today; `value` is None when it is unproven."""

    claim: Claim
    status: Status
    value: float | None = None
    record: Record | None = None


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of a file.

    Raises:  ValueError for one without a bar, or unproven without a test
    """
    claims = [Claim(name=name, **fields) for name, fields in tomllib.loads(path.read_text()).items()]
    for claim in claims:
        if math.isinf(claim.at_least) and math.isinf(claim.at_most):
            raise ValueError(f"expected at_least or at_most in the claim {claim.name}, got neither")
        if claim.record == "unproven" and "::" not in claim.evidence:
            raise ValueError(f"expected a test as the evidence of the unproven {claim.name}, got {claim.evidence!r}")
    return claims


def load_records(folder: Path = RESULTS) -> dict[str, Record]:
    """The records of a folder of JSON Lines, by id.

    Raises:  ValueError for an id that occurs twice
    """
    records: dict[str, Record] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            one = json.loads(line)
            if one["id"] in records:
                raise ValueError(f"expected each record once, got {one['id']} again in {path.name}; remove one")
            records[one["id"]] = one
    return records


def verify(one: Record, records: Iterable[Record]) -> None:
    """Recompute what a record says from its raw numbers; `records` holds the other side of its ratio.

    Raises:  ValueError that names the field which does not follow
    """
    name = f"record {one['id']}"
    if content_id(one) != one["id"]:
        raise ValueError(f"{name}: expected the id {content_id(one)}, so the line was edited; measure again")
    if one["env"]["dirty"] is not False:
        raise ValueError(f"{name}: expected a clean tree, got dirty = {one['env']['dirty']}; commit and measure again")
    if one["quality"]["gate"] != "pass":
        if one["derived"]:
            raise ValueError(f"{name}: expected no figures beside a failed gate, got {one['derived']}")
        return
    if one["suite"] == "memory":
        raw = one["bytes"]
        if not raw["measured"] < raw["peak"]:
            raise ValueError(f"{name}: expected measured < peak, got {raw}")
        _agree(name, one["derived"], derive(raw))
        return
    if one["suite"] in _FROM_RAW:
        _agree(name, one["derived"], _FROM_RAW[one["suite"]](one["raw"]))
        return
    _recomputed(one)
    if one["suite"] in ("ceiling", "rates"):
        _agree(name, one["derived"], ceiling_figures(one))
        return
    run = [other for other in records if other["run"] == one["run"]]
    beside = [other for other in run if other["suite"] == one["suite"] and _took_turns(other, one)]
    ceilings = [other for other in run if other["suite"] == "ceiling"]
    for other in (*beside, *ceilings):
        _recomputed(other)
    try:
        follows = timed_figures(one, beside, ceilings)
    except ValueError as error:
        raise ValueError(f"{name}: {error} of run {one['run']}") from None
    _agree(name, one["derived"], follows)


def judge(claim: Claim, records: dict[str, Record]) -> Verdict:
    """What a claim is worth against these records and the sources as they are now.

    Raises:  ValueError if the cited record is missing, unsound, of something else, or below the bar
    """
    if claim.record == "unproven":
        return Verdict(claim, "unproven")
    if claim.record not in records:
        raise ValueError(f"claim {claim.name}: expected a record {claim.record} in results/, got none; or say unproven")
    one = records[claim.record]
    verify(one, records.values())
    said = {**one.get("shape", {}), **one}
    wrong = {key: said.get(key) for key, want in {**claim.where, "suite": claim.suite}.items() if said.get(key) != want}
    wrong |= {key: one["env"][key] for key, want in claim.needs.items() if _lacks(one["env"][key], want)}
    if wrong:
        raise ValueError(f"claim {claim.name}: record {claim.record} is of something else: {wrong}")
    figures = one["derived"]
    if figures and "latency_ms" in one:
        figures = {**figures, "p50_ms": one["latency_ms"]["p50"]}
    if claim.quantity not in figures:
        raise ValueError(f"claim {claim.name}: record {claim.record} has no {claim.quantity}: its quality gate failed")
    value = float(figures[claim.quantity])
    if not claim.at_least <= value <= claim.at_most:
        raise ValueError(f"claim {claim.name}: expected {claim.bar}, record {claim.record} has {value:.3f}")
    current = one["env"]["sources"] == source_digest(claim.suite)
    return Verdict(claim, "proven" if current else "stale", value, one)


def _took_turns(other: Record, one: Record) -> bool:
    return all(other.get(key) == one.get(key) for key in ("name", "weights", "shape", "case"))


def _lacks(said: Any, want: bool | str) -> bool:
    """Whether an environment is not the one that a claim is about: there or not, or by a part of its name."""
    return want not in str(said) if isinstance(want, str) else bool(said) != want


def _recomputed(one: Record) -> dict[str, Any]:
    samples = one["latency_ms"]["samples"]
    if not samples or not all(isinstance(ms, float) and ms > 0 for ms in samples):
        raise ValueError(f"record {one['id']}: expected samples above 0 ms, got {samples}")
    times = latency(samples)
    _agree(f"record {one['id']}", one["latency_ms"], times)
    return times


def _agree(name: str, said: dict[str, Any], follows: dict[str, Any]) -> None:
    if set(said) != set(follows):
        odd = ", ".join(sorted(set(said) ^ set(follows)))
        raise ValueError(f"{name}: expected figures for which the raw numbers are there, got {odd}; keep the whole run")
    for key, value in follows.items():
        if key != "samples" and not math.isclose(said[key], value, rel_tol=1e-9):
            raise ValueError(f"{name}: expected {key} = {value} from its samples, got {said[key]}")
