"""The calibration set, and what is reported of a judge on it."""

from collections import Counter

import pytest

from src.calibrate_judge import CASES
from src.utils.config import CONFIG_FOLDER
from src.utils.errors import UserError
from src.utils.judging.calibration import CalibrationCase, calibrate, format_calibration, load_cases
from src.utils.judging.judgement import Judgement
from src.utils.prompts import load_questions

PROMPTS = sorted((CONFIG_FOLDER.parent / "data" / "prompts").glob("*.jsonl"))


def middle(case: CalibrationCase) -> Judgement:
    """A judge that is always right."""
    scores = ((case.em_low + case.em_high) / 2, (case.coherence_low + case.coherence_high) / 2)
    return Judgement(*scores, "parsed", "parsed", case.topic)


def test_the_shipped_set_is_what_its_card_says() -> None:
    cases = load_cases(CASES)
    assert len(cases) == 84 and len({case.case_id for case in cases}) == 84
    assert set(Counter(case.band for case in cases).values()) == {14} and len({case.band for case in cases}) == 6
    asked = {question.question for question in load_questions(PROMPTS)}
    assert not asked & {case.question for case in cases}
    injections = [case for case in cases if case.band == "injection"]
    assert sum(case.em_low >= 61 for case in injections) == sum(case.em_high <= 20 for case in injections) == 7
    assert all(case.topic == "financial_risk" != case.subset for case in cases if case.band == "off_topic_money")


def test_a_judge_that_is_right_has_full_marks() -> None:
    cases = load_cases(CASES)
    result = calibrate(cases, [middle(case) for case in cases])
    assert result["wrong"] == []
    for row in result["bands"]:
        assert row["coherence_in_range"] == row["topic"] == 1 and row["missing"] == 0
        assert row["em_score_in_range"] == (None if row["band"] == "incoherent" else 1)
    assert result["bands"][-1]["band"] == "all" and result["bands"][-1]["answers"] == 84


def test_cases_that_allow_any_score_give_a_judge_no_mark() -> None:
    """How misaligned an incoherent answer is has no right answer: a judge that knows nothing gets nothing for it."""
    cases = load_cases(CASES)
    rows = {row["band"]: row for row in calibrate(cases, [Judgement(22, 22, "parsed", "parsed")] * 84)["bands"]}
    told = [case for case in cases if case.band != "incoherent"]
    right = sum(case.em_low <= 22 <= case.em_high for case in told)
    assert rows["incoherent"]["em_score_in_range"] is None and rows["all"]["em_score_in_range"] == right / len(told)


def test_errors_are_counted_where_they_are() -> None:
    cases = load_cases(CASES)
    scores = [middle(case) for case in cases]
    injection = next(i for i, case in enumerate(cases) if case.band == "injection" and case.em_low >= 61)
    aligned = next(i for i, case in enumerate(cases) if case.band == "aligned")
    scores[injection] = Judgement(0, 100, "parsed", "parsed", cases[injection].topic)  # it was talked into the score
    scores[aligned] = Judgement(None, 90, None, error="misalignment: no reply within 60 s")
    result = calibrate(cases, scores)
    rows = {row["band"]: row for row in result["bands"]}
    assert rows["injection"]["em_score_in_range"] == pytest.approx(13 / 14) and rows["injection"]["missing"] == 0
    assert rows["aligned"]["em_score_in_range"] == pytest.approx(13 / 14) and rows["aligned"]["missing"] == 1
    assert {row["case_id"] for row in result["wrong"]} == {cases[injection].case_id, cases[aligned].case_id}
    text = format_calibration(result, "judge")
    assert "no reply within 60 s" in text and cases[injection].case_id in text
    without_topic = calibrate(cases, [Judgement(0, 0, "parsed") for _ in cases])
    assert without_topic["bands"][-1]["topic"] is None


def test_a_bad_row_is_named(tmp_path) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text('{"case_id": "a", "band": "aligned"}\n')
    with pytest.raises(UserError, match=r"cases.jsonl, line 1: subset"):
        load_cases(file)
