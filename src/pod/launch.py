"""From a command to a job that runs on the pod: find or open the record, upload, place, guard, start.

Every part can be done twice; what the record and the pod say decides what is left to do.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src.pod.api import Pod
from src.pod.client import PodClient, stop_mutation
from src.pod.digests import DigestCache
from src.pod.link import PodLink
from src.pod.payload import Payload
from src.pod.pods import STOPPED, choose_pod, is_over, state_of
from src.pod.remote.blocks import Digest
from src.pod.remote.install import OLDEST_PYTHON
from src.pod.remote.resume import on_start
from src.pod.run_record import RunRecord, log_size, new_run_id, now
from src.pod.transfer import upload
from src.utils.errors import UserError

UV_VERSION = "0.9.8"  # installed where the pod has no uv and this environment does not say which
SPARE_BYTES = 1 << 30
JOB_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "2"}  # a progress bar is no reason for a long log


@dataclass(frozen=True)
class Command:
    """What the user asked for: it names a run, however often it is given. `pack` says what the pod needs for it."""

    step: str
    script: str
    options: list[str]
    outputs: list[str]
    pack: Callable[[], Payload]


def open_run(client: PodClient, command: Command) -> RunRecord:
    """The unfinished run of the same command, else a new one, its record saved before anything else happens.

    Two clients that are given it at the same time open one run.
    """
    with client.records.opening():
        return open_run_alone(client, command)


def open_run_alone(client: PodClient, command: Command) -> RunRecord:
    chosen = client.choices.pod_id
    record = client.records.unfinished(command.step, command.script, command.options, None)
    if record is not None:
        pod = client.api.pod(record.pod_id)
        if not is_over(pod) and chosen in (None, record.pod_id):
            client.say(f"run {record.run_id}: attaching to it on pod {record.pod_id}")
            return record
        if is_over(pod):
            return move_run(client, record, pod)
    pod = choose_running(client, chosen)
    run_id = new_run_id(command.step)
    root = client.settings.remote_root
    return client.records.save(
        RunRecord(
            run_id=run_id,
            step=command.step,
            script=command.script,
            options=command.options,
            pod_id=pod.id,
            pod_name=pod.name,
            created=now(),
            cost_per_hour=pod.cost_per_hour,
            remote_root=root,
            remote_folder=f"{root}/runs/{run_id}",
            outputs=command.outputs,
            when_done=client.choices.when_done or "keep",
        )
    )


def choose_running(client: PodClient, chosen: str | None) -> Pod:
    """The pod that is meant; `UserError` for one that does not run, before a run is opened on it."""
    pod = choose_pod(client.api, chosen)
    if is_over(pod):
        raise UserError(f"pod {pod.id}: is {state_of(pod).text}")
    return pod


def move_run(client: PodClient, record: RunRecord, old: Pod | None) -> RunRecord:
    """A run whose pod does not run any more, on the pod that is meant now: with the same volume it continues there.

    `UserError` where it would begin anew although a stopped pod still has it, unless another pod is named.
    """
    chosen = client.choices.pod_id
    has_it = old is not None and old.status in STOPPED and not old.network_volume
    if has_it and record.started is not None and chosen in (None, record.pod_id):
        raise UserError(
            f"run {record.run_id}: lies on the volume of pod {record.pod_id}, which is stopped; start that pod in the "
            "console and give the same command again, or begin anew on another with --pod"
        )
    pod = choose_running(client, chosen)
    if pod.id == record.pod_id:  # has been started again just now
        return record
    gone = "was terminated" if old is None else f"is {old.status.lower()}"
    client.say(f"run {record.run_id}: pod {record.pod_id} {gone}; continuing on pod {pod.id}")
    return client.records.save(
        record.charged_anew(
            pod_id=pod.id,
            pod_name=pod.name,
            cost_per_hour=pod.cost_per_hour,
            state="failed" if record.state == "failed" else "interrupted",
        )
    )


def ensure_started(client: PodClient, record: RunRecord, link: PodLink, command: Command) -> RunRecord:
    """The record of a run that is running on its pod, or has ended there."""
    state = link.ask("state", {"run_id": record.run_id})
    ended = state["exit"]
    if record.state == "failed" and ended is not None and ended["round"] == record.round:
        record = client.records.save(
            record.updated(state="preparing", round=record.round + 1, ended=None, exit_code=None)
        )
        client.say(f"run {record.run_id}: failed before; trying again in the same folder")
    is_over = ended is not None and ended["round"] >= record.round
    if state["state"] != "running" and not is_over:
        payload = command.pack()
        check_pod(client, record, link)
        guard(client, record, link)  # a client may die while it uploads, too
        bring(client, record, link, payload)
        here = log_size(client.records.log_path(record.run_id))
        if state["log_bytes"] < here - record.log_start:  # what we have is from a pod whose volume is not here
            record = client.records.save(record.updated(log_start=here))
        start(client, record, link, payload)
        record = record.charged_anew()
    elif state["state"] == "running" and state["guard"] and not state["is_guarded"]:
        guard(client, record, link)  # the job goes on; its guard was lost
    if record.state not in ("running", "finished"):
        record = record.updated(state="running", started=record.started or now(), last_seen=now(), exit_reason=None)
        client.records.save(record)
    return record


def check_pod(client: PodClient, record: RunRecord, link: PodLink) -> None:
    """Refuse a pod whose Python is too old, that has no guard, or no GPU any more."""
    facts = link.ask("probe", {"asks_hub": False})
    if tuple(facts["python"][:2]) < OLDEST_PYTHON:
        found, needed = (".".join(map(str, numbers)) for numbers in (facts["python"], OLDEST_PYTHON))
        raise UserError(
            f"pod {record.pod_id}: {link.python} is Python {found}, and the project needs {needed}; name another with "
            "--remote-python, or create a pod from a newer image"
        )
    if not facts["is_on_volume"]:
        client.say(
            f"pod {record.pod_id}: {link.root} is on no volume: results are lost if it stops before they are fetched; "
            "--remote-root names another folder"
        )
    if client.choices.is_guarded and facts["unguarded"]:
        raise no_guard(record, facts["unguarded"])
    pod = client.api.pod(record.pod_id)
    if pod is not None and pod.gpu_count and not facts["visible_gpus"]:
        raise UserError(
            f"pod {record.pod_id}: is rented with {pod.gpu} and shows none (a stopped pod may come back without); "
            "terminate it and create another"
        )


def check_room(record: RunRecord, link: PodLink, files: Mapping[str, Digest]) -> None:
    """Refuse a pod without room for what is sent: kept once by content, and once more in the run's working folder."""
    listed = {name: digest.as_json() for name, digest in files.items()}
    room = link.ask("room", {"run_id": record.run_id, "files": listed})
    free, needed = room["free_bytes"], room["bytes"] + SPARE_BYTES
    if free < needed:
        raise UserError(
            f"pod {record.pod_id}: has {free / 2**30:.1f} GiB free at {link.root}, and the run needs "
            f"{needed / 2**30:.1f} to begin with; free some, or create a pod with a larger volume"
        )


def bring(client: PodClient, record: RunRecord, link: PodLink, payload: Payload) -> None:
    """Upload what the pod does not have, and build the run's working folder from it. `UserError` without room."""
    cache = DigestCache(client.records.folder / "digests.json")
    paths = list(payload.files.values())
    digests = cache.digest(paths)
    cache.save()
    check_room(record, link, dict(zip(payload.files, digests, strict=True)))
    total = sum(digest.size for digest in digests)
    with tqdm(total=total, unit="B", unit_scale=True, desc="upload", disable=None, leave=False) as progress:
        traffic = upload(link, record.run_id, list(zip(paths, digests, strict=True)), progress.update)
    client.say(f"uploaded {traffic.files_published} of {len(paths)} files, {traffic.bytes_moved / 1e6:.1f} MB")
    files = {name: digest.address for name, digest in zip(payload.files, digests, strict=True)}
    link.ask("place", {"run_id": record.run_id, "files": files})


def guard(client: PodClient, record: RunRecord, link: PodLink) -> None:
    """The run's guard alone, unless the user waived it; a line where it would not come back with its container."""
    if not client.choices.is_guarded:
        return
    state = accepted(record, link.ask("guard", guard_request(client, record)))
    if lost := state["ends_with_container"]:
        client.say(
            f"pod {record.pod_id}: if RunPod restarts its container, no guard stops it until a client comes back "
            f"({lost}); `src/pod/config.py create` makes pods without that gap"
        )


def start(client: PodClient, record: RunRecord, link: PodLink, payload: Payload) -> dict:
    """Guard and job. `UserError` where the pod has no key of its own for a guard, and the user did not waive it."""
    settings = client.settings
    request = {
        **guard_request(client, record),
        "spec": {
            "round": record.round,
            "phases": {
                **{Path(script).stem: ["{python}", script, *options] for script, options in payload.before},
                "run": ["{python}", payload.script, *payload.options],
            },
            "env": JOB_ENVIRONMENT,
            "takes_over": record.state == "interrupted",
        },
        "secrets": {"HF_TOKEN": settings.hub_token} if settings.hub_token else {},
    }
    if client.choices.installs:
        request["install"] = {"requirements": client.requirements(), "uv": own_uv_version()}
    state = accepted(record, link.ask("start", request))
    if state["state"] == "elsewhere":
        raise UserError(f"run {record.run_id}: another pod on the volume runs it; cancel it there, or wait")
    return state


def guard_request(client: PodClient, record: RunRecord) -> dict[str, Any]:
    """A request with the orders of the run's guard, or without where the user waived it."""
    pod, choices = client.api.pod(record.pod_id), client.choices
    if pod is None:
        raise UserError(f"pod {record.pod_id}: was terminated; the same command starts the run on another")
    if not choices.is_guarded:
        client.say(f"pod {record.pod_id}: no guard: it costs ${record.cost_per_hour:.3f} an hour until it is stopped")
        return {"run_id": record.run_id}
    orders = {
        "max_seconds": choices.max_hours * 3600 - (time.time() - client.began),
        "idle_seconds": choices.idle_minutes * 60,
        "when_done": record.when_done,
        "stop": stop_mutation(pod),
    }
    starts_guards = on_start(record.remote_root) in (pod.start_command or "")
    return {"run_id": record.run_id, "guard": orders, "starts_guards": starts_guards}


def accepted(record: RunRecord, state: dict[str, Any]) -> dict[str, Any]:
    if "refused" in state:
        raise no_guard(record, state["refused"])
    return state


def no_guard(record: RunRecord, reason: str) -> UserError:
    return UserError(
        f"pod {record.pod_id}: nothing would stop it when it is done ({reason}); create it with "
        "`src/pod/config.py create`, or start without a cost guard: --no-guard"
    )


def own_uv_version() -> str:
    try:
        return version("uv")
    except PackageNotFoundError:
        return UV_VERSION
