"""A video file in, a larger one out: planned, rendered in segments, joined, checked against the input, put in place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import av

from srgan_fast import __version__
from srgan_fast.errors import DistributedError, Interrupted, OutputError, UsageError
from srgan_fast.outputs import check_folder, same
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
# A network file system may hold for a minute that a file is not there.
_SEEN_S, _LOOK_S = 90.0, 0.2

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


@dataclass(frozen=True)
class Traits:
    """What of an upscaler, and of the programs beside it, decides the bytes of a result."""

    scale: int
    model: str
    backend: str
    precision: str
    ffmpeg: str = ".".join(map(str, av.library_versions["libavcodec"]))
    version: str = __version__

    @classmethod
    def of(cls, upscaler: Upscaler) -> Traits:
        """Those of an upscaler in this process."""
        return cls(upscaler.scale, upscaler.model.info.digest, upscaler.backend_name, upscaler.precision)


@dataclass(frozen=True)
class Effort:
    """What a run has done for a video.

    Units:   `busy_s` the seconds that each stage has worked, `saved` the share of pixels that were not computed
    """

    busy_s: Busy = field(default_factory=dict)
    saved: float = 0.0
    not_reused: str = ""


class Job:
    """A video on its way: planned when it is made, rendered by whoever can, then joined, checked and put in place.

    `todo` are the segments that are to be rendered, `earlier` counts the frames of those that are not, `total` all
    frames if that is known. It keeps others from the same target until it is closed.

    Raises:  InputError for what is no video; UsageError for options or a container that cannot be; OutputError if the
             target cannot be written; BackendUnavailable for an encoder that is not there
    """

    def __init__(self, source: Path, target: Path, traits: Traits, options: VideoOptions = VideoOptions()) -> None:
        self._began = time.perf_counter()
        self.source, self.target = source, real(target)
        check_target(source, self.target)
        with ExitStack() as stack:
            self._video = stack.enter_context(Source(source, matrix=options.matrix))
            info, container = self._video.info, container_of(self.target)
            depth = 10 if options.ten_bit or info.colour.depth > 8 else 8
            size = info.width * traits.scale, info.height * traits.scale
            codec = choose(options.codec, *size, depth, container)
            output = output_of(info, traits.scale, codec)
            check_options(codec, Options(options.crf, options.preset))
            self._dropped = limits(self._video, self.target, codec)
            if self._dropped and options.strict:
                raise UsageError(
                    f"{self.target.name} would not hold all of {source.name}: {self._dropped[0]}; or leave --strict out"
                )
            settings = {
                "model": traits.model,
                "scale": traits.scale,
                "backend": traits.backend,
                "precision": traits.precision,
                "matrix": options.matrix,
                "codec": codec.name,
                "depth": codec.depth,
                "crf": options.crf,
                "preset": options.preset,
                "FFmpeg": traits.ffmpeg,
            }
            self._parts = stack.enter_context(
                closing(Parts(folder_of(self.target), fingerprint(source), settings, restart=options.restart))
            )
            if self._parts.segments is None:
                self._parts.begin(cut(self._video.keyframes(), info.time_base), threads=_threads())
            self._segments, folder = self._parts.segments or [], self._parts.folder
            coding = Options(options.crf, options.preset, self._parts.threads)
            # A worker may stand in another folder.
            self.task = Task(Path(os.path.abspath(source)), options.matrix, folder, output, codec, coding)
            self.todo = [segment for segment in self._segments if folder.record(segment) is None]
            self.earlier = sum(record.frames for record in map(folder.record, self._segments) if record is not None)
            self.total = info.frames
            if self.total is None and info.duration_s is not None and info.rate is not None:
                self.total = round(info.duration_s * info.rate)
            self._reuse = options.reuse
            self._stack = stack.pop_all()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the target; what is finished stays in its folder."""
        self._stack.close()

    def finish(self, effort: Effort) -> Summary:
        """Join the segments, all of which are rendered, check the whole, and put it in its place.

        Raises:  IncompleteError if it is not what went into it; OutputError if it cannot be written; DistributedError
                 if parts that other machines have written do not show up here
        """
        folder = self.task.folder
        records = self._records()
        packets = [folder.packets(s) for s, record in zip(self._segments, records, strict=True) if record.frames]
        written = join(self._video, packets, folder.joined(), container_of(self.target), self.task.output)
        summary = describe(
            self._video, self.task.output, self.task.codec, self._dropped, records, written, folder.joined()
        )
        os.replace(folder.joined(), self.target)
        folder.remove_left()
        self._parts.remove()
        return replace(
            summary,
            target=self.target,
            seconds=time.perf_counter() - self._began,
            resumed=self.earlier,
            busy_s=effort.busy_s,
            saved=effort.saved,
            not_reused=effort.not_reused if self._reuse == "auto" else "",
        )

    def stopped(self) -> str:
        """Leave the frames so far beside the target as NAME.partial.SUFFIX until it is finished, and say so."""
        return _partial(self._video, self.task, self._segments, self.target, self.total)

    def _records(self) -> list[Record]:
        """Of all segments; a file system that machines share may show what another one wrote only after a while."""
        give_up = time.monotonic() + _SEEN_S
        while True:
            found = [self.task.folder.record(segment) for segment in self._segments]
            records = [record for record in found if record is not None]
            if len(records) == len(found):
                return records
            if time.monotonic() > give_up:
                raise DistributedError(
                    f"expected {len(found)} finished segments in {self.task.folder.path}, got {len(records)}: the"
                    " machines do not see the same files there; share that folder, the same command goes on"
                )
            time.sleep(_LOOK_S)


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
    end. The caller looks at `missing` and `damage` of the summary. On several GPUs or machines it is
    `video.schedule.upscale_videos` that does it.

    Raises:  InputError for what is no video; UsageError for options or a container that cannot be; OutputError if the
             target cannot be written; BackendUnavailable for an encoder that is not there; Interrupted
    """
    with Job(Path(source), Path(target), Traits.of(upscaler), options) as job:
        busy_s: Busy = {}

        def tell(frames: int, busy: Busy) -> None:
            nonlocal busy_s
            busy_s = busy
            if progress is not None:
                progress(job.earlier + frames, job.total, busy)

        reuse = Reuse(upscaler, options.reuse, shared=True)
        if not render(job.task, upscaler, job.todo, reuse=reuse, progress=tell, stop=stop):
            raise Interrupted(job.stopped())
        return job.finish(Effort(busy_s, reuse.saved, reuse.reason))


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
    if same(source, target):
        raise UsageError(f"the input and the output are the same: {source}; name another output")
    if target.is_dir():
        raise OutputError(f"expected a video file to write, got the folder {target}; name another output")
    check_folder(target.parent, target)


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
        written = task.folder.fresh(segment)
        encoder: Encoder | None = None
        frames = size = 0
        try:
            for item in items:
                if isinstance(item, End):
                    break
                if encoder is None:
                    encoder = Encoder(written, task.output, task.codec, task.options)
                encoder.write(item.planes, item.pts)
                yield item.pts
            else:  # stopped within it
                if encoder is not None:
                    encoder.close()
                    os.replace(written, task.folder.partial(segment))
                return
            if encoder is not None:
                encoder.close()
                frames, size = encoder.frames, written.stat().st_size
                os.replace(written, task.folder.packets(segment))
        except BaseException:
            if encoder is not None:
                encoder.abort()
            raise
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
    task.folder.leave(partial)
    for segment in segments:
        task.folder.partial(segment).unlink(missing_ok=True)
    of = "" if total is None else f" of {total}"
    return f"stopped; {written.frames}{of} frames are in {partial}, {again}"
