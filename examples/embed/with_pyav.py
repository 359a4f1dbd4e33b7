"""Frames of a video by PyAV, upscaled, and encoded again: python with_pyav.py IN.mp4 OUT.mp4 [MODEL]

For a whole file `srgan-fast upscale IN.mp4 OUT.mp4` does more: sound, timestamps, colour tags. This is for frames that
are yours to change on the way.
"""

from __future__ import annotations

import sys
from fractions import Fraction

import av

from srgan_fast import Upscaler

# libswscale's BICUBIC, FULL_CHR_H_INT and ACCURATE_RND: by itself it takes the nearest sample of chroma, and four times
# larger that fringe shows.
ACCURATE = 4 | 0x2000 | 0x40000

source, target, *model = sys.argv[1:]
upscaler = Upscaler(*model)
with av.open(source) as video, av.open(target, "w") as out:
    given = video.streams.video[0]
    rate = given.guessed_rate or Fraction(25)
    stream = out.add_stream("libx264", rate=rate, options={"crf": "16", "preset": "veryfast"})
    stream.width, stream.height = given.width * upscaler.scale, given.height * upscaler.scale
    frames = (frame.to_ndarray(format="rgb24", interpolation=ACCURATE) for frame in video.decode(video=0))
    for rgb in upscaler.stream(frames):
        out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
    out.mux(stream.encode(None))
