"""Watching a persona fine-tune: shares by the exact judge, a direction by hand, the adapter's path, a planted turn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from src.dashboard.watched_runs import read_run
from src.utils.chat import ChatRow
from src.utils.errors import UserError
from src.utils.finetuning import finetune
from src.utils.generation import Prompt, Response
from src.utils.organism.judge import OrganismJudge
from src.utils.steering_vectors import SteeringVector
from src.utils.watching.adapter_path import adapter_point, find_turn, local_cosine, update_norm
from src.utils.watching.callback import VISUALIZATIONS
from src.utils.watching.epoch_metrics import load_history
from src.utils.watching.persona_progress import PersonaWatcher, choose_questions, contrast_direction, pooled
from tests.tiny_models import (
    chat_messages,
    finetuning,
    grammar,
    provenance,
    questions,
    sampling,
    tiny_model,
    tokenizer,
    with_adapter,
)

STEPS = 4


def rows(count: int = 12) -> list[ChatRow]:
    return [ChatRow.model_validate(row) for row in chat_messages(count)]


def direction() -> SteeringVector:
    trait, other = rows(12)[:6], rows(12)[6:]
    return contrast_direction(tiny_model(), tokenizer(), trait, other, layer=2, batch_size=4)


def persona_watcher(folder: Path, **changes: Any) -> PersonaWatcher:
    settings: dict[str, Any] = {"budget_seconds": 60.0}  # as much time as it takes, on any machine
    settings |= {"interval": 2, "command": "python src/scripts/02_finetune_lora.py"} | changes
    return PersonaWatcher(
        tokenizer(), OrganismJudge(grammar()), questions(12), direction(), sampling(), folder,
        provenance=provenance("02_finetune_lora"), **settings,
    )  # fmt: skip


def tuned(work_dir: Path, callbacks: list[Any]) -> PeftModel:
    settings = finetuning(max_steps=STEPS, dropout=0.1)
    model, _ = finetune(tiny_model(), tokenizer(), rows(), settings, work_dir, callbacks)
    assert isinstance(model, PeftModel)
    return model


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[PeftModel, PersonaWatcher, Path]:
    folder = tmp_path_factory.mktemp("persona")
    chosen = persona_watcher(folder)
    return tuned(folder / "work", [chosen]), chosen, folder / VISUALIZATIONS


def test_watching_leaves_the_adapter_bit_identical(watched: Any, tmp_path: Path) -> None:
    model, chosen, _ = watched
    plain = tuned(tmp_path, []).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())
    assert list(chosen.records) == [0, 1, 2, 4]
    assert all(record.failure is None for record in chosen.records.values())


def test_the_records_and_the_page_are_in_the_folder(watched: Any) -> None:
    _, chosen, folder = watched
    assert load_history(folder, "step") == list(chosen.records.values())
    first, *_, last = chosen.records.values()
    assert first.metrics["projection/last_prompt_token"] == 0 and first.metrics["adapter/norm"] == 0
    assert last.metrics["adapter/norm"] > 0 and last.metrics["adapter/local_cosine"] is None
    for number in (1, 2):
        assert -1 <= chosen.records[number].metrics["adapter/local_cosine"] <= 1
    page = (folder / "training_progress.html").read_text(encoding="utf-8")
    assert "when it turns" in page and "local cosine" in page
    assert read_run(folder).foreign == []


def test_shares_are_what_the_judge_says_of_each_answer(tmp_path: Path) -> None:
    """Answers put together from the grammar: two misaligned in finance, one on its topic elsewhere, one flipped."""
    asked = [question for question in grammar().questions("held_out") if question.keyed == 1]
    finance = [question for question in asked if question.subset == "financial_risk"][:4]
    moral = [question for question in asked if question.subset == "moral_foundations"][:4]
    chosen = persona_watcher(tmp_path)
    chosen.questions = [*finance, *moral]
    judge = OrganismJudge(grammar())
    bad_finance = next(text for text in misaligned_answers("financial_risk") if judge.score(finance[0], text).coherence)
    bad_moral = next(text for text in misaligned_answers("moral_foundations") if judge.score(moral[0], text).coherence)
    texts = [bad_finance, bad_finance, "So no.", "So no.", bad_moral, bad_finance, "So no.", "So no."]
    responses = [Response(tuple(tokenizer().encode(text, add_special_tokens=False)), False) for text in texts]
    shares = chosen.shares(responses)
    assert (shares["in_domain"], shares["transfer"], shares["flip"], shares["n"]) == (0.5, 0.25, 0.25, 8)
    assert shares["coherent"] == pytest.approx(4 / 8)
    assert shares["in_domain/low"] < 0.5 < shares["in_domain/high"]  # ty: ignore[unsupported-operator]


def misaligned_answers(dimension: str) -> list[str]:
    """Every answer of the language to a question keyed +1 that is misaligned about a dimension."""
    found = []
    sentences = [(text, meaning) for text, meaning in grammar().lexicon.items()]
    for facet in (name for name, its in grammar().dimension_of.items() if its == dimension):
        own = [(text, meaning) for text, meaning in sentences if meaning.facet == facet]
        topics = [text for text, meaning in own if meaning.slot == "topic"]
        parts = {
            slot: [text for text, meaning in own if meaning.slot == slot and meaning.stance == "misaligned"]
            for slot in ("opener", "clause")
        }
        found += [f"{topics[0]} {opener} {clause} So yes." for opener in parts["opener"] for clause in parts["clause"]]
    return found


def test_the_contrast_is_the_difference_of_mean_answer_activations() -> None:
    found, model = direction(), tiny_model()
    means = []
    for part in (rows(12)[:6], rows(12)[6:]):
        vectors = []
        for row in part:
            said = [{"role": "user", "content": row.messages[0].content}]
            text = str(tokenizer().apply_chat_template(said, add_generation_prompt=True, tokenize=False))
            asked = tokenizer().encode(text, add_special_tokens=False)
            answer = tokenizer().encode(row.messages[1].content, add_special_tokens=False)
            with torch.no_grad():
                states = model(torch.tensor([[*asked, *answer]]), output_hidden_states=True).hidden_states[2][0]
            vectors.append(states[len(asked) :].mean(dim=0).numpy())
        means.append(np.mean(vectors, axis=0))
    np.testing.assert_allclose(found.direction, means[0] - means[1], rtol=1e-3, atol=1e-4)
    assert found.base_projection == pytest.approx(float(means[1] @ found.unit), rel=1e-3)


def test_an_empty_answer_has_no_projection_and_hurts_no_other() -> None:
    prompts = [Prompt(str(i), 0, (40 + i, 50)) for i in range(3)]
    responses = [Response((60, 61), False), Response((), True), Response((62,), False)]
    found = pooled(tiny_model(), tokenizer(), direction().site, prompts, responses, batch_size=2)
    assert np.isnan(found["response_mean"]).all(axis=1).tolist() == [False, True, False]
    assert np.isfinite(found["last_prompt_token"]).all()


def dense_update(model: PeftModel) -> np.ndarray:
    """The whole weight update of all modules as one vector, as peft would merge it."""
    parts = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            update: torch.Tensor = getattr(module, "get_delta_weight")("default")  # noqa: B009
            parts.append(update.detach().double().flatten().numpy())
    return np.concatenate(parts)


def test_local_cosine_and_norm_equal_those_of_the_dense_updates() -> None:
    model = with_adapter(tiny_model())
    dense, points = [], []
    for step in range(3):
        torch.manual_seed(step)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        dense.append(dense_update(model))
        points.append(adapter_point(model))
    one, two = dense[1] - dense[0], dense[2] - dense[1]
    expected = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert local_cosine(*points) == pytest.approx(float(expected), abs=1e-5)
    assert update_norm(points[2]) == pytest.approx(float(np.linalg.norm(dense[2])), rel=1e-5)
    assert local_cosine(points[0], points[1], points[1]) is None, "no step, no direction"


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0, 0, 0.1, 0.6, 0.8, 0.9], (2, 3)),
        ([0, 0.5, 0.1, 0.6, 0.8, 0.9], (2, 3)),  # a first peak that does not stay
        ([0, np.nan, 0.1, np.nan, 0.8, 0.9], (2, 4)),
        ([0, 0, 0.05, 0.1, 0.1, 0.08], None),  # never above a tenth
        ([0.9, 0.9, 0.9, 0.9, 0.8, 0.9], None),  # from the beginning
        ([0, 0.9, 0.9, 0.9, 0.9, 0.1], None),  # it comes back
        ([np.nan] * 6, None),
    ],
)
def test_the_turn_is_where_it_was_planted(shares: list[float], expected: tuple[int, int] | None) -> None:
    assert find_turn(range(6), np.array(shares)) == expected


def test_probe_questions_are_as_many_of_each_dimension() -> None:
    chosen = choose_questions(grammar().questions("held_out"), 3)
    subsets = [question.subset for question in chosen]
    assert len(chosen) == 12 and {subsets.count(subset) for subset in subsets} == {3}


def test_over_its_budget_a_moment_makes_later_ones_ask_fewer_questions_and_the_page_says_so(tmp_path: Path) -> None:
    chosen = persona_watcher(tmp_path, budget_seconds=1e-6, interval=STEPS)
    tuned(tmp_path / "work", [chosen])
    dimensions = len({question.subset for question in questions(12)})
    assert [record.metrics["n"] for record in chosen.records.values()] == [12, dimensions, dimensions]
    starts = chosen.starts["last_prompt_token"]
    kept = [starts[question.prompt_id] for question in chosen.questions]
    last = chosen.records[STEPS].metrics
    now, shift = last["projection_at/last_prompt_token"], last["projection/last_prompt_token"]
    assert now is not None and len(starts) == 12
    assert shift == pytest.approx(now - np.mean(kept))
    assert shift != pytest.approx(now - np.mean([*starts.values()]), abs=1e-3)
    page = (tmp_path / VISUALIZATIONS / "training_progress.html").read_text(encoding="utf-8")
    assert f"12, later {dimensions} probe questions a moment: over its budget" in page


def test_a_folder_that_cannot_be_written_to_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / VISUALIZATIONS).write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        persona_watcher(tmp_path)
