"""The sections of the page as HTML: each from plain results, with every name escaped."""

from __future__ import annotations

import base64
import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from srgan_fast.evaluate.metrics import PROTOCOLS
from srgan_fast.evaluate.report import published as literature
from srgan_fast.evaluate.report.charts import Line, histogram, lines
from srgan_fast.evaluate.report.pictures import BINS, ERROR_LIMIT, WIDEST, Spectrum
from srgan_fast.evaluate.sets import Collection

Results = Sequence[Mapping[str, Any]]


@dataclass
class Shown:
    """The pictures of one image, as files: crops and error maps by method, and where the crop is, in HR pixels."""

    name: str
    top: int
    left: int
    height: int
    width: int
    whereabouts: bytes
    crops: dict[str, bytes] = field(default_factory=dict)
    maps: dict[str, bytes] = field(default_factory=dict)
    original: bytes = b""

    @property
    def inside(self) -> tuple[slice, slice]:
        """The rows and columns of the crop in HR and SR."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def size(self) -> str:
        """The class that gives its crops their size."""
        return f"s{self.width}x{self.height}"


def sizes(shown: Iterable[Shown]) -> str:
    """The style of the classes `Shown.size`: the policy of the page admits no style on an element."""
    # A crop is shown at a whole number of CSS pixels for each HR pixel: at any other size pixels would differ in width.
    found = sorted({(image.size, image.width, image.height) for image in shown})
    return "".join(f".{name} {{ --width: {width}; --height: {height} }}\n" for name, width, height in found)


def summary(results: Results, known: tuple[Collection, str] | None) -> str:
    """How it was measured: said once, above everything."""
    first = results[0]
    count = len(first["images"])
    made = "made by imresize" if first["images"][0]["lr"] == "imresize" else "read from files"
    precisions = ", ".join(f"{result['method']} in {result['precision']}" for result in results)
    which = "" if known is None else f" The folder is taken for {known[0].title.split(',')[0]} {known[1]}."
    unused = "".join(
        f" {result['other_images']} other images in the folder of {result['method']} were left alone."
        for result in results
        if result.get("other_images")
    )
    text = f"{count} image{'s' * (count != 1)}, LR {made}. {precisions}.{which}{unused}"
    return f"<p>{html.escape(text)}</p>"


def scores(results: Results) -> str:
    """The means of all methods, and what each protocol means."""
    meanings = "\n".join(
        f'<p class="small"><b>{name}</b>: {html.escape(PROTOCOLS[name].description)}</p>' for name in results[0]["mean"]
    )
    rows = {result["method"]: result["mean"] for result in results}
    return f'<section id="scores"><h2>Scores</h2>{_table(rows)}\n{meanings}</section>'


def published(results: Results, known: tuple[Collection, str] | None) -> str:
    """The papers' figures of each set, ours beside them where the sets are the same, and what contradicts what."""
    notes: dict[str, int] = {}
    ours = _comparable(results, known)
    parts = []
    for name in literature.SETS:
        beside = known is not None and known[0].name == name.lower()
        groups: dict[str, str] = {}
        if beside and not isinstance(ours, str):
            groups["this run"] = "".join(
                f'<tr class="ours"><td>{_name(method)}</td><td>{psnr}</td><td>{ssim}</td><td></td></tr>'
                for method, psnr, ssim in ours
            )
        for figure in literature.figures(name):
            source = f"{figure.source}, {figure.where}"
            groups[source] = groups.get(source, "") + (
                f"<tr><td>{_name(figure.method)}{_marks(figure.notes, notes)}</td><td>{_db(figure.psnr_db, 2)}</td>"
                f"<td>{figure.ssim:.4f}</td><td>{figure.mos:.2f}</td></tr>"
            )
        bodies = "".join(
            f'<tbody><tr><th colspan="4" scope="rowgroup">{html.escape(source)}</th></tr>{rows}</tbody>'
            for source, rows in groups.items()
        )
        head = "<tr><th>method</th><th>PSNR dB</th><th>SSIM</th><th>MOS</th></tr>"
        table = f'<div class="wide"><table><thead>{head}</thead>{bodies}</table></div>'
        opened = " open" if beside else ""
        parts.append(f"<details{opened}><summary>{name}</summary>{table}</details>")
    said = (
        ours
        if isinstance(ours, str)
        else "The scores of this run stand above the published ones, by the same protocol, paper."
    )
    texts = "".join(f'<li id="note{number}">{html.escape(text)}</li>' for text, number in notes.items())
    remarks = "".join(f"<li>{html.escape(text)}</li>" for text in literature.remarks())
    sources = "".join(f'<p class="small">{html.escape(text)}</p>' for text in literature.sources())
    return (
        f'<section id="published"><h2>Published figures</h2><p>{html.escape(said)} An opinion score holds among the '
        f"methods that the same people saw, not across studies.</p>{''.join(parts)}"
        f'<h3>Notes</h3><ol class="small">{texts}{remarks}</ol>{sources}</section>'
    )


def _comparable(results: Results, known: tuple[Collection, str] | None) -> list[tuple[str, str, str]] | str:
    """Our rows of the published table, or why there are none."""
    if known is None or known[0].title.split(",")[0] not in literature.SETS:
        return "These images are none of the papers' sets, so this run is not comparable with what follows."
    if results[0]["scale"] != 4:
        return f"The papers' figures are for x4, this run is x{results[0]['scale']}: they are not comparable."
    if "paper" not in results[0]["mean"]:
        return "The papers' figures are by the protocol paper, which this run has not measured: add it to --protocol."
    found = []
    for result in results:
        value = result["mean"]["paper"]
        found.append((result["method"], _db(value["psnr_db"], 2), f"{value['ssim']:.4f}"))
    return found


def _marks(texts: Sequence[str], notes: dict[str, int]) -> str:
    """References to footnotes, each of which gets its number when it is first met."""
    numbers = [notes.setdefault(text, len(notes) + 1) for text in texts]
    return "".join(f'<sup><a href="#note{number}">{number}</a></sup>' for number in numbers)


def pictures(shown: Sequence[Shown], results: Results, count: int) -> str:
    """Crops and error maps of each image that is shown, with its scores."""
    entries = {
        entry["name"]: {result["method"]: result["images"][index] for result in results}
        for index, entry in enumerate(results[0]["images"])
    }
    rest = f" Of {count} images, {len(shown)} are shown." if len(shown) < count else ""
    missing = ""
    if len(shown) < count:
        names = {image.name for image in shown}
        tables = "".join(
            f"<h3>{html.escape(name)}</h3>{_table({method: entry['scores'] for method, entry in row.items()})}"
            for name, row in entries.items()
            if name not in names
        )
        missing = f"<section><details><summary>Scores of the other images</summary>{tables}</details></section>"
    head = (
        '<section id="pictures"><h2>Pictures</h2><p>Pixel for pixel, where bicubic differs most from HR. Drag across a '
        f"picture, or move the handle below it with the arrow keys.{rest}</p>"
        f"<p>Error maps: the absolute difference from HR, averaged over the channels; at most {WIDEST} pixels a side, "
        f'larger images averaged over blocks.</p><div class="ramp"></div><div class="ends small"><span>0</span>'
        f"<span>{ERROR_LIMIT} of 255 and above</span></div></section>"
    )
    return "\n".join([head, *(_image(image, entries[image.name]) for image in shown), missing])


def _image(image: Shown, row: Mapping[str, Mapping[str, Any]]) -> str:
    name = html.escape(image.name)
    source = next(iter(row.values()))["lr"]
    told = "" if source == "imresize" else f'<p class="small">LR from {html.escape(source)}</p>'
    crops = "\n".join(
        _figure(f"{label} crop of {image.name}", label, data, "png")
        for label, data in [*image.crops.items(), ("HR", image.original)]
    )
    maps = "\n".join(
        _figure(f"error map of {label} on {image.name}", f"error of {label}", data, "jpeg")
        for label, data in image.maps.items()
    )
    where = _figure(f"{image.name}, the crop framed", "where the crop is", image.whereabouts, "jpeg")
    table = _table({method: entry["scores"] for method, entry in row.items()})
    return (
        f'<section class="image"><h2>{name}</h2>\n<div class="beside"><div>{table}{told}\n<div class="maps">\n{where}\n'
        f"{maps}\n</div></div></div>\n"
        f'<div class="crops {image.size}" data-size="{image.size}">\n{crops}\n</div></section>'
    )


def _figure(alt: str, caption: str, data: bytes, kind: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img alt="{html.escape(alt)}" src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def spectra(found: Mapping[str, Sequence[Spectrum]], scale: int) -> str:
    """The mean spectrum of each method: what it lacks of HR's high frequencies, and what it has too much."""
    frequencies = [(index + 0.5) / (2 * BINS) for index in range(BINS)]
    series = []
    for label, each in found.items():
        stacked = np.stack(each)
        there = ~np.isnan(stacked)
        sums = np.where(there, stacked, 0.0).sum(0)
        mean = np.divide(sums, there.sum(0), out=np.full(BINS, np.nan), where=there.any(0))
        series.append(Line(label, frequencies, [float(value) for value in mean]))
    chart = lines(
        series,
        x_label="cycles a pixel of HR",
        y_label="power of the luma, dB",
        title="power by spatial frequency",
        mark=(0.5 / scale, "LR ends"),
    )
    return (
        '<section id="spectra"><h2>Spectra</h2><p>Power of the luma averaged around the circle, then over the images '
        f"in dB. Along rows and columns LR ends at {0.5 / scale:g} cycles a pixel: what a method has beyond, it has "
        f"added.</p>{chart}</section>"
    )


def depth(results: Results) -> str:
    """Networks of one kind by their residual blocks; nothing unless there are two depths to compare."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if result.get("network", {}).get("blocks") is not None:
            kinds.setdefault(result["network"]["architecture"], []).append(result)
    parts = []
    for kind, members in kinds.items():
        if len({member["network"]["blocks"] for member in members}) > 1:
            parts.append(_depths(kind, sorted(members, key=lambda member: member["network"]["blocks"])))
    return f'<section id="depth"><h2>Depth</h2>{"".join(parts)}</section>' if parts else ""


def _depths(kind: str, members: Sequence[Mapping[str, Any]]) -> str:
    protocol = next(iter(members[0]["mean"]))
    rows, places = [], []
    for member in members:
        network, value = member["network"], member["mean"][protocol]
        count = "unknown" if network["steps"] is None else f"{network['steps']:,}"
        rows.append(
            f"<tr><td>{_name(member['method'])}</td><td>{network['blocks']}</td><td>{network['parameters']:,}</td>"
            f"<td>{count}</td><td>{_db(value['psnr_db'])}</td><td>{value['ssim']:.4f}</td></tr>"
        )
        places.append((network["blocks"], value["psnr_db"] if value["psnr_db"] is not None else math.nan))
    head = (
        "<tr><th>network</th><th>blocks</th><th>parameters</th><th>steps of the last run</th>"
        f"<th>{protocol} PSNR dB</th><th>SSIM</th></tr>"
    )
    steps = {member["network"]["steps"] for member in members}
    told = ""
    if None in steps:
        told = " How long some were trained is not known, so depth may not be all that differs."
    elif len(steps) > 1:
        told = " These were trained for different numbers of steps, so depth is not all that differs."
    chart = ""
    if any(math.isfinite(psnr) for _, psnr in places):
        blocks, psnrs = zip(*places, strict=True)
        depths = sorted(set(blocks))
        series = [Line(kind, blocks, psnrs, joined=not told)]
        if len(depths) < len(blocks) and not told:
            means = [statistics.fmean(psnr for other, psnr in places if other == each) for each in depths]
            series = [Line("mean of each depth", depths, means), Line("each network", blocks, psnrs, joined=False)]
        chart = lines(
            series,
            x_label="residual blocks",
            y_label=f"PSNR, dB, {protocol}",
            title=f"PSNR by the number of residual blocks of {kind}",
            x_ticks=depths,
        )
    return (
        f"<h3>{html.escape(kind)}</h3><p>Networks of one kind by their residual blocks.{told}</p>"
        f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>{chart}'
    )


def opinions(found: Mapping[str, Any], results: Results) -> str:
    """How often each score was given to each method, the mean marked."""
    raters = found["raters"]
    parts = []
    for method in found["methods"]:
        ends = method["ci95"]
        interval = "" if ends is None else f", 95% interval {ends[0]:.2f} to {ends[1]:.2f}"
        told = f"mean {method['mos']:.2f}{interval}; {method['ratings']} ratings"
        parts.append(
            f"<div><h3>{html.escape(method['name'])}</h3>"
            f"{histogram(method['counts'], method['mos'], 'scores of ' + method['name'] + ', ' + told)}"
            f'<p class="small">{told}</p></div>'
        )
    unseen = {result["method"] for result in results} - {method["name"] for method in found["methods"]}
    lacking = f" Not in the study: {', '.join(sorted(unseen))}." if unseen else ""
    text = (
        f"{raters} human rater{'s' * (raters != 1)}; 1 is bad, 5 is excellent; the line is the mean. The intervals "
        f"take all ratings for independent, which those of one rater are not.{lacking}"
    )
    return (
        f'<section id="opinions"><h2>Opinions</h2><p>{html.escape(text)}</p>'
        f'<div class="histograms">{"".join(parts)}</div></section>'
    )


def _table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Scores of methods by protocol, the best of each column in bold where there are several."""
    names = list(next(iter(rows.values())))
    head = "".join(f"<th>{name}<br>PSNR dB</th><th><br>SSIM</th>" for name in names)
    columns = [(name, key) for name in names for key in ("psnr_db", "ssim")]

    def value(scores: Mapping[str, Mapping[str, Any]], name: str, key: str) -> float:
        found = scores[name][key]
        return math.inf if found is None else float(found)

    best = {column: max(value(scores, *column) for scores in rows.values()) for column in columns}
    body = []
    for method, scores in rows.items():
        cells = []
        for column in columns:
            found = value(scores, *column)
            mark = ' class="best"' if len(rows) > 1 and found == best[column] else ""
            cells.append(f"<td{mark}>{_db(found) if column[1] == 'psnr_db' else format(found, '.4f')}</td>")
        body.append(f"<tr><td>{_name(method)}</td>{''.join(cells)}</tr>")
    notes = dict.fromkeys(value["note"] for scores in rows.values() for value in scores.values() if "note" in value)
    told = "".join(f'<p class="small">{html.escape(note)}</p>' for note in notes)
    return (
        f'\n<div class="wide"><table><thead><tr><th>method</th>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
        f"</table></div>{told}"
    )


def _name(method: str) -> str:
    """A method's name, which may be broken after each underscore."""
    return html.escape(method).replace("_", "_<wbr>")


def _db(value: float | None, digits: int = 3) -> str:
    return "inf" if value is None or math.isinf(value) else format(value, f".{digits}f")
