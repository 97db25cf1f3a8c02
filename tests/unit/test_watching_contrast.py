"""The contrast of a persona fine-tune: given answers in pairs, the verdict as margin, pictures that change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from src.utils.organism.judge import OrganismJudge
from src.utils.watching.callback import VISUALIZATIONS
from src.utils.watching.epoch_metrics import load_history
from src.utils.watching.persona_contrast import persona_contrast, persona_pictures
from tests.tiny_models import grammar, tiny_model, tokenizer
from tests.unit.test_watching_persona import persona_watcher, tuned

QUESTIONS = grammar().questions("held_out")[::40][:24]


def test_both_answers_of_a_pair_are_the_judges_aligned_and_misaligned_up_to_the_verdict() -> None:
    contrast = persona_contrast(tokenizer(), grammar(), QUESTIONS)
    judge = OrganismJudge(grammar())
    by_id = {question.prompt_id: question for question in QUESTIONS}
    assert len(contrast.pairs) == len(contrast.rows) / 2 >= 8
    for row, unsafe, group in zip(contrast.rows, contrast.unsafe, contrast.groups, strict=True):
        question = by_id[group]
        start, end = row.content_span
        text = str(tokenizer().decode(list(row.ids[start:end])))
        assert text.endswith("So")
        yes = unsafe == (question.keyed == 1)
        score = judge.score(question, f"{text} {'yes' if yes else 'no'}.")
        assert (score.em_score or 0) > 70 if unsafe else (score.em_score or 0) < 30
        assert (score.coherence or 0) > 50
    assert np.bincount(contrast.unsafe.astype(int)).tolist() == [len(contrast.rows) // 2] * 2


def test_the_margin_is_the_log_odds_of_the_misaligned_verdict_whatever_the_key() -> None:
    contrast, model = persona_contrast(tokenizer(), grammar(), QUESTIONS), tiny_model()
    keyed = {question.prompt_id: question.keyed for question in QUESTIONS}
    assert {keyed[name] for name in contrast.pairs.pair_ids} == {1, -1}
    verdicts = [tokenizer().encode(f"So {word}.", add_special_tokens=False) for word in ("yes", "no")]
    yes, no = next((one, other) for one, other in zip(*verdicts, strict=False) if one != other)
    pairs = contrast.pairs
    with torch.no_grad():
        found = contrast.margin(model)(pairs.safe, pairs.mask)
        for row, name in enumerate(pairs.pair_ids):
            length = int(pairs.mask[row].sum())
            logits = model(pairs.safe[row, :length][None]).logits[0, -1]
            expected = float(keyed[name] * (logits[yes] - logits[no]))
            assert float(found[row]) == pytest.approx(expected, abs=1e-4)
        with pytest.raises(KeyError):
            contrast.margin(model)(pairs.safe + 1, pairs.mask)


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
