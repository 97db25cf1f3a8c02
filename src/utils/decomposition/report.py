"""The verdict as a record for `results/decomposition_verdict.json`, and as lines for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from src.utils.decomposition.interchange_report import interchange_lines
from src.utils.decomposition.verdict import Verdict, verdict_as_json
from src.utils.em_rates import OVERALL

CAVEAT = (
    "One base model and one fine-tuning seed. What is known of the rule's error rates comes from small organisms whose "
    "truth is known (benchmarks/verdict.py), not from language models."
)


def verdict_record(
    verdict: Verdict,
    smallest: Mapping[str, float | None],
    rates: Sequence[Mapping[str, Any]],
    profile: str,
    world: str | None,
) -> dict[str, Any]:
    """Everything that the verdict rests on, as plain data.

    `smallest` is for each line the least own effect at which a planted separable persona would have been found with
    the rule's power, None beyond the swept ones. `rates` are those of step 4: what the study's fine-tune did itself.
    """
    record = verdict_as_json(verdict)
    for name, line in record["lines"].items():
        line["smallest_detectable_own_effect"] = smallest[name]
    own = {
        row["subset"]: row["estimate"]
        for row in rates
        if row["arm"] == "em" and row["measure"] == "em_on_topic" and row["facet"] == OVERALL
    }
    return record | {
        "profile": profile,
        "world": world,
        "finetuning_seeds": 1,
        "em_on_topic_after_the_fine_tune": own,
        "caveat": CAVEAT,
    }


def format_verdict(record: Mapping[str, Any]) -> str:
    """A line for each line of evidence, some for geometry and interchange where there are any, then the verdict."""
    lines = []
    for name, line in record["lines"].items():
        own, smallest = line["own"]["estimate"], line["smallest_detectable_own_effect"]
        found = "none of the swept sizes" if smallest is None else f"{smallest:.2f}"
        lines.append(f"{name}: {line['reading']} ({line['reason']})")
        lines.append(f"    own effect {own:.2f}; a separable persona would be found from own effect {found}")
    lines += [f"beside the rule, {line}" for line in lines_beside(record)]
    if "geometry" in record:
        lines.append(format_beside(record["geometry"]))
    if "interchange" in record:
        lines += interchange_lines(record["interchange"])
    return "\n".join([*lines, f"verdict: {record['verdict']}, as {record['reason']}", record["caveat"]])


def lines_beside(record: Mapping[str, Any]) -> list[str]:
    """What the lines say that decide nothing; those that say the same share a line."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, line in record.get("beside", {}).items():
        names.setdefault((line["reading"], line["reason"]), []).append(name)
    return [f"{'; '.join(alike)}: {reading} ({reason})" for (reading, reason), alike in names.items()]


def format_beside(geometry: Mapping[str, Any]) -> str:
    """The geometry in a line (`geometry_report.geometry_summary`)."""
    probe = geometry["best_probe"]
    stated = f"; probe of {probe['target']} {probe['over_topic']['estimate']:+.2f} AUROC over topic" if probe else ""
    return (
        f"geometry, which does not decide: rank {geometry['rank']}; of {geometry['clusterings']} clusterings "
        f"{geometry['misalignment']} are misalignment, {geometry['unexplained']} unexplained structure{stated}"
    )
