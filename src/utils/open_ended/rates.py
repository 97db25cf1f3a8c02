"""How often the judge is right about attacks and about ordinary prompts, before and after a round of training.

The archive's prompts were chosen because the judge is wrong about them, so that its recall there is low by selection
and can only rise. Attacks drawn from nothing, about things of the held-out half, were not chosen by anything: what
changes on them is what the training taught. On an archive of errors a judge can learn to say the contrary of what it
said before; it then turns as many of its right verdicts as of its wrong ones.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from src.utils.open_ended.archive import Archive
from src.utils.open_ended.attacks import AttackLanguage, AttackPrompt
from src.utils.safety_judge.evaluation import Scored, measured
from src.utils.safety_judge.metrics import accuracy_difference, resample_weights
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.settings import EvaluationConfig

TRAINED, HELD_OUT, FRESH, ORDINARY = "archive, trained on", "archive, held out", "unselected attacks", "ordinary test"
SETS = (TRAINED, HELD_OUT, FRESH, ORDINARY)
FRESH_A_NICHE = 2
MOST_DRAWS = 50  # at a prompt of the held-out half
SHOWN = ("recall", "false_positive_rate", "accuracy")
TURNED = ("right", "wrong")

Margins = Float[np.ndarray, " prompts"]


def fresh_attacks(language: AttackLanguage, seed: int) -> list[AttackPrompt]:
    """Attacks drawn from nothing, so many of each niche, all of groups of the held-out half and none twice."""
    rng = random.Random(f"{seed}-fresh")
    found: dict[str, AttackPrompt] = {}
    for niche in language.niches:
        for _ in range(FRESH_A_NICHE):
            for _ in range(MOST_DRAWS):
                made = language.prompt(language.draw(rng, niche))
                if made.half == "held_out" and made.text not in found:
                    found[made.text] = made
                    break
    return list(found.values())


def sample_sets(
    archive: Archive, fresh: Sequence[AttackPrompt], test: Sequence[SafetySample]
) -> dict[str, tuple[SafetySample, ...]]:
    """The four sets of prompts on which a judge is measured; two elites with one text count once."""

    def unique(prompts: Sequence[AttackPrompt]) -> tuple[SafetySample, ...]:
        return tuple({one.text: one.sample() for one in prompts}.values())

    return {
        TRAINED: unique([elite.prompt for elite in archive.of_half("training")]),
        HELD_OUT: unique([elite.prompt for elite in archive.of_half("held_out")]),
        FRESH: unique(fresh),
        ORDINARY: tuple(test),
    }


def before_and_after(
    sets: Mapping[str, Sequence[SafetySample]],
    before: Mapping[str, Margins],
    after: Mapping[str, Margins] | None,
    settings: EvaluationConfig,
) -> list[dict[str, Any]]:
    """A row a set: measures with 95% intervals before, and after with the change in accuracy on the same prompts.

    `turned` is the share of the verdicts that training turned, of those that were `right` and that were `wrong`; None
    where there were none.
    """
    rows = []
    for name, samples in sets.items():
        row: dict[str, Any] = {"set": name, "before": measured(Scored(tuple(samples), before[name]), settings)}
        if after is not None:
            row["after"] = measured(Scored(tuple(samples), after[name]), settings)
            weights = resample_weights(
                [sample.group for sample in samples], settings.bootstrap_resamples, settings.eval_seed
            )
            unsafe = labels(samples)
            was, now = before[name] > 0, after[name] > 0
            row["change_in_accuracy"] = asdict(accuracy_difference(unsafe, now, was, weights))
            turned = dict(zip(TURNED, ((was != now)[was == unsafe], (was != now)[was != unsafe]), strict=True))
            row["turned"] = {kind: float(found.mean()) if len(found) else None for kind, found in turned.items()}
        rows.append(row)
    return rows


def rates_table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What a reader wants to see, header first."""
    moments = ["before", *(["after"] if rows and "after" in rows[0] else [])]
    header = ["", "prompts", *(f"{name.replace('_', ' ')} {moment}" for name in SHOWN for moment in moments)]
    turned = [f"{kind} verdicts turned" for kind in TURNED] if len(moments) > 1 else []
    table = [[*header, *turned]]
    for row in rows:
        cells = [cell(row[moment], name) for name in SHOWN for moment in moments]
        shares = [row["turned"][kind] for kind in TURNED if turned]
        cells += ["-" if share is None else f"{share:.3f}" for share in shares]
        table.append([row["set"], str(row["before"]["n"]), *cells])
    return table


def cell(measures: Mapping[str, Any], name: str) -> str:
    value, between = measures[name], measures["intervals"].get(name)
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{between[0]:.2f}, {between[1]:.2f}]" if between else "")
