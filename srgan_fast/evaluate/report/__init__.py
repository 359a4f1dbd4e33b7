"""One HTML file of a benchmark, which loads nothing: scores, published figures, pictures, spectra, opinions.

`pictures` makes what of an image is shown, `charts` draws, `published` knows the papers' figures, `sections` writes;
the page's style and script are files beside this one.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from srgan_fast import __version__, outputs
from srgan_fast.evaluate.benchmark import Comparison
from srgan_fast.evaluate.report import sections
from srgan_fast.evaluate.report.opinions import read_opinions
from srgan_fast.evaluate.report.pictures import (
    Spectrum,
    encoded,
    error_map,
    hardest,
    spectrum,
    whereabouts,
)
from srgan_fast.evaluate.report.sections import Shown
from srgan_fast.evaluate.sets import Collection
from srgan_fast.resize import imresize_up

__all__ = ["Report", "read_opinions"]

PICTURES = 20


class Report:
    """Collects pictures and spectra while a benchmark runs (`add` is its `on_image`), then writes the page.

    The crop of an image is where bicubic differs most from HR: there a method has something to win. After `pictures`
    images, only scores and spectra are kept of the others, so that the page stays one that can be sent.
    """

    def __init__(self, pictures: int = PICTURES) -> None:
        self._limit = pictures
        self._shown: dict[str, Shown] = {}
        self._seen: set[str] = set()
        self._spectra: dict[str, list[Spectrum]] = {}

    def add(self, comparison: Comparison) -> None:
        """Keep what is shown of one image by one method."""
        name, hr, sr = comparison.name, comparison.hr, comparison.sr
        if name not in self._seen:
            self._seen.add(name)
            self._spectra.setdefault("HR", []).append(spectrum(hr))
            if len(self._shown) < self._limit:
                self._shown[name] = _begun(comparison)
        self._spectra.setdefault(comparison.method, []).append(spectrum(sr))
        if name in self._shown:
            shown = self._shown[name]
            rows, columns = shown.inside
            shown.crops[comparison.method] = encoded(sr[:, rows, columns])
            shown.maps[comparison.method] = encoded(error_map(sr, hr), "JPEG")

    def write(
        self,
        path: Path,
        results: Sequence[Mapping[str, Any]],
        *,
        known: tuple[Collection, str] | None = None,
        opinions: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the page, whole or not at all; see `page`.

        Raises:  OutputError if it cannot be written
        """
        outputs.write(path, self.page(results, known=known, opinions=opinions))

    def page(
        self,
        results: Sequence[Mapping[str, Any]],
        *,
        known: tuple[Collection, str] | None = None,
        opinions: Mapping[str, Any] | None = None,
    ) -> str:
        """The page as text, from what `evaluate_all` gave, the benchmark set if it is one and how that is known, and
        what `read_opinions` gave."""
        found = [
            ("scores", "Scores", sections.scores(results)),
            ("published", "Published figures", sections.published(results, known)),
            ("pictures", "Pictures", sections.pictures(list(self._shown.values()), results, len(self._seen))),
            ("spectra", "Spectra", sections.spectra(self._spectra, results[0]["scale"])),
            ("depth", "Depth", sections.depth(results)),
            ("opinions", "Opinions", "" if opinions is None else sections.opinions(opinions, results)),
        ]
        found = [section for section in found if section[2]]
        links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in found)
        body = "\n".join(content for *_, content in found)
        title = f"{' · '.join(str(result['method']) for result in results)} ×{results[0]['scale']}"
        title += "" if known is None else f" on {known[0].title.split(',')[0]}"
        style = _text("page.css") + sections.sizes(self._shown.values())
        script = _text("page.js")
        return Template(_text("page.html")).substitute(
            title=html.escape(title),
            style=style,
            style_hash=_digest(style),
            script=script,
            script_hash=_digest(script),
            body=f"{sections.summary(results, known)}\n<nav>{links}</nav>\n{body}",
            version=__version__,
        )


def _begun(comparison: Comparison) -> Shown:
    """An image with what is the same for all methods."""
    hr, lr = comparison.hr, comparison.lr
    scale = hr.shape[-1] // lr.shape[-1]
    bicubic = imresize_up(lr, scale)
    top, left, height, width = hardest(hr, bicubic, scale)
    box = (top * scale, left * scale, height * scale, width * scale)
    shown = Shown(comparison.name, *box, whereabouts(hr, box))
    rows, columns = shown.inside
    shown.crops["LR"] = encoded(lr[:, top : top + height, left : left + width])
    shown.crops["bicubic"] = encoded(bicubic[:, rows, columns])
    shown.original = encoded(hr[:, rows, columns])
    return shown


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What the page's content security policy admits of style and script: these and no others."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
