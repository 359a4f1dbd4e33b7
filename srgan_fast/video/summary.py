"""What became of a video: the file that was written, read back and held against the input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av

from srgan_fast.errors import IncompleteError
from srgan_fast.video.encoder import Codec, Output
from srgan_fast.video.mux import Written
from srgan_fast.video.segments import Record
from srgan_fast.video.source import Info, Source, main_stream

# What containers may round the length of a video by, beside a frame.
_ROUNDING_S = 0.002
# Notes of the source that are said by their number here.
_COUNTED = ("some frames are damaged", "the file is cut short")


@dataclass(frozen=True)
class Summary:
    """What was kept, changed and dropped, and what of the input is damaged or missing.

    Units:  `resumed` counts frames of earlier runs; `busy_s` the seconds that each stage of this run has worked,
            `saved` the share of pixels that this run did not compute, because they had not changed
    """

    output: Output
    codec: str
    frames: int
    duration_s: float
    kept: tuple[str, ...]
    changed: tuple[str, ...]
    dropped: tuple[str, ...]
    damage: tuple[str, ...]
    missing: tuple[str, ...]
    target: Path = Path()
    seconds: float = 0.0
    resumed: int = 0
    busy_s: Mapping[str, float] = field(default_factory=dict)
    saved: float = 0.0
    not_reused: str = ""

    def lines(self) -> Iterator[str]:
        """The summary for a reader."""
        said = (
            f"{self.frames} frames of {self.output.width}x{self.output.height}, {self.duration_s:.2f} s, {self.codec}"
        )
        said += f" in {self.seconds:.1f} s"
        new = self.frames - self.resumed
        if self.resumed:
            said += f", {self.resumed} of them by earlier runs"
        if new and self.busy_s:
            slowest = max(self.busy_s, key=lambda name: self.busy_s[name])
            share = min(1.0, self.busy_s[slowest] / self.seconds)
            said += f" ({new / self.seconds:.2f} fps, {slowest} is busy {share:.0%} of the time)"
        yield f"{said} -> {self.target}"
        if self.saved >= 0.005:
            yield f"  reused: {self.saved:.0%} of the pixels had not changed, and were not computed again"
        if self.not_reused:
            yield f"  reused: whole frames only, as {self.not_reused}"
        for name in ("kept", "changed", "dropped", "damage", "missing"):
            for text in getattr(self, name):
                yield f"  {name}: {text}"


def describe(
    video: Source,
    output: Output,
    codec: Codec,
    dropped: Sequence[str],
    records: Sequence[Record],
    written: Written,
    joined: Path,
) -> Summary:
    """Read a joined file back, and hold it against what was rendered and what the input has.

    Raises:  IncompleteError if it has not every frame and stream that went into it; the parts are kept then
    """
    frames = sum(record.frames for record in records)
    there, span_s, streams, chapters = _read_back(joined)
    if (there, written.frames) != (frames, frames):
        raise IncompleteError(f"expected {frames} frames in the output, got {there}; its parts are kept, report this")
    step_s = float(1 / output.rate)
    if not abs(span_s + step_s - written.duration_s) <= max(step_s, written.duration_s - span_s) + _ROUNDING_S:
        raise IncompleteError(
            f"expected {written.duration_s:.3f} s of video in the output, got {span_s + step_s:.3f}; "
            "its parts are kept, report this"
        )
    info = video.info
    lacking = max(video.missing, *(record.missing for record in records), (info.frames or 0) - frames)
    damaged = sum(record.damaged for record in records)
    seen = [*video.notes, *(note for record in records for note in record.notes)]
    seen = [note for note in seen if not note.startswith(_COUNTED)]
    lost = [note.removeprefix("dropped ") for note in written.notes if note.startswith("dropped ")]
    lost = list(dict.fromkeys([*dropped, *lost]))
    with video.opened() as (container, _):
        expected = len(container.streams) - sum(note.startswith(("stream ", "attachment ")) for note in lost)
    changed = [*_changes(info, output), *seen, *(note for note in written.notes if not note.startswith("dropped "))]
    return Summary(
        output=output,
        codec=codec.name,
        frames=frames,
        duration_s=written.duration_s,
        kept=(", ".join([*streams[1:], *chapters]),) if len(streams) + len(chapters) > 1 else (),
        changed=tuple(dict.fromkeys(changed)),
        dropped=tuple(text for text in lost if "damaged" not in text),
        damage=(
            *((f"{damaged} frames or packets of the input are damaged",) if damaged else ()),
            *(f"dropped {text}" for text in lost if "damaged" in text),
        ),
        missing=(
            *((f"{lacking} frames that the input says it has",) if lacking > 0 else ()),
            *((f"{expected - len(streams)} streams of the input",) if len(streams) < expected else ()),
        ),
    )


def _read_back(path: Path) -> tuple[int, float, list[str], list[str]]:
    """Frames, seconds from the first to the last, what streams there are, the video first, and chapters."""
    with av.open(str(path)) as container:
        video = main_stream(container)
        streams = ["video", *(_named(stream) for stream in container.streams if stream.index != video.index)]
        chapters = [f"{len(found)} chapters"] if (found := container.chapters()) else []
        times = [packet.pts for packet in container.demux(video) if packet.size]
        return len(times), float((max(times) - min(times)) * video.time_base), streams, chapters


def _named(stream: Any) -> str:
    codec = "" if stream.codec_context is None else f" {stream.codec_context.codec.canonical_name}"
    language = stream.metadata.get("language", "und")
    return f"{stream.type}{codec}" + ("" if language == "und" else f" ({language})")


def _changes(info: Info, output: Output) -> Iterator[str]:
    before, after = info.colour, output.colour
    if before.matrix == "rgb":
        yield f"RGB became {after.matrix}, as video players have it"
    elif not before.tagged:
        yield f"the input does not say its matrix: taken for {after.matrix}, and the output says so"
    if before.subsampling != after.subsampling:
        yield f"chroma {before.subsampling} became {after.subsampling}"
    if before.depth != after.depth:
        yield f"{before.depth} bits became {after.depth}"
