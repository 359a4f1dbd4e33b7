"""Writes the tables of the README from the claims and the committed records: python -m srgan_fast.bench.readme"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import groupby

from srgan_fast.bench.claims import Record, Verdict, judge, load_claims, load_records, verify
from srgan_fast.bench.record import ROOT, source_digest

README = ROOT / "README.md"
BEGIN, END = "<!-- made by bench/readme.py: begin -->", "<!-- made by bench/readme.py: end -->"


def tables() -> str:
    """The status of every claim, and the speeds of every run in bench/results.

    Raises:  ValueError where a claim or a record does not hold
    """
    records = load_records()
    for one in records.values():
        verify(one, records.values())
    return claim_table([judge(claim, records) for claim in load_claims()]) + speed_tables(records.values())


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


def speed_tables(records: Iterable[Record]) -> str:
    """One table a run of the frame suite; a red gate shows no speed."""
    text = ""
    frames = sorted((one for one in records if one["suite"] == "frame"), key=lambda one: (one["time"], one["run"]))
    for _, group in groupby(frames, key=lambda one: one["run"]):
        run = sorted(group, key=lambda one: (one["impl"] != one["baseline"], one["impl"], one["dtype"] != "fp32"))
        shape, env = run[0]["shape"], run[0]["env"]
        stale = "" if env["sources"] == source_digest("frame") else "; stale: the sources have changed since"
        text += f"\n{run[0]['name']}, {shape['w']}x{shape['h']} LR, {_on(run[0])}, {env['threads']} threads,"
        text += f" torch {env['torch']}{stale}:\n\n"
        text += "| implementation | p50 ms | frames/s | speed-up | PSNR against plain | record |\n"
        text += "|---|---|---|---|---|---|\n"
        for one in run:
            psnr, derived = one["quality"]["psnr_db_vs_plain"], one["derived"]
            quality = "equal" if psnr is None else f"{psnr:.1f} dB"
            if one["quality"]["gate"] == "pass":
                speed = f"{one['latency_ms']['p50']:.1f} | {derived['fps']:.2f} | {derived['speedup']:.2f}"
            else:
                speed, quality = "- | - | -", f"{quality}, gate failed"
            text += f"| {one['impl']} {one['dtype']} | {speed} | {quality} | `{one['id']}` |\n"
    return text


def filled(text: str) -> str:
    """A README with the part between its two marks made anew.

    Raises:  ValueError if it does not have both marks once
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END} once each in {README}")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


def _on(one: Record) -> str:
    env = one["env"]
    return f"{env['gpu'] or env['cpu']}, {one['time'][:10]}, commit {(env['commit'] or 'unknown')[:7]}"


def main() -> None:
    """Write the README, or with --check only say whether it is fresh."""
    old = README.read_text()
    new = filled(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            sys.exit("README.md does not match bench/results; run python -m srgan_fast.bench.readme")
        return
    README.write_text(new)


if __name__ == "__main__":
    main()
