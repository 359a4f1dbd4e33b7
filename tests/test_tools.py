"""The scripts in tools/: what they say and draw, and what they do where something is missing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from conftest import ROOT, script


def test_figures_in_the_docs_are_those_that_the_script_draws(tmp_path: Path) -> None:
    names = {path.name for path in (ROOT / "docs").glob("*.svg")}
    drawn = script(ROOT / "tools" / "draw_figures.py").draw(tmp_path)
    assert {path.name for path in drawn} == names
    for path in drawn:
        assert path.read_bytes() == (ROOT / "docs" / path.name).read_bytes(), "run make figures"


FOUND = {"name": "a", "version": "1.0", "vulns": [{"id": "X-1", "fix_versions": ["1.1"]}]}
CLEAN = {"name": "b", "version": "2.0", "vulns": []}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "says", "code"),
    [
        ([FOUND, CLEAN], ("a 1.0: X-1, mended in 1.1", "2 of 2 packages looked up, 1 known"), 1),
        ([CLEAN, SKIPPED], ("1 of 2 packages looked up, 0 known", "not looked up: c"), 0),
        ([SKIPPED, SKIPPED], ("nothing was looked up",), 0),
    ],
)
def test_an_audit_says_what_it_did_not_look_up(packages: list[object], says: tuple[str, ...], code: int) -> None:
    text, got = script(ROOT / "tools" / "audit.py").verdict({"dependencies": packages})
    assert got == code
    for one in says:
        assert one in text


def test_the_table_of_depths_is_that_of_the_scores() -> None:
    """What docs/report.md says of the ablation is what networks scored that differ in depth and seed alone."""
    found: dict[int, list[tuple[float, float]]] = {}
    rows = []
    for one in json.loads((ROOT / "docs" / "depth.json").read_text()):
        network, score = one["network"], one["mean"]["y601"]
        assert (network["architecture"], network["steps"], one["precision"]) == ("srresnet", 3000, "fp32")
        found.setdefault(network["blocks"], []).append((score["psnr_db"], score["ssim"]))
        rows.append((network["blocks"], network["parameters"]))
    for blocks, parameters in sorted(set(rows)):
        both = found[blocks]
        cells = [*both, tuple(map(statistics.fmean, zip(*both, strict=True)))]
        said = " | ".join(f"{psnr_db:.3f} dB / {ssim:.4f}" for psnr_db, ssim in cells)
        assert f"| {blocks} | {parameters:,} | {said} |" in (ROOT / "docs" / "report.md").read_text()
