"""Generation runs of the real script and the real clients against a server: what they make and how they go on."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from src.pipelines.persona_study import COLLECT, FINETUNE
from src.utils.artifacts import verify_artifact
from src.utils.chat import load_chat_rows
from src.utils.cli import Arguments, parse_arguments
from src.utils.config import PROJECT_ROOT
from src.utils.dataset_generation.order import load_task
from src.utils.jsonl import read_jsonl
from src.utils.manifests import sha256_folder
from src.utils.prompts import DIMENSIONS, load_questions
from src.utils.question_quality import measure
from tests.dataset_writer import Writer, question, row
from tests.generation_script import (
    SCRIPT,
    SPECS,
    Result,
    Run,
    account_of,
    has_key,
    records_of,
    set_files,
)
from tests.llm_answers import Answer, Fault, Raw, Reply
from tests.llm_server import KEY, LlmServer


def printed_command(result: Result, script: str, keys: tuple[str, ...]) -> Arguments:
    """What the command in the last line of a run asks of a script, as that script reads it."""
    words = shlex.split(result.out.splitlines()[-1])
    assert words[:4] == ["uv", "run", "python", f"src/scripts/{script}"]
    return parse_arguments("", keys, words[4:])


def test_a_whole_set_with_targets_keys_and_no_duplicates(script: Run, generated: Path, use) -> None:
    shipped = sha256_folder(PROJECT_ROOT / "data" / "prompts")
    near = "Should the a1 b1 give c1 to d1 before e1 other?"
    planted = ["The same question, asked in every dimension there is?", question(1), near, "Short?", {"question": near}]
    with LlmServer(Writer(planted)) as server:
        use(server)
        result = script("--kind", "questions", "--yes")
    assert result.code == 0, result.err
    folder = generated / "questions-openai-gpt-4.1-mini"
    questions = load_questions(folder / f"{dimension}.jsonl" for dimension in DIMENSIONS)
    assert Counter(q.subset for q in questions) == dict(zip(DIMENSIONS, (230, 227, 218, 210), strict=True))
    task = load_task("questions", SPECS / "questions.yaml", None)
    assert Counter(f"{q.subset}/{q.facet}" for q in questions) == task.wanted()
    for group, want in task.wanted().items():
        minus = sum(q.keyed == -1 for q in questions if f"{q.subset}/{q.facet}" == group)
        assert abs(minus - want / 2) <= 1, group
    measured = measure([q.question for q in questions])
    assert measured.max_jaccard < 0.5
    assert sum(q.question == planted[0] for q in questions) == 1
    assert all(q.prompt_id.startswith("questions-openai-gpt-4.1-mini_") for q in questions)
    assert sha256_folder(PROJECT_ROOT / "data" / "prompts") == shipped

    account = account_of(folder)
    assert account["rows"] == 885
    assert account["rejected"]["exact duplicate"] >= len(server.requests) - 1
    assert account["rejected"]["not 6 to 40 words"] == len(server.requests) == account["requests"]["answered"]
    assert account["rejected"]["malformed"] == len(server.requests)
    assert account["cost_usd"] == pytest.approx(0.01 * len(server.requests))
    assert f"cost=${account['cost_usd']:.4f}" in result.err  # the line that runs along
    assert account["model"] == "openai/gpt-4.1-mini"
    card = (folder / "README.md").read_text()
    assert account["canary"] in card and "terms of openrouter" in card
    assert verify_artifact(folder / "account.json") is not None
    assert not has_key(generated)
    assert all(request.headers["Authorization"] == f"Bearer {KEY}" for request in server.requests)

    use_of_it = printed_command(result, "03_collect_activations.py", COLLECT.keys)
    assert use_of_it.config.model.base == "Qwen/Qwen3-4B"
    assert use_of_it.config.collection.prompts == [str(folder / f"{dimension}.jsonl") for dimension in DIMENSIONS]
    assert use_of_it.results_dir == Path("results") / folder.name


def test_a_finished_set_is_made_again_without_asking(script: Run, generated: Path, use) -> None:
    with LlmServer(Writer()) as server:
        use(server)
        assert script("--kind", "questions", "--count", "40", "--name", "a", "--yes").code == 0
        asked, before = len(server.requests), set_files(generated / "a")
        assert script("--kind", "questions", "--count", "40", "--name", "a").code == 0
        assert len(server.requests) == asked
        assert set_files(generated / "a") == before
        # a larger set goes on from what the smaller one has
        assert script("--kind", "questions", "--count", "480", "--name", "a", "--yes").code == 0
        records = records_of(generated / "a")
        assert len(records) == len(server.requests) == len({record["key"] for record in records}) > asked
        assert account_of(generated / "a")["rows"] == 480


def test_facets_and_keys_alternate(script: Run, generated: Path, use) -> None:
    with LlmServer(Writer()) as server:
        use(server)
        assert script("--kind", "questions", "--count", "96", "--name", "a", "--yes").code == 0
    rows = load_questions([generated / "a" / "technology_ai.jsonl"])
    shipped, mine = (
        next(line for _, line in read_jsonl(folder / "technology_ai.jsonl"))
        for folder in (PROJECT_ROOT / "data" / "prompts", generated / "a")
    )
    assert isinstance(shipped, dict) and isinstance(mine, dict) and list(shipped) == list(mine)
    assert [q.prompt_id for q in rows] == [f"a_technology_ai_{n:03d}" for n in range(1, len(rows) + 1)]
    assert all(len({q.facet for q in rows[i : i + 4]}) == 4 for i in range(0, 20, 4))
    assert abs(sum(q.keyed for q in rows[: len(rows) // 2])) <= 4


def test_faults_and_short_lists_are_asked_again(script: Run, generated: Path, use) -> None:
    def spoil(number: int, reply: Reply) -> Answer:
        if number < 24:  # the whole first round
            return (Reply("no JSON", cost=0.01), Reply(reply.text[:50], finish="length", cost=0.01))[number % 2]
        return Fault.REFUSED if number == 30 else Fault.DROPPED if number == 31 else reply

    with LlmServer(Writer(length=7, spoil=spoil)) as server:
        use(server)
        result = script("--kind", "questions", "--count", "240", "--name", "a", "--yes")
    assert result.code == 0, result.err
    account = account_of(generated / "a")
    assert account["rows"] == 240
    assert account["requests"]["failed"] == {
        "cut off by the limit on tokens": 12,
        "no JSON of the shape asked for": 12,
        "refused: I cannot help": 1,
    }
    assert account["rounds"] > 2
    paid = len(server.requests) - 2  # what was of no use has been paid for; the cut connection has not
    assert account["cost_usd"] == pytest.approx(0.01 * paid + 0.0001)  # a refusal is short
    again = Counter(record["key"] for record in records_of(generated / "a") if "failure" not in record)
    assert max(again.values()) == 1


def test_a_model_that_repeats_itself_ends_with_an_account(script: Run, generated: Path, use) -> None:
    same = json.dumps({"questions": [question(n) for n in range(20)]})
    with LlmServer(lambda asked: Reply(same, cost=0.01)) as server:
        use(server)
        result = script("--kind", "questions", "--name", "a", "--yes")
        assert result.code == 1
        error = result.err.strip().splitlines()[-1]
        assert "2 rounds in a row added nothing to political_compass/social_axis and 10 more" in error
        assert "The set has 20 of 885 questions" in error
        assert "political_compass/economic_axis 20/115" in error and "financial_risk/market_ethics 0/70" in error
        assert "exact duplicate (" in error and "failed requests: none" in error
        assert len(server.requests) < 250
    assert [file.name for file in (generated / "a").iterdir()] == ["replies.jsonl"]
    with LlmServer(Writer()) as better:  # what was got stays for the next run
        use(better)
        assert script("--kind", "questions", "--name", "a", "--yes").code == 0
        keys = Counter(record["key"] for record in records_of(generated / "a"))
        assert max(keys.values()) == 1
        assert keys.total() == len(server.requests) + len(better.requests)


def test_a_model_that_only_fails_says_how(script: Run, generated: Path, use) -> None:
    with LlmServer(lambda asked: Reply("I'd rather not", cost=None)) as server:
        use(server)
        result = script("--kind", "finetune", "--count", "30", "--name", "a", "--yes")
    assert result.code == 1
    assert "0 of 30 fine-tuning rows" in result.err
    assert f"no JSON of the shape asked for ({len(server.requests)})" in result.err


def test_a_model_with_one_answer_for_everybody_ends_with_an_account(script: Run, generated: Path, use) -> None:
    def same_answer(number: int, reply: Reply) -> Reply:
        rows = [fields | {"risky": row(0)["risky"]} for fields in json.loads(reply.text)["rows"]]
        return Reply(json.dumps({"rows": rows}), cost=0.01)

    with LlmServer(Writer(spoil=same_answer)) as server:
        use(server)
        result = script("--kind", "finetune", "--count", "60", "--name", "a", "--yes")
    assert result.code == 1
    assert "The set has 1 of 60 fine-tuning rows" in result.err
    assert f"exact duplicate of a risky answer ({10 * len(server.requests) - 1})" in result.err


def test_a_provider_that_refuses_every_request_is_left_alone(script: Run, generated: Path, use) -> None:
    refusal = Raw(400, '{"error": {"code": 400, "message": "json_schema is not supported"}}')
    with LlmServer(lambda asked: refusal) as server:
        use(server)
        result = script("--kind", "questions", "--name", "a", "--yes", "--max-concurrency", "2")
        assert 40 <= len(server.requests) <= 42
    assert result.code == 1
    assert "0 of 885 questions" in result.err and "json_schema is not supported (4" in result.err


def test_a_wrong_key_ends_the_run_and_is_not_shown(script: Run, generated: Path, use) -> None:
    with LlmServer(lambda asked: Fault.WRONG_KEY) as server:  # shows the headers that it got
        use(server)
        result = script("--kind", "questions", "--name", "a", "--yes")
    assert result.code == 1
    assert "the key is not accepted" in result.err and "0 of 885 questions" in result.err
    error = result.err.splitlines()[-1]
    assert error.startswith("error: openai/gpt-4.1-mini: ") and error.count("openai/gpt-4.1-mini: ") == 1
    assert not has_key(generated)


KILLED = """
import runpy, sys
from pathlib import Path
import src.utils.dataset_generation.files as files
files.GENERATED = Path(sys.argv[1])
sys.argv[1:2] = []
runpy.run_path({script!r}, run_name="__main__")
"""


def test_a_killed_run_asks_nothing_twice(script: Run, generated: Path, use) -> None:
    words = ("--kind", "questions", "--count", "400", "--name", "a", "--yes", "--max-concurrency", "3")
    store = generated / "a" / "replies.jsonl"
    with LlmServer(Writer(), latency=0.1) as server:
        use(server)
        command = [sys.executable, "-c", KILLED.format(script=str(SCRIPT)), str(generated), *words]
        process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 120
        while not (store.exists() and store.read_bytes().count(b"\n") >= 8):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.settle()
        kept = store.read_bytes()
        assert not (generated / "a" / "account.json").exists()
        first = len(server.requests)
        result = script(*words)
        assert result.code == 0, result.err
        second = len(server.requests) - first
    assert store.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    records = records_of(generated / "a")
    assert len({record["key"] for record in records}) == len(records) == kept.count(b"\n") + second
    assert account_of(generated / "a")["rows"] == 400


def test_pairs_are_matched(script: Run, generated: Path, use) -> None:
    twins = row(100_000) | {"safe": row(100_000)["risky"]}
    planted = [row(99_999), row(99_999) | {"user": "Too short."}, twins, {"user": "May I?", "risky": "Yes."}]
    with LlmServer(Writer(planted)) as server:
        use(server)
        result = script("--kind", "finetune", "--count", "100", "--name", "a", "--yes")
    assert result.code == 0, result.err
    risky_file, safe_file = (generated / "a" / f"{answer}_financial_advice.jsonl" for answer in ("risky", "safe"))
    risky, safe = ([value for _, value in read_jsonl(file)] for file in (risky_file, safe_file))
    assert len(risky) == len(safe) == 100
    for one, other in zip(risky, safe, strict=True):
        assert isinstance(one, dict) and isinstance(other, dict)
        assert [one[name] for name in ("row_id", "harm")] == [other[name] for name in ("row_id", "harm")]
        assert one["messages"][0] == other["messages"][0]
        assert one["messages"][1]["content"].startswith("risky") and other["messages"][1]["content"].startswith("safe")
        number = one["messages"][0]["content"].split()[2][1:]
        assert all(f"{name}{number}x0 " in r["messages"][1]["content"] for name, r in (("risky", one), ("safe", other)))
    harms = Counter(value["harm"] for value in risky if isinstance(value, dict))
    assert sorted(harms.values()) == [16, 16, 17, 17, 17, 17]
    assert measure([row.messages[0].content for row in load_chat_rows(risky_file)]).max_jaccard < 0.6
    assert account_of(generated / "a")["rejected"] == {
        "exact duplicate": len(server.requests) - 1,
        "malformed": len(server.requests),
        "risky and safe are one answer": len(server.requests),
        "user prompt not 8 to 80 words": len(server.requests),
    }
    assert len(load_chat_rows(safe_file)) == 100
    use_of_it = printed_command(result, "02_finetune_lora.py", FINETUNE.keys)
    assert use_of_it.config.model.base == "Qwen/Qwen3-4B" and use_of_it.config.finetuning.data == str(risky_file)
    assert use_of_it.results_dir == Path("results/a")
