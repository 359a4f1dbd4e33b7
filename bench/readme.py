"""Writes the figures and the plot of the README, all tables in docs/measurements.md and that of docs/precision.md, from
the committed records.

usage: python -m srgan_fast.bench.readme [--check]
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from srgan_fast.bench import plot
from srgan_fast.bench.claims import Record, Verdict, judge, load_claims, load_records, verify
from srgan_fast.bench.record import ROOT, source_digest
from srgan_fast.bench.table import ceiling_line, precision_table, shape_of, speed_tables

README = ROOT / "README.md"
PLOT, EVERYTHING = ROOT / "docs" / "speed.png", ROOT / "docs" / "measurements.md"
PRECISION = ROOT / "docs" / "precision.md"
BEGIN, END = "<!-- made by bench/readme.py: begin -->", "<!-- made by bench/readme.py: end -->"


def tables(records: dict[str, Record]) -> str:
    """How many claims are proven, and in brief the speeds of single frames that were taken last.

    Raises:  ValueError where a claim or a record does not hold
    """
    for one in records.values():
        verify(one, records.values())
    text, kept = claim_count(judged(records)), shown(records)
    if kept:
        text += f"\n![speed-ups of each implementation]({PLOT.relative_to(ROOT).as_posix()})\n"
    return text + speeds(kept, brief=True) + gpu_runs(records.values())


def everything(records: dict[str, Record]) -> str:
    """The page of all claims and measurements."""
    head = "# Measurements\n\nMade by `python -m srgan_fast.bench.readme` from the records in `bench/results/`.\n"
    claims = f"\n## Claims\n\n{claim_table(judged(records))}"
    return head + claims + "\n## Speeds\n" + speeds(records.values())


def judged(records: dict[str, Record]) -> list[Verdict]:
    """What became of every claim.

    Raises:  ValueError where its record does not hold it
    """
    return [judge(claim, records) for claim in load_claims()]


def claim_count(verdicts: Sequence[Verdict]) -> str:
    """What became of the claims, in a sentence."""
    counts = Counter(verdict.status for verdict in verdicts)
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    page = EVERYTHING.relative_to(ROOT).as_posix()
    return f"Of {len(verdicts)} claims: {said}. Each has its bar and its record in [measurements]({page}).\n"


def claim_table(verdicts: Iterable[Verdict]) -> str:
    """One row a claim; what is unproven has no figure, only the test that gives the evidence there is."""
    rows = ["| claim | bar | measured | status |", "|---|---|---|---|"]
    for verdict in verdicts:
        claim, one = verdict.claim, verdict.record
        if one is None:
            rows.append(f"| {claim.says} | {claim.bar} | - | unproven; evidence: `{claim.evidence}` |")
            continue
        rows.append(
            f"| {claim.says} | {claim.bar} | {verdict.value:.2f} | {verdict.status}, `{one['id']}`, {_on(one)} |"
        )
    return "\n".join(rows) + "\n"


def speeds(records: Iterable[Record], *, brief: bool = False) -> str:
    """One table for everything that was timed together; a red gate shows no speed."""
    text, known = "", list(records)
    for table, first in speed_tables(known, with_ids=True, brief=brief):
        env = first["env"]
        stale = _stale(first)
        text += f"\n{shape_of(first)}, {_on(first)}, {env['threads']} threads, torch {env['torch']}{stale}:\n\n"
        text += table.markdown()
        if line := ceiling_line(one for one in known if one["run"] == first["run"]):
            text += f"\n{line[0].upper()}{line[1:].strip()}.\n"
    return text


def gpu_runs(records: Iterable[Record]) -> str:
    """What each part of a `make gpu` came to, the last word on each; what was not reached says so."""
    last: dict[tuple[str, str], Record] = {}
    for one in records:
        if one["suite"] == "gpu":
            last[str(one["env"]["gpu"]), one["name"]] = one
    if not last:
        return ""
    rows = [f"| {one['name']} | {one['outcome']} | {_on(one)} |\n" for one in last.values()]
    return "\n| part of `make gpu` | outcome | where |\n|---|---|---|\n" + "".join(rows)


def precisions(records: Iterable[Record]) -> str:
    """The table of each set and network on which precisions were compared, from its last run."""
    last: dict[tuple[str, str], list[Record]] = {}
    for one in records:
        if one["suite"] == "precision":
            group = last.setdefault((one["name"], one["set"]), [])
            last[one["name"], one["set"]] = [*(other for other in group if other["run"] == one["run"]), one]
    text = ""
    for (name, images), group in last.items():
        first = group[0]
        stale = _stale(first)
        if "training" in first["raw"]:
            minutes, device = first["raw"]["training"]["duration_s"] / 60, first["raw"]["training"].get("device")
            name += f" ({minutes:.0f} minutes of training on {device or 'an unknown device'})"
        text += f"\n{name} on {images}, {_on(first)}, torch {first['env']['torch']}{stale}:\n\n"
        text += precision_table(group, with_ids=True).markdown()
    return text


def filled(text: str) -> str:
    """A README with the part between its two marks made anew; see `between`."""
    return between(text, tables(load_records()), README)


def between(text: str, made: str, path: Path) -> str:
    """A document with the part between its two marks replaced.

    Raises:  ValueError if it does not have both marks once
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END} once each in {path}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{made}{END}{after}"


def draw(records: dict[str, Record], path: Path = PLOT) -> None:
    """Draw the plot, unless it shows these records already.

    Raises:  UsageError if it has to be drawn and matplotlib is missing
    """
    kept = shown(records)
    if plot.is_fresh(kept, path):
        return
    if kept:
        plot.draw(kept, path)
    else:
        path.unlink()


def _stale(one: Record) -> str:
    current = one["env"]["sources"] == source_digest(one["suite"])
    return "" if current else "; stale: the sources have changed since"


def shown(records: dict[str, Record]) -> list[Record]:
    """What a README has room for: single frames, by the run that timed them last on each kind of device.

    Batches, kernels, training, older runs and every column are in the page of all measurements.
    """
    single = [one for one in records.values() if one["suite"] == "frame" and one["shape"]["n"] == 1]
    last = {_timed(one): one["run"] for one in single}
    return [one for one in single if last[_timed(one)] == one["run"]]


def _timed(one: Record) -> tuple[str, str, str]:
    return one["name"], str(one.get("shape")), str(one["env"].get("gpu") or one["env"].get("cpu"))


def _on(one: Record) -> str:
    env = one["env"]
    return f"{env['gpu'] or env['cpu']}, {one['time'][:10]}, commit {(env['commit'] or 'unknown')[:7]}"


def main() -> None:
    """Write the README and its plot, or with --check only say whether they are fresh."""
    old = README.read_text()
    new, records = filled(old), load_records()
    compared = between(PRECISION.read_text(), precisions(records.values()), PRECISION)
    if "--check" in sys.argv[1:]:
        pages = old == new and EVERYTHING.read_text() == everything(records) and PRECISION.read_text() == compared
        if not (pages and plot.is_fresh(shown(records), PLOT)):
            sys.exit("README.md, or what it shows, does not match bench/results; run python -m srgan_fast.bench.readme")
        return
    draw(records)
    EVERYTHING.write_text(everything(records))
    PRECISION.write_text(compared)
    README.write_text(new)


if __name__ == "__main__":
    main()
