"""What `.env` and the shell say about RunPod: the account's key, the API's address, the SSH key and its passphrase."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.utils.errors import UserError

API_URL = "https://api.runpod.io"
DEFAULT_ROOT = "/workspace/em-persona"  # RunPod mounts a pod's volume at /workspace
DEFAULT_KEY = Path("~/.ssh/id_ed25519")
PLAIN_PATH = re.compile(r"/[\w./-]+", re.ASCII)  # stands in the pod's start command, whose quotes RunPod reads


@dataclass(frozen=True)
class PodSettings:
    """Settings of the client; secrets are kept out of its repr.

    `key` is the private key's file, `passphrase` opens it; `remote_root` is a folder on the pod.
    """

    api_key: str = field(repr=False)
    api_url: str = API_URL
    key: Path | None = None  # none given: the agent's keys, then ~/.ssh/id_ed25519
    passphrase: str | None = field(default=None, repr=False)
    hub_token: str | None = field(default=None, repr=False)
    user: str = "root"
    remote_root: str = DEFAULT_ROOT


def read_settings(
    environment: Mapping[str, str], key: Path | None = None, remote_root: str | None = None
) -> PodSettings:
    """Settings from environment variables (see .env.example), then `--key` and `--remote-root`.

    `UserError` without an API key, or for a folder on the pod that is not absolute or holds what a shell would read.
    """
    api_key = environment.get("RUNPOD_API_KEY", "").strip()
    if not api_key:
        raise UserError("RUNPOD_API_KEY is not set; put it into .env (see .env.example; runpod.io, Settings, API keys)")
    if not api_key.isascii():
        raise UserError("RUNPOD_API_KEY holds a character that no key has; copy it into .env again")
    root = remote_root or environment.get("RUNPOD_REMOTE_ROOT") or DEFAULT_ROOT
    if not PLAIN_PATH.fullmatch(root):
        name = "--remote-root" if remote_root else "RUNPOD_REMOTE_ROOT"
        raise UserError(
            f"{name} {root}: must be absolute, of letters, digits and ._-/ alone, such as {DEFAULT_ROOT}", 2
        )
    return PodSettings(
        api_key=api_key,
        api_url=(environment.get("RUNPOD_API_BASE_URL") or API_URL).rstrip("/"),
        key=key.expanduser() if key else None,
        passphrase=environment.get("RUNPOD_PRIVATE_KEY") or None,
        hub_token=environment.get("HF_TOKEN") or None,
        user=environment.get("RUNPOD_SSH_USER") or "root",
        remote_root=root,
    )
