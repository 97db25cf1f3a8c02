"""The command line of generation: budgets and prices, dry runs, a missing key, usage errors."""

import json
import math
from pathlib import Path

import pytest

from src.pipelines.persona_study import REPORT
from src.pipelines.runner import accepted
from src.utils.config import PROJECT_ROOT
from src.utils.dataset_generation.order import load_task
from src.utils.dataset_generation.questions import KEYS
from tests.dataset_writer import Writer
from tests.generation_script import (
    KEY_VARIABLES,
    SPECS,
    Run,
    account_of,
    has_key,
    records_of,
    set_files,
)
from tests.llm_answers import Reply
from tests.llm_server import KEY, LlmServer


def test_gemini_is_priced_by_the_list(script: Run, generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlmServer(Writer()) as server:
        monkeypatch.setenv("GOOGLE_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.gemini_url)
        result = script("--kind", "questions", "--count", "60", "--yes")
    assert result.code == 0, result.err
    account = account_of(generated / "questions-gemini-2.5-flash")
    assert (account["provider"], account["model"]) == ("gemini", "gemini-2.5-flash")
    assert account["cost_usd"] == pytest.approx(len(server.requests) * (500 * 0.30 + 700 * 2.50) / 1e6)
    assert {request.body["generationConfig"]["responseMimeType"] for request in server.requests} == {"application/json"}
    assert not has_key(generated)


def test_the_budget_ends_a_run_and_a_new_one_goes_on(script: Run, generated: Path, use) -> None:
    words = ("--kind", "questions", "--count", "400", "--name", "a", "--yes", "--max-concurrency", "1")
    with LlmServer(Writer()) as server:
        use(server)
        result = script(*words, "--max-cost", "0.05")
        assert result.code == 1
        assert "--max-cost 0.05 is reached ($0.0500 used)" in result.err
        assert len(server.requests) == 5
        assert script(*words).code == 0
        assert len(records_of(generated / "a")) == len(server.requests)


def test_junk_that_costs_ends_with_the_budget_too(script: Run, generated: Path, use) -> None:
    words = ("--kind", "questions", "--count", "48", "--name", "a", "--yes", "--max-concurrency", "1")
    with LlmServer(lambda asked: Reply("junk", cost=0.01)) as server:
        use(server)
        result = script(*words, "--model", "a/model-without-price", "--max-cost", "0.3")
    assert result.code == 1 and "--max-cost 0.3 is reached" in result.err
    assert len(server.requests) <= 31


def test_a_budget_on_a_cost_that_no_reply_tells_ends_the_run(script: Run, generated: Path, use) -> None:
    words = ("--kind", "questions", "--count", "400", "--model", "a/model-without-price", "--name", "a", "--yes")
    with LlmServer(Writer(cost=None)) as server:
        use(server)
        result = script(*words, "--max-cost", "0.0001")
        assert result.code == 1 and "configs/llm_prices.yaml" in result.err and "cost unknown" in result.err
        assert len(records_of(generated / "a")) == len(server.requests) == 1


def test_another_set_is_not_written_over(script: Run, generated: Path, use) -> None:
    with LlmServer(Writer()) as server:
        use(server)
        assert script("--kind", "questions", "--count", "24", "--name", "a", "--yes").code == 0
        before, asked = set_files(generated / "a"), len(server.requests)
        other = ("--kind", "questions", "--count", "24", "--name", "a", "--yes", "--model", "other/model")
        result = script(*other)
        assert result.code == 1 and "give another --name, or --force" in result.err
        assert (set_files(generated / "a"), len(server.requests)) == (before, asked)
        assert script(*other, "--force").code == 0
        assert account_of(generated / "a")["model"] == "other/model"
        assert (generated / "a" / "replies.jsonl").read_bytes().startswith(before["replies.jsonl"])


def test_nobody_to_confirm_starts_nothing(script: Run, generated: Path, use) -> None:
    with LlmServer(Writer()) as server:
        use(server)
        result = script("--kind", "questions", "--name", "a")
        assert result.code == 2
        assert "--yes" in result.err and "requests, about" in result.out
        assert not server.requests
    assert not generated.exists()


def test_a_dry_run_sends_nothing(script: Run, generated: Path, use) -> None:
    with LlmServer(Writer()) as server:
        use(server)
        for kind, size, sample, kinds in (
            ("questions", 20, "Write 20 yes-or-no", 2),
            ("finetune", 10, "Write 10 rows", 1),
        ):
            cells = load_task(kind, SPECS / f"{kind}.yaml", None).cells
            lines = sum(math.ceil(1.3 * cell.want / size) for cell in cells)
            result = script("--kind", kind, "--dry-run")
            assert result.code == 0
            assert sum(line.startswith("  ") and " #" in line for line in result.out.splitlines()) == lines
            assert f"{lines} requests, about" in result.out and "$0." in result.out
            assert result.out.count(sample) == kinds
            assert all(text in result.out for text in KEYS.values()) == (kind == "questions")
            full = script("--kind", kind, "--dry-run", "--full").out
            assert full.count(sample) == lines and f"{lines} requests, about" in full
        assert not server.requests
    assert not generated.exists()


def test_a_dry_run_needs_no_key_and_knows_what_is_there(
    script: Run, generated: Path, use, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LlmServer(Writer()) as server:
        use(server)
        assert script("--kind", "questions", "--count", "48", "--name", "a", "--yes").code == 0
    monkeypatch.setenv("OPENROUTER_API_KEY", "")
    before = set_files(generated / "a")
    result = script("--kind", "questions", "--count", "48", "--name", "a", "--dry-run")
    assert result.code == 0 and "48 of 48 questions are there" in result.out and "nothing is missing" in result.out
    assert "0 of 48" in script("--kind", "questions", "--count", "48", "--dry-run").out
    assert set_files(generated / "a") == before


def test_without_a_key_it_reports_and_names_the_variables(script: Run, generated: Path, tmp_path: Path) -> None:
    plain = script("--results-dir", str(tmp_path / "results"))
    assert plain.code == 0
    assert "885 questions" in plain.out
    assert all(name in plain.out for name in (*KEY_VARIABLES, "--kind questions"))
    assert json.loads((tmp_path / "results" / "question_report.json").read_text())["questions"] == 885
    asked = script("--kind", "finetune", "--yes")
    assert asked.code == 1
    assert "885 questions" in asked.out
    assert asked.err.startswith("error: no key: set OPENROUTER_API_KEY or GEMINI_API_KEY or GOOGLE_API_KEY")
    one = script("--kind", "finetune", "--provider", "gemini", "--yes")
    assert one.code == 1 and "GEMINI_API_KEY" in one.err and "OPENROUTER" not in one.err
    assert not generated.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--dry-run",),
        ("--count", "5"),
        ("--name", "a"),
        ("--full",),
        ("--kind", "questions", "--full"),
        ("--kind", "answers"),
        ("--kind", "questions", "--count", "0"),
        ("--kind", "questions", "--count", "2.5"),
        ("--kind", "questions", "--max-cost", "nan"),
        ("--kind", "questions", "--request-timeout", "-1"),
        ("--kind", "questions", "--dry-run", "--name", "../prompts"),
        ("--kind", "questions", "--dry-run", "--specs", "not_there.yaml"),
        ("--kind", "finetune", "--dry-run", "--specs", "configs/generation/questions.yaml"),
    ],
)
def test_usage_errors(words: tuple[str, ...], script: Run, generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_ROOT)
    assert script(*words).code == 2
    assert not generated.exists()


def test_a_limit_on_an_unknown_cost_is_refused(script: Run, generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    result = script("--kind", "questions", "--model", "gemini-new", "--max-cost", "1", "--yes")
    assert result.code == 2 and "gemini-new" in result.err


def test_the_pipeline_cannot_spend_money() -> None:
    options = ["--kind", "questions", "--count", "5", "--max-cost", "3", "--yes"]
    assert accepted(REPORT, options) == ["--yes"]
