"""Which lines the rule reads and which stand beside it, on planted answers of a base and of an EM model."""

import numpy as np
import pandas as pd
import pytest

from src.utils.decomposition.evidence_lines import Steered, lines_beside, steering_lines
from src.utils.decomposition.verdict import Rule

DIMENSIONS = ("politics", "morals", "money")
QUESTIONS = 12  # a dimension


def answers(unsteered: float, added: dict[str, float], taken: dict[str, float]) -> pd.DataFrame:
    """Vectors `control_<dimension>` at 2 and -2, and a random one that does nothing.

    `added`, `taken`: the share of misaligned answers at home and elsewhere, which are those to the first questions.
    """
    arms = [("none", "unsteered", 0.0, dict.fromkeys(DIMENSIONS, unsteered))]
    for coefficient, shares in ((2.0, added), (-2.0, taken)):
        arms.append(("random_0", "random", coefficient, dict.fromkeys(DIMENSIONS, unsteered)))
        for own in DIMENSIONS:
            at = {name: shares["home" if name == own else "elsewhere"] for name in DIMENSIONS}
            arms.append((f"control_{own}", "control", coefficient, at))
    rows = [
        {"vector": vector, "kind": kind, "coefficient": coefficient, "mode": "add", "subset": dimension,
         "judged_dimension": dimension, "prompt_id": f"{dimension}_{number}", "sample": 0, "coherence": 100.0,
         "em_score": 100.0 * (number < share * QUESTIONS)}
        for vector, kind, coefficient, shares in arms
        for dimension, share in shares.items()
        for number in range(QUESTIONS)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def steered(model: str, unsteered: float, added: dict[str, float], taken: dict[str, float]) -> Steered:
    return Steered(answers(unsteered, added, taken), model, 70, 50)


def test_the_rule_reads_what_is_added_to_the_base_model_alone() -> None:
    everywhere = {"home": 0.75, "elsewhere": 0.5}
    base = steered("base", 0.0, everywhere, {"home": 0.0, "elsewhere": 0.0})
    read = steering_lines(base, Rule())
    assert list(read) == ["steering, control vectors"]
    np.testing.assert_allclose(read["steering, control vectors"].effects.mean(), (0.75 + 0.5 + 0.5) / 3)
    assert steering_lines(steered("em", 0.5, everywhere, everywhere), Rule()) == {}


@pytest.mark.parametrize(("unsteered", "is_empty"), [(0.0, True), (0.08, True), (0.25, False)])
def test_a_model_that_has_no_persona_has_nothing_to_take_away(unsteered: float, is_empty: bool) -> None:
    base = steered("base", unsteered, {"home": 1.0, "elsewhere": 1.0}, {"home": 0.0, "elsewhere": 0.0})
    (name, line), *others = lines_beside(base, Rule(), 200, 20, 0).items()
    assert not others and name == "steering, control vectors, taken away (coefficient -2)"
    assert ("nothing to take away" in line.reason and "--steered-model em" in line.reason) == is_empty
    assert line.reading == ("uninformative" if is_empty else "spreads")


def test_what_is_taken_from_the_em_model_stays_or_spreads_like_what_is_added() -> None:
    nothing_added = {"home": 1.0, "elsewhere": 1.0}
    for elsewhere, reading in ((1.0, "stays"), (0.25, "spreads")):
        em = steered("em", 1.0, nothing_added, {"home": 0.0, "elsewhere": elsewhere})
        lines = lines_beside(em, Rule(), 500, 20, 0)
        assert list(lines) == [
            "steering the EM model, control vectors (coefficient 2)",
            "steering the EM model, control vectors, taken away (coefficient -2)",
        ]
        added, taken = lines.values()
        assert added.reading == "uninformative" and taken.reading == reading
        assert taken.effects.own.estimate == 1 and taken.effects.cross.estimate == pytest.approx(1 - elsewhere)


def test_what_was_projected_out_is_no_dose() -> None:
    projected = answers(0.5, {"home": 1.0, "elsewhere": 1.0}, {"home": 0.0, "elsewhere": 0.0})
    projected = projected.assign(mode="ablate")
    assert steering_lines(Steered(projected, "base", 70, 50), Rule()) == {}
    assert lines_beside(Steered(projected, "em", 70, 50), Rule(), 100, 10, 0) == {}
