"""Host keys, pinned under a pod's id: addresses are recycled between pods, ids are not.

They lie in a file of OpenSSH's own format, so that plain ssh can use them too:
`ssh -o UserKnownHostsFile=~/.ssh/runpod_known_hosts -o HostKeyAlias=<pod id> ...`.
"""

import base64
import fcntl
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from paramiko import HostKeys, PKey

from src.utils.errors import UserError

PINS = Path("~/.ssh/runpod_known_hosts")


def fingerprint(key: PKey) -> str:
    """As `ssh-keygen -l` prints it: SHA256 and base64 without padding."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def pinned_key(pod_id: str, path: Path) -> PKey | None:
    """The key that is pinned for a pod, None if none is; `UserError` for a file that cannot be read."""
    if not path.exists():
        return None
    try:
        entries = HostKeys(str(path)).lookup(pod_id)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a list of host keys ({error}); mend or remove it") from error
    return next(iter(entries.values())) if entries else None


def check_host_key(
    pod_id: str, key: PKey, path: Path, expected: str | None = None, say: Callable[[str], object] = print
) -> None:
    """Accept a pod's key: the pinned one, or at first use any (shown and pinned), if it is the `expected` fingerprint.

    Raises `UserError` with both fingerprints otherwise.
    """
    shown = fingerprint(key)
    if expected is not None and expected.removeprefix("SHA256:") != shown.removeprefix("SHA256:"):
        raise UserError(
            f"pod {pod_id}: its host key is {shown}, and --fingerprint says {expected}; do not connect: "
            "something else answers there"
        )
    pinned = pinned_key(pod_id, path)
    if pinned is None:
        pin(pod_id, key, path)
        say(f"pod {pod_id}: host key {shown}, pinned at first use in {path}; compare it with the console's log")
    elif pinned != key:
        raise UserError(
            f"pod {pod_id}: its host key has changed from {fingerprint(pinned)} to {shown}: something else answers at "
            f"its address, or its container was made anew; if you know it was, `ssh-keygen -f {path} -R {pod_id}` "
            "forgets the old key"
        )


def pin(pod_id: str, key: PKey, path: Path) -> None:
    """Append one line, whole, whoever else does so at the time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"{pod_id} {key.get_name()} {key.get_base64()}\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if pinned_key(pod_id, path) is None:
            file.write(line)
