#!/bin/sh
# Any video that ffmpeg reads, in any codec that it writes: with_ffmpeg.sh IN OUT [options of srgan-fast upscale]
# y4m has no sound, no timestamps and no colour tags: the sound is taken from IN, a variable frame rate becomes a constant
# one, and colours are taken for BT.709, as HD has them. For SD write bt601 and smpte170m in the places of the two bt709.
set -eu
in=$1 out=$2
shift 2
ffmpeg -v error -i "$in" -f yuv4mpegpipe -strict -1 - |
  srgan-fast upscale - - --matrix bt709 "$@" |
  ffmpeg -v error -y -i - -i "$in" -map 0:v -map '1:a?' -c:a copy -colorspace bt709 -crf 16 "$out"
