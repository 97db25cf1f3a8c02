"""The grid of a steering run: what is asked, that a stopped run ends in the same bytes, and the frame it becomes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.utils.artifacts import save_frame
from src.utils.collection_parts import is_whole, read_part, write_part
from src.utils.config import PROJECT_ROOT
from src.utils.config_sections import CollectionConfig, SteeringConfig
from src.utils.errors import UserError
from src.utils.generation import generate
from src.utils.judging.judges import score_responses
from src.utils.organism.judge import OrganismJudge
from src.utils.ranks import Ranks
from src.utils.sites import resid_site
from src.utils.steering import Dose, steered
from src.utils.steering_effects import NO_KIND, NO_VECTOR
from src.utils.steering_grid import (
    Grid,
    answers_frame,
    measure_norm,
    part_path,
    plan_grid,
    read_norm,
    run_grid,
)
from src.utils.steering_vectors import SteeringVector
from tests.tiny_models import N_LAYERS, grammar, provenance, questions, tiny_model, tokenizer, with_little_memory

WIDTH = 32


def vectors(count: int = 3) -> list[SteeringVector]:
    drawn = np.random.default_rng(0).normal(size=(count, WIDTH)).astype(np.float32)
    site = resid_site(1, N_LAYERS)
    return [SteeringVector(f"v{i}", "dimension", site, row, "em_minus_base", 3, 0.1) for i, row in enumerate(drawn)]


def grid(count: int = 6, **changes: object) -> Grid:
    values = {"layer": 1, "vectors": ["dimension"], "coefficients": [2.0, -1.0], "batch_size": 5, "max_new_tokens": 8}
    collection = {
        "prompts": ["unused"],
        "layers": [1],
        "max_new_tokens": 50,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
    }
    settings = SteeringConfig.model_validate(values | changes)
    return plan_grid(questions(count), tokenizer(), vectors(), settings, CollectionConfig.model_validate(collection))


def model():
    return tiny_model(n_ends=60)


def made(one: Grid, folder: Path) -> pd.DataFrame:
    run_grid(one, model, tokenizer(), folder)
    return answers_frame(one, tokenizer(), folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, made(grid(), folder)


def test_every_vector_and_coefficient_meets_every_prompt_once() -> None:
    one = grid(samples=2)
    arms = [(NO_VECTOR, 0.0), *((f"v{i}", c) for i in range(3) for c in (-1.0, 2.0))]
    rows = [
        (dose.vector.name if dose.vector else NO_VECTOR, dose.coefficient, prompt.prompt_id, prompt.sample)
        for dose, prompt in zip(one.doses, one.prompts, strict=True)
    ]
    expected = [(*arm, question.prompt_id, sample) for arm in arms for question in questions(6) for sample in (0, 1)]
    assert rows == expected
    assert [question.prompt_id for question in one.questions] == [row[2] for row in rows]
    flat = [row for batch in one.batches for row in batch]
    assert sorted(flat) == list(range(len(rows))) and max(map(len, one.batches)) == 5
    widths = [len({one.doses[row] for row in batch}) for batch in one.batches]
    assert max(widths) > 1, "batches mix vectors and coefficients"


def test_coefficients_are_settled_before_they_are_run() -> None:
    assert {dose.coefficient for dose in grid(coefficients=[0, 1, 1.0, -3]).doses} == {0.0, 1.0, -3.0}
    for mode in ("ablate", "cap"):
        assert {dose.coefficient for dose in grid(mode=mode).doses} == {0.0, 1.0}
    assert grid(limit=2).prompts[0].prompt_id == questions(6)[0].prompt_id and len(grid(limit=2).prompts) == 14
    assert grid().sampling.max_new_tokens == 8 and grid(max_new_tokens=None).sampling.max_new_tokens == 50


def test_answers_are_those_of_one_steered_prompt_at_a_time(uninterrupted: tuple[Path, pd.DataFrame]) -> None:
    one, frame = grid(), uninterrupted[1]
    assert len(frame) == len(one.prompts) == 42
    for row in range(0, 42, 5):
        dose, prompt = one.doses[row], one.prompts[row]
        alone = model()
        with steered(alone, [dose]):
            (said,) = generate(alone, tokenizer(), [prompt], one.sampling)
        text = tokenizer().decode(list(said.ids), skip_special_tokens=True)
        assert isinstance(text, str)
        assert frame["response"][row] == text.strip() and frame["truncated"][row] == said.is_truncated


def test_the_unsteered_arm_shares_its_noise_with_the_steered_ones(uninterrupted: tuple[Path, pd.DataFrame]) -> None:
    """A vanishing dose gives the unsteered answers again; another seed does not."""
    frame = uninterrupted[1]
    unsteered = frame[frame["kind"] == NO_KIND]["response"].tolist()
    assert len(set(unsteered)) >= 5
    whisper, one = model(), grid()
    with steered(whisper, [Dose(vectors()[0], 1e-6)] * 6):
        said = generate(whisper, tokenizer(), one.prompts[6:12], one.sampling)
    texts = tokenizer().batch_decode([list(response.ids) for response in said], skip_special_tokens=True)
    assert [text.strip() for text in texts] == unsteered
    assert frame[frame["coefficient"] == 2.0]["response"].tolist()[:6] != unsteered


def test_the_frame_says_what_was_done(uninterrupted: tuple[Path, pd.DataFrame]) -> None:
    frame = uninterrupted[1]
    assert list(frame.columns) == [
        *("vector", "kind", "coefficient", "share_of_residual_norm", "residual_norm", "mode", "positions", "layer"),
        *("steered_model", "prompt_id", "sample", "question", "subset", "facet", "keyed", "response", "truncated"),
    ]
    norm = frame["residual_norm"].iloc[0]
    for row in frame.to_dict("records"):
        length = 0 if row["vector"] == NO_VECTOR else np.linalg.norm(vectors()[int(row["vector"][1])].direction)
        assert row["share_of_residual_norm"] == pytest.approx(abs(row["coefficient"]) * length / norm, rel=1e-5)
    assert set(frame["mode"]) == {"add"} and set(frame["layer"]) == {1} and set(frame["steered_model"]) == {"base"}


def test_what_is_ablated_has_no_share(tmp_path: Path) -> None:
    frame = made(grid(2, mode="ablate", everywhere=True), tmp_path)
    assert frame.groupby("kind")["share_of_residual_norm"].apply(lambda values: values.isna().all()).to_dict() == {
        "dimension": True,
        NO_KIND: False,
    }


def test_the_residual_norm_is_the_median_over_drawing_positions() -> None:
    """Against hidden states of one unpadded, teacher-forced prompt at a time."""
    one, plain = grid(), model()
    norms = []
    for prompt in one.prompts[:5]:  # as many as a batch has
        (said,) = generate(plain, tokenizer(), [prompt], one.sampling)
        with torch.inference_mode():
            states = plain(torch.tensor([prompt.ids + said.ids[:-1]]), output_hidden_states=True).hidden_states
        norms += states[1][0, len(prompt.ids) - 1 :].norm(dim=-1).tolist()
    assert measure_norm(one, plain, tokenizer()) == pytest.approx(torch.tensor(norms).median().item(), rel=1e-4)


def test_resuming_after_lost_and_damaged_parts_gives_the_same_bytes(
    uninterrupted: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    made(grid(), tmp_path)
    part_path(tmp_path, 0).unlink()
    whole = part_path(tmp_path, 4).read_bytes()
    for number, content in ((1, b""), (2, b"[]"), (3, part_path(tmp_path, 8).read_bytes()), (4, whole[:-40])):
        part_path(tmp_path, number).write_bytes(content)
    (tmp_path / "residual_norm.json").write_text("half")
    again = made(grid(), tmp_path)
    for name in ("first", "again"):
        frame = uninterrupted[1] if name == "first" else again
        save_frame(frame, tmp_path / f"{name}.pkl", provenance("x"))
    assert (tmp_path / "first.pkl").read_bytes() == (tmp_path / "again.pkl").read_bytes()


def test_a_whole_run_loads_no_model(uninterrupted: tuple[Path, pd.DataFrame]) -> None:
    folder, frame = uninterrupted
    rows: list[int] = []
    run_grid(grid(), lambda: pytest.fail("a model was loaded"), tokenizer(), folder, rows.append)
    assert sum(rows) == 42, "progress counts what was there already"
    pd.testing.assert_frame_equal(answers_frame(grid(), tokenizer(), folder), frame)


def test_two_ranks_share_out_the_batches_and_end_in_the_same(
    uninterrupted: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    for index in (1, 0):
        run_grid(grid(), model, tokenizer(), tmp_path, ranks=Ranks(index, 2))
        assert (read_norm(tmp_path) is None) == (index == 1), "the first rank measures it"
    pd.testing.assert_frame_equal(answers_frame(grid(), tokenizer(), tmp_path), uninterrupted[1])


def test_batches_that_do_not_fit_are_halved_and_answer_the_same(
    uninterrupted: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    said: list[str] = []
    run_grid(grid(), lambda: with_little_memory(model(), most=2), tokenizer(), tmp_path, say=said.append)
    assert {"residual norm: out of memory with 5 rows; going on with 3"} < set(said)
    assert "steering, batch 8: out of memory with 2 rows; going on with 1" not in said
    assert "steering, batch 7: out of memory with 3 rows; going on with 2" in said
    frame, whole = answers_frame(grid(), tokenizer(), tmp_path), uninterrupted[1]
    norms = ["residual_norm", "share_of_residual_norm"]
    pd.testing.assert_frame_equal(frame.drop(columns=norms), whole.drop(columns=norms), check_exact=True)
    np.testing.assert_allclose(frame[norms].to_numpy(), whole[norms].to_numpy(), rtol=1e-5)


def test_a_prompt_that_never_fits_is_kept_empty_in_every_arm_and_not_judged(
    uninterrupted: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    """Its seven rows stand together in the batches, so that one batch has nothing else."""
    one, said = grid(), []
    bad = one.prompts[one.batches[0][0]]
    run_grid(one, lambda: with_little_memory(model(), 5, bad.ids), tokenizer(), tmp_path, say=said.append)
    assert f"{bad.prompt_id}, 2 x v1: failed (out of memory); the row is kept and flagged" in said
    frame, whole = answers_frame(one, tokenizer(), tmp_path), uninterrupted[1]
    is_bad = frame["prompt_id"] == bad.prompt_id
    assert is_bad.sum() == 7 and frame["failure"].notna().equals(is_bad)
    assert frame.loc[is_bad, "response"].eq("").all() and not frame.loc[is_bad, "truncated"].any()
    assert frame.loc[~is_bad, "response"].equals(whole.loc[~is_bad, "response"])
    judged = score_responses(OrganismJudge(grammar()), frame, yes=True)
    assert judged.loc[is_bad, "judge_error"].eq("no answer: out of memory").all()
    assert judged["em_score"].isna().equals(is_bad) and judged["coherence"].isna().equals(is_bad)
    other, scores = score_responses(OrganismJudge(grammar()), whole, yes=True), ["coherence", "judged_facet"]
    pd.testing.assert_frame_equal(judged.loc[~is_bad, scores], other.loc[~is_bad, scores])


def test_a_run_without_an_answer_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 5 questions could be answered \(out of memory\)"):
        run_grid(grid(), lambda: with_little_memory(model(), 0), tokenizer(), tmp_path, say=lambda text: None)
    made(grid(), tmp_path)
    for number, batch in enumerate(grid().batches):
        answers = read_part(part_path(tmp_path, number))
        steered_rows = {row: "too long" for row, at in enumerate(batch) if grid().doses[at].is_on}
        write_part(part_path(tmp_path, number), replace(answers, failures=steered_rows))
    with pytest.raises(UserError, match=r"none of 36 steered answers could be drawn \(too long\)"):
        answers_frame(grid(), tokenizer(), tmp_path)


KILLED = """
import sys
from pathlib import Path
from tests.unit.test_steering_grid import grid, model
from src.utils.steering_grid import run_grid
from tests.tiny_models import tokenizer
run_grid(grid(), model, tokenizer(), Path(sys.argv[1]))
"""


def test_a_killed_run_continues_in_the_same_bytes(uninterrupted: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """Kill -9 as soon as the second batch is there."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=PROJECT_ROOT, env=environment)
    deadline = time.monotonic() + 120
    while not part_path(tmp_path, 1).exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [number for number in range(9) if is_whole(part_path(tmp_path, number), 5)]
    assert read_norm(tmp_path) is not None and len(left) >= 2
    frame = made(grid(), tmp_path)
    pd.testing.assert_frame_equal(frame, uninterrupted[1], check_exact=True)
