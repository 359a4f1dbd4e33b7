"""A video file in, a larger one out: planned, rendered in segments, joined, checked against the input, put in place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import av

from srgan_fast.errors import Interrupted, OutputError, UsageError
from srgan_fast.reuse import Reuse
from srgan_fast.video.colour import Matrix
from srgan_fast.video.encoder import Codec, Encoder, Options, Output, check_options, choose, output_of
from srgan_fast.video.mux import container_of, join, limits
from srgan_fast.video.pipeline import Pipeline
from srgan_fast.video.segments import Folder, Parts, Record, Segment, cut, fingerprint
from srgan_fast.video.source import Info, Source
from srgan_fast.video.stages import End, Stages
from srgan_fast.video.summary import Summary, describe

if TYPE_CHECKING:
    from srgan_fast.upscaler import Upscaler

# Frames between two stages: enough to bridge one that takes longer, few enough to stop soon.
_DEPTH = 2
# LR pixels that a GPU is given at once where frames are small, and the most frames that it may be.
_BATCH_PIXELS, _BATCH = 1 << 19, 8
_MOST_THREADS = 16

Busy = Mapping[str, float]
# Frames so far, how many there will be if that is known, and the seconds that each stage has worked.
Progress = Callable[[int, int | None, Busy], object]
# Takes planes, and an End after each segment; gives the time of each frame it is done with, and each finished segment.
Sink = Callable[[Sequence[Segment], Iterator[Any]], Iterator[int | Segment]]


@dataclass(frozen=True)
class VideoOptions:
    """What may be chosen; the defaults are what a user who says nothing wants. A `matrix` of None is the input's."""

    codec: str = "auto"
    crf: float | None = None
    preset: str | None = None
    ten_bit: bool = False
    matrix: Matrix | None = None
    strict: bool = False
    restart: bool = False
    reuse: Literal["auto", "off"] = "auto"


@dataclass(frozen=True)
class Task:
    """All that a process has to know to render segments, beside an upscaler: it can be sent to another one."""

    source: Path
    matrix: Matrix | None
    folder: Folder
    output: Output
    codec: Codec
    options: Options


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

    `stop` is asked before each frame; when it says so, what is under way is finished, Interrupted is raised, and the
    frames so far lie beside the target under the name NAME.partial.SUFFIX. A target that is there is replaced at the
    end. The caller looks at `missing` and `damage` of the summary.

    Raises:  InputError for what is no video; UsageError for options or a container that cannot be; OutputError if the
             target cannot be written; BackendUnavailable for an encoder that is not there; Interrupted
    """
    began = time.perf_counter()
    source, target = Path(source), real(target)
    check_target(source, target)
    with Source(source, matrix=options.matrix) as video:
        info, container = video.info, container_of(target)
        depth = 10 if options.ten_bit or info.colour.depth > 8 else 8
        size = info.width * upscaler.scale, info.height * upscaler.scale
        codec = choose(options.codec, *size, depth, container)
        output = output_of(info, upscaler.scale, codec)
        check_options(codec, Options(options.crf, options.preset))
        dropped = limits(video, target, codec)
        if dropped and options.strict:
            raise UsageError(f"{target.name} would not hold all of {source.name}: {dropped[0]}; or leave --strict out")
        settings = {
            "model": upscaler.model.info.digest,
            "scale": upscaler.scale,
            "backend": upscaler.backend_name,
            "precision": upscaler.precision,
            "matrix": options.matrix,
            "codec": codec.name,
            "depth": codec.depth,
            "crf": options.crf,
            "preset": options.preset,
            "FFmpeg": ".".join(map(str, av.library_versions["libavcodec"])),
        }
        with closing(Parts(folder_of(target), fingerprint(source), settings, restart=options.restart)) as parts:
            if parts.segments is None:
                parts.begin(cut(video.keyframes(), info.time_base), threads=_threads())
            segments, folder = parts.segments or [], parts.folder
            coding = Options(options.crf, options.preset, parts.threads)
            task = Task(source, options.matrix, folder, output, codec, coding)
            earlier = sum(record.frames for segment in segments if (record := folder.record(segment)) is not None)
            total = info.frames
            if total is None and info.duration_s is not None and info.rate is not None:
                total = round(info.duration_s * info.rate)
            busy_s: Busy = {}

            def tell(frames: int, busy: Busy) -> None:
                nonlocal busy_s
                busy_s = busy
                if progress is not None:
                    progress(earlier + frames, total, busy)

            reuse = Reuse(upscaler, options.reuse, shared=True)
            todo = [segment for segment in segments if folder.record(segment) is None]
            if not render(task, upscaler, todo, reuse=reuse, progress=tell, stop=stop):
                raise Interrupted(_partial(video, task, segments, target, total))
            records = [record for segment in segments if (record := folder.record(segment)) is not None]
            packets = [folder.packets(s) for s, record in zip(segments, records, strict=True) if record.frames]
            written = join(video, packets, folder.joined(), container, output)
            summary = describe(video, output, codec, dropped, records, written, folder.joined())
            os.replace(folder.joined(), target)
            parts.remove()
    return replace(
        summary,
        target=target,
        seconds=time.perf_counter() - began,
        resumed=earlier,
        busy_s=busy_s,
        saved=reuse.saved,
        not_reused=reuse.reason if options.reuse == "auto" else "",
    )


def render(
    task: Task,
    upscaler: Upscaler,
    segments: Sequence[Segment],
    *,
    reuse: Reuse | None = None,
    progress: Callable[[int, Busy], object] = lambda frames, busy: None,
    stop: Callable[[], bool] = lambda: False,
    sink: Sink | None = None,
    ended: Callable[[Pipeline], object] = lambda pipeline: None,
) -> bool:
    """Render segments one after another; whether all of them are finished now, as `stop` may have ended it.

    By `reuse` only what changed from frame to frame is computed; frames that run several at once are computed whole.
    A `sink` stands in the encoder's place, and nothing is written. `ended` is told when all threads are through.

    Raises:  the first error that a stage has met; what was finished before stays finished
    """
    with Source(task.source, matrix=task.matrix, hardware=upscaler.device != "cpu") as video:
        again = Reuse(upscaler, "off") if reuse is None else reuse
        stages = Stages(
            lambda frames: again(frames) if frames.ndim == 3 else upscaler(frames, layout="NHWC"),
            upscaler.device,
            task.output.colour,
            batch=batch_of(upscaler, video.info),
            depth=_DEPTH,
            stop=stop,
        )
        encode = partial(_encode, task) if sink is None else sink
        chain = [
            ("upload", stages.upload),
            ("upscale", stages.upscale),
            ("download", stages.download),
            ("encode", lambda items: encode(segments, items)),
        ]
        finished = frames = 0
        with Pipeline(("decode", _decode(video, segments)), chain, depth=_DEPTH) as pipeline:
            for what in pipeline:
                if isinstance(what, Segment):
                    finished += 1
                else:
                    frames += 1
                    progress(frames, pipeline.busy_s())
        ended(pipeline)
    return finished == len(segments)


def batch_of(upscaler: Upscaler, info: Info) -> int:
    """How many frames of a video an upscaler is given at once: several where they are small and on a GPU."""
    together = max(1, min(_BATCH, _BATCH_PIXELS // (info.height * info.width)))
    itemsize = 1 if info.colour.depth == 8 else 2
    return upscaler.plan(info.height, info.width, itemsize=itemsize, count=together).frames


def check_target(source: Path, target: Path) -> None:
    """Refuse at once what could be refused after a day.

    Raises:  UsageError for the name of the target; OutputError if it cannot be written
    """
    container_of(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"the input and the output are the same: {source}; name another output")
    if target.is_dir():
        raise OutputError(f"expected a video file to write, got the folder {target}; name another output")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: {target.parent} is not a folder that exists; make it first")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {target}: no permission to write in {target.parent}; name another folder")


def real(target: Path) -> Path:
    """Where a target lies: a link stays a link, what it points to is replaced."""
    return Path(os.path.realpath(target))


def folder_of(target: Path) -> Path:
    """Where the parts of a job lie."""
    return target.with_name(target.name + ".parts")


def _threads() -> int:
    """Threads of the encoder: noted with the job, because its bits depend on how many there are."""
    return min(_MOST_THREADS, (os.cpu_count() or 1) * 3 // 2)


def _decode(video: Source, segments: Sequence[Segment]) -> Iterator[Any]:
    """The frames of segments, each followed by what was met in reading it."""
    for segment in segments:
        damaged, missing = video.damaged, video.missing
        video.notes.clear()
        yield from video.frames(segment.start, segment.stop)
        lost = video.missing - missing
        yield End(video.damaged - damaged - lost, lost, tuple(video.notes))


def _encode(task: Task, segments: Sequence[Segment], items: Iterator[Any]) -> Iterator[int | Segment]:
    """Write segments: gives the time of each frame when it is written, and each segment when it is finished."""
    for segment in segments:
        packets = task.folder.packets(segment)
        encoder: Encoder | None = None
        try:
            for item in items:
                if isinstance(item, End):
                    break
                if encoder is None:
                    encoder = Encoder(packets, task.output, task.codec, task.options)
                encoder.write(item.planes, item.pts)
                yield item.pts
            else:  # stopped within it
                if encoder is not None:
                    encoder.close()
                    os.replace(packets, task.folder.partial(segment))
                return
            if encoder is not None:
                encoder.close()
        except BaseException:
            if encoder is not None:
                encoder.abort()
            raise
        frames, size = (0, 0) if encoder is None else (encoder.frames, packets.stat().st_size)
        task.folder.finish(segment, Record(frames, size, item.damaged, item.missing, item.notes))
        yield segment


def _partial(video: Source, task: Task, segments: Sequence[Segment], target: Path, total: int | None) -> str:
    """Put together what there is from the beginning on, and say what became of it."""
    packets, kept = [], 0
    for segment in segments:
        record = task.folder.record(segment)
        if record is None:
            if task.folder.partial(segment).exists():
                packets.append(task.folder.partial(segment))
            break
        packets += [task.folder.packets(segment)] if record.frames else []
        kept += record.frames
    again = f"the same command goes on from frame {kept}" if kept else "the same command starts again"
    if not packets:
        return f"stopped; nothing was written, {again}"
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    written = join(video, packets, task.folder.joined(), container_of(target), task.output, partly=True)
    os.replace(task.folder.joined(), partial)
    for segment in segments:
        task.folder.partial(segment).unlink(missing_ok=True)
    of = "" if total is None else f" of {total}"
    return f"stopped; {written.frames}{of} frames are in {partial}, {again}"
