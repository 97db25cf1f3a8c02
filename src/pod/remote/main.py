"""What the client asks of the pod: requests as frames on standard input, answers on standard output, one after another.

    python3 helper serve ROOT
    python3 helper resume ROOT      # when the container starts: the guards alone

Commands can be given twice: none does anything again that is done. Nothing secret stands in a command line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from src.pod.remote.blocks import Digest, Store, bytes_to_come, digest_file, list_files, read_block
from src.pod.remote.environment import why_unguarded
from src.pod.remote.frames import (
    ACCEPTED,
    BLOCK,
    BLOCK_HEADER,
    END,
    ERROR,
    GREETING,
    LOG,
    PUBLISHED,
    REFUSED,
    STATUS,
    FrameError,
    Heartbeats,
    Wire,
)
from src.pod.remote.guard import change_orders, start_guard
from src.pod.remote.install import InstallError, environment_folder, install, python_of
from src.pod.remote.layout import RunFolder, state_of, unfetched_others
from src.pod.remote.probe import probe
from src.pod.remote.resume import hook_into_image, leave_script, resume_guards
from src.pod.remote.supervisor import cancel, free_bytes, start

LOG_PIECE = 1 << 18
FOLLOW_SECONDS = 0.2
STATUS_SECONDS = 2.0
CONTACT_SECONDS = 1.0
GLANCES = {"state", "probe", "cancel"}  # who only looks does not keep a pod from being idle


def tell_room(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """Bytes that the files of a run will take: in the store where they are not yet, and again in its working folder."""
    placed = placed_in(RunFolder(root, request["run_id"]))
    files = {name: Digest.from_json(value) for name, value in request["files"].items()}
    unplaced = [digest.size for name, digest in files.items() if placed.get(name) != digest.address]
    coming = bytes_to_come(Store(root / "store"), list(files.values())) + sum(unplaced)
    wire.write_json({"bytes": coming, "free_bytes": free_bytes(root)})


def receive(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """Files that are not in the store yet, block by block. Answers first with the blocks that are missing."""
    store = Store(root / "store")
    digests = [Digest.from_json(value) for value in request["files"]]
    parts = {i: store.part(digest) for i, digest in enumerate(digests) if not store.has(digest)}
    missing = {i: part.missing() for i, part in parts.items()}
    wire.write_json({"missing": missing})
    left = {i: set(blocks) for i, blocks in missing.items()}
    for i, blocks in left.items():
        if not blocks:
            store.keep(parts[i])  # an empty file, or one whose last connection ended just before
            wire.write(PUBLISHED, BLOCK_HEADER.pack(i, 0))
    for kind, payload in frames_until_end(wire, RunFolder(root, request["run_id"])):
        if kind != BLOCK:
            raise FrameError("expected a block, got " + repr(kind))
        file, block = BLOCK_HEADER.unpack_from(payload)
        is_right = file in parts and parts[file].write(block, memoryview(payload)[BLOCK_HEADER.size :])
        wire.write(ACCEPTED if is_right else REFUSED, BLOCK_HEADER.pack(file, block))
        if is_right:
            left[file].discard(block)
            if not left[file]:
                store.keep(parts[file])
                wire.write(PUBLISHED, BLOCK_HEADER.pack(file, 0))


def place(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """Build the run's working folder from the store; what is there already stays."""
    run, store = RunFolder(root, request["run_id"]), Store(root / "store")
    placed = placed_in(run)
    for name, address in request["files"].items():
        path = run.project / name
        if not path.resolve().is_relative_to(run.project.resolve()):
            raise ValueError(f"{name}: lies outside of the run's folder")
        if placed.get(name) != address:
            store.put_into(address, path)
    for name in placed.keys() - request["files"].keys():
        if (run.project / name).is_file():
            (run.project / name).unlink()
    run.project.mkdir(parents=True, exist_ok=True)
    run.write("placed.json", request["files"])
    wire.write_json({"placed": len(request["files"])})


def placed_in(run: RunFolder) -> dict[str, str]:
    """Name -> address of the files that were put into the run's working folder and are there."""
    return {name: at for name, at in (run.read("placed.json") or {}).items() if (run.project / name).is_file()}


def guard_run(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """The guard alone, before anything is sent, and what brings it back with a container that starts again.

    `ends_with_container` says why nothing does, empty where something does. `starts_guards` is whether the container's
    own start command takes them up.
    """
    run = RunFolder(root, request["run_id"])
    if reason := lack_of_guard(run, request):
        wire.write_json({"refused": reason})
        return
    leave_script(root, sys.path[0])
    lost = "" if request["starts_guards"] else hook_into_image(root)
    wire.write_json({**state_of(run), "ends_with_container": lost})


def lack_of_guard(run: RunFolder, request: dict[str, Any]) -> str:
    """Start the guard that the request asks for; why there can be none, empty where it is there or was waived."""
    if "guard" not in request:
        return ""
    if reason := why_unguarded():
        return reason
    start_guard(run, request["guard"])
    return ""


def start_run(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """The guard, then the job; without a pod-scoped key no guard, and then no job unless the request says so."""
    run, spec = RunFolder(root, request["run_id"]), request["spec"]
    if reason := lack_of_guard(run, request):
        wire.write_json({"refused": reason})
        return
    if "install" in request:
        folder = environment_folder(root, request["install"]["requirements"])
        run.write("install.json", request["install"])
        words = {"{python}": str(python_of(folder))}
    else:
        words = {"{python}": sys.executable}
    helper = [sys.executable, sys.path[0]]
    phases = {"install": [*helper, "install", str(root), request["run_id"]]} if "install" in request else {}
    for name, argv in spec["phases"].items():
        phases[name] = [words.get(word, word) for word in argv]
    env = {"PYTHONPATH": str(run.project), "HF_HOME": os.environ.get("HF_HOME") or str(root / "hub"), **spec["env"]}
    wire.write_json(start(run, {**spec, "phases": phases, "env": env}, request["secrets"]))


def follow(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """The log from an offset on, and the status as it changes, until the run has ended."""
    run, offset, told = RunFolder(root, request["run_id"]), int(request["offset"]), 0.0
    while True:
        state = state_of(run)  # before the log is read: a log that is read after the end is complete
        while piece := read_piece(run.log, offset):
            wire.write(LOG, piece)
            offset += len(piece)
        if state["state"] != "running":
            wire.write_json(state)
            return
        if time.time() - told >= STATUS_SECONDS:
            wire.write_json(state, STATUS)
            run.contact()
            told = time.time()
        time.sleep(FOLLOW_SECONDS)


def read_piece(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(LOG_PIECE)
    except FileNotFoundError:
        return b""


def list_outputs(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """Name -> digest of each output."""
    run = RunFolder(root, request["run_id"])
    found = list_files(run.project, request["outputs"], digest_file)
    wire.write_json({"files": {name: digest.as_json() for name, digest in found.items()}})


def send(root: Path, request: dict[str, Any], wire: Wire) -> None:
    """Blocks of the run's files, each when it is asked for: a request is a block frame without data."""
    run = RunFolder(root, request["run_id"])
    files = [os.open(run.project / name, os.O_RDONLY) for name in request["files"]]
    wire.write_json({"open": len(files)})
    for _, payload in frames_until_end(wire, run):
        file, block = BLOCK_HEADER.unpack_from(payload)
        wire.write_block(file, block, read_block(files[file], block))


def frames_until_end(wire: Wire, run: RunFolder) -> Iterator[tuple[bytes, bytes]]:
    """What the client sends for the command that runs, a sign of life each; `FrameError` where it goes away."""
    told = 0.0
    while True:
        if time.monotonic() - told >= CONTACT_SECONDS:
            run.contact()  # no guard takes a long transfer for idleness
            told = time.monotonic()
        frame = wire.read()
        if frame is None:
            raise FrameError("the client is gone")
        if frame[0] == END:
            return
        yield frame


def decide_anew(root: Path, request: dict[str, Any], wire: Wire) -> None:
    run = RunFolder(root, request["run_id"])
    change_orders(run, request["when_done"])
    wire.write_json(state_of(run))


def tell_state(root: Path, request: dict[str, Any], wire: Wire) -> None:
    wire.write_json(state_of(RunFolder(root, request["run_id"])))


def cancel_run(root: Path, request: dict[str, Any], wire: Wire) -> None:
    wire.write_json(cancel(RunFolder(root, request["run_id"])))


def mark_fetched(root: Path, request: dict[str, Any], wire: Wire) -> None:
    run = RunFolder(root, request["run_id"])
    run.touch("fetched")
    wire.write_json({**state_of(run), "unfetched": unfetched_others(run)})


def tell_facts(root: Path, request: dict[str, Any], wire: Wire) -> None:
    wire.write_json(probe(root, bool(request.get("asks_hub"))))


COMMANDS: dict[str, Callable[[Path, dict[str, Any], Wire], None]] = {
    "receive": receive,
    "place": place,
    "guard": guard_run,
    "start": start_run,
    "follow": follow,
    "list": list_outputs,
    "send": send,
    "state": tell_state,
    "cancel": cancel_run,
    "fetched": mark_fetched,
    "room": tell_room,
    "when_done": decide_anew,
    "probe": tell_facts,
}


def main(arguments: list[str]) -> int:
    command, root = arguments[0], Path(arguments[1])
    if command == "resume":
        for run_id in resume_guards(root):
            print(f"em-persona: the cost guard of run {run_id} is back", flush=True)
        return 0
    if command == "install":
        return install_for(RunFolder(root, arguments[2]))
    reader, writer = sys.stdin.buffer, sys.stdout.buffer

    def write_all(data: bytes) -> None:
        writer.write(data)
        writer.flush()

    write_all(GREETING)
    return serve(root, Wire(reader.read, write_all))


def serve(root: Path, wire: Wire) -> int:
    """Do what the client asks, one command after another, until it goes away; an error ends it."""
    with Heartbeats(wire):
        wire.write_json({"helper": list(sys.version_info[:3])})
        try:
            while (frame := wire.read()) is not None:
                request = json.loads(frame[1].decode())
                if request["command"] not in GLANCES:
                    RunFolder(root, request["run_id"]).contact()
                COMMANDS[request["command"]](root, request, wire)
                wire.write(END)
        except (BrokenPipeError, FrameError):
            return 0  # the client is gone
        except Exception as error:  # whatever it is, asking again would end the same
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else repr(error)
            wire.write(ERROR, reason.encode())
            return 1
    return 0


def install_for(run: RunFolder) -> int:
    """The install phase of a run; an error is one line."""
    wanted = run.read("install.json") or {}
    try:
        install(run.root, list(wanted["requirements"]), str(wanted["uv"]))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
