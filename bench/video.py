"""How fast a video is upscaled from file to file, and what keeps it from the speed of the network alone.

The same clip in turns: the network alone, the whole chain into nothing, the whole command with each encoder, each stage
alone, FFmpeg's own decoding and encoding of the result as the floor, and on request how others do it with the same
upscaler. A way that loses a frame, or gives another picture, leaves no figures behind.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srgan_fast.bench.device import is_cuda, peak_bytes, rest_bytes, synchronise
from srgan_fast.bench.figures import video_figures
from srgan_fast.bench.record import record
from srgan_fast.bench.roundtrip import WAYS
from srgan_fast.bench.timer import interleave
from srgan_fast.errors import UsageError
from srgan_fast.evaluate.metrics import psnr_db
from srgan_fast.memory import resident_bytes
from srgan_fast.upscaler import Upscaler, resolved
from srgan_fast.video.colour import from_rgb, to_rgb
from srgan_fast.video.encoder import Codec, Encoder, Options, choose, output_of, settings_of, why_not
from srgan_fast.video.job import Task, VideoOptions, batch_of, render, upscale_video
from srgan_fast.video.pipeline import Pipeline
from srgan_fast.video.segments import Folder, Segment
from srgan_fast.video.source import Frame, Source
from srgan_fast.video.stages import End, Picture, Planes, Stages
from srgan_fast.weights import load

RATE = 25
# Frames that are drawn, and held for what is timed alone: the clip goes through them forth and back.
_DRAWN = 24
_HELD_BYTES = 256 << 20
# The frames whose planes are held against those of the upscaler without a chain around it.
_LOOKED_AT = 3
_SAMPLES = 10
_NVENC = ("h264_nvenc", "hevc_nvenc")
# What a picture may lose in an encoder at its usual quality; another picture is off by more.
_CODED_DB = 30.0
_MOST_DB = 100.0

Run = Callable[[], object]


def measure(
    model_name: str,
    height: int,
    width: int,
    frames: int,
    runs: int,
    device: str,
    precision: str = "auto",
    *,
    codecs: Sequence[str] | None = None,
    with_peers: bool = False,
) -> dict[str, Any]:
    """The record of one size: seconds and CPU seconds of every way to go through a clip of so many frames, in turns.

    `codecs` are those that the command is timed with: libx264, and NVENC where it opens, if nothing is said.

    Raises:  ValueError for fewer than 1 run or 2 frames; UsageError for an odd size; what `Upscaler` and `choose` raise
    """
    if runs < 1 or frames < 2:
        raise ValueError(f"expected at least 1 run of at least 2 frames, got {runs} of {frames}")
    if height % 2 or width % 2:
        raise UsageError(f"expected an even width and height, as the clip has 4:2:0 chroma, got {width}x{height}")
    device = resolved(device)
    model = load(model_name)
    rest = rest_bytes(device)
    upscaler = Upscaler(model, device=device, precision=precision)
    size = width * upscaler.scale, height * upscaler.scale
    if codecs is None:
        nvenc = next((name for name in _NVENC if is_cuda(device) and why_not(name, *size, 8) is None), None)
        codecs = ["libx264", *([nvenc] if nvenc else [])]
    with tempfile.TemporaryDirectory() as folder:
        bench = _Clip(Path(folder), height, width, frames, upscaler)
        peak = peak_bytes(bench.nothing, device, rest)
        held_bytes = bench.held_bytes
        ways, sources, left_out = bench.ways(codecs, with_peers)
        cpu_s: dict[str, list[float]] = {name: [] for name in ways}
        ms = interleave({name: partial(_counted, run, cpu_s[name], device) for name, run in ways.items()}, runs)
        seconds = {name: [each / 1e3 for each in samples] for name, samples in ms.items()}
        quality = bench.quality(sources)
        gpu = bench.gpu_busy() if is_cuda(device) else {}
    raw = {
        "frames": frames,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds": seconds,
        "cpu_s": cpu_s,
        "sleep_s": bench.sleep_s,
        "busy_s": bench.busy_s,
        "thread_cpu_s": bench.thread_cpu_s,
        "held_bytes": held_bytes,
        **({} if peak is None else {"peak_bytes": peak}),
        **gpu,
    }
    return record(
        "video",
        model.info.name,
        weights=model.info.digest,
        impl=upscaler.backend_name,
        baseline="model",
        dtype=upscaler.precision,
        device=torch.device(device).type,
        frames=frames,
        shape={"n": bench.batch, "c": 3, "h": height, "w": width, "scale": upscaler.scale},
        codecs={name: settings_of(choose(name, *size, 8), Options()) for name in codecs},
        left_out=left_out,
        raw=raw,
        derived=video_figures(raw) if quality["gate"] == "pass" else {},
        quality=quality,
    )


def draw(path: Path, height: int, width: int, frames: int) -> None:
    """Write a clip: the camera goes over a drawn picture of edges and fine texture, forth and back."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : height + _DRAWN, 0 : width + 2 * _DRAWN].astype(np.float32)
    canvas = np.stack([np.sin(x / (9 + plane)) * np.cos(y / (7 + plane)) for plane in range(3)], -1)
    for _ in range(40):
        top, left = rng.integers(0, height), rng.integers(0, width)
        canvas[top : top + rng.integers(2, 40), left : left + rng.integers(2, 60)] = rng.uniform(-1, 1, 3)
    canvas += rng.normal(0, 0.06, (*canvas.shape[:2], 1))
    pixels = np.clip(128 + 100 * canvas, 0, 255).astype(np.uint8)
    there = list(range(_DRAWN))
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "12", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1
        for index, at in enumerate(islice(cycle(there + there[-2:0:-1]), frames)):
            view = np.ascontiguousarray(pixels[at : at + height, 2 * at : 2 * at + width])
            picture = av.VideoFrame.from_ndarray(view, "rgb24")
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


class _Instead:
    """An upscaler whose frames go elsewhere; for all else it is the one that it was made of."""

    def __init__(self, upscaler: Upscaler, call: Callable[..., Tensor]) -> None:
        self._upscaler, self._call = upscaler, call

    def __call__(self, frames: Tensor, layout: Any) -> Tensor:
        return self._call(frames, layout=layout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._upscaler, name)


class _Clip:
    """A clip, an upscaler, and every way to bring the one through the other."""

    def __init__(self, folder: Path, height: int, width: int, frames: int, upscaler: Upscaler) -> None:
        self._folder, self._frames, self._upscaler = folder, frames, upscaler
        self._path = folder / "clip.mkv"
        draw(self._path, height, width, frames)
        with Source(self._path) as video:
            self._info = video.info
            self._some: list[Frame] = list(islice(video.frames(), _DRAWN))
        self.batch = batch_of(upscaler, self._info)
        self._codec = choose("libx264", width * upscaler.scale, height * upscaler.scale, 8)
        self._output = output_of(self._info, upscaler.scale, self._codec)
        self._lr = [self._rgb(frame) for frame in self._some]
        self._together = torch.stack(list(islice(cycle(self._lr), self.batch)))
        self._seen: list[Planes] = []
        self.held_bytes: list[int] = []
        self.sleep_s = 0.0
        self.busy_s: dict[str, Mapping[str, float]] = {}
        self.thread_cpu_s: Mapping[str, float] = {}

    def ways(self, codecs: Sequence[str], with_peers: bool) -> tuple[dict[str, Run], dict[str, Path], dict[str, str]]:
        """Functions by name, the files that some of them write, and what is not here and why."""
        start = time.perf_counter()
        self.model()
        synchronise(self._upscaler.device)
        self.sleep_s = (time.perf_counter() - start) / self._frames
        files: dict[str, Path] = {}
        ways: dict[str, Run] = {"model": self.model, "null": self.nothing, "sleep": self.asleep}
        ways |= {f"alone {name}": run for name, run in self._alone().items()}
        for name in codecs:
            codec = choose(name, self._output.width, self._output.height, 8)
            files[name] = self._folder / f"{name}.mkv"
            files[f"floor {name}"] = self._folder / f"{name}.floor.mkv"
            ways[name] = partial(self.command, files[name], name)
            ways[name]()
            ways[f"floor {name}"] = partial(transcode, files[name], files[f"floor {name}"], codec)
            ways[f"alone encode {name}"] = partial(self._encode, self._larger_planes(files[name]), codec)
        left_out = {}
        for name, (why_absent, run) in WAYS.items() if with_peers else ():
            reason = why_absent()
            if reason is not None:
                left_out[name] = reason
                continue
            files[name] = self._folder / f"{name}.mp4"
            options = settings_of(self._codec, Options())
            ways[name] = partial(run, self._path, files[name], self._upscaler, options)
        return ways, files, left_out

    def model(self) -> None:
        """The network alone, on frames that lie on the device, as many at once as in a chain."""
        batches = self._frames // self.batch if self.batch > 1 else 0
        for _ in range(batches):
            self._upscaler(self._together, layout="NHWC")
        for lr in islice(cycle(self._lr), self._frames - batches * self.batch):
            self._upscaler(lr, layout="HWC")

    def nothing(self, upscaler: Upscaler | None = None) -> Pipeline:
        """The whole chain, into nothing; what is held is sampled on the way."""
        seen: list[Planes] = []
        self.held_bytes = []
        step = max(1, self._frames // _SAMPLES)

        def sink(segments: Sequence[Segment], items: Iterator[Any]) -> Iterator[int | Segment]:
            count = 0
            for segment in segments:
                for item in items:
                    if isinstance(item, End):
                        break
                    count += 1
                    if count <= _LOOKED_AT:
                        seen.append(Planes(tuple(plane.copy() for plane in item.planes), item.pts))
                    if count % step == 0:
                        self.held_bytes.append(_held(self._upscaler.device))
                    yield item.pts
                yield segment

        through: list[Pipeline] = []
        task = Task(self._path, None, Folder(self._folder), self._output, self._codec, Options())
        render(task, upscaler or self._upscaler, [Segment(0, None, None)], sink=sink, ended=through.append)
        if upscaler is None:
            self._seen = seen
            self.busy_s["null"], self.thread_cpu_s = through[0].busy_s(), through[0].cpu_s()
        return through[0]

    def asleep(self) -> None:
        """The same with a sleep in the place of the network, as long as that takes."""
        height, width = self._output.height, self._output.width
        larger = torch.zeros(self.batch, height, width, 3, dtype=torch.uint8, device=self._upscaler.device)

        def call(frames: Tensor, layout: str) -> Tensor:
            count = len(frames) if layout == "NHWC" else 1
            time.sleep(self.sleep_s * count)
            return larger[:count] if layout == "NHWC" else larger[0]

        self.nothing(cast(Upscaler, _Instead(self._upscaler, call)))

    def command(self, target: Path, codec: str) -> None:
        """What `srgan-fast upscale` does with the clip, every frame computed whole."""
        options = VideoOptions(codec=codec, reuse="off", restart=True)
        self.busy_s[codec] = upscale_video(self._path, target, self._upscaler, options).busy_s

    def gpu_busy(self) -> dict[str, float]:
        """Seconds of one pass of the chain, and those in which the network had the GPU, by events around each call."""
        marks: list[tuple[Any, Any]] = []

        def call(frames: Tensor, layout: Any) -> Tensor:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            larger = self._upscaler(frames, layout=layout)
            end.record()
            marks.append((start, end))
            return larger

        began = time.perf_counter()
        self.nothing(cast(Upscaler, _Instead(self._upscaler, call)))
        wall_s = time.perf_counter() - began
        synchronise(self._upscaler.device)
        return {"gpu_wall_s": wall_s, "gpu_busy_s": sum(start.elapsed_time(end) for start, end in marks) / 1e3}

    def quality(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Whether the chain gave the pictures of the upscaler without it, and every file has them all."""
        wanted = []
        for frame in self._some[: len(self._seen)]:
            rgb = self._upscaler(self._rgb(frame), layout="HWC")
            wanted.append([plane.cpu().numpy() for plane in from_rgb(rgb, self._output.colour)])
        off = max(
            int(np.abs(got.astype(int) - want).max())
            for seen, planes in zip(self._seen, wanted, strict=True)
            for got, want in zip(seen.planes, planes, strict=True)
        )
        counts, luma_psnr_db = {}, {}
        for name, path in files.items():
            with av.open(str(path)) as file:
                luma = [_luma(frame) for frame in islice(file.decode(video=0), len(wanted))]
            with av.open(str(path)) as file:
                counts[name] = sum(1 for _ in file.decode(video=0))
            luma_psnr_db[name] = min(_psnr_db(got, want[0]) for got, want in zip(luma, wanted, strict=True))
        # How others treat colours is their affair; that all of their frames are there is not.
        ours = [value for name, value in luma_psnr_db.items() if name not in WAYS]
        whole = all(count == self._frames for count in counts.values())
        passed = off <= 1 and whole and min(ours, default=_CODED_DB) >= _CODED_DB
        return {
            "gate": "pass" if passed else "fail",
            "largest_difference_levels": off,
            "frames": counts,
            "luma_psnr_db": luma_psnr_db,
        }

    def _alone(self) -> dict[str, Run]:
        """Each stage of the chain but the last, by itself; and what queues between stages cost."""
        stages = Stages(lambda lr: lr, self._upscaler.device, self._output.colour)
        device = self._upscaler.device
        larger = self._upscaler(self._rgb(self._some[0]), layout="HWC")

        def decode() -> None:
            with Source(self._path, hardware=is_cuda(device)) as video:
                _drain(video.frames())

        def upload() -> None:
            _drain(stages.upload(islice(cycle(self._some), self._frames)))

        def download() -> None:
            synchronise(device)
            mark = None
            if is_cuda(device):
                mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
                mark.record()
            _drain(stages.download(iter([Picture(larger, 0, mark)] * self._frames)))

        def queues() -> None:
            passing = [(name, lambda items: items) for name in ("upload", "upscale", "download", "encode")]
            with Pipeline(("decode", range(self._frames)), passing) as pipeline:
                _drain(iter(pipeline))

        return {"decode": decode, "upload": upload, "download": download, "queues": queues}

    def _larger_planes(self, path: Path) -> list[Frame]:
        """Frames of an output, as many as may be held."""
        with Source(path) as video:
            most = _HELD_BYTES // (self._output.width * self._output.height * 3 // 2)
            return list(islice(video.frames(), max(2, min(most, self._frames))))

    def _encode(self, frames: Sequence[Frame], codec: Codec) -> None:
        encoder = Encoder(self._folder / "alone.nut", self._output, codec, Options())
        for index, frame in enumerate(islice(cycle(frames), self._frames)):
            encoder.write(frame.planes, index)
        encoder.close()

    def _rgb(self, frame: Frame) -> Tensor:
        planes = [torch.from_numpy(np.array(plane)).to(self._upscaler.device) for plane in frame.planes]
        return to_rgb(planes, frame.colour)


def transcode(source: Path, target: Path, codec: Codec) -> None:
    """FFmpeg's own decoding and encoding, with its own threads: nothing is done to a frame between the two."""
    with av.open(str(source)) as given, av.open(str(target), "w") as written:
        video: Any = given.streams.video[0]
        video.thread_type = "AUTO"
        add: Any = written.add_stream  # typed for sound and text as well
        stream = add(codec.name, rate=video.average_rate, options=settings_of(codec, Options()))
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, codec.pixel_format
        for frame in given.decode(video):
            frame.pict_type = 0  # else the encoder would take over what was a keyframe
            if frame.format.name != codec.pixel_format:
                frame = frame.reformat(format=codec.pixel_format)
            written.mux(stream.encode(frame))
        written.mux(stream.encode())


def _counted(run: Run, cpu_s: list[float], device: str) -> None:
    start = time.process_time()
    run()
    synchronise(device)
    cpu_s.append(time.process_time() - start)


def _drain(items: Iterator[object]) -> None:
    for _ in items:
        pass


def _held(device: str) -> int:
    return torch.cuda.memory_reserved() if is_cuda(device) else resident_bytes()


def _luma(frame: Any) -> NDArray[Any]:
    return np.asarray(frame.to_ndarray(format="yuv420p")[: frame.height])


def _psnr_db(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Of two uint8 planes; capped, for JSON has no infinity."""
    return min(_MOST_DB, psnr_db(*(torch.from_numpy(plane).to(torch.float64) for plane in (got, want))))
