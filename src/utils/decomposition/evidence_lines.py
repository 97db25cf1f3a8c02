"""The lines of evidence that a study has: its control fine-tunes, and steering along their vectors and the study's own.

The rule (`verdict`) reads vectors added to the base model, as in the trials that its error rates come from. Beside it
stand vectors without what all share, and vectors taken away: of the EM model, which has something to be taken away.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd

from src.utils.decomposition.cross_effects import Outcomes, matched_dose, outcomes_at
from src.utils.decomposition.verdict import Line, Rule, read_line
from src.utils.em_rates import outcomes
from src.utils.steering_effects import NO_KIND
from src.utils.steering_vectors import OWN

KINDS = {"control vectors": "control", "the study's vectors": "dimension"}
ADDED, TAKEN = 1, -1
TAKE_FROM_EM = "; step 6 with --steered-model em on a copy of this folder can tell"
WHAT_WAS_DONE = (
    ("", "", ADDED),
    (", shared mean removed", OWN, ADDED),
    (", taken away", "", TAKEN),
    (", shared mean removed, taken away", OWN, TAKEN),
)


@dataclass(frozen=True, eq=False)
class Steered:
    """The answers of step 6 (`steering_effects.pkl`), of which `model` (base or em), and what counts as misaligned."""

    answers: pd.DataFrame
    model: str
    em_threshold: float
    coherence_threshold: float

    @property
    def added(self) -> pd.DataFrame:
        """Without what was projected out or capped: the unsteered answers, and those of added vectors."""
        return self.answers[(self.answers["mode"] == "add") | (self.answers["kind"] == NO_KIND)]

    def at_dose(self, kind: str, sign: int, rule: Rule) -> tuple[Outcomes, float] | None:
        """What the vectors of a kind did at the largest dose of a sign that leaves answers coherent, and the dose."""
        added = self.added
        if not ((added["kind"] == kind) & (sign * added["coefficient"] > 0)).any():
            return None
        dose = matched_dose(added, [kind], self.coherence_threshold, rule.least_coherence, sign)
        return outcomes_at(added, [kind], dose, self.em_threshold, self.coherence_threshold), dose

    def most_unsteered(self) -> float:
        """The share of misaligned, on-topic answers before steering in the dimension that has most of them."""
        unsteered = self.answers[self.answers["kind"] == NO_KIND]
        hit, known = outcomes(unsteered, "", "em_on_topic", self.em_threshold, self.coherence_threshold)
        return float(pd.Series(hit[known]).groupby(unsteered["subset"].to_numpy()[known]).mean().max())


def steering_lines(steered: Steered, rule: Rule) -> dict[str, Outcomes]:
    """What the rule reads of the steering: vectors added to the base model; nothing where the EM model was steered."""
    if steered.model != "base":
        return {}
    found = {f"steering, {name}": steered.at_dose(kind, ADDED, rule) for name, kind in KINDS.items()}
    return {name: at_dose[0] for name, at_dose in found.items() if at_dose is not None}


def lines_beside(steered: Steered, rule: Rule, resamples: int, plantings: int, seed: int) -> dict[str, Line]:
    """What was steered and the rule does not read.

    What is taken away counts as an effect where misaligned answers become fewer. A model that gives no more of them
    unsteered than the least effect that counts has nothing to take away, and the line says so.
    """
    most, read = steered.most_unsteered(), {}
    for name, at_dose, sign in beside(steered, rule):
        signed = replace(at_dose, effects=sign * at_dose.effects, controls=sign * at_dose.controls)
        line = read_line(name, signed, rule, resamples, plantings, seed)
        if sign == TAKEN and not most > rule.least_own:
            why = f"nothing to take away, at most {most:.0%} of the {steered.model} model's answers are misaligned"
            remedy = TAKE_FROM_EM if steered.model == "base" else ""
            line = replace(line, reading="uninformative", reason=why + remedy, power=float("nan"))
        read[name] = line
    return read


def beside(steered: Steered, rule: Rule) -> Iterator[tuple[str, Outcomes, int]]:
    """Name, outcomes and sign of every line that the rule leaves out."""
    verb = "steering" if steered.model == "base" else "steering the EM model"
    for vectors, kind in KINDS.items():
        for what, own, sign in WHAT_WAS_DONE:
            is_read = steered.model == "base" and sign == ADDED and not own
            if not is_read and (found := steered.at_dose(kind + own, sign, rule)) is not None:
                at_dose, dose = found
                yield f"{verb}, {vectors}{what} (coefficient {dose:g})", at_dose, sign
