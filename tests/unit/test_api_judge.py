"""What a budget leaves of a judge's work, with the real client and the store on disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from src.utils.errors import UserError
from src.utils.judging.api_judge import ApiJudge
from src.utils.judging.judgement import LEFT_OUT, Answer
from src.utils.judging.judges import ask
from src.utils.judging.prompt_sample import drawn
from src.utils.llm.asking import AskingLimits
from src.utils.llm.prices import Price
from src.utils.llm.providers import make_client
from src.utils.prompts import Question
from src.utils.record_store import RecordStore, open_store
from tests.llm_answers import Asked, Fault, Raw, TooMany, default_reply
from tests.llm_server import KEY, LlmServer

PROMPTS = [f"p{i}" for i in range(30)]
ORDER = drawn(PROMPTS, 5)
EACH = 4 * 3  # requests a question: two arms of two samples, three aspects


def answers() -> list[Answer]:
    """As a frame gives them: both samples of every question of one arm, then those of the other."""
    asked = [
        Question(prompt_id=name, subset="neutral", facet="open", question=f"Is it {name}?", keyed=0) for name in PROMPTS
    ]
    return [(one, f"{arm} {one.prompt_id} {n}.") for arm in ("em", "base") for one in asked for n in range(2)]


def judge(server: LlmServer, store: RecordStore, max_cost: float | None = None, seed: int = 5) -> ApiJudge:
    def client():
        return make_client("openrouter", "m", KEY, server.openrouter_url, 5.0)

    limits = AskingLimits(max_concurrency=6, max_cost=max_cost)
    return ApiJudge("openrouter:m", client, store, limits, Price(), seed=seed)


def asked_prompts(server: LlmServer) -> list[str]:
    """The questions in the order in which the server first saw them."""
    return list(dict.fromkeys(asked.user.split("Is it ")[1].split("?")[0] for asked in server.requests))


def test_a_budget_leaves_whole_questions_the_first_of_the_order(tmp_path: Path) -> None:
    """A server that refuses every seventh request twice leaves no gap among those that were begun."""

    def reply(asked: Asked):
        return TooMany(0.02) if int(asked.key, 16) % 7 == 0 and asked.times <= 2 else default_reply(asked)

    with LlmServer(reply, latency=(0.001, 0.01)) as server, open_store(tmp_path / "judgements.jsonl") as store:
        some = judge(server, store, max_cost=0.0001 * (5 * EACH + 6.5))  # six questions and a half
        judgements = some.judge(answers(), lambda count: None)
        was_left_out = [judgement.error == LEFT_OUT for judgement in judgements]
        judged = {question.prompt_id for (question, _), out in zip(answers(), was_left_out, strict=True) if not out}
        assert judged == set(ORDER[:5]) and sum(was_left_out) == 4 * 25
        assert all((judgement.em_score is None) == (judgement.error == LEFT_OUT) for judgement in judgements)
        assert asked_prompts(server) == ORDER[:6] and len(store.records) == 5 * EACH + 6

        every = judge(server, store).judge(answers(), lambda count: None)
        assert all(judgement.error is None for judgement in every) and len(store.records) == 30 * EACH
        refused = sum(int(key, 16) % 7 == 0 for key in server.counts)
        assert len(server.requests) == 30 * EACH + 2 * refused, "nothing was paid for twice"


def test_a_store_of_another_order_is_taken_up_and_its_sample_stays_random(tmp_path: Path) -> None:
    with LlmServer() as server, open_store(tmp_path / "judgements.jsonl") as store:
        late = [one for one in answers() if one[0].prompt_id in ORDER[20:]]
        judge(server, store, seed=8).judge(late, lambda count: None)
        budget = 0.0001 * (15 * EACH + 0.5)
        judged = judge(server, store, budget).judge(answers(), lambda count: None)
        scored = {one[0].prompt_id for one, found in zip(answers(), judged, strict=True) if found.em_score is not None}
        assert scored == set(ORDER[:15])
        judge(server, store, budget).judge(answers(), lambda count: None)
        assert set(server.counts.values()) == {1} and len(store.records) == 30 * EACH


@pytest.mark.parametrize("answer", [Raw(400, '{"error": {"code": 400, "message": "no"}}'), Fault.BLOCKED])
def test_a_judge_that_scored_nothing_is_a_failure_that_keeps_its_records(answer, tmp_path: Path) -> None:
    two = [one for one in answers() if one[0].prompt_id in PROMPTS[:2]]
    with LlmServer(lambda asked: answer) as server, open_store(tmp_path / "judgements.jsonl") as store:
        with pytest.raises(UserError, match=r"openrouter:m: none of 8 answers was scored; most often: misalignment: "):
            ask(judge(server, store), two)
        assert len(store.records) == 2 * EACH
        other = [one for one in answers() if one not in two]
        found = ask(judge(server, store, max_cost=0.0), other)  # one that was asked nothing has not failed
        assert {judgement.error for judgement in found} == {LEFT_OUT} and len(server.requests) == 2 * EACH
    with LlmServer() as server, open_store(tmp_path / "judgements.jsonl") as store:
        found = ask(judge(server, store, max_cost=0.00001), other)  # nor one whose budget ended with the first reply
        assert {judgement.error for judgement in found} == {LEFT_OUT} and len(server.requests) == 1


def test_a_model_that_thinks_is_expected_to(tmp_path: Path) -> None:
    priced = {"price": Price(1.0, 10.0)}
    with LlmServer() as server, open_store(tmp_path / "judgements.jsonl") as store:
        plain = judge(server, store)
        counts = [
            replace(plain, **priced, **settings).estimate(answers()).completion_tokens / (len(PROMPTS) * EACH)
            for settings in ({}, {"thinking": 128}, {"reply_tokens": 2000, "thinking": 128})
        ]
    assert counts == [3, 3 + 128, 2000 + 128]
