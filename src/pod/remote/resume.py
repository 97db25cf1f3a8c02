"""Guards that come back with their container, though no client does.

RunPod starts a container again by itself after a crash or a reboot of its host, and nothing that ran in it is there any
more. What it starts runs `<root>/bin/on-start.sh` first, which takes up every guard whose orders lie on the volume: the
start command of pods that `src/pod/config.py` creates, or a hook of the /start.sh in RunPod's own images. The hook lies
on the container's disk, which outlives a restart, and not a pod that is stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

from src.pod.remote.detach import detach
from src.pod.remote.environment import pod_name, why_unguarded
from src.pod.remote.guard import Orders, orders_of, watch
from src.pod.remote.layout import RunFolder

IMAGE_START = "/start.sh"  # the command of RunPod's images
HOOKS = ("pre_start.sh", "post_start.sh")  # what it runs where they are there, in this order


def on_start(root: str) -> str:
    """What is to be run when the container starts."""
    return f"{root}/bin/on-start.sh"


def start_command(root: str) -> str:
    """The start command of a container: the guards beside, and nothing that could keep the image from starting."""
    script = quote(on_start(root))
    return "bash -c " + quote(f"(test -f {script} && bash {script}) & exec {IMAGE_START}")


def leave_script(root: Path, helper: str) -> None:
    """Write `on-start.sh`, for this Python or, where the container has lost it, its own."""
    script = Path(on_start(str(root)))
    script.parent.mkdir(parents=True, exist_ok=True)
    replace_file(
        script,
        "#!/bin/sh\n"
        f"export TMPDIR={quote(tempfile.gettempdir())}\n"  # where the locks lie
        f"for python in {quote(sys.executable)} python3; do\n"
        f'    "$python" {quote(helper)} resume {quote(str(root))} && exit 0\n'
        "done\n",
    )


def hook_into_image(root: Path, top: Path = Path("/")) -> str:
    """Have the image's /start.sh run `on-start.sh`; why it does not, empty where it does. `top` holds the image."""
    try:
        is_started_by_image = IMAGE_START.encode() in (top / "proc/1/cmdline").read_bytes()
        text = (top / IMAGE_START[1:]).read_text(encoding="utf-8", errors="replace") if is_started_by_image else ""
        name = next((name for name in HOOKS if f"/{name}" in text), None)
        if name is None:
            return f"it does not start by the {IMAGE_START} of RunPod's images"
        call = f"bash {quote(on_start(str(root)))} &"
        hook = top / name
        text = hook.read_text(encoding="utf-8", errors="surrogateescape") if hook.exists() else ""
        lines = text.splitlines() or ["#!/bin/bash"]
        if call not in lines:
            lines.insert(lines[0].startswith("#!"), call)  # before all else: what follows may never end
            replace_file(hook, "\n".join(lines) + "\n")
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def replace_file(path: Path, text: str) -> None:
    """An executable file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    temporary.chmod(0o755)
    temporary.replace(path)


def resume_guards(root: Path) -> list[str]:
    """Take up the guards of this pod's runs, all at once, as each looks at the others; which ones. None is there twice.

    Where a pod was stopped and somebody has started it again, its container is a new one: a run that needs the pod no
    more has no say about it then.
    """
    if why_unguarded():
        return []
    taken: dict[RunFolder, tuple[int, Orders]] = {}
    for told in sorted((root / "runs").glob("*/guard.json")):
        run = RunFolder(root, told.parent.name)
        with contextlib.suppress(OSError, KeyError):  # one that cannot be read or written leaves the others as they are
            is_new_container = not run.lock_path("guard").exists()
            orders = orders_of(run)
            if orders is None or (is_new_container and run.is_settled):
                continue
            if (lock := run.lock("guard")) is None:
                continue
            orders = resumed_orders(orders, is_new_container, time.time())
            taken[run] = lock, orders
            run.write("guard.json", {**asdict(orders), "pod": pod_name(), "resumed": time.time()})
    for run, (lock, orders) in taken.items():
        others = [other for other, _ in taken.values() if other != lock]
        detach(lambda run=run, orders=orders, others=others: stand_guard(run, orders, others), run.path / "guard.log")
    for lock, _ in taken.values():
        os.close(lock)
    return [run.run_id for run in taken]


def resumed_orders(orders: Orders, is_new_container: bool, now: float) -> Orders:
    """The same orders: hours count from the run's start.

    Whoever starts a stopped pod after they were over, say to fetch results, has until it is idle.
    """
    return replace(orders, deadline=math.inf) if is_new_container and orders.deadline <= now else orders


def stand_guard(run: RunFolder, orders: Orders, others: list[int]) -> None:
    """Watch, without the locks of other guards."""
    for lock in others:
        os.close(lock)
    watch(run, orders)
