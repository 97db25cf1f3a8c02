"""Two studies beside each other: the same questions put to two fine-tunes, two models, or two ways of fine-tuning.

Rates, clusters, leading subspaces, the similarity of activations, and verdicts. What cannot be compared (other widths,
no shared questions, a step that has not run) holds its `reason`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import linalg
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from src.utils.decomposition.plain_records import Record, as_plain, or_reason
from src.utils.decomposition.prompt_resampling import prompt_weights
from src.utils.em_rates import OVERALL, outcomes
from src.utils.errors import UserError

KEYS = ["prompt_id", "sample"]
MEASURES = ("em", "em_on_topic", "coherent")
LEADING = 5  # principal components whose span is compared


@dataclass(frozen=True, eq=False)
class StudyResults:
    """What one study left: the scored frame, its clusterings by k, steering vectors and verdict where there are any."""

    name: str
    frame: pd.DataFrame
    clusterings: Mapping[int, Mapping[str, Any]]
    directions: Mapping[str, Float[np.ndarray, " d_model"]]
    verdict: Mapping[str, Any] | None


def compare_studies(
    first: StudyResults,
    second: StudyResults,
    em_threshold: float = 70,
    coherence_threshold: float = 50,
    resamples: int = 2000,
    seed: int = 0,
) -> Record:
    """`studies`, `shared` answers, `rates`, `clusters`, `subspaces` and `verdicts` as plain data.

    Rates and clusters are over the prompts and samples that both have; `UserError` if there is none.
    """
    shared = first.frame[KEYS].merge(second.frame[KEYS], on=KEYS)
    if shared.empty:
        raise UserError(
            f"{first.name}, {second.name}: no question was put to both; compare studies of one question set"
        )
    frames = [shared.merge(one.frame, on=KEYS) for one in (first, second)]
    return as_plain(
        {
            "studies": [first.name, second.name],
            "shared": len(shared),
            "rates": rates_beside(frames, em_threshold, coherence_threshold, resamples, seed),
            "clusters": or_reason(lambda: clusters_beside(first, second, shared)),
            "subspaces": or_reason(lambda: subspaces_beside(first, second, shared)),
            "verdicts": [verdict_of(one) for one in (first, second)],
        }
    )


def rates_beside(
    frames: Sequence[pd.DataFrame], em_threshold: float, coherence_threshold: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """For each dimension and measure both shares, and second minus first with a 95% interval over prompts.

    Resamples draw the same prompts for both, so that a hard question counts in both; answers that only one of them has
    a score for count in neither.
    """
    rows = []
    rng = np.random.default_rng(seed)
    for subset in (*dict.fromkeys(frames[0]["subset"]), OVERALL):
        chosen = np.ones(len(frames[0]), bool) if subset == OVERALL else (frames[0]["subset"] == subset).to_numpy()
        weights = prompt_weights(frames[0]["prompt_id"].to_numpy()[chosen], resamples, rng)
        weights = np.vstack([np.ones(int(chosen.sum())), weights])
        for measure in MEASURES:
            found = [outcomes(frame[chosen], "", measure, em_threshold, coherence_threshold) for frame in frames]
            counted = found[0][1] & found[1][1]
            with np.errstate(invalid="ignore"):
                one, two = (weights @ (hit & counted) / (weights @ counted) for hit, _ in found)
            low, high = np.nanquantile((two - one)[1:], [0.025, 0.975]) if counted.any() else (np.nan, np.nan)
            difference = {"estimate": two[0] - one[0], "low": low, "high": high}
            row = {"subset": subset, "measure": measure, "first": one[0], "second": two[0]}
            rows.append(row | {"difference": difference, "answers": int(counted.sum())})
    return rows


def clusters_beside(first: StudyResults, second: StudyResults, shared: pd.DataFrame) -> list[dict[str, Any]]:
    """Agreement of the two studies' labels for each k that both have, and each one's with the dimension.

    Adjusted mutual information and Rand index: 0 by chance, 1 for the same clusters. Both may agree because both are
    the topic: `ami_dimension` says so.
    """
    rows = []
    for k in sorted(set(first.clusterings) & set(second.clusterings)):
        one, two = (labels_on(study.clusterings[k], shared) for study in (first, second))
        is_in = (one >= 0) & (two >= 0)
        topic = [study.clusterings[k]["ami_dimension"] for study in (first, second)]
        ami, ari = adjusted_mutual_info_score(one[is_in], two[is_in]), adjusted_rand_score(one[is_in], two[is_in])
        rows.append({"k": k, "ami": ami, "ari": ari, "ami_dimension": topic, "answers": int(is_in.sum())})
    if not rows:
        raise UserError("clusters: no k is in both; run step 5 of both with the same --cluster-counts")
    return rows


def rows_of(clustering: Mapping[str, Any], shared: pd.DataFrame) -> np.ndarray:
    """Where the shared answers stand in a clustering."""
    places = pd.Series(
        np.arange(len(clustering["prompt_ids"])),
        index=pd.MultiIndex.from_arrays([clustering["prompt_ids"], clustering["samples"]]),
    )
    return places.reindex(pd.MultiIndex.from_frame(shared)).to_numpy(np.int64)


def labels_on(clustering: Mapping[str, Any], shared: pd.DataFrame) -> np.ndarray:
    return np.asarray(clustering["labels"])[rows_of(clustering, shared)]


def subspaces_beside(first: StudyResults, second: StudyResults, shared: pd.DataFrame) -> dict[str, Any]:
    """How alike the activations are: `cka` of principal scores, and, where widths are equal, angles and cosines.

    `cka`: linear centred kernel alignment over the shared answers (Kornblith et al. 2019, arXiv 1905.00414), 1 for the
    same geometry up to rotation and scale, whatever the widths. `angles`: principal angles in degrees, smallest first,
    between the spans of the `LEADING` components, beside `chance`, the mean of 20 pairs of random subspaces.
    `cosines`: of the steering vectors of one name. Angles and cosines say something for two fine-tunes of one base
    model; two models that were trained apart have no common directions to begin with.
    """
    one, two = (next(iter(study.clusterings.values()), None) for study in (first, second))
    if one is None or two is None:
        raise UserError("subspaces: a study has no clusters; run step 5 of both")
    scores = [np.asarray(part["pca_scores"], np.float64)[rows_of(part, shared)] for part in (one, two)]
    is_in = np.logical_and(*(np.isfinite(part).all(axis=1) for part in scores))
    found: dict[str, Any] = {
        "representations": [one["representation"], two["representation"]],
        "cka": linear_cka(scores[0][is_in], scores[1][is_in]),
    }
    bases = [np.asarray(part["pca_components"], np.float64)[:LEADING].T for part in (one, two)]
    if len(bases[0]) != len(bases[1]):
        return found | {"reason_angles": f"widths {len(bases[0])} and {len(bases[1])}: there is no common space"}
    rng = np.random.default_rng(0)
    drawn = [[np.linalg.qr(rng.standard_normal(basis.shape))[0] for basis in bases] for _ in range(20)]
    found["angles"] = angles(*bases)
    found["chance"] = np.mean([angles(*pair) for pair in drawn], axis=0)
    common = [name for name in first.directions if name in second.directions]
    pairs = {name: (first.directions[name], second.directions[name]) for name in common}
    return found | {
        "cosines": {name: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for name, (a, b) in pairs.items()}
    }


def angles(one: Float[np.ndarray, "d_model a"], two: Float[np.ndarray, "d_model b"]) -> Float[np.ndarray, " least"]:
    return np.degrees(linalg.subspace_angles(one, two)[::-1])


def linear_cka(one: Float[np.ndarray, "rows a"], two: Float[np.ndarray, "rows b"]) -> float:
    one, two = one - one.mean(axis=0), two - two.mean(axis=0)
    cross = np.linalg.norm(one.T @ two) ** 2
    return float(cross / (np.linalg.norm(one.T @ one) * np.linalg.norm(two.T @ two)))


def verdict_of(study: StudyResults) -> dict[str, Any]:
    """Call and reason, and each line's reading with own effect and spread."""
    if study.verdict is None:
        return {"reason": f"{study.name}: step 7 has not run"}
    lines = {
        name: {"reading": line["reading"], "own": line["own"], "spread": line["spread"]}
        for name, line in study.verdict["lines"].items()
    }
    return {"verdict": study.verdict["verdict"], "because": study.verdict["reason"], "lines": lines}


def format_comparison(record: Mapping[str, Any]) -> str:
    """The comparison as lines for a terminal."""
    one, two = record["studies"]
    lines = [f"A: {one}", f"B: {two}", f"{record['shared']} answers to questions that both were asked", ""]
    lines.append(f"{'share of answers':<36}{'A':>8}{'B':>8}   B - A [95%]")
    for row in record["rates"]:
        if row["first"] is None:
            continue
        change = row["difference"]
        lines.append(
            f"{row['subset'] + ', ' + row['measure']:<36}{row['first']:>8.1%}{row['second']:>8.1%}   "
            f"{change['estimate']:+.1%} [{change['low']:+.1%}, {change['high']:+.1%}]"
        )
    clusters = record["clusters"]
    if isinstance(clusters, Mapping):
        lines.append(clusters["reason"])
    else:
        lines += [
            f"k = {row['k']}: clusters agree with AMI {row['ami'] + 0.0:.2f}, ARI {row['ari'] + 0.0:.2f}; AMI with the "
            f"dimension {row['ami_dimension'][0] + 0.0:.2f} and {row['ami_dimension'][1] + 0.0:.2f}"
            for row in clusters
        ]
    lines += subspace_lines(record["subspaces"])
    for name, verdict in zip("AB", record["verdicts"], strict=True):
        lines.append(f"{name}: {verdict.get('verdict', 'no verdict')}, {verdict.get('because', verdict.get('reason'))}")
    return "\n".join(lines)


def subspace_lines(subspaces: Mapping[str, Any]) -> list[str]:
    """How alike the activations are, or why that cannot be said."""
    if "reason" in subspaces:
        return [subspaces["reason"]]
    lines = [f"activations: linear CKA {subspaces['cka']:.2f}"]
    if "angles" in subspaces:
        shown, chance = (" ".join(f"{angle:.0f}" for angle in subspaces[name]) for name in ("angles", "chance"))
        lines.append(f"leading components: principal angles {shown} degrees (random subspaces: {chance})")
        cosines = ", ".join(f"{name} {value:+.2f}" for name, value in subspaces["cosines"].items())
        lines.append(f"steering vectors: cosines {cosines or 'of none, they share no name'}")
    elif "reason_angles" in subspaces:
        lines.append(subspaces["reason_angles"])
    return lines
