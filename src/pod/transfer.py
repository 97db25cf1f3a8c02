"""Files to and from the pod, by blocks with their SHA-256, resumed where a connection was cut.

At most `IN_FLIGHT` bytes (4 MiB) are under way unacknowledged, so that a cut sends at most that much again.
"""

import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.pod.link import Conversation, PodLink
from src.pod.remote.blocks import IN_FLIGHT, Digest, Part, digest_file, read_block
from src.pod.remote.frames import ACCEPTED, BLOCK, BLOCK_HEADER, PUBLISHED, REFUSED
from src.pod.ssh import ConnectionLost
from src.utils.errors import UserError

REFUSALS = 3  # of one block, before the file is taken to be changing under our hands
OnBytes = Callable[[int], object]


@dataclass
class Traffic:
    """What went over the line, in bytes and files: the payload of blocks, repeated ones included."""

    bytes_moved: int = 0
    files_published: int = 0
    refusals: dict[tuple[int, int], int] = field(default_factory=dict)


def upload(
    link: PodLink, run_id: str, files: Sequence[tuple[Path, Digest]], on_bytes: OnBytes = lambda count: None
) -> Traffic:
    """Bring files of a run into the pod's store; those that are there cost nothing.

    `UserError` if one changes meanwhile.
    """
    unique = list({digest.address: (path, digest) for path, digest in files}.values())
    traffic = Traffic()
    if unique:
        link.persist(lambda: upload_once(link, run_id, unique, traffic, on_bytes), lambda: traffic.bytes_moved)
    return traffic


def upload_once(
    link: PodLink, run_id: str, files: Sequence[tuple[Path, Digest]], traffic: Traffic, on_bytes: OnBytes
) -> None:
    """One connection's worth: raises `ConnectionLost` with what arrived kept on the pod."""
    conversation = link.converse("receive", {"run_id": run_id, "files": [digest.as_json() for _, digest in files]})
    missing = missing_blocks(conversation.read_json(), [digest for _, digest in files])
    unpublished = set(missing)
    todo = deque((file, block) for file, blocks in missing.items() for block in blocks)
    under_way: dict[tuple[int, int], int] = {}
    with OpenFiles([path for path, _ in files]) as opened:
        while todo or under_way or unpublished:
            while todo and sum(under_way.values()) + files[todo[0][0]][1].length_of(todo[0][1]) <= IN_FLIGHT:
                file, block = todo.popleft()
                data = read_block(opened[file], block)
                conversation.wire.write_block(file, block, data)
                under_way[file, block] = len(data)
                traffic.bytes_moved += len(data)
            kind, payload = conversation.read()
            place = BLOCK_HEADER.unpack(payload) if len(payload) == BLOCK_HEADER.size else (-1, -1)
            if kind == ACCEPTED and place in under_way:
                on_bytes(under_way.pop(place))
            elif kind == REFUSED and place in under_way:
                del under_way[place]
                refuse_once_more(traffic, place, files[place[0]][0])
                todo.append(place)
            elif kind == PUBLISHED and place[0] in unpublished:
                unpublished.remove(place[0])
                traffic.files_published += 1
            else:
                raise UserError("pod: acknowledges what was not sent; nothing more was uploaded")
    conversation.end_input()
    conversation.expect_end()


def missing_blocks(answer: Any, digests: Sequence[Digest]) -> dict[int, list[int]]:
    """File -> blocks that the pod asks for; `UserError` where they are none of these files': the pod is not trusted."""
    try:
        missing = {int(file): [int(block) for block in blocks] for file, blocks in answer["missing"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("pod: does not say which blocks it lacks; nothing was uploaded") from error
    for file, blocks in missing.items():
        if not (0 <= file < len(digests) and set(blocks) <= set(range(len(digests[file].blocks)))):
            raise UserError("pod: asks for blocks of no file that is uploaded; nothing was uploaded")
    return missing


def refuse_once_more(traffic: Traffic, place: tuple[int, int], path: Path) -> None:
    """Count a block whose hash was not what it was when the file was listed."""
    traffic.refusals[place] = traffic.refusals.get(place, 0) + 1
    if traffic.refusals[place] >= REFUSALS:
        raise UserError(
            f"{path}: changes while it is transferred; wait until whoever writes it is done, then try again"
        )


def download(
    link: PodLink, run_id: str, files: Mapping[str, Digest], target: Path, on_bytes: OnBytes = lambda count: None
) -> Traffic:
    """Fetch files of a run into the folder `target`, each published whole under its name; present ones are kept.

    A file of another content under such a name is removed first. `UserError` where the disk here takes no more.
    """
    traffic = Traffic()
    wanted: dict[str, Digest] = {}
    try:
        for name, digest in files.items():
            path = local_path(target, name)
            if not is_there(path, digest) or digest_file(path) != digest:
                path.unlink(missing_ok=True)
                wanted[name] = digest
        if wanted:
            check_room(target, wanted.values())
            link.persist(
                lambda: download_once(link, run_id, wanted, target, traffic, on_bytes), lambda: traffic.bytes_moved
            )
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot be written ({error.strerror}); mend that") from error
    return traffic


def check_room(target: Path, digests: Iterable[Digest]) -> None:
    """`UserError` where what is still to come does not fit here: a pod may offer any size."""
    target.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target).free
    wanted = sum(max(0, digest.size - Part(target / ".parts", digest).size()) for digest in digests)
    if wanted > free:
        raise UserError(
            f"{target}: has {free / 2**30:.1f} GiB free, and {wanted / 2**30:.1f} are to come; make room, then "
            "--fetch brings them"
        )


def download_once(
    link: PodLink, run_id: str, files: Mapping[str, Digest], target: Path, traffic: Traffic, on_bytes: OnBytes
) -> None:
    """One connection's worth: raises `ConnectionLost` with what arrived kept in `target/.parts`."""
    wanted = [(name, digest) for name, digest in files.items() if not is_there(local_path(target, name), digest)]
    parts = [Part(target / ".parts", digest) for _, digest in wanted]
    left = [set(part.missing()) for part in parts]
    todo = deque((file, block) for file, blocks in enumerate(left) for block in sorted(blocks))
    conversation = link.converse("send", {"run_id": run_id, "files": [name for name, _ in wanted]})
    conversation.read_json()
    under_way: dict[tuple[int, int], int] = {}
    try:
        for file, blocks in enumerate(left):
            if not blocks:
                publish(parts[file], local_path(target, wanted[file][0]), traffic)
        while todo or under_way:
            while todo and sum(under_way.values()) + wanted[todo[0][0]][1].length_of(todo[0][1]) <= IN_FLIGHT:
                place = todo.popleft()
                conversation.wire.write(BLOCK, BLOCK_HEADER.pack(*place))
                under_way[place] = wanted[place[0]][1].length_of(place[1])
            file, block, data = read_one(conversation)
            if under_way.pop((file, block), None) is None:
                raise ConnectionLost("the pod sent a block that was not asked for")
            traffic.bytes_moved += len(data)
            if not parts[file].write(block, data):
                refuse_once_more(traffic, (file, block), Path(wanted[file][0]))
                todo.append((file, block))
                continue
            on_bytes(len(data))
            left[file].discard(block)
            if not left[file]:
                publish(parts[file], local_path(target, wanted[file][0]), traffic)
    finally:
        for part in parts:
            part.close()
    conversation.end_input()
    conversation.expect_end()


def read_one(conversation: Conversation) -> tuple[int, int, memoryview]:
    kind, payload = conversation.read()
    if kind != BLOCK:
        raise ConnectionLost(f"expected a block, got {kind!r}")
    file, block = BLOCK_HEADER.unpack_from(payload)
    return file, block, memoryview(payload)[BLOCK_HEADER.size :]


def publish(part: Part, path: Path, traffic: Traffic) -> None:
    part.publish(path)
    traffic.files_published += 1


def is_there(path: Path, digest: Digest) -> bool:
    """Whether a file of that size is there: a download names it only when all of its blocks are right."""
    return path.is_file() and path.stat().st_size == digest.size


def local_path(target: Path, name: str) -> Path:
    """Where a file of the pod goes; a name that leads out of the folder is refused: the pod is not trusted."""
    path = target / name
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and not {"", ".", "..", ".parts"} & set(parts)
    if not is_plain or not path.resolve().is_relative_to(target.resolve()):
        raise UserError(f"pod: offers a file named {name!r}, which leads out of {target}; nothing was fetched")
    return path


class OpenFiles:
    """Files opened when they are first asked for, a few at a time, in the order in which they are used."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "OpenFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def __getitem__(self, number: int) -> int:
        if number not in self._open:
            for other in list(self._open)[:-8]:
                os.close(self._open.pop(other))
            try:
                self._open[number] = os.open(self._paths[number], os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{self._paths[number]}: cannot be read ({error.strerror}); mend that") from error
        return self._open[number]
