"""What ratings say: opinion scores with their spread, differences with their significance, and whom to doubt.

Sources: ITU-T P.910 (absolute category rating with hidden reference), ITU-R BT.500 (screening of observers), Ledig et
al. 2017, section 3.3 and appendix A.3 (Wilcoxon's signed-rank test over pairs, average ranks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from srgan_fast.errors import InputError, UsageError
from srgan_fast.evaluate.mos.store import Rating
from srgan_fast.evaluate.mos.study import REFERENCE, Study

ZERO_METHODS = ("pratt", "wilcox")

# Up to so many differences Wilcoxon's p is exact: their 2**50 assignments of signs are still whole numbers in float64.
_EXACT = 50

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Scores:
    """Scores of the first showing of each picture; NaN where there is none.

    Shapes:  values [raters, images, methods]
    """

    raters: tuple[str, ...]
    images: tuple[str, ...]
    methods: tuple[str, ...]
    values: Floats


def analyse(
    study: Study,
    ratings: Sequence[Rating],
    *,
    simulation: bool = False,
    partial: bool = False,
    screened: bool = False,
    zero_method: str = "pratt",
) -> dict[str, Any]:
    """Analyse what humans said of a study; with `simulation`, what programs said, which is no opinion.

    Raters who did not finish are left out unless `partial`; those whom the screening rejects stay in unless `screened`.
    The result is ready for JSON; a figure that cannot be had from so few ratings is None.

    Raises:  InputError if there is nothing to analyse; UsageError for an unknown zero method
    """
    if zero_method not in ZERO_METHODS:
        raise UsageError(f"expected a zero method out of {', '.join(ZERO_METHODS)}, got {zero_method}")
    used, counts = _chosen(study, ratings, simulation=simulation, partial=partial)
    scores = _scores(study, used)
    found = dict(zip(scores.raters, screen(scores.values), strict=True))
    rejected = [rater for rater, result in found.items() if result["rejected"]]
    if screened and rejected:
        used = [rating for rating in used if rating.rater not in rejected]
        if not used:
            raise InputError("the screening rejects every rater; analyse without --screened and look at each")
        scores = _scores(study, used)
    circumstances = [rating.circumstances for rating in used]
    return {
        "kind": "simulation" if simulation else "opinion",
        "study": study.digest,
        "scale": study.scale,
        "raters": {"used": len(scores.raters), **counts},
        "ratings": len(used),
        "images": len(study.images),
        "calibration_images": len({stimulus.image for stimulus in study.calibration}),
        "pictures_that_did_not_fit": sum(not seen.fits for seen in circumstances),
        "pictures_zoomed": sum(seen.zoom > 1.01 for seen in circumstances),
        "scores_changed": sum(rating.changes > 0 for rating in used),
        "methods": _methods(scores, {method.name: method.made_by for method in study.methods}),
        "stimuli": _stimuli(scores),
        "tests": _tests(scores, zero_method),
        "screening": {"source": "ITU-R BT.500, one pass", "applied": screened, "rejected": rejected, "raters": found},
        "retest": _retest(used, zero_method),
    }


def _chosen(
    study: Study, ratings: Sequence[Rating], *, simulation: bool, partial: bool
) -> tuple[list[Rating], dict[str, int]]:
    """The ratings that count, and how many raters of each kind there are."""
    wanted = "simulated" if simulation else "browser"
    by_rater: dict[tuple[str, str], int] = {}
    for rating in ratings:
        by_rater[rating.rater, rating.origin] = by_rater.get((rating.rater, rating.origin), 0) + 1
    of_kind = {rater: count for (rater, origin), count in by_rater.items() if origin == wanted}
    other = len(by_rater) - len(of_kind)
    finished = {rater for rater, count in of_kind.items() if count == study.ratings_a_rater}
    if not of_kind:
        if simulation:
            raise InputError("expected simulated raters, got none; leave --simulation out")
        told = f"{other} simulated raters are no humans; see --simulation" if other else "nobody has rated yet"
        raise InputError(f"expected ratings by humans, got none: no opinion scores without them ({told})")
    if not finished and not partial:
        raise InputError(
            f"expected raters who finished, got none: {len(of_kind)} began; wait for them, or give --partial"
        )
    kept = set(of_kind) if partial else finished
    return [rating for rating in ratings if rating.rater in kept], {
        "finished": len(finished),
        "unfinished": len(of_kind) - len(finished),
        "other_kind": other,
    }


def _scores(study: Study, ratings: Sequence[Rating]) -> _Scores:
    raters = tuple(dict.fromkeys(rating.rater for rating in ratings))
    methods = tuple(method.name for method in study.methods)
    where = {stimulus.id: stimulus for stimulus in study.test}
    row, column, depth = ({name: i for i, name in enumerate(names)} for names in (raters, study.images, methods))
    values = np.full((len(raters), len(study.images), len(methods)), np.nan)
    for rating in ratings:
        if rating.repeat == 0:
            stimulus = where[rating.stimulus]
            values[row[rating.rater], column[stimulus.image], depth[stimulus.method]] = rating.score
    return _Scores(raters, study.images, methods, values)


def _methods(scores: _Scores, made_by: Mapping[str, str]) -> list[dict[str, Any]]:
    ranks = _ranks(scores.values)
    differences = _to_reference(scores)
    found = []
    for index, name in enumerate(scores.methods):
        values = _given(scores.values[:, :, index])
        found.append(
            {
                "name": name,
                "made_by": made_by[name],
                "counts": {str(score): int((values == score).sum()) for score in range(1, 6)},
                **_opinion(values),
                "ci95_by_image": _interval(_means(scores.values[:, :, index])),
                "dmos": _mean(_given(differences[:, :, index])),
                "dmos_ci95": _interval(_given(differences[:, :, index])),
                "rank": _mean(_given(ranks[:, :, index])),
            }
        )
    return found


def _stimuli(scores: _Scores) -> list[dict[str, Any]]:
    differences = _to_reference(scores)
    return [
        {
            "image": image,
            "method": method,
            **_opinion(_given(scores.values[:, row, column])),
            "dmos": _mean(_given(differences[:, row, column])),
        }
        for row, image in enumerate(scores.images)
        for column, method in enumerate(scores.methods)
    ]


def _opinion(values: Floats) -> dict[str, Any]:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"ratings": len(values), "mos": _mean(values), "sd": deviation, "ci95": _interval(values)}


def _given(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _interval(values: Floats) -> list[float] | None:
    """Student's 95% interval of the mean of independent values; None for less than two."""
    values = _given(values)
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    centre = float(values.mean())
    return [centre - half, centre + half]


def _means(values: Floats) -> Floats:
    """Means over raters, the first axis; NaN where nobody rated."""
    there = (~np.isnan(values)).sum(axis=0)
    return np.where(there > 0, np.nansum(values, axis=0) / np.maximum(there, 1), np.nan)


def _to_reference(scores: _Scores) -> Floats:
    """Score less that of the hidden reference by the same rater, plus 5, as P.910 has it; not cut off above 5."""
    reference = scores.methods.index(REFERENCE)
    return scores.values - scores.values[:, :, reference : reference + 1] + 5


def _ranks(values: Floats) -> Floats:
    """1 for the best of an image and rater, ties averaged; NaN where a rater has not rated every version."""
    ranks = stats.rankdata(-np.nan_to_num(values), axis=2)
    return np.where(np.isnan(values).any(axis=2, keepdims=True), np.nan, ranks)


def _tests(scores: _Scores, zero_method: str) -> dict[str, Any]:
    """Every pair of methods, by (image, rater) as Ledig et al. did it, and by image, whose scores are independent."""
    pairs = list(combinations(range(len(scores.methods)), 2))
    rows: dict[str, list[dict[str, Any]]] = {"by_rating": [], "by_image": []}
    for first, second in pairs:
        # Of raters who rated both alone: the difference of two means over different raters would be theirs.
        differences = scores.values[:, :, first] - scores.values[:, :, second]
        for unit, values in (("by_rating", differences.ravel()), ("by_image", _means(differences))):
            names = {"a": scores.methods[first], "b": scores.methods[second]}
            rows[unit].append({**names, **wilcoxon(_given(values), zero_method)})
    for found in rows.values():
        for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
            row["p_holm"] = p
    return {
        "test": "Wilcoxon signed-rank, two-sided, paired",
        "zero_method": zero_method,
        "correction": "Holm",
        "comparisons": len(pairs),
        "smallest_p_by_image": 2.0 ** (1 - len(scores.images)),
        **rows,
    }


def wilcoxon(differences: Floats, zero_method: str = "pratt") -> dict[str, Any]:
    """Wilcoxon's signed-rank test of paired differences, two-sided.

    Up to 50 differences p is exact, ties and zeros or not: every assignment of signs is counted; scipy does that only
    without ties. Beyond, it is scipy's normal approximation. p is 1 where nothing differs.
    """
    # Means of whole scores that are equal on paper may differ in the last bit, which would break ties.
    differences = np.round(differences, 9)
    zeros = int((differences == 0).sum())
    count = len(differences)
    found = {"n": count, "zeros": zeros, "mean_difference": _mean(differences)}
    if zeros == count:
        return {**found, "statistic": 0.0, "p": 1.0, "computed": "nothing differs"}
    if count > _EXACT:
        result = stats.wilcoxon(differences, zero_method=zero_method, alternative="two-sided", method="approx")
        return {
            **found,
            "statistic": float(result.statistic),
            "p": float(result.pvalue),
            "computed": "normal approximation",
        }
    if zero_method == "wilcox":
        differences = differences[differences != 0]
    # Twice the ranks, which ties make halves of; Pratt ranks zeros too, and then leaves them out of the sums.
    doubled = np.rint(2 * stats.rankdata(np.abs(differences))).astype(int)
    ranks = doubled[differences != 0]
    positive = int(doubled[differences > 0].sum())
    ways = np.zeros(ranks.sum() + 1)  # to reach each sum by choosing the positive ones; whole numbers below 2**53
    ways[0] = 1
    for rank in ranks:
        ways[rank:] += ways[:-rank].copy()
    smaller = min(positive, int(ranks.sum()) - positive)
    p = min(1.0, 2 * float(ways[: smaller + 1].sum()) / 2.0 ** len(ranks))
    return {**found, "statistic": smaller / 2, "p": p, "computed": "exact"}


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p by p, at most 1, never smaller than that of a smaller p."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    corrected = [0.0] * len(values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def screen(values: Floats) -> list[dict[str, Any]]:
    """Screen raters as BT.500 has it: who lies far off too often, and on both sides.

    Far is two standard deviations where a picture's scores look normal (kurtosis 2 to 4), the root of 20 of them
    otherwise. Rejected is who lies far off on more than 5% of the pictures, above about as often as below: the counts
    differ by less than 30% of their sum.

    Shapes:  values [raters, images, methods], NaN where there is no score
    """
    by_picture = values.reshape(len(values), -1)
    above, below = np.zeros(len(values), int), np.zeros(len(values), int)
    for column in by_picture.T:
        scores = _given(column)
        if len(scores) < 2 or scores.std() == 0:
            continue  # all agree: nobody is far off
        centred = scores - scores.mean()
        kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
        far = (2.0 if 2 <= kurtosis <= 4 else math.sqrt(20)) * scores.std(ddof=1)
        above += column >= scores.mean() + far
        below += column <= scores.mean() - far
    rated = (~np.isnan(by_picture)).sum(axis=1)
    found = []
    for high, low, count in zip(above.tolist(), below.tolist(), rated.tolist(), strict=True):
        outside = high + low
        rejected = outside > 0.05 * count and abs(high - low) < 0.3 * outside
        found.append({"above": high, "below": low, "pictures": count, "rejected": rejected})
    return found


def _retest(ratings: Sequence[Rating], zero_method: str) -> dict[str, Any] | None:
    """How much alike the same raters score the same pictures twice; None where none was shown twice."""
    first = {(rating.rater, rating.stimulus): rating.score for rating in ratings if rating.repeat == 0}
    again = {(rating.rater, rating.stimulus): rating.score for rating in ratings if rating.repeat == 1}
    both = [key for key in again if key in first]
    if not both:
        return None
    before = np.array([first[key] for key in both], float)
    after = np.array([again[key] for key in both], float)
    constant = len(both) < 3 or before.std() == 0 or after.std() == 0
    return {
        "pairs": len(both),
        "pictures": len({stimulus for _, stimulus in both}),
        "equal": float((before == after).mean()),
        "within_one": float((np.abs(before - after) <= 1).mean()),
        "sd": float((after - before).std(ddof=1)) if len(both) > 1 else None,
        "spearman": None if constant else float(stats.spearmanr(before, after).statistic),
        **wilcoxon(after - before, zero_method),
    }
