"""Run a step on a RunPod GPU: upload, install, run detached, show the log, fetch the results.

    uv run python src/pod/persona_data_runner.py --profile qwen3_4b --memory 80gb --max-hours 6 --when-done stop
    uv run python src/pod/persona_data_runner.py --step finetune --profile qwen3_4b --detach
    uv run python src/pod/persona_data_runner.py --status            # of the last run, or --status RUN
    uv run python src/pod/persona_data_runner.py --attach RUN        # show its log again; fetch when it is done
    uv run python src/pod/persona_data_runner.py --cancel RUN
    uv run python src/pod/persona_data_runner.py --step script --script my.py --input data/x --output results/y

Options that are not listed below are those of the step's own script. The job survives this program: given again, the
same command attaches to the same run. On the pod a guard stops what nobody needs any more. A collection whose fine-tune
is not here makes it there first. Writes the step's artefacts to results/ (a safety judge to --output-dir), and
results/runs/<run>.json with the log beside it.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.pod.api import RunPodApi
from src.pod.client import Choices, PodClient
from src.pod.fetch import fetch
from src.pod.launch import Command, ensure_started, open_run
from src.pod.link import GLANCE_SECONDS
from src.pod.payload import JUDGE_TRAIN, SCRIPT, STEPS
from src.pod.plans import plan_command
from src.pod.run_record import RunRecord, RunRecords
from src.pod.settings import read_settings
from src.pod.watch import cancel, conclude, decide_anew, follow, interruption, report
from src.utils.cli import OneLineParser, positive, run_script
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError

LAST = "last"
RESTARTS = 3  # of an interrupted job, by one client


def read_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The runner's own options, and those of the step's script."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--step", choices=[*STEPS, JUDGE_TRAIN, SCRIPT], default="collect", help="default: collect")
    parser.add_argument("--script", help="with --step script: a script of this repository")
    parser.add_argument("--input", nargs="+", type=Path, default=[], help="files and folders that it reads")
    parser.add_argument("--output", nargs="+", default=[], help="files and folders that it writes, relative")
    parser.add_argument("--results-dir", type=Path, default=PROJECT_ROOT / "results", help="default: results")
    parser.add_argument("--force", action="store_true", help="make it again, over whatever is in the results folder")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--detach", action="store_true", help="leave as soon as the job runs")
    for name, text in {
        "attach": "go on with this run (default: the last one)",
        "status": "state, progress and money of this run",
        "cancel": "end the job of this run, or give up one that failed, and its pod as --when-done says",
        "fetch": "fetch the results of this run again",
    }.items():
        action.add_argument(f"--{name}", nargs="?", const=LAST, metavar="RUN", help=text)
    pod = parser.add_argument_group("pod")
    number = positive(float)
    pod.add_argument("--pod", help="the pod's id (default: the one that is running)")
    pod.add_argument("--when-done", choices=["keep", "stop", "terminate"], help="default: keep")
    pod.add_argument("--max-hours", type=number, default=24, help="the guard stops the pod then (default: 24)")
    pod.add_argument(
        "--idle-minutes", type=number, default=30, help="or when nothing happens for so long (default: 30)"
    )
    pod.add_argument("--no-guard", action="store_true", help="start although nothing on the pod can stop it")
    pod.add_argument(
        "--remote-python", default="python3", help="the Python on the pod around which is installed (default: python3)"
    )
    pod.add_argument("--no-install", action="store_true", help="that Python has all dependencies")
    pod.add_argument(
        "--remote-root", help="folder on the pod (default: /workspace/em-persona; should be on the volume)"
    )
    pod.add_argument("--key", type=Path, help="SSH key (default: the agent's, then ~/.ssh/id_ed25519)")
    pod.add_argument("--fingerprint", help="SHA256:... of the pod's host key, from its log in the console")
    return parser.parse_known_args(arguments)


def main(arguments: Sequence[str]) -> int:
    own, options = read_options(arguments)
    client = make_client(own)
    for name, act in (("status", show_status), ("cancel", end_run), ("fetch", fetch_again)):
        if (run_id := getattr(own, name)) is not None:
            record = client.records.latest() if run_id == LAST else client.records.load(run_id)
            return act(client, record, own)
    if own.attach is not None:
        record = client.records.latest() if own.attach == LAST else client.records.load(own.attach)
        client.check_pod_of(record)
        return attend(client, record, own, None)
    command = plan_command(own, options)
    if command is None:
        return 0
    return attend(client, open_run(client, command), own, command)


def make_client(own: argparse.Namespace) -> PodClient:
    """The client for these options; settings come from the environment."""
    settings = read_settings(os.environ, own.key, own.remote_root)
    choices = Choices(
        pod_id=own.pod,
        when_done=own.when_done,
        max_hours=own.max_hours,
        idle_minutes=own.idle_minutes,
        is_guarded=not own.no_guard,
        remote_python=own.remote_python,
        installs=not own.no_install,
        fingerprint=own.fingerprint,
    )
    api = RunPodApi(settings.api_url, settings.api_key)
    return PodClient(api, settings, RunRecords(own.results_dir / "runs"), choices)


def attend(client: PodClient, record: RunRecord, own: argparse.Namespace, command: Command | None) -> int:
    """Start what is not started, follow it to its end, fetch. Without a command (--attach) nothing is started."""
    with client.alone_with(record.run_id), client.link_to(record) as link:
        record = decide_anew(client, record, link)
        for _ in range(RESTARTS + 1):
            if command is not None:
                record = ensure_started(client, record, link, command)
            if own.detach:
                print(
                    f"run {record.run_id} goes on without us: --attach {record.run_id} shows its log, --status its cost"
                )
                return 0
            record, state = follow(client, record, link)
            if state["state"] != "interrupted" or command is None:
                break
            client.say(f"run {record.run_id}: the job was interrupted; starting it again where it was")
        try:
            if state["state"] == "interrupted":
                reason = interruption(state)
                client.records.save(record.updated(state="interrupted", exit_reason=reason))
                raise UserError(f"run {record.run_id}: is interrupted: {reason}")
            if state["state"] not in ("finished", "failed", "cancelled"):
                raise UserError(
                    f"run {record.run_id}: is {state['state']} on the pod; give the command that started it again"
                )
            record = conclude(client, record, state)
            if record.state == "failed":
                raise UserError(f"run {record.run_id}: failed ({record.exit_reason}); the same command tries again")
            if record.state == "cancelled":
                raise UserError(f"run {record.run_id}: was cancelled; the command that started it begins anew")
            record, state = fetch(client, record, link, own.results_dir, own.force)
        except UserError:
            if (
                not state["is_guarded"] and state["state"] != "elsewhere"
            ):  # a guard leaves some time for another try, and stops the pod then
                client.release_pod(record, state["others"], [record.run_id])
            raise
    print(f"run {record.run_id}: done, ${record.cost_so_far:.2f}")
    client.release_pod(record, state["others"], state["unfetched"])
    return 0


def show_status(client: PodClient, record: RunRecord, own: argparse.Namespace) -> int:
    client.choices = replace(client.choices, patience=GLANCE_SECONDS)
    print(report(client, record))
    return 0


def end_run(client: PodClient, record: RunRecord, own: argparse.Namespace) -> int:
    record, state = cancel(client, record)
    print(f"run {record.run_id}: {record.state}, ${record.cost_so_far:.2f}")
    if state is None:
        return 0
    if record.when_done == "keep":
        until = " until its guard finds it idle" if state["is_guarded"] else ""
        print(f"pod {record.pod_id}: goes on costing{until}; `src/pod/config.py stop {record.pod_id}` ends that")
    else:
        client.release_pod(record, state["others"], [record.run_id])
    return 0


def fetch_again(client: PodClient, record: RunRecord, own: argparse.Namespace) -> int:
    client.check_pod_of(record)
    with client.alone_with(record.run_id), client.link_to(record) as link:
        found = link.ask("state", {"run_id": record.run_id})["state"]
        if found == "running":
            raise UserError(
                f"run {record.run_id}: is running, and has no results yet; --attach {record.run_id} waits for them"
            )
        if found != "finished":
            raise UserError(
                f"run {record.run_id}: is {found} on the pod, without results; the command that started it makes them"
            )
        is_first = record.state != "fetched"
        record, state = fetch(client, record, link, own.results_dir, own.force)
    if is_first:
        client.release_pod(record, state["others"], state["unfetched"])
    return 0


if __name__ == "__main__":
    run_script(main)
