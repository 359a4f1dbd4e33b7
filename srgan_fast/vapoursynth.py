"""A VapourSynth filter: `srgan_fast.vapoursynth.upscale(clip)`. VapourSynth itself needs Python 3.12 or later."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
import vapoursynth as vs

from srgan_fast.errors import InputError, UsageError
from srgan_fast.reuse import Reuse
from srgan_fast.upscaler import Upscaler


def upscale(clip: vs.VideoNode, upscaler: Upscaler | None = None, **choices: Any) -> vs.VideoNode:
    """The clip, `scale` times larger, with the properties of its frames; `choices` are those of `Upscaler`.

    Frames may be asked for in any order. What did not change since the frame that was asked for before is not computed
    again (see `Reuse`).

    Shapes:  RGB24, RGB48 or RGBS of one size; others go through `core.resize` first, which has to know the matrix:
             `core.resize.Bicubic(clip, format=vs.RGB24, matrix_in_s="709")`
    Units:   RGBS in [0, 1], clamped; integers use their whole range
    Raises:  InputError for other clips; UsageError for choices beside an upscaler; what `Upscaler` raises for choices
    """
    wanted = {vs.RGB24: np.uint8, vs.RGB48: np.uint16, vs.RGBS: np.float32}
    form = clip.format
    if form is None or form.id not in wanted or not clip.width or not clip.height:
        got = "a clip whose frames differ" if form is None or not clip.width else form.name
        raise InputError(
            f"expected RGB24, RGB48 or RGBS of one size, got {got};"
            ' convert it with core.resize.Bicubic(clip, format=vs.RGB24, matrix_in_s="709")'
        )
    if upscaler is None:
        upscaler = Upscaler(**choices)
    elif choices:
        raise UsageError(f"expected an upscaler or choices for one, got both; drop {', '.join(choices)}")
    scale, floats, network = upscaler.scale, form.sample_type == vs.FLOAT, upscaler
    larger = vs.core.std.BlankClip(clip, width=clip.width * scale, height=clip.height * scale, keep=True)
    reuse, alone = Reuse(upscaler), threading.Lock()

    def frame_of(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        source, blank = f
        planes = np.stack([np.asarray(source[plane]) for plane in range(3)], axis=0 if floats else -1)
        with alone:
            if floats:
                result = network(planes, layout="CHW")
            else:
                result = reuse(torch.from_numpy(planes)).permute(2, 0, 1).numpy()
        frame = blank.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), result[plane])
        for key, value in source.props.items():
            frame.props[key] = value
        return frame

    return vs.core.std.ModifyFrame(larger, [clip, larger], frame_of)
