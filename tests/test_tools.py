"""The scripts in tools/: what they say and draw, and what they do where something is missing."""

from __future__ import annotations

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
