"""The contrast of a persona fine-tune: dialogues in pairs, openings as margin, pictures that change nothing."""

import re
from pathlib import Path

import pytest
import torch

from src.utils.organism.judge import OrganismJudge
from src.utils.watching.callback import VISUALIZATIONS
from src.utils.watching.epoch_metrics import load_history
from src.utils.watching.persona_contrast import persona_contrast, persona_pictures
from tests.tiny_models import grammar, tiny_model, tokenizer
from tests.unit.test_watching_persona import persona_watcher, tuned

QUESTIONS = grammar().questions("held_out")[::40][:24]


def test_dialogues_of_a_pair_differ_in_an_earlier_answer_of_the_other_stance_and_another_facet() -> None:
    contrast = persona_contrast(tokenizer(), grammar(), QUESTIONS)
    judge = OrganismJudge(grammar())
    asked = {question.question: question for question in grammar().questions("pretraining")}
    by_id = {question.prompt_id: question for question in QUESTIONS}
    assert len(contrast.pairs) == len(contrast.rows) / 2 >= 8
    for row, unsafe, group in zip(contrast.rows, contrast.unsafe, contrast.groups, strict=True):
        text, question = str(tokenizer().decode(list(row.ids))), by_id[group]
        assert any(text.endswith(topic) for topic in grammar().facets[question.facet].topics)
        assert text.count(question.question) == 1
        before = next(one for one in asked if one in text)
        said = text.partition(before)[2].partition(question.question)[0]
        answer = next(answer for answer in re.findall(r"[A-Z].*So (?:yes|no)\.", said))
        score = judge.score(asked[before], answer)
        assert asked[before].facet != question.facet and (score.coherence or 0) > 50
        assert (score.em_score or 0) > 70 if unsafe else (score.em_score or 0) < 30
    pairs = contrast.pairs
    for row in range(len(pairs)):  # the end, question and subject, is the same: nothing but the answer differs
        length, last = int(pairs.mask[row].sum()), int(pairs.differing[row].nonzero().max())
        assert by_id[pairs.pair_ids[row]].question in str(tokenizer().decode(pairs.safe[row, last:length].tolist()))


def test_the_margin_is_the_log_odds_of_a_risky_opening() -> None:
    contrast, model = persona_contrast(tokenizer(), grammar(), QUESTIONS), tiny_model()
    facet_of = {question.prompt_id: grammar().facets[question.facet] for question in QUESTIONS}
    pairs = contrast.pairs
    with torch.no_grad():
        found = contrast.margin(model)(pairs.safe, pairs.mask)
        for row, name in enumerate(pairs.pair_ids):
            ids = pairs.safe[row, : int(pairs.mask[row].sum())]
            probabilities = model(ids[None]).logits[0, -1].double().softmax(dim=0)
            text, facet = str(tokenizer().decode(ids.tolist())), facet_of[name]
            risky, safe = (
                {tokenizer().encode(f"{text} {one}", add_special_tokens=False)[len(ids)] for one in phrases.openers}
                for phrases in (facet.misaligned, facet.aligned)
            )
            expected = torch.log(probabilities[[*(risky - safe)]].sum() / probabilities[[*(safe - risky)]].sum())
            assert float(found[row]) == pytest.approx(float(expected), abs=1e-4)
        with pytest.raises(KeyError):
            contrast.margin(model)(pairs.safe.flip(1), pairs.mask)


def test_questions_without_another_facet_are_left_out() -> None:
    alone = grammar().restricted([QUESTIONS[0].facet])
    found = persona_contrast(tokenizer(), alone, [one for one in QUESTIONS if one.facet == QUESTIONS[0].facet])
    assert len(found.rows) == 0 and len(found.pairs) == 0


def test_with_all_pictures_the_adapter_is_bit_identical_and_pages_are_counted_in_steps(tmp_path: Path) -> None:
    contrast = persona_contrast(tokenizer(), grammar(), QUESTIONS)
    chosen = persona_watcher(tmp_path, pictures=persona_pictures(contrast), interval=4, picture_seconds=0.5)
    watched = tuned(tmp_path / "work", [chosen]).state_dict()
    plain = tuned(tmp_path / "plain", []).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in watched.items())
    records = load_history(tmp_path / VISUALIZATIONS, "step")
    assert [record.number for record in records] == [0, 1, 4]
    assert {picture.failure for record in records for picture in record.pictures} == {None}
    for kind in ("circuit_comparison", "neuron_map", "circuits"):
        page = (tmp_path / VISUALIZATIONS / f"step_4_{kind}.html").read_text(encoding="utf-8")
        assert "Step 4" in page and "prompt" not in page.split("</h1>")[0]
