"""Talking to the helper on a pod, over as many connections as it takes.

Every command of the helper can be given twice, so a lost connection is answered by connecting again and asking again.
"""

import contextlib
import json
import shlex
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from src.pod.helper import RECEIVER, helper_archive, helper_path, helper_sha256
from src.pod.pods import Address
from src.pod.remote.frames import END, ERROR, GREETING, JSON, FrameError, Wire
from src.pod.ssh import Channel, ConnectionLost, Login, SshSession, connect
from src.pod.terminal import harmless, harmless_json
from src.utils.errors import UserError

T = TypeVar("T")
PATIENCE_SECONDS = 600.0  # without a connection that achieved something, before the client gives up
GLANCE_SECONDS = 60.0  # the same for who only wants to know
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
LONGEST_LOGIN = 1 << 16  # bytes that the pod's shell may say before the helper does


class Conversation:
    """The helper that serves one connection: commands one after another, frames in both directions."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.wire = Wire(channel.read_exactly, channel.write_all)

    def begin(self) -> None:
        """Pass over what the pod's shell says at login; `ConnectionLost` where the helper does not begin after it."""
        heard = b""
        while not heard.endswith(GREETING):
            byte = self.channel.read_exactly(1)
            if not byte:
                _, complaint = self.channel.finish()
                last = (complaint or harmless(heard.decode("utf-8", "replace"))).strip().splitlines()[-1:]
                raise ConnectionLost(f"the helper does not begin: {last[0] if last else 'no reason given'}")
            heard += byte
            if len(heard) > LONGEST_LOGIN:
                raise ConnectionLost("the pod's shell says something without end")
        self.read_json()

    def read(self) -> tuple[bytes, bytes]:
        """The next frame; `ConnectionLost` at an unexpected end, `UserError` for an error that the helper reports."""
        try:
            frame = self.wire.read()
        except FrameError as error:
            raise ConnectionLost(str(error)) from error
        if frame is None:
            _, complaint = self.channel.finish()
            last = complaint.splitlines()[-1] if complaint else "no reason given"
            raise ConnectionLost(f"the helper has ended: {last}")
        if frame[0] == ERROR:
            reason = harmless(frame[1].decode("utf-8", "replace"))
            raise UserError(f"pod: {reason}; mend that on the pod (is its disk full?)")
        return frame

    def read_json(self) -> Any:
        kind, payload = self.read()
        if kind != JSON:
            raise ConnectionLost(f"expected an answer, got {kind!r}")
        return answer_of(payload)

    def end_input(self) -> None:
        """Say that the running command gets nothing more."""
        self.wire.write(END)

    def expect_end(self) -> None:
        """The running command has said all that it says."""
        kind, _ = self.read()
        if kind != END:
            raise ConnectionLost(f"expected the end of an answer, got {kind!r}")


def answer_of(payload: bytes) -> Any:
    """The JSON of a frame, its texts harmless."""
    try:
        return harmless_json(json.loads(payload))
    except (ValueError, RecursionError) as error:
        raise UserError(
            "pod: answers with something that is no JSON; is another program behind its python3?"
        ) from error


class PodLink:
    """A pod's helper. `locate` gives the pod's address now, and raises `UserError` where the pod is gone."""

    def __init__(
        self,
        locate: Callable[[], Address],
        login: Login,
        python: str = "python3",
        say: Callable[[str], object] = print,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._locate = locate
        self._login = login
        self.python = python
        self.root = login.settings.remote_root
        self.tell = say
        self._patience = patience
        self._session: SshSession | None = None
        self._conversation: Conversation | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = self._conversation = None

    def session(self) -> SshSession:
        """The connection, made if there is none."""
        if self._session is None or not self._session.is_alive():
            self.close()
            self._session = connect(self._locate(), self._login, self.tell)
        return self._session

    def ask(self, command: str, request: dict[str, Any]) -> Any:
        """One answer to one request."""

        def once() -> Any:
            conversation = self.converse(command, request)
            answer = conversation.read_json()
            conversation.expect_end()
            return answer

        return self.persist(once)

    def converse(self, command: str, request: dict[str, Any]) -> Conversation:
        """Start a command whose frames the caller reads and writes, to its end; raises `ConnectionLost`."""
        session = self.session()
        if self._conversation is None:
            self._conversation = self._begin(session)
        self._conversation.wire.write_json({"command": command, **request})
        return self._conversation

    def persist(self, work: Callable[[], T], has_moved: Callable[[], object] = lambda: None) -> T:
        """Do it until no connection is lost over it. `has_moved` gives a value that changes where a failed try got on.

        `UserError` after so much time without progress; what is on the pod goes on.
        """
        wait, since, moved = FIRST_WAIT, time.monotonic(), has_moved()
        while True:
            try:
                return work()
            except ConnectionLost as error:
                self.close()
                if has_moved() != moved:
                    wait, since, moved = FIRST_WAIT, time.monotonic(), has_moved()
                if time.monotonic() - since > self._patience:
                    raise UserError(
                        f"pod {self._login.pod_id}: no connection for {self._patience:.0f} s ({error}); "
                        "what runs there goes on, and the same command attaches to it again"
                    ) from error
                self.tell(f"connection lost ({error}); trying again in {wait:g} s")
                time.sleep(wait)
                wait = min(LONGEST_WAIT, wait * 2)

    def _begin(self, session: SshSession) -> Conversation:
        """Start the helper; bring it first where it is not there."""
        command = shlex.join([self.python, helper_path(self.root), "serve", self.root])
        try:
            conversation = Conversation(session.execute(command))
            conversation.begin()
        except ConnectionLost:
            if not session.is_alive():
                raise
            self._bring_helper(session)
            conversation = Conversation(session.execute(command))
            conversation.begin()
        return conversation

    def _bring_helper(self, session: SshSession) -> None:
        channel = session.execute(shlex.join([self.python, "-c", RECEIVER, helper_path(self.root), helper_sha256()]))
        with contextlib.suppress(ConnectionLost):  # a command that fails takes no input: its complaint says why
            channel.write_all(helper_archive())
        code, complaint = channel.finish()
        if code == -1:
            raise ConnectionLost("the connection ended while the helper was sent")
        if code != 0:
            last = complaint.splitlines()[-1] if complaint else f"exit code {code}"
            raise UserError(
                f"pod: {self.python} cannot put the helper into {self.root} ({last}); name a Python with "
                "--remote-python, a folder with --remote-root, or mend the pod's disk"
            )
