"""One HTML file of a benchmark: crops side by side, numbers beneath, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import html
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from srgan_fast.errors import OutputError
from srgan_fast.evaluate.benchmark import Comparison
from srgan_fast.evaluate.metrics import PROTOCOLS
from srgan_fast.resize import imresize_up

_CROP = 160  # HR pixels

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d22; --dim: #5d6472; --page: #fafafa; --card: #fff; --line: #e2e4e9 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ee; --dim: #9aa2b1; --page: #15171c; --card: #1e2128; --line: #31353f }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 0 0 .75rem; overflow-wrap: anywhere }
p { color: var(--dim); margin: .25rem 0 1rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem;
  margin-top: 1rem }
.crops { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem }
@media (max-width: 40rem) { .crops { grid-template-columns: repeat(2, 1fr) } }
figure { margin: 0 }
figcaption { color: var(--dim); font-size: .8rem; overflow-wrap: anywhere }
img { display: block; width: 100%; image-rendering: pixelated; border-radius: .25rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin-top: .75rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem 1.2rem .2rem 0; text-align: right; font-weight: 400 }
th:first-child, td:first-child, td.what { text-align: left }
thead th, .what { color: var(--dim); font-size: .8rem }
"""


class Report:
    """Collects crops while a benchmark runs (`add` is its `on_image`), then writes the page.

    The crop of an image is where bicubic differs most from HR: there a method has something to win.
    """

    def __init__(self) -> None:
        self._crops: list[list[tuple[str, bytes]]] = []

    def add(self, comparison: Comparison) -> None:
        """Keep the four crops of one image."""
        scale = comparison.hr.shape[-1] // comparison.lr.shape[-1]
        bicubic = imresize_up(comparison.lr, scale)
        top, left, height, width = _hardest(comparison.hr, bicubic, scale)
        rows, columns = slice(top * scale, (top + height) * scale), slice(left * scale, (left + width) * scale)
        self._crops.append(
            [
                ("LR", _png(comparison.lr[:, top : top + height, left : left + width])),
                ("bicubic", _png(bicubic[:, rows, columns])),
                ("SR", _png(comparison.sr[:, rows, columns])),
                ("HR", _png(comparison.hr[:, rows, columns])),
            ]
        )

    def write(self, path: Path, results: Mapping[str, Any]) -> None:
        """Write the page, whole or not at all.

        Raises:  OutputError if it cannot be written
        """
        write_text(path, self.page(results))

    def page(self, results: Mapping[str, Any]) -> str:
        """The page as text."""
        method, count = html.escape(str(results["method"])), len(results["images"])
        parts = [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{method} ×{results['scale']}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{method} ×{results['scale']}</h1>\n<p>{count} image{'s' * (count != 1)}, {results['precision']}. "
            "The crops are where bicubic differs most from HR.</p>",
            f"<section><h2>Mean</h2>{_table(results['mean'])}</section>",
        ]
        for entry, crops in zip(results["images"], self._crops, strict=True):
            name = html.escape(entry["name"])
            figures = "\n".join(
                f'<figure><img alt="{label} crop of {name}" '
                f'src="data:image/png;base64,{base64.b64encode(data).decode()}">'
                f"<figcaption>{f'SR: {method}' if label == 'SR' else label}</figcaption></figure>"
                for label, data in crops
            )
            parts.append(
                f'<section><h2>{name}</h2>\n<div class="crops">\n{figures}\n</div>{_table(entry["scores"])}</section>'
            )
        return "\n".join([*parts, "</body>\n</html>\n"])


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:  OutputError if it cannot be written
    """
    temporary = None
    try:
        if path.exists() and not path.is_file():  # a pipe or a device takes the text as it is
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()  # a link stays a link
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=".", delete=False) as file:
            temporary = Path(file.name)
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # a temporary file is private, a result is not
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
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


def _table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td>{'inf' if value['psnr_db'] is None else format(value['psnr_db'], '.3f')}</td>"
        f'<td>{value["ssim"]:.4f}</td><td class="what">{html.escape(PROTOCOLS[name].description)}</td></tr>'
        for name, value in scores.items()
    )
    head = "<tr><th>protocol</th><th>PSNR dB</th><th>SSIM</th><th></th></tr>"
    return f'\n<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
