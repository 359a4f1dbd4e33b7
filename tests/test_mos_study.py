"""`srgan-fast mos prepare`: the pictures of a study, what they give away, and the order in which they are shown."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raters import originals, photo, small_study

from srgan_fast.errors import InputError, OutputError, UsageError
from srgan_fast.evaluate.mos.order import can_be_apart, showings
from srgan_fast.evaluate.mos.prepare import prepare
from srgan_fast.evaluate.mos.study import Method, Stimulus, Study, load
from srgan_fast.image import read_rgb
from srgan_fast.resize import imresize_down, imresize_up, nearest_up
from srgan_fast.upscaler import Upscaler

Run = Callable[..., tuple[int, str, str]]


def crop(picture: torch.Tensor, width: int, height: int) -> torch.Tensor:
    top, left = (picture.shape[1] - height) // 2, (picture.shape[2] - width) // 2
    return picture[:, top : top + height, left : left + width]


def test_every_version_is_what_its_method_makes(tmp_path: Path, tiny: Path) -> None:
    originals(tmp_path / "hr", 2, height=43, width=50)
    theirs = tmp_path / "theirs"
    for number in range(2):
        photo(theirs / f"img_{number:03}_x4_SRCNN.png", 40, 48, seed=50 + number)
        photo(theirs / f"img_{number:03}_x4_DRCN.png", 40, 48, seed=60 + number)
    study, remarks = prepare(
        tmp_path / "hr",
        tmp_path / "study",
        ["bicubic", "nearest", f"ours={tiny}", f"SRCNN={theirs}"],
        calibration=originals(tmp_path / "other", 2, seed=9),
        size=(32, 36),
        repeats=0,
    )
    assert remarks == [f"2 other images in {theirs} are left alone"]
    upscaler = Upscaler(tiny, backend="eager", precision="fp32")
    loaded = load(tmp_path / "study")
    assert [method.name for method in loaded.methods] == ["HR", "bicubic", "nearest", "ours", "SRCNN"]
    assert loaded.methods[3].sha256 == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert len(loaded.test) == 10
    assert len(loaded.calibration) == 4
    for stimulus in loaded.stimuli:
        folder = tmp_path / ("hr" if stimulus.phase == "test" else "other")
        hr = read_rgb(folder / stimulus.image)
        hr = hr[:, : hr.shape[1] // 4 * 4, : hr.shape[2] // 4 * 4]
        lr = imresize_down(hr, 4)
        expected = {
            "HR": lambda hr=hr: hr,
            "bicubic": lambda lr=lr: imresize_up(lr, 4),
            "nearest": lambda lr=lr: nearest_up(lr, 4),
            "ours": lambda lr=lr: upscaler(lr.permute(1, 2, 0).contiguous(), layout="HWC").permute(2, 0, 1),
            "SRCNN": lambda stem=stimulus.image[:-4]: read_rgb(theirs / f"{stem}_x4_SRCNN.png"),
        }[stimulus.method]()
        assert torch.equal(read_rgb(loaded.path(stimulus)), crop(expected, 32, 36))
        assert (stimulus.width, stimulus.height) == (32, 36)
    assert {(s.method, s.expected) for s in loaded.calibration} == {("nearest", 1), ("HR", 5)}
    assert study == loaded
    loaded.verify()


def test_lr_of_ones_own_and_the_scale(tmp_path: Path) -> None:
    originals(tmp_path / "hr", 2)
    for number in range(2):
        Image.new("RGB", (24, 20), (number, 90, 200)).save(tmp_path / f"img_{number:03}_LR.png")
    (tmp_path / "lr").mkdir()
    for path in tmp_path.glob("*_LR.png"):
        path.rename(tmp_path / "lr" / path.name)
    study, _ = prepare(tmp_path / "hr", tmp_path / "study", ["nearest"], lr_folder=tmp_path / "lr", scale=2)
    assert study.scale == 2
    loaded = load(tmp_path / "study")
    for stimulus in loaded.test:
        if stimulus.method == "nearest":
            colours = np.unique(np.asarray(Image.open(loaded.path(stimulus))).reshape(-1, 3), axis=0)
            assert colours.tolist() == [[int(stimulus.image[4:7]), 90, 200]]


def test_nothing_of_a_picture_tells_its_method(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    sizes, texts = set(), set()
    for stimulus in study.stimuli:
        path = study.path(stimulus)
        sizes.add(path.stat().st_size)
        with Image.open(path) as picture:
            texts.add(str(picture.info))
    assert len(sizes) == 1, "the length of a file would tell how well it compresses"
    assert texts == {"{}"}
    assert all(set(path.stem) <= set("0123456789abcdef") for path in (study.folder / "stimuli").iterdir())
    assert stat.S_IMODE((study.folder / "study.json").stat().st_mode) == 0o600
    # Files in the order of the list would tell as well.
    assert [stimulus.id for stimulus in study.stimuli] == sorted(stimulus.id for stimulus in study.stimuli)


def test_a_seed_draws_the_same_repeats(tmp_path: Path) -> None:
    for name in ("a", "b"):
        small_study(tmp_path / name, images=4, seed=5, repeats=6)
    first, second = (load(tmp_path / name / "study") for name in ("a", "b"))

    def twice(study: Study) -> set[tuple[str, str]]:
        return {(stimulus.image, stimulus.method) for stimulus in study.test if stimulus.repeats}

    assert twice(first) == twice(second)
    assert len(twice(first)) == 6
    assert Counter(image for image, _ in twice(first)).most_common(1)[0][1] == 2  # spread over 4 images
    assert Counter(method for _, method in twice(first)).most_common(1)[0][1] <= 3
    assert first.secret != second.secret
    assert first.ratings_a_rater == 4 * 3 + 6


def a_study(counts: dict[str, tuple[int, int]], seed: int = 0) -> Study:
    """A study without files: image -> number of methods, number of them that are repeated."""
    stimuli = [
        Stimulus(hashlib.md5(f"{image}{k}".encode()).hexdigest(), "test", image, f"m{k}", 8, 8, "", int(k < repeated))
        for image, (number, repeated) in counts.items()
        for k in range(number)
    ]
    stimuli += [
        Stimulus(hashlib.md5(f"{image}{k}".encode()).hexdigest(), "calibration", image, f"m{k}", 8, 8, "", 0, k * 4 + 1)
        for image in ("x", "y")
        for k in range(2)
    ]
    methods = tuple(Method(f"m{k}", "") for k in range(9))
    return Study(Path("none"), "d" * 64, seed, "ab" * 32, 4, methods, tuple(counts), tuple(stimuli))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.dictionaries(
        st.sampled_from("abcdefg"), st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=2, max_size=7
    ),
    rater=st.text("0123456789abcdef", min_size=4, max_size=4),
)
def test_never_the_same_image_twice_in_a_row(counts: dict[str, tuple[int, int]], rater: str) -> None:
    counts = {image: (number, min(number, repeated)) for image, (number, repeated) in counts.items()}
    study = a_study(counts)
    if not can_be_apart([number + repeated for number, repeated in counts.values()]):
        return
    order = showings(study, rater)
    assert [showing.position for showing in order] == list(range(len(order)))
    assert [showing.stimulus.phase for showing in order] == ["calibration"] * 4 + ["test"] * study.ratings_a_rater
    assert all(a.stimulus.image != b.stimulus.image for a, b in pairwise(order))
    shown = Counter(showing.stimulus.id for showing in order)
    assert shown == {stimulus.id: 1 + stimulus.repeats for stimulus in study.stimuli}
    assert len({showing.address for showing in order}) == len(order)
    assert order == showings(study, rater), "an order is the same after a restart"


def test_orders_are_drawn_for_each_rater() -> None:
    study = a_study(dict.fromkeys("abcde", (4, 1)))
    orders = [showings(study, f"{rater:04x}") for rater in range(200)]
    firsts = Counter(order[4].stimulus.id for order in orders)
    assert len(firsts) == 20
    assert max(firsts.values()) < 30  # of 200, 10 expected
    addresses = [showing.address for order in orders for showing in order]
    assert len(set(addresses)) == len(addresses), "two raters could compare addresses"
    seconds = [showing.position for order in orders for showing in order if showing.repeat == 1]
    firsts_of = [
        showing.position for order in orders for showing in order if showing.stimulus.repeats and showing.repeat == 0
    ]
    assert min(seconds) > 4
    assert np.mean(seconds) - np.mean(firsts_of) > 8  # of 25


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["hr", "new"], 2, "at least one method"),
        (["hr", "new", "--method", "bilinear"], 2, "bicubic, nearest, srresnet_x4"),
        (["hr", "new", "--method", "x="], 2, "expected bicubic"),
        (["hr", "new", "--method", "bicubic", "--method", "bicubic=theirs"], 2, "bicubic twice"),
        (["hr", "new", "--method", "hr=theirs"], 2, "the hidden reference"),
        (["hr", "new", "--method", "x=nowhere"], 2, "nowhere"),
        (["hr", "new", "--method", "x=theirs"], 2, "expected 48x40 pixels, the size of img_000.png, got 44x40"),
        (["hr", "new", "--method", "x=few"], 2, "HR without x: img_001.png, img_002.png"),
        (["hr", "hr", "--method", "bicubic"], 4, "new or empty"),
        (["one", "new", "--method", "bicubic"], 2, "at least 2 images"),
        (["hr", "new", "--method", "bicubic", "--calibration", "one"], 2, "at least 2 images to calibrate"),
        (["hr", "new", "--method", "bicubic", "--calibration", "again"], 2, "outside the test"),
        (["hr", "new", "--method", "bicubic", "--repeats", "7"], 2, "0 to 6 repeats"),
        (["hr", "new", "--method", "bicubic", "--size", "0x3"], 2, "--size"),
        (["hr", "new", "--method", "bicubic", "--scale", "1"], 2, "scale of 2"),
        (["hr", "new", "--method", "srresnet_x4", "--scale", "2"], 2, "expected scale 4"),
        (["nowhere", "new", "--method", "bicubic"], 2, "nowhere"),
        (["hr", "file/new", "--method", "bicubic"], 4, "cannot write"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    originals(tmp_path / "hr", 3)
    originals(tmp_path / "theirs", 3, width=44)
    originals(tmp_path / "one", 1)
    originals(tmp_path / "few", 1)
    originals(tmp_path / "again", 3)
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    found, out, err = run("mos", "prepare", *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before, "nothing half-made stays"


def test_prepare_says_what_it_made(tmp_path: Path, run: Run) -> None:
    originals(tmp_path / "hr", 2)
    code, out, err = run("mos", "prepare", tmp_path / "hr", tmp_path / "study", "--method", "bicubic")
    assert (code, err) == (0, "")
    assert "no calibration" in out
    assert "2 images, 2 versions of each: 5 ratings a rater; the largest picture has 48x40 pixels" in out


def test_a_study_that_has_changed_is_found_out(tmp_path: Path, run: Run) -> None:
    study = small_study(tmp_path)
    victim = study.path(study.test[0])
    content = victim.read_bytes()
    victim.write_bytes(content[:-20] + bytes(20))
    with pytest.raises(InputError, match="has changed"):
        load(study.folder).verify()
    victim.unlink()
    code, _, err = run("mos", "serve", study.folder)
    assert code == 2
    assert victim.name in err
    assert not study.ratings_file.exists()


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"format": "other"}', "id", "missing", "deep"])
def test_a_damaged_study_is_refused(tmp_path: Path, damage: str) -> None:
    study = small_study(tmp_path)
    path = study.folder / "study.json"
    plain = json.loads(path.read_text())
    if damage == "id":
        plain["stimuli"][0]["id"] = "../../../../etc/passwd"
        damage = json.dumps(plain)
    elif damage == "missing":
        del plain["stimuli"][0]["sha256"]
        damage = json.dumps(plain)
    elif damage == "deep":
        damage = "[" * 100_000
    path.write_text(damage)
    with pytest.raises(InputError, match=r"study\.json"):
        load(study.folder)


def test_a_folder_that_holds_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mos prepare"):
        load(tmp_path)


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    originals(tmp_path / "hr", 2)

    def full(source: object, target: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("srgan_fast.evaluate.mos.prepare.os.rename", full)
    with pytest.raises(OutputError, match="No space left"):
        prepare(tmp_path / "hr", tmp_path / "study", ["bicubic"])
    assert [path.name for path in tmp_path.iterdir()] == ["hr"]


def test_networks_of_two_scales(tmp_path: Path, tiny: Path) -> None:
    from srgan_fast import weights
    from srgan_fast.model import Generator, GeneratorConfig

    originals(tmp_path / "hr", 2)
    other = tmp_path / "x2.safetensors"
    weights.save(other, Generator(GeneratorConfig(blocks=1, width=8, scale=2)), name="x2", recipe={})
    with pytest.raises(UsageError, match="a x4, b x2"):
        prepare(tmp_path / "hr", tmp_path / "study", [f"a={tiny}", f"b={other}"])
    study, _ = prepare(tmp_path / "hr", tmp_path / "study", ["bicubic", f"b={other}"])
    assert study.scale == 2
    loaded = load(tmp_path / "study")
    bicubic = next(stimulus for stimulus in loaded.test if stimulus.method == "bicubic")
    hr = read_rgb(tmp_path / "hr" / bicubic.image)
    assert torch.equal(read_rgb(loaded.path(bicubic)), imresize_up(imresize_down(hr, 2), 2))
