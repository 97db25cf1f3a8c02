"""Can a run be started on this pod? State, SSH, host key, SFTP, Python, torch, CUDA, GPU memory, disk, hub, guard.

    uv run python src/pod/test_connection.py
    uv run python src/pod/test_connection.py --pod ID --key ~/.ssh/other_key

Prints pass or fail with the remedy for each; the exit code is 0 only if all passed. Waits for a pod that is starting.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from src.pod.api import RunPodApi
from src.pod.checks import all_passed, run_checks
from src.pod.client import Choices, PodClient
from src.pod.link import GLANCE_SECONDS
from src.pod.run_record import RunRecords
from src.pod.settings import read_settings
from src.utils.cli import OneLineParser, run_script
from src.utils.config import PROJECT_ROOT


def main(arguments: Sequence[str]) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pod", help="the pod's id (default: the one that is running)")
    parser.add_argument("--key", type=Path, help="SSH key (default: the agent's, then ~/.ssh/id_ed25519)")
    parser.add_argument("--fingerprint", help="SHA256:... of the pod's host key, from its log in the console")
    parser.add_argument(
        "--remote-python", default="python3", help="the Python on the pod to look at (default: python3)"
    )
    parser.add_argument("--remote-root", help="the folder on the pod to look at (default: /workspace/em-persona)")
    parser.add_argument("--no-wait", action="store_true", help="fail at once for a pod that is still starting")
    own = parser.parse_args(arguments)
    settings = read_settings(os.environ, own.key, own.remote_root)
    choices = Choices(
        pod_id=own.pod, remote_python=own.remote_python, fingerprint=own.fingerprint, patience=GLANCE_SECONDS
    )
    api = RunPodApi(settings.api_url, settings.api_key)
    client = PodClient(api, settings, RunRecords(PROJECT_ROOT / "results/runs"), choices)
    checks = []
    for check in run_checks(client, wait=not own.no_wait):
        print(check.line(), flush=True)
        checks.append(check)
    return 0 if all_passed(checks) else 1


if __name__ == "__main__":
    run_script(main)
