"""One HTML file of a benchmark: crops side by side, numbers beneath, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from srgan_fast import __version__
from srgan_fast.atomic import atomic
from srgan_fast.errors import OutputError
from srgan_fast.evaluate.benchmark import Comparison
from srgan_fast.evaluate.metrics import PROTOCOLS
from srgan_fast.resize import imresize_up

_CROP = 144  # HR pixels: two fit side by side on a phone at 1:1, four on a desktop at 2:1

# A crop is shown at a whole number of CSS pixels for each HR pixel: at any other size pixels would differ in width.
_STYLE = """
:root { color-scheme: light dark; --zoom: 1; --columns: 2;
  --ink: #1b1d22; --dim: #5d6472; --page: #fafafa; --card: #fff; --line: #e2e4e9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ee; --dim: #9aa2b1; --page: #15171c; --card: #1e2128; --line: #31353f }
}
@media (min-width: 42rem) { :root { --columns: 4 } }
@media (min-width: 79rem) { :root { --zoom: 2 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 1.5rem .5rem 3rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
p { color: var(--dim); margin: .25rem 0 }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem;
  margin-top: 1rem }
@media (min-width: 42rem) { body { padding: 2rem 1rem } section { padding: 1rem } }
.crops { display: grid; grid-template-columns: repeat(var(--columns), max-content); gap: .5rem }
figure { margin: 0; width: calc(var(--width) * var(--zoom) * 1px); min-width: 6rem }
img { display: block; width: calc(var(--width) * var(--zoom) * 1px); height: calc(var(--height) * var(--zoom) * 1px);
  image-rendering: pixelated }
figcaption, .small { color: var(--dim); font-size: .8rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .1rem 1.5rem .1rem 0; text-align: right; font-weight: 400 }
th:first-child, td:first-child { text-align: left }
thead th { color: var(--dim); font-size: .8rem }
"""


@dataclass(frozen=True)
class _Crops:
    """The four PNG files of one image by label, and the size in HR pixels at which they belong together."""

    width: int
    height: int
    files: dict[str, bytes]


class Report:
    """Collects crops while a benchmark runs (`add` is its `on_image`), then writes the page.

    The crop of an image is where bicubic differs most from HR: there a method has something to win.
    """

    def __init__(self) -> None:
        self._crops: list[_Crops] = []

    def add(self, comparison: Comparison) -> None:
        """Keep the four crops of one image."""
        scale = comparison.hr.shape[-1] // comparison.lr.shape[-1]
        bicubic = imresize_up(comparison.lr, scale)
        top, left, height, width = _hardest(comparison.hr, bicubic, scale)
        rows, columns = slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)
        files = {
            "LR": _png(comparison.lr[:, top : top + height, left : left + width]),
            "bicubic": _png(bicubic[:, rows, columns]),
            "SR": _png(comparison.sr[:, rows, columns]),
            "HR": _png(comparison.hr[:, rows, columns]),
        }
        self._crops.append(_Crops(width * scale, height * scale, files))

    def write(self, path: Path, results: Mapping[str, Any]) -> None:
        """Write the page, whole or not at all.

        Raises:  OutputError if it cannot be written
        """
        write_text(path, self.page(results))

    def page(self, results: Mapping[str, Any]) -> str:
        """The page as text."""
        title = f"{html.escape(str(results['method']))} ×{results['scale']}"
        return "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
                '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
                f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
                f"<h1>{title}</h1>\n{_summary(results)}",
                *(
                    _section(entry, crops, results["method"])
                    for entry, crops in zip(results["images"], self._crops, strict=True)
                ),
                f'<p class="small">Made by srgan-fast {__version__}.</p>\n</body>\n</html>\n',
            ]
        )


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:  OutputError if it cannot be written
    """
    try:
        with atomic(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise OutputError(f"expected to write {path}, got: {error.strerror}; choose another place") from None


def _hardest(hr: Tensor, bicubic: Tensor, scale: int) -> tuple[int, int, int, int]:
    """Top, left, height and width, in LR pixels, of the crop with the largest error."""
    error = (hr.to(torch.float32) - bicubic.to(torch.float32)).abs().sum(0)
    rows, columns = (side // scale for side in error.shape)
    error = error.view(rows, scale, columns, scale).sum((1, 3))
    side = max(1, _CROP // scale)
    height, width = min(side, rows), min(side, columns)
    sums = torch.nn.functional.avg_pool2d(error[None, None], (height, width), stride=1)[0, 0]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return top, left, height, width


def _png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _summary(results: Mapping[str, Any]) -> str:
    """How it was measured, the mean, and what each protocol means: said once, above the images."""
    count = len(results["images"])
    made = "made by imresize" if results["images"][0]["lr"] == "imresize" else "read from files"
    meanings = "\n".join(
        f'<p class="small"><b>{name}</b>: {html.escape(PROTOCOLS[name].description)}</p>' for name in results["mean"]
    )
    return (
        f"<p>{count} image{'s' * (count != 1)}, LR {made}, computed in {results['precision']}. "
        "The crops are where bicubic differs most from HR.</p>\n"
        f"<section><h2>Mean</h2>{_table(results['mean'])}\n{meanings}</section>"
    )


def _section(entry: Mapping[str, Any], crops: _Crops, method: str) -> str:
    name = html.escape(entry["name"])
    source = "" if entry["lr"] == "imresize" else f'<p class="small">LR from {html.escape(entry["lr"])}</p>'
    figures = "\n".join(
        f'<figure><img alt="{label} crop of {name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{html.escape(f'SR: {method}') if label == 'SR' else label}</figcaption></figure>"
        for label, data in crops.files.items()
    )
    size = f"--width: {crops.width}; --height: {crops.height}"
    return (
        f'<section><h2>{name}</h2>\n<div class="crops" style="{size}">\n{figures}\n</div>'
        f"{_table(entry['scores'])}{source}</section>"
    )


def _table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{'inf' if value['psnr_db'] is None else format(value['psnr_db'], '.3f')}</td>"
        f"<td>{value['ssim']:.4f}</td></tr>"
        for name, value in scores.items()
    )
    head = "<tr><th>protocol</th><th>PSNR dB</th><th>SSIM</th></tr>"
    notes = "".join(f'<p class="small">{html.escape(note)}</p>' for note in _notes(scores))
    return f'\n<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>{notes}'


def _notes(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the scores have to say, each remark once."""
    return list(dict.fromkeys(value["note"] for value in scores.values() if "note" in value))
