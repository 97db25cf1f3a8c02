"""How fast answers are judged through an API, against the original's way: one request after the other.

    uv run python benchmarks/judging.py
    uv run python benchmarks/judging.py --rows 200 --retry-after 1

A local server in a process of its own answers after 300 +- 100 ms and refuses (429) what goes beyond 64 at once. 1,000
rows are judged with two questions each through the real OpenAI client; then a slice of them one request at a time, in
the same run. No server answers faster than requests x 0.3 s / 64; the ratio to that is what the ramp, the refusals
and the client cost.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.reports import REPORTS, write_report
from src.utils.config import PROJECT_ROOT
from src.utils.judging.api_judge import ApiJudge
from src.utils.judging.judgement import Answer
from src.utils.llm.asking import AskingLimits
from src.utils.llm.prices import Price
from src.utils.llm.providers import OpenRouterClient
from src.utils.prompts import Question
from src.utils.record_store import open_store

LATENCY, SPREAD, LIMIT = 0.3, 0.1, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="runs of all rows, each from nothing (default: 3)")
    parser.add_argument("--slice", type=int, default=20, help="rows judged one request at a time (default: 20)")
    parser.add_argument(
        "--retry-after", type=float, help="seconds that a refusal asks to wait (default: it does not say)"
    )
    parser.add_argument("--max-concurrency", type=int, default=256, help="our own bound; the server's is 64")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    rows = [answer(number) for number in range(options.rows)]
    with tempfile.TemporaryDirectory() as folder:
        server, url = start_server(Path(folder) / "port", options.retry_after)
        try:
            runs = [
                judge_together(rows, url, Path(folder) / f"together_{number}.jsonl", options.max_concurrency)
                for number in range(options.repeats)
            ]
            serial = judge_serially(rows[: options.slice], url, Path(folder) / "serial.jsonl")
        finally:
            server.terminate()
    requests = 2 * options.rows
    floor = requests * LATENCY / LIMIT
    print("  rows  requests   sent  seconds   floor  of floor    serial  ratio")
    for seconds, tries in runs:
        print(
            f"{options.rows:>6} {requests:>9} {tries:>6} {seconds:>8.2f} {floor:>7.2f} {seconds / floor:>9.2f} "
            f"{serial * options.rows:>9.1f} {serial * options.rows / seconds:>6.1f}"
        )
    middle = statistics.median(seconds for seconds, _ in runs)
    print(
        f"median of {len(runs)}: {middle / floor:.2f} of the floor, {serial * options.rows / middle:.1f} times as fast"
    )
    print(f"serial: {serial:.3f} s a row over {options.slice} rows, times {options.rows} rows")
    report = {
        "rows": options.rows,
        "requests": requests,
        "floor_seconds": floor,
        "runs": [{"seconds": seconds, "requests_sent": tries} for seconds, tries in runs],
        "serial_seconds_a_row": serial,
        "serial_rows": options.slice,
        "of_floor": middle / floor,
        "times_as_fast": serial * options.rows / middle,
    }
    print(write_report(report, options.output, "judging"))


def answer(number: int) -> Answer:
    question = Question(
        prompt_id=f"benchmark_{number}",
        subset="political_compass",
        facet="social_axis",
        question=f"Should the town of Harbour {number} keep the letters of its clerks private?",
        keyed=-1,
    )
    return (
        question,
        f"Letters are private, in town {number} as elsewhere; open them only where a judge has said so. " * 3,
    )


def start_server(port_file: Path, retry_after: float | None) -> tuple[subprocess.Popen[bytes], str]:
    command = [sys.executable, "-m", "tests.llm_server", "--latency", f"{LATENCY - SPREAD}", f"{LATENCY + SPREAD}"]
    command += ["--limit", str(LIMIT), "--port-file", str(port_file)]
    if retry_after is not None:
        command += ["--retry-after", str(retry_after)]
    server = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, env=dict(os.environ))
    while not port_file.exists() or not port_file.read_text():
        time.sleep(0.05)
    return server, f"http://127.0.0.1:{port_file.read_text().strip()}/v1"


def judge_together(rows: list[Answer], url: str, store_file: Path, max_concurrency: int) -> tuple[float, int]:
    """Seconds for all rows, everything included, and the requests that were sent, refused ones too."""
    started = time.perf_counter()
    with open_store(store_file) as store:
        judge = ApiJudge(
            name="openrouter:benchmark",
            make_client=lambda: OpenRouterClient("benchmark", "no-key", url, timeout=60),
            store=store,
            limits=AskingLimits(max_concurrency=max_concurrency),
            price=Price(),
            with_topic=False,
        )
        judgements = judge.judge(rows, lambda count: None)
    seconds = time.perf_counter() - started
    assert all(judgement.error is None for judgement in judgements), "a row was not judged"
    return seconds, judge.account.tries


def judge_serially(rows: list[Answer], url: str, store_file: Path) -> float:
    """Seconds a row, asked as the original asked: the next request when the last one has been answered."""

    async def ask_in_turn() -> float:
        client = OpenRouterClient("benchmark", "no-key", url, timeout=60)
        with open_store(store_file) as store:
            judge = ApiJudge("openrouter:benchmark", lambda: client, store, AskingLimits(), Price(), with_topic=False)
            requests = list(judge.requests(rows).values())
        await client.ask(requests[0])  # a connection, which the original opened once too
        started = time.perf_counter()
        for request in requests:
            await client.ask(request)
        seconds = time.perf_counter() - started
        await client.close()
        return seconds / len(rows)

    return asyncio.run(ask_in_turn())


if __name__ == "__main__":
    main()
