"""Draws the figures of docs/kernels.md, as SVG with the same bytes each time: python tools/draw_figures.py [FOLDER]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from srgan_fast.model import Generator, GeneratorConfig, receptive_radius

DOCS = Path(__file__).resolve().parent.parent / "docs"
# Colours that show on a light page and on a dark one; boxes bring their own ground.
INK, GROUND, WARM, COOL, PALE = "#24303c", "#f6f7f9", "#d9822b", "#2f6fb0", "#c9d3de"
STYLE: dict[str, Any] = {
    "svg.hashsalt": "srgan-fast",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
}


def bare(width: float, height: float, units: float) -> tuple[Any, Any]:
    """A drawing without axes, `units` wide, y upwards."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, units), ylim=(0, units * height / width), aspect="equal")
    axes.axis("off")
    return figure, axes


def network() -> Any:
    """The ops that a frame passes through, with the maps between them."""
    figure, axes = bare(9.0, 2.6, 90)
    ops = [
        ("frame_input", "pixels\nto values", "3 + 1"),
        ("head", "9x9, PReLU", "64"),
        ("conv3x3", "32 in 16 blocks,\nthen 1, residual", "64"),
        ("conv3x3_shuffle", "64 to 256, PReLU,\nx2", "64 at 2x"),
        ("conv3x3", "64 to 256, PReLU", "256 at 2x"),
        ("tail", "5x5, x2, clamp,\nround", "pixels at 4x"),
    ]
    for index, (name, does, gives) in enumerate(ops):
        left = 1.5 + index * 14.7
        axes.add_patch(FancyBboxPatch((left, 9), 11.5, 9, boxstyle="round,pad=0.3", fc="white", ec=COOL, lw=1.4))
        axes.text(left + 5.75, 15.4, name, ha="center", va="center", fontsize=8, weight="bold")
        axes.text(left + 5.75, 11.3, does, ha="center", va="center", fontsize=7.5)
        axes.text(left + 5.75, 5.6, gives, ha="center", va="center", fontsize=8, color=WARM)
        if index:
            axes.annotate("", (left - 0.5, 13.5), (left - 2.7, 13.5), arrowprops={"arrowstyle": "->", "color": INK})
    axes.text(1.5, 22.5, "What runs, in this order, in one CUDA graph", fontsize=10, weight="bold")
    axes.text(1.5, 2.2, "below each: the channels that it writes; maps are NHWC", fontsize=8)
    return figure


def tap() -> Any:
    """A convolution as nine products over one tile in fast memory."""
    figure, axes = bare(9.0, 3.4, 90)
    across, down, side = 10, 6, 2.6
    for row in range(down):
        for column in range(across):
            inner = 0 < row < down - 1 and 0 < column < across - 1
            axes.add_patch(
                Rectangle(
                    (3 + column * side, 8 + row * side), side, side, fc="white" if inner else PALE, ec=INK, lw=0.5
                )
            )
    for column, row, colour in ((0, 2, WARM), (1, 1, INK)):
        axes.add_patch(
            Rectangle(
                (3 + column * side, 8 + row * side), (across - 2) * side, (down - 2) * side, fill=False, ec=colour, lw=2
            )
        )
    axes.text(3, 26.3, "a tile of pixels with its border, 64 channels deep", fontsize=8.5)
    axes.text(3, 4.9, "dark: the outputs. orange: what the tap at the upper left reads,", fontsize=8)
    axes.text(3, 2.4, "the same memory from another start", fontsize=8, color=WARM)
    axes.text(31, 16, "for each of\n9 taps:", fontsize=9)
    boxes = (
        (40, 9.5, 8, 13, "X shifted\n\nN pixels\nx 64"),
        (51.5, 12, 8, 8, "W[tap]\n\n64 x 64"),
        (65, 9.5, 8, 13, "sums\n\nN pixels\nx 64"),
    )
    for left, bottom, width, height, text in boxes:
        axes.add_patch(Rectangle((left, bottom), width, height, fc="white", ec=COOL, lw=1.4))
        axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=8)
    axes.text(49.7, 16, "·", ha="center", va="center", fontsize=14)
    axes.text(62.2, 16, "+=", ha="center", va="center", fontsize=11)
    axes.text(74.5, 16, "then, before it is\nwritten: bias, PReLU,\nresidual, rounding", va="center", fontsize=8)
    axes.text(40, 26.3, "tensor cores multiply, float32 adds", fontsize=8.5)
    return figure


def last_layer() -> Any:
    """Why a 9x9 kernel on shuffled maps looks at 5x5 places of the maps before."""
    figure, axes = bare(9.0, 4.0, 90)
    for left, shift in ((3, 0), (48, 1)):
        cell, bottom = 2.6, 3.0
        first = 1 + shift  # of the 9 pixels that the kernel covers
        for row in range(12):
            for column in range(12):
                inside = first <= row < first + 9 and first <= column < first + 9
                axes.add_patch(
                    Rectangle(
                        (left + column * cell, bottom + row * cell),
                        cell,
                        cell,
                        fc=PALE if inside else "white",
                        ec=INK,
                        lw=0.3,
                    )
                )
        for row in range(6):
            for column in range(6):
                taken = first // 2 <= row <= (first + 8) // 2 and first // 2 <= column <= (first + 8) // 2
                if taken:
                    axes.add_patch(
                        Rectangle(
                            (left + 2 * column * cell, bottom + 2 * row * cell),
                            2 * cell,
                            2 * cell,
                            fill=False,
                            ec=COOL,
                            lw=1.8,
                        )
                    )
        centre = first + 4
        axes.add_patch(Rectangle((left + centre * cell, bottom + centre * cell), cell, cell, fc=WARM, ec=INK, lw=0.5))
        axes.text(left, 36.2, f"an output at an {('even', 'odd')[centre % 2]} place", fontsize=9, weight="bold")
    axes.text(
        35.5,
        20,
        "grey: 9x9 pixels\nafter the shuffle\n\nblue: the 5x5\nplaces before it\n\norange: the\noutput",
        va="center",
        fontsize=8.5,
    )
    return figure


def reach() -> Any:
    """How far an output looks, layer by layer, for 5, 8 and 16 blocks."""
    figure, axes = plt.subplots(figsize=(9.0, 3.2), layout="constrained")
    axes.set_facecolor("white")
    for blocks, colour in ((16, COOL), (8, WARM), (5, INK)):
        reaches = [0.0, 4.0]
        reaches += [reaches[-1] + step for step in range(1, 2 * blocks + 2)]  # two 3x3 a block, one after them
        reaches += [reaches[-1] + 1, reaches[-1] + 1.5, reaches[-1] + 2.5]  # a stage, one at 2x, 9x9 at 4x
        radius = receptive_radius(Generator(GeneratorConfig(blocks=blocks, width=4)))
        assert radius == -(-reaches[-1] // 1), (radius, reaches[-1])
        axes.step(range(len(reaches)), reaches, where="mid", color=colour, label=f"{blocks} blocks: {radius} pixels")
        axes.plot(len(reaches) - 1, reaches[-1], "o", color=colour)
    axes.set(xlabel="convolutions from the input on", ylabel="reach in LR pixels", xlim=(0, None), ylim=(0, 45))
    axes.grid(color=PALE, lw=0.5)
    axes.legend(title="an exact tile needs a halo of", loc="upper left")
    return figure


FIGURES = {"kernels_network": network, "kernels_tap": tap, "kernels_tail": last_layer, "kernels_reach": reach}


def draw(folder: Path) -> list[Path]:
    """Write every figure into a folder."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make()
            written.append(folder / f"{name}.svg")
            figure.savefig(written[-1], metadata={"Date": None, "Creator": None})
            plt.close(figure)
    return written


if __name__ == "__main__":
    for path in draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS):
        print(path)
