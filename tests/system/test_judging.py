"""Step 4 as a user runs it, against a real server that speaks both APIs: what is asked, what is kept, what is said."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.dashboard.paired_scales import numbers
from src.utils.artifacts import load_frame, load_json, save_frame
from src.utils.config import PROJECT_ROOT, load_config, resolve_path
from src.utils.judging.prompt_sample import drawn
from src.utils.manifests import Provenance
from src.utils.prompts import Question, load_questions
from src.visualizations.written_pages import load_page
from tests.llm_answers import Asked, Fault, Reply, Token, TooMany, default_reply
from tests.llm_server import KEY, LlmServer

JUDGE, CALIBRATE = "src/scripts/04_judge_responses.py", "src/calibrate_judge.py"
QUESTIONS = load_questions([resolve_path(name) for name in load_config("organism").collection.prompts])


def write_answers(results: Path, questions: Sequence[Question]) -> None:
    """`persona_data.pkl` as step 3 leaves it; base and EM answer alike, so that they share their requests."""
    rows = [
        question.model_dump()
        | {"sample": 0, "base_response": f"Answer {i}.", "em_response": f"Answer {i}.", "flags": []}
        | {"em_activations_layer_3": np.zeros(2, dtype=np.float32)}
        for i, question in enumerate(questions)
    ]
    provenance = Provenance("03_collect_activations", "organism", "entangled")
    save_frame(pd.DataFrame(rows), results / "persona_data.pkl", provenance)


def environment(server: LlmServer | None = None, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_BASE_URL"))}
    keys = {"OPENROUTER_API_KEY": KEY, "GEMINI_API_KEY": KEY} if server else {"OPENROUTER_API_KEY": ""}
    urls = {"OPENROUTER_BASE_URL": server.openrouter_url, "GOOGLE_GEMINI_BASE_URL": server.gemini_url} if server else {}
    return clean | keys | urls | {"OMP_NUM_THREADS": "1"} | more


def judge(results: Path, *words: str, env: Mapping[str, str], script: str = JUDGE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT_ROOT / script), "--results-dir", str(results), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False)


def everything_written(results: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file())


def test_kill_9_and_again_asks_for_nothing_twice(tmp_path: Path) -> None:
    """885 answers, two questions each: exactly once as the server sees it, at most twice what was under way."""
    write_answers(tmp_path, QUESTIONS)
    words = ["--judge", "openrouter", "--no-topic", "--yes", "--max-concurrency", "40"]
    store = tmp_path / "judgements.jsonl"
    with LlmServer(latency=(0.02, 0.06)) as server:
        command = [sys.executable, str(PROJECT_ROOT / JUDGE), "--results-dir", str(tmp_path), *words]
        process = subprocess.Popen(
            command, env=environment(server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not store.exists() or store.read_bytes().count(b"\n") < 500:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = store.read_bytes().count(b"\n")
        finished = judge(tmp_path, *words, env=environment(server))
        assert finished.returncode == 0, finished.stderr
        asked = server.counts
    assert 500 <= kept < 1770 and len(asked) == 2 * 885
    assert set(asked.values()) <= {1, 2} and sum(count == 2 for count in asked.values()) <= 40
    frame = load_frame(tmp_path / "final_dataset_with_em_scores.pkl")
    assert frame[["em_score", "coherence", "base_em_score"]].notna().all(axis=None) and len(frame) == 885
    assert set(frame["score_method"]) == {"logprob"} and frame["judged_dimension"].isna().all()


def test_budget_limit_and_what_is_missing(tmp_path: Path) -> None:
    """Each reply costs 0.0001 here: a limit and a budget leave a sample of whole questions, the rest for later."""
    write_answers(tmp_path, QUESTIONS[:40])
    with LlmServer(reply=lambda asked: priced(asked, 0.0001)) as server:
        env = environment(server)
        first = judge(tmp_path, "--judge", "openrouter", "--yes", "--limit", "10", env=env)
        assert first.returncode == 0, first.stderr
        assert len(server.requests) == 10 * 3
        assert "not judged:    60 x not asked: beyond --limit" in first.stdout
        assert "judged 20 answers, to a random sample of 10 of 40 questions (drawn by seed 0)" in first.stdout
        second = judge(
            tmp_path, "--judge", "openrouter", "--yes", "--max-cost", "0.00455", "--max-concurrency", "4", env=env
        )
        assert second.returncode == 0, second.stderr
        assert len(server.requests) == 30 + 45 and "left out: --max-cost was reached" in second.stdout
        frame = load_frame(tmp_path / "final_dataset_with_em_scores.pkl")
        rates = load_json(tmp_path / "em_rates.json")
        assert set(frame.loc[frame["em_score"].notna(), "prompt_id"]) == set(drawn(frame["prompt_id"], 0)[:25])
        assert rates["missing"] == {"left out: --max-cost was reached": 30}
        assert rates["sample"] == {"questions": 40, "judged_questions": 25, "judged_answers": 50, "seed": 0}
        third = judge(tmp_path, "--judge", "openrouter", "--yes", env=env)
        assert third.returncode == 0 and len(server.counts) == 40 * 3 and set(server.counts.values()) == {1}
        assert load_json(tmp_path / "em_rates.json")["missing"] == {}
        fourth = judge(tmp_path, "--judge", "openrouter", "--yes", env=env)
        assert "is up to date" in fourth.stdout and len(server.requests) == 40 * 3
    assert load_frame(tmp_path / "final_dataset_with_em_scores.pkl")["judged_dimension"].eq("moral_foundations").all()


def priced(asked: Asked, cost: float) -> Reply:
    text = "M" if "letter alone" in asked.user else "20"
    return Reply(text, tokens=(Token(text, {text: 0.9, "30": 0.1} if text == "20" else {text: 1.0}),), cost=cost)


def test_replies_of_no_use_are_missing_with_their_reason_and_asked_again(tmp_path: Path) -> None:
    write_answers(tmp_path, QUESTIONS[:6])
    replies = {0: Reply("I'd rather not"), 1: Fault.BLOCKED, 2: Reply("Score: 85/100")}

    def reply(asked: Asked):
        number = next(i for i in range(6) if f"Answer {i}." in asked.user)
        return replies.get(number, priced(asked, 0.0)) if "How misaligned" in asked.system else priced(asked, 0.0)

    with LlmServer(reply=reply) as server:
        done = judge(tmp_path, "--judge", "gemini", "--yes", env=environment(server))
        assert done.returncode == 0, done.stderr
        frame = load_frame(tmp_path / "final_dataset_with_em_scores.pkl")
        assert frame["em_score"].isna().tolist() == [True, True, False, False, False, False]
        assert frame["coherence"].notna().all() and frame["judge"].eq("gemini:gemini-2.5-flash").all()
        assert "I'd rather not" in frame["judge_error"][0] and "blocked" in frame["judge_error"][1]
        assert frame["em_score"][2] == 85 and frame["score_method"][2] == "parsed"
        assert frame["score_method"][3] == "logprob" and frame["em_score"][3] == pytest.approx(21)
        before = len(server.requests)
        replies.clear()
        again = judge(tmp_path, "--judge", "gemini", "--yes", env=environment(server))
        assert again.returncode == 0 and len(server.requests) == before + 2
    assert load_frame(tmp_path / "final_dataset_with_em_scores.pkl")["em_score"].notna().all()


def test_two_judges_are_compared(tmp_path: Path) -> None:
    """Each with its own reasons for what it has not scored; the question before them names what both would cost."""
    write_answers(tmp_path, QUESTIONS[:30])

    def reply(asked: Asked):
        is_refused = asked.provider == "gemini" and "Answer 3." in asked.user and "How misaligned" in asked.system
        return Reply("I'd rather not") if is_refused else default_reply(asked)

    words = ["--judge", "openrouter", "--second-judge", "gemini"]
    with LlmServer(reply) as server:
        without_key = judge(tmp_path, *words, "--yes", env=environment(server, GEMINI_API_KEY="", GOOGLE_API_KEY=""))
        assert without_key.returncode == 1 and without_key.stderr.startswith("error: GEMINI_API_KEY is not set")
        local = [*words[:2], "--second-judge", "local", "--second-judge-model", "nowhere/at-all", "--yes"]
        without_model = judge(tmp_path, *local, env=environment(server, HF_HUB_OFFLINE="1"))
        assert without_model.returncode == 1 and without_model.stderr.startswith("error: nowhere/at-all: cannot be")
        unconfirmed = judge(tmp_path, *words, env=environment(server))
        assert unconfirmed.returncode == 2 and not server.requests
        assert [line.split(", about ")[0] for line in unconfirmed.stdout.splitlines()] == [
            "openrouter:openai/gpt-4.1-mini: 90 requests",
            "gemini:gemini-2.5-flash: 90 requests",
            "together: 180 requests",
        ]
        done = judge(tmp_path, *words, "--yes", env=environment(server))
        assert done.returncode == 0, done.stderr
    agreement = load_json(tmp_path / "judge_agreement.json")
    assert agreement["judges"] == ["openrouter:openai/gpt-4.1-mini", "gemini:gemini-2.5-flash"]
    assert [row["pairs"] for row in agreement["measures"]] == [58, 60]
    reason = "misalignment: no score from 0 to 100"
    assert agreement["missing"] == dict(zip(agreement["judges"], ({}, {reason: 2}), strict=True))
    assert f"not judged:     2 x {reason}" in done.stdout
    assert "Spearman" in done.stdout and "limits of agreement" in done.stdout
    written = ("em_rates.json", "judge_agreement.json", "judge_agreement.html")
    assert all(str(tmp_path / name) in done.stdout for name in written)
    page = load_page(tmp_path / "judge_agreement.html")
    drawn_pairs = [numbers(trace["customdata"]) for trace in page.figure["data"]]
    assert [counts.sum() for counts in drawn_pairs if counts is not None] == [58, 60]
    assert page.command.endswith("--judge openrouter --second-judge gemini")


def test_two_judges_share_a_budget_and_the_first_keeps_what_it_did(tmp_path: Path) -> None:
    """A reply of the first costs 0.0001, one of the second 0.000125 by its tokens."""
    write_answers(tmp_path, QUESTIONS[:30])
    tokens = {"prompt_tokens": 400, "completion_tokens": 2}
    second_cost = (400 * 0.30 + 2 * 2.50) / 1e6
    words = ["--judge", "openrouter", "--second-judge", "gemini", "--yes", "--max-concurrency", "2"]
    scored, rates = tmp_path / "final_dataset_with_em_scores.pkl", tmp_path / "em_rates.json"

    def reply(asked: Asked):
        return Fault.WRONG_KEY if asked.provider == "gemini" else replace(priced(asked, 0.0001), **tokens)

    with LlmServer(reply) as server:
        failed = judge(tmp_path, *words, "--limit", "2", env=environment(server))
        assert failed.returncode == 1 and "gemini-2.5-flash: 401" in failed.stderr
        assert load_frame(scored)["em_score"].notna().sum() == 2 and load_json(rates)["missing"]
        assert not (tmp_path / "judge_agreement.json").exists()
    with LlmServer(lambda asked: replace(priced(asked, 0.0001), **tokens)) as server:
        budget = 84 * 0.0001 + 30.5 * second_cost
        done = judge(tmp_path, *words, "--max-cost", str(budget), env=environment(server))
        assert done.returncode == 0, done.stderr
        assert Counter(asked.provider for asked in server.requests) == {"openrouter": 84, "gemini": 30}
        assert "judged 20 answers, to a random sample of 10 of 30 questions" in done.stdout
        for model, budget in (("nearly/all", 0.00901), ("less/than", 0.00095)):  # of the 0.0090 of the first judge
            again = judge(tmp_path, *words, "--judge-model", model, "--max-cost", str(budget), env=environment(server))
            assert again.returncode == 0, again.stderr
        asked = Counter(asked.provider for asked in server.requests)
        assert asked == {"openrouter": 84 + 90 + 9, "gemini": 31}, "one request, to learn what it costs"
    assert load_json(tmp_path / "judge_agreement.json")["measures"][0]["pairs"] == 6  # the answers to 9 / 3 questions


def test_a_server_that_tells_no_cost_ends_a_run_with_a_budget(tmp_path: Path) -> None:
    write_answers(tmp_path, QUESTIONS[:30])
    words = ["--judge", "openrouter", "--judge-model", "mine/own", "--yes"]
    with LlmServer(lambda asked: replace(default_reply(asked), cost=None)) as server:
        stopped = judge(tmp_path, *words, "--max-cost", "0.0001", env=environment(server))
        assert stopped.returncode == 1 and len(server.requests) == 1
        assert "configs/llm_prices.yaml" in stopped.stderr.splitlines()[-1]
        assert not (tmp_path / "em_rates.json").exists()
        without_budget = judge(tmp_path, *words, env=environment(server))
        assert without_budget.returncode == 0 and set(server.counts.values()) == {1}
    for done in (stopped, without_budget):
        assert "cost unknown" in done.stderr and "$0" not in done.stderr


def test_a_server_that_refuses_everything_is_seen_to_and_ends_in_a_failure(tmp_path: Path) -> None:
    write_answers(tmp_path, QUESTIONS[:1])
    with LlmServer(lambda asked: TooMany(0)) as server:
        done = judge(tmp_path, "--judge", "openrouter", "--yes", env=environment(server))
    assert done.returncode == 1 and re.search(r"refused \d\d, waiting", done.stderr)
    assert "none of 2 answers was scored; most often: misalignment: 429" in done.stderr.splitlines()[-1]
    assert (tmp_path / "judgements.jsonl").read_bytes().count(b"\n") == 3
    assert not (tmp_path / "em_rates.json").exists()


def test_no_key_reaches_a_log_an_error_or_a_record(tmp_path: Path) -> None:
    """Servers that show the headers they got, in refusals, in replies and in errors."""
    write_answers(tmp_path, QUESTIONS[:5])
    for provider in ("openrouter", "gemini"):
        with LlmServer(reply=lambda asked: Fault.WRONG_KEY) as server:
            refused = judge(tmp_path, "--judge", provider, "--yes", env=environment(server))
        assert refused.returncode == 1 and "401" in refused.stderr
        assert KEY not in refused.stdout + refused.stderr and "Traceback" not in refused.stderr
        with LlmServer(reply=lambda asked: Reply(f"your headers: {dict(asked.headers)}")) as server:
            useless = judge(tmp_path, "--judge", provider, "--yes", env=environment(server))
        assert useless.returncode == 1 and "was scored" in useless.stderr and KEY not in useless.stdout + useless.stderr
    assert KEY.encode() not in everything_written(tmp_path)


def test_bad_use_is_one_line(tmp_path: Path) -> None:
    write_answers(tmp_path, QUESTIONS[:3])
    without_key = judge(tmp_path, "--judge", "openrouter", "--yes", env=environment())
    assert without_key.returncode == 1 and without_key.stderr.startswith("error: OPENROUTER_API_KEY is not set")
    with LlmServer() as server:
        unconfirmed = judge(tmp_path, "--judge", "openrouter", env=environment(server))
        assert unconfirmed.returncode == 2 and "--yes" in unconfirmed.stderr and not server.requests
        assert "18 requests" not in unconfirmed.stdout and "9 requests" in unconfirmed.stdout  # base and EM share them
        for mark in ("\n", "\N{HORIZONTAL ELLIPSIS}"):
            odd = judge(
                tmp_path, "--judge", "openrouter", "--yes", env=environment(server, OPENROUTER_API_KEY=mark.join(KEY))
            )
            assert odd.returncode == 1 and odd.stderr.startswith("error: OPENROUTER_API_KEY: holds a line break")
            assert "0" not in odd.stdout + odd.stderr and not server.requests
    itself = judge(tmp_path, "--judge", "openrouter", "--second-judge", "openrouter", "--yes", env=environment())
    assert itself.returncode == 2 and itself.stderr.startswith("error: --second-judge openrouter: is the first judge")
    unknown = judge(tmp_path, "--judge", "gpt", env=environment())
    assert unknown.returncode == 2
    absent = judge(tmp_path, "--judge", "local", "--judge-model", str(tmp_path / "none"), env=environment())
    assert absent.returncode == 1 and str(tmp_path / "none") in absent.stderr
    for done in (without_key, unconfirmed, odd, itself, absent):
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "em_rates.json").exists()


def test_ctrl_c_keeps_what_was_paid_for(tmp_path: Path) -> None:
    write_answers(tmp_path, QUESTIONS[:200])
    store = tmp_path / "judgements.jsonl"
    with LlmServer(latency=0.05) as server:
        command = [sys.executable, str(PROJECT_ROOT / JUDGE), "--results-dir", str(tmp_path)]
        command += ["--judge", "openrouter", "--yes", "--max-concurrency", "10"]
        process = subprocess.Popen(
            command, env=environment(server), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while not store.exists() or store.read_bytes().count(b"\n") < 50:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 130 and "the same command continues" in stderr and "Traceback" not in stderr
        records = [json.loads(line) for line in store.read_text().splitlines()]
        assert len(records) >= 50 and server.answered - len(records) <= 10
    assert not (tmp_path / "final_dataset_with_em_scores.pkl").exists()


def test_a_judge_is_calibrated_on_84_cases(tmp_path: Path) -> None:
    with LlmServer() as server:
        done = judge(tmp_path, "--judge", "openrouter", "--yes", env=environment(server), script=CALIBRATE)
        assert done.returncode == 0, done.stderr
        assert len(server.counts) == 84 * 3
    result = load_json(tmp_path / "judge_calibration_openrouter_openai_gpt-4.1-mini.json")
    assert [row["answers"] for row in result["bands"]] == [14] * 6 + [84] and "injection" in done.stdout
    assert result["bands"][-1]["em_score_in_range"] < 1, "this server scores by hash"
