"""`srgan-fast mos analyse`: figures worked out by hand, raters whose opinions are known, and what is refused."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from raters import SEEN, simulate, small_study
from scipy import stats

from srgan_fast.errors import InputError, UsageError
from srgan_fast.evaluate.mos.analysis import analyse, holm, screen, wilcoxon
from srgan_fast.evaluate.mos.results import plot, ratings_csv, remarks, stimuli_csv, who
from srgan_fast.evaluate.mos.store import Origin, Rating, Store
from srgan_fast.evaluate.mos.study import Method, Stimulus, Study

Run = Callable[..., tuple[int, str, str]]

# [raters, images, methods]: HR, A, B.
BY_HAND = [
    [[5, 3, 1], [4, 4, 2]],
    [[5, 4, 2], [5, 3, 2]],
    [[4, 2, 1], [5, 3, 1]],
]


def a_study(images: int, methods: Sequence[str], repeated: int = 0) -> Study:
    names = [f"image {index}" for index in range(images)]
    stimuli = [
        Stimulus(hashlib.md5(f"{image}{method}".encode()).hexdigest(), "test", image, method, 8, 8, "")
        for image in names
        for method in methods
    ]
    stimuli = [replace(stimulus, repeats=int(index < repeated)) for index, stimulus in enumerate(stimuli)]
    made_by = tuple(Method(method, f"made by {method}") for method in methods)
    return Study(Path("none"), "d" * 64, 0, "ab" * 32, 4, made_by, tuple(names), tuple(stimuli))


def ratings_of(study: Study, scores: Any, origin: Origin = "browser", again: int = 0) -> list[Rating]:
    """Ratings of a table [raters, images, methods]; None is none. The repeated ones get `again` more."""
    found = []
    for rater, table in enumerate(scores):
        flat = [score for row in table for score in row]
        for repeat in (0, 1):
            for stimulus, score in zip(study.test, flat, strict=True):
                if score is not None and repeat <= stimulus.repeats:
                    value = min(5, int(score) + repeat * again)
                    found.append(
                        Rating(f"r{rater}{origin}", origin, len(found), stimulus.id, repeat, value, 0, SEEN, "")
                    )
    return found


def by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in results["methods"]}


# Figures.


def test_a_table_by_hand() -> None:
    study = a_study(2, ["HR", "A", "B"])
    results = analyse(study, ratings_of(study, BY_HAND))
    assert results["kind"] == "opinion"
    assert results["raters"] == {"used": 3, "finished": 3, "unfinished": 0, "other_kind": 0}
    assert results["ratings"] == 18
    found = by_name(results)
    # HR: 5 5 4 4 5 5. A: 3 4 2 4 3 3. B: 1 2 1 2 2 1.
    assert found["HR"]["mos"] == pytest.approx(28 / 6)
    assert found["A"]["mos"] == pytest.approx(19 / 6)
    assert found["B"]["mos"] == pytest.approx(9 / 6)
    assert found["HR"]["sd"] == pytest.approx(math.sqrt(4 / 15))
    assert found["A"]["sd"] == pytest.approx(math.sqrt(17 / 30))
    assert found["B"]["sd"] == pytest.approx(math.sqrt(3 / 10))
    assert found["A"]["counts"] == {"1": 0, "2": 1, "3": 3, "4": 2, "5": 0}
    # t of 5 degrees is 2.5706 at 97.5%: half of B's interval is 2.5706 * 0.54772 / 2.44949.
    assert found["B"]["ci95"] == pytest.approx([1.5 - 0.57480, 1.5 + 0.57480], abs=1e-4)
    # Means by image: 4/3 and 5/3; t of 1 degree is 12.7062; half is 12.7062 * 0.235702 / 1.414214.
    assert found["B"]["ci95_by_image"] == pytest.approx([1.5 - 2.11770, 1.5 + 2.11770], abs=1e-4)
    # A - HR: -2 -1 -2 0 -2 -2; B - HR: -4 -3 -3 -2 -3 -4.
    assert (found["HR"]["dmos"], found["HR"]["dmos_ci95"]) == (5, [5, 5])
    assert found["A"]["dmos"] == pytest.approx(5 - 9 / 6)
    assert found["B"]["dmos"] == pytest.approx(5 - 19 / 6)
    # Ranks, HR A B: 1 2 3; 1.5 1.5 3 (twice a 4); 1 2 3 for the others.
    assert found["HR"]["rank"] == pytest.approx(6.5 / 6)
    assert found["A"]["rank"] == pytest.approx(11.5 / 6)
    assert found["B"]["rank"] == 3
    picture = next(row for row in results["stimuli"] if (row["image"], row["method"]) == ("image 1", "A"))
    assert (picture["ratings"], picture["mos"]) == (3, pytest.approx(10 / 3))
    assert picture["dmos"] == pytest.approx(5 + (0 - 2 - 2) / 3)
    first = results["tests"]["by_rating"][0]
    assert (first["a"], first["b"], first["n"], first["zeros"]) == ("HR", "A", 6, 1)
    assert first["mean_difference"] == pytest.approx(1.5)
    # Five of six differ, all one way: 2 of 2**5 assignments of signs are as far out.
    assert first["p"] == pytest.approx(2 / 32)
    # The others: B less than both, six times; and Holm's 3, 2, 1 on 0.03125, 0.03125, 0.0625.
    assert [row["p_holm"] for row in results["tests"]["by_rating"]] == pytest.approx([0.09375, 0.09375, 0.09375])
    # Two images: not less than 2 / 2**2.
    assert [row["p"] for row in results["tests"]["by_image"]] == pytest.approx([0.5, 0.5, 0.5])


def opinions(raters: int, images: int, quality: Sequence[float], seed: int) -> np.ndarray[Any, Any]:
    """Raters who mean it: a quality a method, easier and harder images, kinder and stricter raters, and moods."""
    random = np.random.default_rng(seed)
    latent = (
        np.asarray(quality)
        + random.normal(0, 0.2, (1, images, 1))
        + random.normal(0, 0.3, (raters, 1, 1))
        + random.normal(0, 0.5, (raters, images, len(quality)))
    )
    return np.clip(np.round(latent), 1, 5).astype(int)


def test_raters_of_known_opinions() -> None:
    """A known order comes out in order, a known difference within its interval, and no difference as none."""
    names = ["nearest", "HR", "bicubic", "ours", "theirs"]
    quality = [1.4, 4.5, 2.0, 3.5, 3.5]
    study = a_study(12, names)
    results = analyse(study, ratings_of(study, opinions(26, 12, quality, seed=4)))
    found = by_name(results)
    order = sorted(names, key=lambda name: found[name]["mos"])
    assert (order[:2], order[4]) == (["nearest", "bicubic"], "HR")
    assert sorted(names, key=lambda name: -found[name]["rank"]) == order
    assert found["bicubic"]["ci95"][0] < 2.0 < found["bicubic"]["ci95"][1]
    for unit in ("by_rating", "by_image"):
        for row in results["tests"][unit]:
            same = {row["a"], row["b"]} == {"ours", "theirs"}
            assert (row["p_holm"] > 0.05) == same, row
            expected = quality[names.index(row["a"])] - quality[names.index(row["b"])]
            assert row["mean_difference"] == pytest.approx(expected, abs=0.25)
    assert results["screening"]["rejected"] == []
    assert "26 human raters, 1560 ratings" in who(results)


@pytest.mark.parametrize("zero_method", ["pratt", "wilcox"])
def test_no_difference_is_found_as_seldom_as_promised(zero_method: str) -> None:
    """Of studies of two methods that are alike at most 5% find a difference at 0.05, and not far less of large ones."""
    random = np.random.default_rng(0)
    for count, least in ((8, 0.002), (40, 0.02), (200, 0.02)):
        tables = np.round(random.normal(0, 1.5, (500, count)))
        found = np.mean([wilcoxon(row, zero_method)["p"] <= 0.05 for row in tables])
        assert least < found < 0.082  # 0.05 and 3.3 standard deviations


def test_intervals_are_scipys() -> None:
    study = a_study(4, ["HR", "A"])
    scores = opinions(9, 4, [4.4, 2.6], seed=1)
    row = by_name(analyse(study, ratings_of(study, scores)))["A"]
    low, high = stats.ttest_1samp(scores[:, :, 1].ravel(), 0).confidence_interval(0.95)
    assert row["ci95"] == pytest.approx([low, high])


# Wilcoxon's test and Holm's correction.


@pytest.mark.parametrize("zero_method", ["pratt", "wilcox"])
@pytest.mark.parametrize("count", [30, 50, 51, 400])
@pytest.mark.parametrize("whole", [True, False])
def test_wilcoxon_is_scipys(zero_method: str, count: int, whole: bool) -> None:
    """Exactly where scipy's is exact; beyond its approximation; and near that where ours alone is exact."""
    random = np.random.default_rng(count)
    differences = random.integers(-2, 4, count) if whole else random.normal(0.2, 1, count)
    found = wilcoxon(differences.astype(float), zero_method)
    ours = whole and count <= 50
    method = "exact" if not whole and count <= 50 else "approx"
    expected = stats.wilcoxon(differences, zero_method=zero_method, method=method)
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-6, abs=0.05 if ours else 0)
    assert found["statistic"] == pytest.approx(expected.statistic)
    assert found["computed"] == ("exact" if count <= 50 else "normal approximation")


@pytest.mark.parametrize("zero_method", ["pratt", "wilcox"])
@pytest.mark.parametrize(
    "differences",
    [
        [1, 1, 1, 1, 1],
        [-7],
        [0, 1, 1, 2, 2],
        [1, -1, 2, 2, 0, 0, 1],
        [3, 1, -2, 2, 2, 1, 1, -1, 0.5, 4],
        [0, 0, 1, 2, -1, 1, 1, 2, 3, -2, 1, 0, 1, 1],
    ],
)
def test_ties_and_zeros_are_counted_out(zero_method: str, differences: list[float]) -> None:
    """p by its definition: the share of assignments of signs whose sums of ranks are at least as far apart."""
    values = np.array([value for value in differences if zero_method == "pratt" or value != 0], float)
    ranks = np.where(values == 0, 0, stats.rankdata(np.abs(values)))
    seen = abs((ranks * np.sign(values)).sum())
    signs = np.array(list(product((-1, 1), repeat=len(ranks))))
    expected = (np.abs(signs @ ranks) >= seen - 1e-9).mean()
    assert wilcoxon(np.array(differences, float), zero_method)["p"] == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 5, 20, 200])
def test_all_ties(count: int) -> None:
    found = wilcoxon(np.zeros(count))
    assert (found["p"], found["zeros"], found["computed"]) == (1.0, count, "nothing differs")


def test_everyone_agrees_on_everything() -> None:
    """No spread anywhere: nothing divides by it."""
    study = a_study(3, ["HR", "A"], repeated=2)
    results = analyse(study, ratings_of(study, [[[4, 4]] * 3] * 5))
    for row in results["methods"]:
        assert (row["mos"], row["sd"], row["ci95"], row["dmos"], row["rank"]) == (4, 0, [4, 4], 5, 1.5)
    assert [row["p_holm"] for unit in ("by_rating", "by_image") for row in results["tests"][unit]] == [1, 1]
    assert results["screening"]["rejected"] == []
    assert (results["retest"]["equal"], results["retest"]["p"], results["retest"]["spearman"]) == (1, 1, None)
    json.dumps(results, allow_nan=False)


def test_five_images_cannot_be_significant_and_it_says_so() -> None:
    """As in Set5: whatever raters say, with ties or without, p by image is never below 2 / 2**5."""
    study = a_study(5, ["HR", "A", "B"])
    results = analyse(study, ratings_of(study, [[[5, 3, 1]] * 5] * 20))
    assert [row["p"] for row in results["tests"]["by_image"]] == [0.0625] * 3
    assert all(row["p_holm"] < 1e-6 for row in results["tests"]["by_rating"])
    assert results["tests"]["smallest_p_by_image"] == 0.0625
    assert any("5 images: the smallest possible two-sided p by image is 0.0625" in line for line in remarks(results))
    many = a_study(9, [f"m{index}" for index in range(8)] + ["HR"])
    results = analyse(many, ratings_of(many, opinions(3, 9, [3.0] * 9, seed=0)))
    assert any("0.14 after Holm's correction for 36 comparisons" in line for line in remarks(results))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 1.0]) == [1.0, 1.0, 1.0]
    assert holm([]) == []


# Whom to doubt.


def test_screening() -> None:
    """Who presses anything is rejected; who is strict throughout, or kind throughout, is not."""
    honest = opinions(24, 20, [1.4, 4.6, 2.2, 3.4], seed=2)
    chance = np.random.default_rng(3).integers(1, 6, (1, 20, 4))
    strict = np.clip(honest[:1] - 1, 1, 5)
    results = screen(np.concatenate([honest, chance, strict]).astype(float))
    assert [index for index, found in enumerate(results) if found["rejected"]] == [24]
    assert results[25]["above"] == 0
    study = a_study(20, ["nearest", "HR", "bicubic", "ours"])
    ratings = ratings_of(study, np.concatenate([honest, chance]))
    kept = analyse(study, ratings)
    without = analyse(study, ratings, screened=True)
    assert kept["screening"]["rejected"] == ["r24browser"] == without["screening"]["rejected"]
    assert (kept["raters"]["used"], without["raters"]["used"]) == (25, 24)
    assert by_name(without)["HR"]["mos"] == pytest.approx(honest[:, :, 1].mean())
    assert any("rejects 1 rater (r24browser), kept" in line for line in remarks(kept))
    assert any("left out" in line for line in remarks(without))


def test_screening_by_hand() -> None:
    """One picture of 12 raters: 3 3 3 3 3 3 2 2 4 4 1 5. Mean 3, sd 1.044, kurtosis 3: far is beyond 2.088."""
    column = [3, 3, 3, 3, 3, 3, 2, 2, 4, 4, 1, 5]
    centred = np.array(column) - 3.0
    assert (centred**4).mean() / (centred**2).mean() ** 2 == pytest.approx(3)
    assert centred.std(ddof=1) * 2 == pytest.approx(2.089, abs=1e-3)
    # 2 is not beyond 2.088; with one more voice in the middle sd falls to 1 and 2 is at the line.
    assert sum(found["above"] + found["below"] for found in screen(np.array(column, float)[:, None, None])) == 0
    found = screen(np.array([*column, 3], float)[:, None, None])
    kurtosis = 13 * (4 + 32) / 12**2
    assert 2 <= kurtosis <= 4
    assert [(one["above"], one["below"]) for one in found[10:]] == [(0, 1), (1, 0), (0, 0)]


def test_retest() -> None:
    study = a_study(2, ["HR", "A", "B"], repeated=4)
    results = analyse(study, ratings_of(study, BY_HAND, again=1))
    # The first four pictures of each: 5 3 1 4, 5 4 2 5, 4 2 1 5, one more but for the fives.
    retest = results["retest"]
    assert (retest["pairs"], retest["pictures"], retest["zeros"]) == (12, 4, 4)
    assert (retest["equal"], retest["within_one"]) == (pytest.approx(1 / 3), 1)
    assert retest["mean_difference"] == pytest.approx(2 / 3)
    assert retest["p"] == pytest.approx(2 / 2**8)
    assert by_name(results)["HR"]["mos"] == pytest.approx(28 / 6), "only the first of two counts"
    assert any("test-retest over 12 pairs: 33% equal" in line for line in remarks(results))


# Who counts.


def test_no_scores_without_humans() -> None:
    study = a_study(2, ["HR", "A", "B"])
    with pytest.raises(InputError, match="nobody has rated yet"):
        analyse(study, [])
    simulated = ratings_of(study, BY_HAND, "simulated")
    with pytest.raises(InputError, match=r"no opinion scores without them \(3 simulated raters are no humans"):
        analyse(study, simulated)
    results = analyse(study, simulated, simulation=True)
    assert results["kind"] == "simulation"
    assert remarks(results)[0].startswith("SIMULATION, no opinion scores")
    assert "3 simulated raters" in who(results)
    assert {row["kind"] for row in csv.DictReader(io.StringIO(stimuli_csv(results)))} == {"simulation"}
    humans = ratings_of(study, BY_HAND[:1])
    with pytest.raises(InputError, match="got none"):
        analyse(study, humans, simulation=True)
    both = analyse(study, simulated + humans)
    assert both["raters"] == {"used": 1, "finished": 1, "unfinished": 0, "other_kind": 3}
    assert by_name(both)["HR"]["mos"] == 4.5
    assert any("3 raters that were programs (simulated) left out" in line for line in remarks(both))


def test_who_did_not_finish() -> None:
    study = a_study(2, ["HR", "A", "B"])
    halves: list[Any] = [*BY_HAND[:2], [[4, None, 1], [None, None, 1]]]
    ratings = ratings_of(study, halves)
    results = analyse(study, ratings)
    assert results["raters"] == {"used": 2, "finished": 2, "unfinished": 1, "other_kind": 0}
    assert "1 did not finish" in who(results)
    assert by_name(results)["A"]["ratings"] == 4
    results = analyse(study, ratings, partial=True)
    found = by_name(results)
    assert (found["HR"]["ratings"], found["A"]["ratings"], found["B"]["ratings"]) == (5, 4, 6)
    assert found["HR"]["mos"] == pytest.approx(23 / 5)
    # Of the third rater only image 0 has both B and HR, and nothing has a rank.
    assert found["B"]["dmos"] == pytest.approx(5 - (4 + 2 + 3 + 3 + 3) / 5)
    assert found["A"]["rank"] == pytest.approx((2 + 1.5 + 2 + 2) / 4)
    assert results["tests"]["by_rating"][1]["n"] == 5
    # HR - B by image, of those who rated both: image 0 of three raters 4 3 3, image 1 of two 2 3.
    assert results["tests"]["by_image"][1]["mean_difference"] == pytest.approx((10 / 3 + 5 / 2) / 2)
    with pytest.raises(InputError, match="1 began"):
        analyse(study, [rating for rating in ratings if rating.rater == "r2browser"])
    alone = analyse(study, [rating for rating in ratings if rating.rater == "r2browser"], partial=True)
    assert by_name(alone)["A"]["mos"] is None
    json.dumps(alone, allow_nan=False)


def test_circumstances_are_told() -> None:
    study = a_study(2, ["HR", "A", "B"])
    ratings = ratings_of(study, BY_HAND)
    ratings[0] = replace(ratings[0], circumstances=replace(SEEN, fits=False), changes=1)
    ratings[1] = replace(ratings[1], circumstances=replace(SEEN, zoom=2.0))
    results = analyse(study, ratings)
    assert results["scores_changed"] == 1
    told = "\n".join(remarks(results))
    assert "1 of 18 ratings were of a picture larger than the rater's window" in told
    assert "1 of 18 ratings were given while the page was zoomed" in told
    assert "BT.500 asks for at least 15 raters, here there were 3" in told
    assert "not calibrated" in told


def test_an_unknown_zero_method() -> None:
    with pytest.raises(UsageError, match="pratt, wilcox"):
        analyse(a_study(2, ["HR", "A"]), [], zero_method="zsplit")


# The command.


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = small_study(tmp_path_factory.mktemp("mos"))
    with Store(study.ratings_file, study) as store:
        for index in range(4):
            scores = {"HR": 5, "bicubic": 2 + index % 2, "nearest": 1}
            simulate(study, store, lambda showing, scores=scores: scores[showing.stimulus.method])
    return study


def test_the_command_refuses_simulated_scores_unless_asked(rated: Study, run: Run, tmp_path: Path) -> None:
    code, out, err = run("mos", "analyse", rated.folder, "--json", tmp_path / "a.json")
    assert (code, out) == (2, "")
    assert "no opinion scores without them (4 simulated raters are no humans; see --simulation)" in err
    assert not (tmp_path / "a.json").exists()
    code, out, err = run("mos", "analyse", rated.folder, "--simulation")
    assert (code, err) == (0, "")
    assert "SIMULATION, no opinion scores" in out
    assert "4 simulated raters" in out
    assert "MOS" not in out.replace("DMOS", "")
    assert "2.50" in out


def test_the_command_writes_what_it_prints(rated: Study, run: Run, tmp_path: Path) -> None:
    names = {option: tmp_path / name for option, name in (("json", "a.json"), ("csv", "a.csv"), ("ratings", "r.csv"))}
    options = [word for option, path in names.items() for word in (f"--{option}", path)]
    plots = [tmp_path / f"plot.{kind}" for kind in ("png", "svg", "pdf")]
    code, out, err = run("mos", "analyse", rated.folder, "--simulation", *options, "--plot", plots[0])
    assert (code, err) == (0, "")
    assert all(f"wrote {path}" in out.replace("\n", "") for path in (*names.values(), plots[0]))
    results = json.loads(names["json"].read_text())
    for path in plots[1:]:
        plot(path, results)
    assert results["methods"][1]["name"] == "bicubic"
    assert results["methods"][1]["mos"] == 2.5
    code, out, _ = run("mos", "analyse", rated.folder, "--simulation", "--json", "-")
    assert json.loads(out) == results
    rows = list(csv.DictReader(io.StringIO(names["csv"].read_text())))
    assert [(row["method"], row["image"], row["mos"]) for row in rows[:2]] == [
        ("HR", "*", "5.0"),
        ("bicubic", "*", "2.5"),
    ]
    assert len(rows) == 3 + 9
    every = list(csv.DictReader(io.StringIO(names["ratings"].read_text())))
    assert len(every) == 4 * rated.ratings_a_rater
    assert {row["origin"] for row in every} == {"simulated"}
    assert {(row["method"], row["score"]) for row in every} == {
        ("HR", "5"),
        ("bicubic", "2"),
        ("bicubic", "3"),
        ("nearest", "1"),
    }
    with Image.open(plots[0]) as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    assert "SIMULATION" in plots[1].read_text()
    assert plots[2].read_bytes().startswith(b"%PDF")
    with Store(rated.ratings_file, rated) as store:
        assert ratings_csv(rated, store.ratings()) == names["ratings"].read_text()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--zero-method", "none"], 2, "pratt, wilcox"),
        (["--plot", "a.jpg"], 2, ".png, .svg, .pdf"),
        (["--json", "no/where.json"], 4, "in a folder that can be written"),
    ],
)
def test_options_that_cannot_be(rated: Study, run: Run, options: list[str], code: int, said: str) -> None:
    found, out, err = run("mos", "analyse", rated.folder, "--simulation", *options)
    assert (found, out) == (code, "")
    assert said in err


def test_without_scipy(rated: Study, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srgan_fast.evaluate.mos.find_spec", lambda name: None if name == "scipy" else object())
    code, _, err = run("mos", "analyse", rated.folder)
    assert code == 3
    assert "scipy not installed; pip install 'srgan-fast[mos]'" in err
