"""A run that is under way: its log as it comes, its progress and cost in the record, how it ended, and ending it."""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from src.pod.api import Pod
from src.pod.client import PodClient
from src.pod.link import PodLink, answer_of
from src.pod.pods import is_over, state_of
from src.pod.remote.frames import JSON, LOG, STATUS
from src.pod.remote.progress import read_tail
from src.pod.run_record import OVER, RunRecord, append_log, log_size, now, progress_line, progress_of
from src.pod.ssh import ConnectionLost
from src.pod.terminal import HarmlessText, harmless
from src.utils.errors import UserError

SAVE_SECONDS = 5.0
TAIL_BYTES = 20000
NO_SPACE = "No space left on device"
CUDA_MEMORY = "CUDA out of memory"


def follow(
    client: PodClient, record: RunRecord, link: PodLink, show: Callable[[str], object] | None = None
) -> tuple[RunRecord, dict[str, Any]]:
    """Show the log until the run has ended; the record and the pod's last word on it.

    Lines that an earlier client has taken into the local log are not shown again. The log is kept as it is, and shown
    without what a terminal would obey.
    """
    show, shown = show or show_on_stdout, HarmlessText()
    log = client.records.log_path(record.run_id)
    start = record.log_start
    latest = record
    saved = 0.0

    def once() -> dict[str, Any]:
        nonlocal latest, saved
        conversation = link.converse("follow", {"run_id": record.run_id, "offset": log_size(log) - start})
        while True:
            kind, payload = conversation.read()
            if kind == LOG:
                append_log(log, payload)
                show(shown(payload))
            elif kind in (STATUS, JSON):
                state = answer_of(payload)
                progress = progress_of(state["status"])
                latest = latest.updated(last_seen=now(), log_offset=log_size(log), progress=progress)
                if kind == JSON:
                    conversation.expect_end()
                    return state
                if time.monotonic() - saved >= SAVE_SECONDS:
                    client.records.save(latest)
                    saved = time.monotonic()
            else:
                raise ConnectionLost(f"expected a line of the log, got {kind!r}")

    try:
        state = link.persist(once, lambda: (log_size(log), latest.last_seen))  # a silent job is heard of, too
    except UserError as error:
        client.records.save(latest.updated(state="interrupted", exit_reason=error.message))
        raise
    return client.records.save(latest), state


def show_on_stdout(piece: str) -> None:
    """As UTF-8, whatever the terminal says that it takes."""
    sys.stdout.flush()
    sys.stdout.buffer.write(piece.encode())
    sys.stdout.buffer.flush()


def decide_anew(client: PodClient, record: RunRecord, link: PodLink) -> RunRecord:
    """The record with what is given now for the pod's end, and its guard told, if it has one."""
    chosen = client.choices.when_done
    if chosen is None:
        return record
    link.ask("when_done", {"run_id": record.run_id, "when_done": chosen})
    return client.records.save(record.updated(when_done=chosen))


def conclude(client: PodClient, record: RunRecord, state: dict[str, Any]) -> RunRecord:
    """The record of a run that is over on the pod: finished, failed with a reason, or cancelled."""
    ended = state["exit"] or {}
    outcome = state["state"]
    at = datetime.fromtimestamp(ended["at"], UTC) if "at" in ended else now()
    began = record.charged_from or record.started or now()
    changes: dict[str, Any] = {
        "state": outcome,
        "ended": min(max(began, at), now()),  # by the pod's clock: what came after was no longer this run's
        "last_seen": now(),
        "exit_code": ended.get("code"),
    }
    if outcome == "failed":
        changes["exit_reason"] = explain(ended, read_tail(client.records.log_path(record.run_id), TAIL_BYTES))
    return client.records.save(record.updated(**changes))


def explain(ended: dict[str, Any], tail: str) -> str:
    """Why a job failed, in one line, from its exit file and the end of its log."""
    lines = [line.rpartition("\r")[2].strip() for line in harmless(tail).splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    code = ended.get("code", 0)
    what = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    if ended.get("phase") == "install":
        what = f"the installation ended with {what}"
    if ended.get("is_out_of_memory"):
        return f"out of memory: {what}; lower --batch-size, or take a pod with more memory; last line: {last}"
    if CUDA_MEMORY in tail:
        return f"GPU out of memory: {what}; lower --batch-size, or choose --memory 16gb; last line: {last}"
    if NO_SPACE in tail or ended.get("free_bytes", 1) == 0:
        return f"disk full on the pod: {what}; free some space there, or take a larger volume; last line: {last}"
    if code == -9:
        return f"{what}, perhaps for want of memory; last line: {last}"
    return f"{what}; last line: {last}"


def interruption(state: Mapping[str, Any]) -> str:
    """Why a job is gone without having ended, as far as its pod knows, and what to do."""
    remedy = "the command that started it continues it"
    try:
        at = datetime.fromtimestamp(float(state["guard"]["resumed"]), UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return f"its processes are gone; {remedy}"
    return f"its container was started again at {at:%Y-%m-%d %H:%M:%S} UTC, and the job ended with it; {remedy}"


def cancel(client: PodClient, record: RunRecord) -> tuple[RunRecord, dict[str, Any] | None]:
    """End the job on the pod; the record, and the pod's last word on it. Where no pod runs, nothing is to end.

    `UserError` where the job does not end.
    """
    pod = client.api.pod(record.pod_id)
    if is_over(pod):
        client.say(f"pod {record.pod_id}: does not run any more")
        return record if record.state in OVER else client.records.save(record.updated(state="cancelled")), None
    with client.link_to(record) as link:
        record = decide_anew(client, record, link)
        state = link.ask("cancel", {"run_id": record.run_id})
    if state["state"] == "finished":
        client.say(f"run {record.run_id}: had ended already, and is finished")
        return record, state
    if state["state"] == "running":
        raise UserError(f"run {record.run_id}: does not end; stop its pod: `src/pod/config.py stop {record.pod_id}`")
    return client.records.save(record.updated(state="cancelled", ended=record.ended or now(), last_seen=now())), state


def report(client: PodClient, record: RunRecord) -> str:
    """State, progress and money of a run, as its pod and the API tell now, else as they were last seen."""
    note, least = "", ""
    try:
        pod = client.api.pod(record.pod_id)
        if pod is None or state_of(pod).address is None:
            note = f"pod {record.pod_id} is {'terminated' if pod is None else state_of(pod).text}"
            if record.started is not None and record.ended is None and record.state not in OVER:
                record, least = charged_until_stopped(client, record, pod)
        elif record.state not in OVER:
            with client.link_to(record) as link:
                state = link.ask("state", {"run_id": record.run_id})
            note = f"on the pod: {state['state']}" + ("" if state["is_guarded"] else ", WITHOUT A COST GUARD")
            changes: dict[str, Any] = {"last_seen": now()} if record.ended is None else {}
            if state["state"] == "interrupted":
                changes |= {"state": "interrupted", "exit_reason": interruption(state)}
            record = client.records.save(record.updated(progress=progress_of(state["status"]), **changes))
    except UserError as error:
        note = f"the pod cannot be asked ({error.message})"
    lines = [
        f"run {record.run_id}: {record.state}" + (f" ({note})" if note else ""),
        f"  pod {record.pod_id}, ${record.cost_per_hour:.3f} an hour, {least}${record.cost_so_far:.2f} so far",
        f"  log {client.records.log_path(record.run_id)}",
    ]
    if progress := progress_line(record.progress):
        lines.insert(1, f"  {progress}")
    if record.exit_reason:
        lines.insert(1, f"  {record.exit_reason}")
    return "\n".join(lines)


def charged_until_stopped(client: PodClient, record: RunRecord, pod: Pod | None) -> tuple[RunRecord, str]:
    """The record with what it cost until its pod stopped; "at least " where the API does not tell when that was."""
    stopped = pod.changed if pod is not None and is_over(pod) else None
    if stopped is None:
        return record, "at least "
    seen = max(stopped, record.last_seen or stopped)
    return client.records.save(record.updated(last_seen=seen)), ""
