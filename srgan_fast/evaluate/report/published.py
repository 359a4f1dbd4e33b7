"""The published figures, from published.toml: which there are of a benchmark set, and what speaks against them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SETS = ("Set5", "Set14", "BSD100")


@dataclass(frozen=True)
class Figure:
    """One method on one set: PSNR in dB (infinite for HR) and SSIM by the protocol `paper`, and the MOS."""

    method: str
    psnr_db: float
    ssim: float
    mos: float
    source: str
    where: str
    notes: tuple[str, ...]


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))


def figures(name: str) -> list[Figure]:
    """The figures of a set out of `SETS`, in the order of their sources; a note is a text."""
    content, found = _content(), []
    for table in content["tables"]:
        for row in table["rows"]:
            if name in row:
                notes = tuple(content["notes"][key] for key in row.get("notes", {}).get(name, []))
                source = content["sources"][table["source"]]["short"]
                psnr_db, ssim, mos = row[name]
                found.append(Figure(row["method"], psnr_db, ssim, mos, source, table["where"], notes))
    return found


def remarks() -> list[str]:
    """Contradictions that no single figure shows."""
    return [remark["text"] for remark in _content()["remarks"]]


def sources() -> list[str]:
    """Where the figures are from, in full."""
    return [f"{source['short']}: {source['title']}" for source in _content()["sources"].values()]
