"""Ways to break the kernels of video colour; see `mutations.py`."""

from __future__ import annotations

from mutations import OUTSIDE, ROW, Mutation

YUV = "7x9, 420 left, 8 bits, uint8 to uint8, bt709, limited"
YUV_CENTRE = "6x8, 420 centre, 8 bits, uint8 to uint8, bt601, full"
YUV_FLOATS = "5x6, 420 left, 8 bits, floats to floats, bt709, limited"

COLOUR = (
    Mutation("chroma half a pixel on", "yuv_to_rgb", YUV, "near = at // 2", "near = (at + 1) // 2"),
    Mutation("colours swapped", "yuv_to_rgb", YUV, "o_ptr + place * 3, red", "o_ptr + place * 3, blue"),
    Mutation("one row unwritten", "yuv_to_rgb", YUV, *ROW, shared=True),
    Mutation("one row written outside of the frame", "yuv_to_rgb", YUV, *OUTSIDE, shared=True),
    Mutation("cut off", "yuv_to_rgb", YUV, "tl.floor(v + 0.5)", "tl.floor(v)"),
    Mutation("no clamp", "yuv_to_rgb", YUV, "tl.maximum(v, 0.0, tl.PropagateNan.ALL)", "v"),
    Mutation("floats without a clamp", "yuv_to_rgb", YUV_FLOATS, "tl.maximum(v, 0.0, tl.PropagateNan.ALL)", "v"),
    Mutation("chroma from the offset of luma", "yuv_to_rgb", YUV, "chroma(u_ptr, c_offset", "chroma(u_ptr, y_offset"),
    Mutation("position down as across", "yuv_to_rgb", YUV, "even_y, DOWN, FIRST_ROW", "even_y, DOWN, FIRST_COLUMN"),
    Mutation("no border below", "yuv_to_rgb", YUV_CENTRE, "tl.minimum(near + 1, size - 1)", "near + 1"),
    Mutation(
        "quarters of one side",
        "yuv_to_rgb",
        YUV_CENTRE,
        "tl.where(even, tl.maximum(near - 1, 0), after)",
        "after",
    ),
    Mutation("one row for all", "yuv_to_rgb", YUV, "row = beyond_y.to(tl.int64) * CW", "row = y.to(tl.int64) * CW"),
    Mutation(
        "u for v",
        "rgb_to_yuv",
        YUV,
        "red_to_u, green_to_u, blue_to_u, c_offset",
        "red_to_v, green_to_v, blue_to_v, c_offset",
    ),
    Mutation("no sample before", "rgb_to_yuv", YUV, "(before + after) * 0.25", "(after + after) * 0.25"),
    Mutation("one row unwritten", "rgb_to_yuv", YUV, *ROW, shared=True),
    Mutation("one row written outside of the frame", "rgb_to_yuv", YUV, *OUTSIDE, shared=True),
    Mutation("cut off", "rgb_to_yuv", YUV, " + 0.5)", ")"),
    Mutation(
        "no clamp",
        "rgb_to_yuv",
        "3x8, 444 left, 8 bits, uint8 to uint8, bt709, full, extremes",
        "tl.minimum(tl.maximum(v, 0.0), top)",
        "v",
    ),
    Mutation("floats without a clamp", "rgb_to_yuv", YUV_FLOATS, "tl.maximum(v, 0.0, tl.PropagateNan.ALL)", "v"),
    Mutation("position across as down", "rgb_to_yuv", YUV, "at, after, FIRST_COLUMN", "at, after, FIRST_ROW"),
    Mutation("no border below", "rgb_to_yuv", YUV, "tl.minimum(2 * row + 1, H - 1)", "2 * row + 1"),
    Mutation("chroma of the pixel before", "rgb_to_yuv", YUV_CENTRE, "row, 2 * column, H", "row, 2 * column - 1, H"),
)
