"""The geometry of a study as lines for a terminal, and as the few numbers that stand beside a verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from src.utils.decomposition.multiplicity import stated_p
from src.utils.decomposition.power_curve import NOT_FOUND
from src.utils.decomposition.probes import ACTIVATIONS, LEAST_PROMPTS, PROMPT, SHUFFLED

INDEX_NAMES = {"calinski_harabasz": "Calinski-Harabasz", "davies_bouldin": "Davies-Bouldin", "bic": "BIC"}
MISALIGNMENT, UNEXPLAINED = "misalignment", "unexplained structure"
NOTHING = "no structure beyond covariance"
ALPHA = 0.05
FINDINGS = {  # test of `geometry_power` -> what it says where it rejects, and where it does not
    "subspaces": ("the dimensions vary in different directions", "the dimensions' directions are alike"),
    "clusters": ("topic removed, clusters beyond the covariance", "topic removed, no clusters beyond the covariance"),
}
Record = Mapping[str, Any]


def geometry_summary(record: Record) -> dict[str, Any]:
    """What `decomposition_verdict.json` says of the geometry, which decides nothing.

    `rank`: components above parallel analysis; `clusterings` and how many of them are of each kind, with those that are
    misalignment itself and those whose structure is unexplained; `best_probe`. None where a part could not be computed.
    """
    kinds = Counter(row["kind"] for row in record["clusters"].get("explanations", []))
    return {
        "evidence": record["evidence"]["name"],
        "rank": record["rank"]["parallel_analysis"].get("retained"),
        "participation_ratio": record["rank"]["participation"].get("estimate"),
        "clusterings": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "misalignment": kinds[MISALIGNMENT],
        "unexplained": kinds[UNEXPLAINED],
        "best_probe": best_probe(record["probes"]),
    }


def best_probe(probes: Record) -> dict[str, Any] | None:
    """The target whose probe reads most beyond the topic, in AUROC, with 95% intervals.

    `over_topic` is the excess over topic alone; `over_best` that over the best of all baselines, which `best` names
    (topic, texts, base activations; shuffled labels and the prompt's other answers are none). None where nothing was
    probed.
    """
    found: list[dict[str, Any]] = []
    for target in ("dimension", "misaligned"):
        rows = {row["predictor"]: row for row in auroc_rows(probes.get(target, {})) if row["excess"] is not None}
        for name in (SHUFFLED, PROMPT):
            rows.pop(name, None)
        if rows:
            best = min(rows.values(), key=lambda row: row["excess"])
            excesses = {"over_topic": excess_of(rows["topic"]), "over_best": excess_of(best)}
            found.append({"target": target, "best": best["predictor"], **excesses})
    return max(found, key=lambda row: row["over_topic"]["estimate"], default=None)


def excess_of(row: Record) -> dict[str, float]:
    return {"estimate": row["excess"], "low": row["excess_low"], "high": row["excess_high"]}


def auroc_rows(probe: Record) -> list[Record]:
    return [row for row in probe.get("table", []) if row["measure"] == "auroc"]


def format_geometry(record: Record) -> str:
    """One line a statistic, and for every clustering the sentence that says what it is."""
    about = record["evidence"]
    lines = [f"geometry of {about['name']}: {about['rows']} answers, {about['features']} features"]
    lines += rank_lines(record["rank"])
    lines += cluster_lines(record["clusters"], record["power"])
    lines += power_lines(record["power"])
    lines += layer_lines(record["layers"])
    lines += factor_lines(record["factorisations"])
    lines += probe_lines(record["probes"])
    lines += token_lines(record["tokens"], record["clusters"]) if "tokens" in record else []
    return "\n".join(lines)


def token_lines(tokens: Record, clusters: Record) -> list[str]:
    """Token clusters, each k beside the same k-means of answer means."""
    if "reason" in tokens:
        return [f"tokens: {tokens['reason']}"]
    ratio = tokens["participation_ratio"]
    lines = [f"tokens: {tokens['tokens']} of {tokens['answers']} answers, participation ratio {ratio:.1f}"]
    for row in tokens["clusters"]:
        stated = ", ".join(f"{name} {row[name] + 0.0:.2f}" for name in ("dimension", "facet", "place", "answer"))
        lines.append(f"tokens, k = {row['k']}: AMI with {stated}{of_answer_means(clusters, row['k'])}")
    return lines


def of_answer_means(clusters: Record, k: int) -> str:
    """How far k-means of answer means are the topic, where they were tested at that k."""
    for row in clusters.get("explanations", []):
        if (row["algorithm"], row["k"]) == ("kmeans", k):
            values = {name: row["numbers"][f"ami_{name}"] for name in ("dimension", "facet")}
            stated = ", ".join(f"{name} {ami + 0.0:.2f}" for name, ami in values.items() if ami is not None)
            return f" (answer means: {stated})"
    return ""


def rank_lines(rank: Record) -> list[str]:
    parallel, ratio, halves = (rank[name] for name in ("parallel_analysis", "participation", "half_agreement"))
    lines = [f"rank, {name}: {part['reason']}" for name, part in rank.items() if "reason" in part]
    if "reason" not in parallel:
        least = "at least " if parallel["is_cut_off"] else ""
        lines.append(f"rank: {least}{parallel['retained']} components above the 95th percentile of parallel analysis")
    if "reason" not in ratio:
        lines.append(f"participation ratio: {interval(ratio)} directions in equal use")
    if "reason" not in halves:
        ceiling, low, high = halves["ceiling_overlap"]
        lines.append(
            f"halves of the prompts: leading {len(halves['angles'])} directions overlap {halves['overlap']:.2f} "
            f"(Gaussian ceiling {ceiling:.2f} [{low:.2f}, {high:.2f}], chance {halves['chance_overlap']:.2f})"
        )
    return lines


def power_lines(power: Record) -> list[str]:
    """Each test of sub-personas on the data, and the smallest planted ones that it would have found."""
    if "reason" in power:
        return [power["reason"] if power["reason"].startswith("power") else f"power: {power['reason']}"]
    lines = []
    for name, (found, not_found) in FINDINGS.items():
        part = power[name]
        if "reason" in part:
            lines.append(part["reason"])
            continue
        said = found if part["p"] < ALPHA else not_found
        lines.append(f"{name}: {said} ({stated_p(part['p'], part['draws'])}); {smallest_found(power, name)}")
    return lines


def smallest_found(power: Record, name: str) -> str:
    """The smallest planted sub-personas that a test finds, at each angle between them; or why that is not known."""
    for part in (power, power.get(name, {})):
        if "reason" in part:
            return f"what would have been found is not known ({part['reason']})"
    largest = max(row["snr"] for row in power["curve"])
    sizes = []
    for row in power["smallest"]:
        if row["detector"] == name:
            size = f"none up to SNR {largest:g}" if row["statement"] == NOT_FOUND else row["statement"]
            size = size if row["snr"] is None else f"SNR {row['snr']:g}"
            sizes.append(f"{size} at {row['angle']:g}°")
    return f"smallest planted sub-personas found with power {power['power']:g}: {', '.join(sizes)}"


def cluster_lines(clusters: Record, power: Record) -> list[str]:
    if "reason" in clusters:
        return [f"clusters: {clusters['reason']}"]
    lines = []
    if clusters["counts_left_out"]:
        lines.append(
            f"k = {' '.join(map(str, clusters['counts_left_out']))}: too many clusters to resample; not tested"
        )
    for algorithm in dict.fromkeys(row["algorithm"] for row in clusters["gap"]):
        chosen = {
            row["reference"]: row["k"] for row in clusters["gap"] if row["algorithm"] == algorithm and row["is_chosen"]
        }
        stated = ", ".join(f"k = {k} against {'a' if name == 'box' else 'the'} {name}" for name, k in chosen.items())
        lines.append(f"gap statistic, {algorithm}: {stated}")
    for algorithm in dict.fromkeys(row["algorithm"] for row in clusters["chosen"]):
        rows = [row for row in clusters["chosen"] if row["algorithm"] == algorithm]
        stated = ", ".join(f"k = {row['k']} by {INDEX_NAMES.get(row['index'], row['index'])}" for row in rows)
        lines.append(f"internal indices, {algorithm}: {stated}")
    for row in clusters["explanations"]:
        k = f"k = {row['k']}" if row["k"] else "own k"
        ami = row["numbers"]["ami_misaligned"]
        stated = "" if ami is None or row["kind"] == MISALIGNMENT else f"; AMI with being misaligned {ami + 0.0:.2f}"
        lines.append(f"{row['algorithm']}, {k}: {row['kind']}: {row['sentence']}{stated}")
    if any(row["kind"] == NOTHING for row in clusters["explanations"]):
        lines.append(f"{NOTHING}: by a test of clusters, {smallest_found(power, 'clusters')}")
    return lines


def layer_lines(layers: Record) -> list[str]:
    if "reason" in layers:
        return [f"layers: {layers['reason']}"]
    lines = []
    for name, rank in layers["rank"].items():
        tests = [row for row in layers["tests"] if row["layer"] == name]
        significant = sum(row["p_max"] < 0.05 for row in tests)
        retained = rank["parallel_analysis"].get("retained", "unknown")
        lines.append(f"{name}: rank {retained}, {significant} of {len(tests)} cluster statistics beyond the covariance")
    return lines


def factor_lines(factorisations: Record) -> list[str]:
    if "reason" in factorisations:
        return [f"factorisations: {factorisations['reason']}"]
    rows: dict[str, dict[str, float]] = {}
    for row in factorisations["table"]:
        rows.setdefault(row["method"], {})[row["measure"]] = row["mean"]
    return [
        f"{name}: rebuilds {row['held_out']:.2f} of held-out variance; components return in halves with cosine "
        f"{row['stability']:.2f} (Gaussian data: {row['stability_null']:.2f})"
        for name, row in rows.items()
    ]


def probe_lines(probes: Record) -> list[str]:
    if "reason" in probes:
        return [probes["reason"]]
    lines = []
    for target in ("dimension", "misaligned"):
        if "reason" in probes[target]:
            lines.append(f"probe of {target}: {probes[target]['reason']}")
            continue
        rows = auroc_rows(probes[target])
        over = ", ".join(
            f"{row['predictor']} {signed(row)}"
            for row in rows
            if row["predictor"] not in (ACTIVATIONS, SHUFFLED, PROMPT)
        )
        (prompt,) = [row for row in rows if row["predictor"] == PROMPT]
        known = "undefined, one answer a prompt" if prompt["estimate"] is None else f"AUROC {interval(prompt)}"
        lines.append(
            f"probe of {target}, n = {probes[target]['rows']}: AUROC {interval(rows[0])}; more than {over}; "
            f"ceiling of knowing the prompt: {known}"
        )
    table: Sequence[Record] = probes["transfer"].get("table", [])
    crossed = [row["auroc"] for row in table if row["train"] != row["test"] and row["auroc"] is not None]
    if crossed:
        lines.append(
            f"misaligned direction of one dimension, read in another: AUROC {min(crossed):.2f} to {max(crossed):.2f} "
            f"in {len(crossed)} of {sum(row['train'] != row['test'] for row in table)} pairs"
        )
    few = f"left out, under {LEAST_PROMPTS} prompts of a class"
    for row in table:
        if row["train"] == row["test"]:
            found = f"AUROC {interval({**row, 'estimate': row['auroc']})}" if row["auroc"] is not None else few
            counts = f"{row['misaligned']} misaligned, {row['aligned']} aligned"
            lines.append(f"misaligned direction within {row['test']}, n = {counts}: {found}")
    return lines


def interval(row: Record) -> str:
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def signed(row: Record) -> str:
    estimate, low, high = (round(value, 2) + 0.0 for value in excess_of(row).values())  # + 0.0: no "-0.00"
    return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]"
