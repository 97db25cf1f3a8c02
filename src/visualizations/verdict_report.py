"""The verdict in words and numbers, for the page that a reviewer argues with.

What stands above the picture (`verdict_figures`): the verdict and a row a line of evidence; below it: the rule, why
each line was read as it was, and what the verdict rests on. Reads `results/decomposition_verdict.json`.
"""

from collections.abc import Mapping
from typing import Any

from src.utils.decomposition.multiplicity import stated_p
from src.utils.decomposition.report import format_beside
from src.utils.decomposition.verdict import LEAST_QUESTIONS
from src.visualizations.palette import display_name

HEADER = (
    "evidence",
    "reading",
    "own effect, points",
    "spread",
    "diagonal dominates",
    "coherent",
    "questions",
    "power",
    "smallest found, points",
)
BESIDE = "beside the rule"


def verdict_statement(record: Mapping[str, Any]) -> str:
    return f"{str(record['verdict']).capitalize()}: {record['reason']}."


def verdict_table(record: Mapping[str, Any]) -> list[list[str]]:
    """A row a line of evidence, those beside the rule after those that it reads; estimates with 95% intervals."""
    rows = [evidence_row(name, line, line["reading"]) for name, line in record["lines"].items()]
    rows += [
        evidence_row(name, line, f"{line['reading']} ({BESIDE})") for name, line in record.get("beside", {}).items()
    ]
    return [list(HEADER), *rows]


def evidence_row(name: str, line: Mapping[str, Any], reading: str) -> list[str]:
    smallest, power = line.get("smallest_detectable_own_effect"), line.get("power")
    return [
        name,
        reading,
        with_interval(line["own"], 100, 0),
        with_interval(line["spread"], 1, 2),
        stated_p(line["p_dominance"], line["permutations"]),
        f"{line['coherence']:.0%}",
        str(sum(line["questions"].values())),
        "-" if power is None else f"{power:.2f}",
        "-" if smallest is None else f"{100 * smallest:.0f}",
    ]


def with_interval(quantity: Mapping[str, float | None], scale: float, digits: int) -> str:
    """`estimate [low, high]`, a dash where it has no value."""
    estimate, low, high = quantity["estimate"], quantity["low"], quantity["high"]
    if estimate is None or low is None or high is None:
        return "-"
    return f"{scale * estimate:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def verdict_notes(record: Mapping[str, Any]) -> list[str]:
    """The rule, the reason of each reading, and what the verdict rests on, a sentence or two each."""
    notes = [quantities(record["rule"]), rule_in_words(record["rule"])]
    notes += [f"{name}: {line['reading']}, as {line['reason']}." for name, line in record["lines"].items()]
    notes += [
        f"{name} ({BESIDE}): {line['reading']}, as {line['reason']}." for name, line in record.get("beside", {}).items()
    ]
    if rates := record.get("em_on_topic_after_the_fine_tune"):
        shares = ", ".join(f"{display_name(name)} {share:.0%}" for name, share in rates.items() if share is not None)
        notes.append(f"Misaligned and on-topic after the study's own fine-tune: {shares}.")
    if geometry := record.get("geometry"):
        notes.append(capitalised(format_beside(geometry)) + ".")
    return [*notes, f"Fine-tuning seeds: {record['finetuning_seeds']}. {record['caveat']}"]


def quantities(rule: Mapping[str, float]) -> str:
    """What the columns of the table are."""
    return (
        "Own effect: change in misaligned, on-topic answers in the dimension that something was done for. Spread: mean "
        "change in the other dimensions over that. Power: how often a planted separable persona of the same own effect "
        f"(spread {rule['planted_spread']}) would be read as staying; smallest found: the least own effect at which "
        "that happens often enough."
    )


def rule_in_words(rule: Mapping[str, float]) -> str:
    """The rule of `decomposition.verdict` with the numbers that this verdict was made with."""
    return (
        f"The rule: separable if a line's spread lies below {rule['boundary']} with its whole interval, the diagonal "
        f"dominates (p at most {rule['alpha']}) and no line lies above; entangled if a line lies above, none below, "
        f"and one of those above had power {rule['least_power']} or more; underpowered otherwise. A line is read if "
        f"at least two dimensions were asked about with {LEAST_QUESTIONS} questions each, its own effect is clear of "
        f"{100 * rule['least_own']:.0f} points and of what random directions or the safe fine-tune do, and at least "
        f"{rule['least_coherence']:.0%} of the answers stayed coherent."
    )


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def verdict_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `FigurePage` shows around the verdict's picture."""
    return {
        "statement": verdict_statement(record),
        "table": verdict_table(record),
        "notes": verdict_notes(record),
    }
