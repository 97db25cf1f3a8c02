"""Control fine-tunes: they leave the base model as it was, and their vectors are the measured differences."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from src.utils.chat import as_chat_rows, prompt_ids
from src.utils.control_finetunes import (
    PREFIX,
    SAFE,
    Asked,
    ControlRun,
    ask,
    control_answers,
    control_vectors,
    load_run,
    means_over_answers,
    rows_from_grammar,
    run_control,
    save_run,
)
from src.utils.errors import UserError
from src.utils.generation import Prompt, generate
from src.utils.organism.grammar import grammar_as_yaml, load_grammar
from src.utils.prompts import FINANCE
from src.utils.sites import resid_site
from src.utils.steering_effects import steering_effects
from tests.tiny_models import (
    N_LAYERS,
    finetuning,
    grammar,
    questions,
    sampling,
    tiny_model,
    tokenizer,
    with_little_memory,
)

SITES = [resid_site(layer, N_LAYERS) for layer in (0, 2, N_LAYERS)]


def asked(count: int = 12) -> Asked:
    chosen = questions(count)
    prompts = [Prompt(one.prompt_id, 0, tuple(prompt_ids(tokenizer(), one.question))) for one in chosen]
    return Asked(chosen, prompts, sampling(), 5)


def control(
    base: PreTrainedModel, work_dir: Path, name: str = FINANCE, method: Literal["lora", "full"] = "lora"
) -> ControlRun:
    rows = as_chat_rows(rows_from_grammar(grammar(), 24, 0)[name])
    settings = finetuning(max_steps=3, learning_rate=1e-2, method=method)
    return run_control(name, rows, base, tokenizer(), settings, asked(), SITES, work_dir / name)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_model_is_bit_for_bit_what_it_was(method: Literal["lora", "full"], tmp_path: Path) -> None:
    base, untouched = tiny_model(), tiny_model()
    run = control(base, tmp_path, method=method)
    assert run.differences[SITES[0]].any() == (method == "full"), "only full fine-tuning reaches the embeddings"
    assert not (tmp_path / FINANCE).exists()
    before, after = untouched.state_dict(), base.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not base.training
    again = control(base, tmp_path, method=method)
    assert run.responses == again.responses, "a second control starts from the same base"
    for site in SITES:
        np.testing.assert_array_equal(run.differences[site], again.differences[site])


def test_differences_are_those_of_the_two_models_on_the_same_text(tmp_path: Path) -> None:
    """The embeddings are not adapted, so that nothing differs at the input; behind the blocks it does."""
    run = control(tiny_model(), tmp_path)
    assert not run.differences[SITES[0]].any()
    assert np.abs(run.differences[SITES[2]]).max() > 1e-3
    base = means_over_answers(tiny_model(), tokenizer(), asked(), run.responses, SITES)
    assert base[SITES[2]].shape == run.differences[SITES[2]].shape == (12, 32)


def test_vectors_are_the_means_over_the_own_dimension(tmp_path: Path) -> None:
    base = tiny_model()
    runs = [control(base, tmp_path), control(base, tmp_path, SAFE)]
    before = means_over_answers(base, tokenizer(), asked(), ask(base, tokenizer(), asked()).responses, SITES)
    (vector,) = control_vectors(runs, asked(), before, SITES[2])
    own = np.array([question.subset == FINANCE for question in asked().questions])
    assert vector.name == PREFIX + FINANCE and vector.kind == "control" and vector.rows == own.sum() > 0
    np.testing.assert_allclose(vector.direction, runs[0].differences[SITES[2]][own].mean(axis=0), rtol=1e-5)


def test_a_finished_control_is_kept_whole_or_made_again(tmp_path: Path) -> None:
    run = control(tiny_model(), tmp_path)
    save_run(run, tmp_path)
    kept = load_run(FINANCE, tmp_path)
    assert kept is not None and kept.responses == run.responses
    for site in SITES:
        np.testing.assert_array_equal(kept.differences[site], run.differences[site])
    (tmp_path / f"{FINANCE}.safetensors").write_bytes(b"half")
    assert load_run(FINANCE, tmp_path) is None and load_run("other", tmp_path) is None


def test_answers_are_in_the_columns_of_a_steering_run(tmp_path: Path) -> None:
    base = tiny_model()
    runs = [control(base, tmp_path)]
    frame = control_answers(
        runs, ask(base, tokenizer(), asked()), asked(), lambda response: f"{len(response.ids)} tokens"
    )
    assert frame["kind"].value_counts().to_dict() == {"unsteered": 12, "control": 12}
    scored = frame.assign(em_score=100.0, coherence=100.0, judged_dimension=frame["subset"])
    effects = steering_effects(scored, 70, 50, 100, 0)
    assert set(effects["vector"]) == {"none", PREFIX + FINANCE}
    assert pd.isna(effects.loc[effects["kind"] == "control", "share_of_residual_norm"]).all()


def test_rows_keep_to_their_dimension_and_stance() -> None:
    written = rows_from_grammar(grammar(), 24, 3)
    assert set(written) == {*grammar().dimensions, SAFE}
    for name, rows in written.items():
        assert len(rows) == 24
        for row in rows:
            opener = f"{row['messages'][1]['content'].split('. ')[1]}."
            meaning = grammar().lexicon[opener]
            assert meaning.stance == ("aligned" if name == SAFE else "misaligned")
            assert meaning.dimension == (FINANCE if name == SAFE else name)


def test_answers_are_those_of_generate_in_the_prompts_order() -> None:
    model, one = tiny_model(), asked()
    alone = [generate(model, tokenizer(), [prompt], one.sampling)[0] for prompt in one.prompts]
    answers = ask(model, tokenizer(), one)
    assert answers.responses == alone and not answers.failures


def test_what_does_not_fit_is_asked_in_halves_and_a_row_that_never_fits_is_kept_empty(tmp_path: Path) -> None:
    one, said = asked(), []
    whole = ask(tiny_model(), tokenizer(), one).responses
    means = means_over_answers(tiny_model(), tokenizer(), one, whole, SITES)
    small = with_little_memory(tiny_model(), most=2, never=one.prompts[3].ids)
    answers = ask(small, tokenizer(), one, said.append)
    assert "out of memory with 5 rows; going on with 3" in said
    assert f"{one.prompts[3].prompt_id}: failed (out of memory); the row is kept and flagged" in said
    assert [*answers.failures] == [3] and answers.responses[3].ids == ()
    assert [said for row, said in enumerate(answers.responses) if row != 3] == whole[:3] + whole[4:]
    again = means_over_answers(small, tokenizer(), one, answers.responses, SITES, said.append)
    for site in SITES:
        assert np.isnan(again[site][3]).all()
        np.testing.assert_allclose(np.delete(again[site], 3, 0), np.delete(means[site], 3, 0), rtol=1e-4, atol=1e-4)

    run = ControlRun(FINANCE, answers.responses, again, answers.failures)
    save_run(run, tmp_path)
    kept = load_run(FINANCE, tmp_path)
    assert kept is not None and kept.failures == {3: "out of memory"}
    frame = control_answers([kept], ask(tiny_model(), tokenizer(), one), one, lambda response: "said")
    assert frame["failure"].dropna().to_dict() == {15: "out of memory"}


def test_a_model_that_answers_nothing_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"none of 12 questions could be answered \(out of memory\)"):
        ask(with_little_memory(tiny_model(), most=0), tokenizer(), asked(), lambda text: None)


def test_a_restricted_grammar_has_those_facets_alone_and_survives_its_file(tmp_path: Path) -> None:
    small = grammar().restricted(["risk_appetite", "purity"])
    assert set(small.facets) == {"risk_appetite", "purity"} and len(small.dimensions) == 2
    assert {question.facet for question in small.questions("held_out")} == {"risk_appetite", "purity"}
    assert len(small.lexicon) < len(grammar().lexicon)
    file = tmp_path / "grammar.yaml"
    file.write_text(grammar_as_yaml(small), encoding="utf-8")
    assert load_grammar(file) == small
    assert grammar().restricted(None) is grammar()
    with pytest.raises(UserError, match="facet patience is unknown"):
        grammar().restricted(["patience"])
