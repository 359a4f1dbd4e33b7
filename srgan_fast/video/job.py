"""A video file in, a larger one out: planned, rendered in segments, joined, checked against the input, put in place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srgan_fast.errors import Interrupted, OutputError, UsageError
from srgan_fast.video.encoder import Codec, Encoder, choose
from srgan_fast.video.mux import join, limits
from srgan_fast.video.pipeline import Pipeline
from srgan_fast.video.segments import Folder, Parts, Record, Segment, cut, fingerprint
from srgan_fast.video.source import FFMPEG_ERRORS, Info, Source
from srgan_fast.video.stages import End, Planes, Stages

if TYPE_CHECKING:
    from torch import Tensor

    from srgan_fast.upscaler import Upscaler

# Frames between two stages: enough to bridge a frame that takes longer, few enough to stop soon.
_DEPTH = 2
# LR pixels that a GPU is given at once where frames are small, and the most frames that it may be.
_BATCH_PIXELS, _BATCH = 1 << 19, 8

Busy = Mapping[str, float]
Progress = Callable[[int, int | None, Busy], object]


@dataclass(frozen=True)
class VideoOptions:
    """What may be chosen; the defaults are what a user who says nothing wants."""

    codec: str = "auto"
    crf: int | None = None
    preset: str | None = None
    ten_bit: bool = False
    matrix: Literal["auto", "bt601", "bt709", "bt2020"] = "auto"
    strict: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Task:
    """What a process has to know to render segments, beside an upscaler: it can be sent to another one."""

    source: Path
    folder: Folder
    output: Info
    codec: Codec
    options: VideoOptions


@dataclass(frozen=True)
class Summary:
    """What became of a video: what was kept, changed and dropped, and what of the input is damaged or missing.

    Units:  `resumed` counts the frames of earlier runs; `busy_s` the seconds that each stage of this one has worked
    """

    target: Path
    output: Info
    codec: str
    frames: int
    duration_s: float
    seconds: float
    resumed: int = 0
    busy_s: Busy = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The summary for a reader."""
        said = f"{self.target}: {self.frames} frames of {self.output.width}x{self.output.height}, "
        said += f"{self.duration_s:.2f} s, {self.codec}; made in {self.seconds:.1f} s"
        new = self.frames - self.resumed
        if self.resumed:
            said += f" and earlier runs ({self.resumed} frames)"
        if new and self.busy_s:
            slowest = max(self.busy_s, key=lambda name: self.busy_s[name])
            share = min(1.0, self.busy_s[slowest] / self.seconds)
            said += f", {new / self.seconds:.2f} fps, {slowest} busy {share:.0%} of the time"
        yield said
        for name in ("kept", "changed", "dropped", "damage", "missing"):
            for text in getattr(self, name):
                yield f"{name}: {text}"


def upscale_video(
    source: Path,
    target: Path,
    upscaler: Upscaler,
    options: VideoOptions = VideoOptions(),
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Upscale a video file, or go on where an earlier run with the same input and settings was stopped or killed.

    `progress` is told the frames so far, how many there will be if that is known, and the seconds that each stage has
    worked. `stop` is asked before each frame; when it says so, what is under way is finished and Interrupted is raised.

    Raises:  InputError for what is no video; UsageError for options or a container that cannot be; OutputError if the
             target cannot be written; BackendUnavailable for an encoder that is not there; Interrupted
    """
    began = time.perf_counter()
    source, target = Path(source), Path(os.path.realpath(target))
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"the input and the output are the same: {source}; name another output")
    with Source(source, matrix=None if options.matrix == "auto" else options.matrix) as video:
        output = _output(video.info, upscaler.scale, options)
        codec = choose(options.codec, output.width, output.height, output.colour.depth)
        dropped = limits(video, target, options)
        if dropped and options.strict:
            raise UsageError(f"{target.name} cannot hold all of {source.name}: {dropped[0]}; leave --strict out")
        settings = _settings(upscaler, codec, options)
        with closing(Parts(folder_of(target), fingerprint(source), settings, restart=options.restart)) as parts:
            if parts.segments is None:
                parts.begin(cut(video.keyframes(), video.info.time_base))
            segments = parts.segments or []
            task = Task(source, parts.folder, output, codec, options)
            earlier = [record.frames for segment in segments if (record := parts.folder.record(segment)) is not None]
            todo = [segment for segment in segments if parts.folder.record(segment) is None]
            busy_s: Busy = {}

            def tell(frames: int, busy: Busy) -> None:
                nonlocal busy_s
                busy_s = busy
                if progress is not None:
                    progress(sum(earlier) + frames, video.info.frames, busy)

            if not render(task, upscaler, todo, progress=tell, stop=stop):
                raise Interrupted(_partial(task, segments, target))
            summary = _finish(task, segments, target)
            parts.remove()
    notes = ...
    return replace(summary, seconds=time.perf_counter() - began, resumed=sum(earlier), busy_s=busy_s)


def render(
    task: Task,
    upscaler: Upscaler,
    segments: Sequence[Segment],
    *,
    progress: Callable[[int, Busy], object] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Render segments one after another; whether all of them are finished now, as `stop` may have ended it.

    Raises:  what a stage has met, of which the first counts; what was finished before stays finished
    """
    info = task.output
    lr_pixels = info.width * info.height // upscaler.scale**2
    batch = 1 if upscaler.device == "cpu" else max(1, min(_BATCH, _BATCH_PIXELS // lr_pixels))
    stages = Stages(
        lambda frames: upscaler(frames, layout="HWC" if frames.ndim == 3 else "NHWC"),
        upscaler.device,
        info.colour,
        batch=batch,
        depth=_DEPTH,
        stop=stop,
    )
    with Source(task.source, matrix=_matrix(task.options)) as video:
        chain = [
            ("upload", stages.upload),
            ("upscale", stages.upscale),
            ("download", stages.download),
            ("encode", lambda items: _encode(task, segments, items)),
        ]
        with Pipeline(("decode", _decode(video, segments)), chain, depth=_DEPTH) as pipeline:
            finished = frames = 0
            for done in pipeline:
                finished += done is None
                frames += done is not None
                if progress is not None and done is not None:
                    progress(frames, pipeline.busy_s())
    return finished == len(segments)


def _decode(video: Source, segments: Sequence[Segment]) -> Iterator[Any]:
    """The frames of segments, each followed by what was met in reading it."""
    for segment in segments:
        damaged = video.damaged
        yield from video.frames(segment.start, segment.stop)
        yield End(video.damaged - damaged, 0, tuple(video.notes))


def _encode(task: Task, segments: Sequence[Segment], items: Iterator[Any]) -> Iterator[int | None]:
    """Write segments; gives the time of each frame written, and None for each segment finished."""
    for segment in segments:
        path = task.folder.packets(segment)
        encoder = None
        frames = 0
        try:
            for item in items:
                if isinstance(item, End):
                    break
                if encoder is None:
                    encoder = Encoder(path, task.output, task.codec, task.options)
                encoder.write(item.planes, item.pts)
                frames += 1
                yield item.pts
            else:  # stopped within it
                if encoder is not None:
                    encoder.close()
                    os.replace(path, task.folder.partial(segment))
                return
            if encoder is not None:
                encoder.close()
            size = path.stat().st_size if frames else 0
            task.folder.finish(segment, Record(frames, size, item.damaged, item.missing, item.notes))
            yield None
        except (*FFMPEG_ERRORS, OSError) as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; make room, the same command goes on") from error
        finally:
            if encoder is not None:
                encoder.abort()
