"""Pods of the RunPod account: list, create, stop, terminate.

    uv run python src/pod/config.py                              # which there are, state, price, SSH address
    uv run python src/pod/config.py create --gpu "NVIDIA A100 80GB PCIe" --max-hours 6
    uv run python src/pod/config.py create --gpu "NVIDIA GeForce RTX 4090" --spot --bid 0.25 --network-volume ID
    uv run python src/pod/config.py stop POD
    uv run python src/pod/config.py terminate POD --yes

Settings come from .env: RUNPOD_API_KEY, RUNPOD_PRIVATE_KEY (the SSH key's passphrase). What costs money, or cannot be
undone, is shown and confirmed first unless --yes is given.
"""

import argparse
import os
from collections.abc import Sequence

from src.pod.api import RunPodApi
from src.pod.creation import IMAGE, PodWish, price_line
from src.pod.pods import choose_pod, describe
from src.pod.settings import read_settings
from src.utils.cli import OneLineParser, positive, run_script
from src.utils.llm.confirmation import confirm


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole, number = positive(int), positive(float)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="the account's pods (default)")
    create = actions.add_parser("create", help="rent a pod")
    create.add_argument("--gpu", required=True, help='RunPod\'s name of the GPU type, such as "NVIDIA A100 80GB PCIe"')
    create.add_argument("--gpu-count", type=whole, default=1, help="default: 1")
    create.add_argument("--image", default=IMAGE, help=f"default: {IMAGE}")
    create.add_argument("--volume-gb", type=whole, default=50, help="the pod's own volume at /workspace (default: 50)")
    create.add_argument("--disk-gb", type=whole, default=30, help="the container's disk, lost with it (default: 30)")
    create.add_argument("--network-volume", help="id of a network volume, which outlives the pod")
    create.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    create.add_argument("--bid", type=number, help="with --spot: US dollars an hour and GPU")
    create.add_argument("--max-hours", type=number, default=24, help="RunPod terminates the pod then (default: 24)")
    create.add_argument("--name", default="em-persona", help="default: em-persona")
    create.add_argument("--cloud", choices=["ALL", "SECURE", "COMMUNITY"], default="ALL", help="default: ALL")
    create.add_argument("--yes", action="store_true", help="do not ask")
    for name, text in (("stop", "stop a pod; its volume stays"), ("terminate", "end a pod and its volume for good")):
        action = actions.add_parser(name, help=text)
        action.add_argument("pod", help="the pod's id")
        action.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    own = read_options(arguments)
    settings = read_settings(os.environ)
    api = RunPodApi(settings.api_url, settings.api_key)
    if own.action == "create":
        create(api, own, settings.remote_root)
    elif own.action == "stop":
        pod = choose_pod(api, own.pod)
        confirm("stop; what runs on it ends, its volume stays and costs a little", pod.id, own.yes, "Stop?")
        api.stop(pod.id)
        print(f"pod {pod.id}: stopped")
    elif own.action == "terminate":
        pod = choose_pod(api, own.pod)
        kept = "its network volume stays" if pod.network_volume else "all on it is lost"
        confirm(f"terminate; {kept}", pod.id, own.yes, "Terminate?")
        api.terminate(pod.id)
        print(f"pod {pod.id}: terminated")
    else:
        pods = api.pods()
        print("\n".join(describe(pod) for pod in pods) or "no pod; create one with `src/pod/config.py create`")


def create(api: RunPodApi, own: argparse.Namespace, remote_root: str) -> None:
    """Show the price, ask, create."""
    wish = PodWish(
        gpu=own.gpu,
        gpu_count=own.gpu_count,
        image=own.image,
        volume_gb=own.volume_gb,
        disk_gb=own.disk_gb,
        network_volume=own.network_volume,
        is_spot=own.spot,
        bid=own.bid,
        max_hours=own.max_hours,
        name=own.name,
        cloud=own.cloud,
        remote_root=remote_root,
    )
    if not wish.starts_guards:
        print(
            f"--image {wish.image}: a run's cost guard will not come back with a container that RunPod restarts, as it "
            "does with images named runpod/..."
        )
    confirm(price_line(api, wish), f"{wish.gpu_count} x {wish.gpu}", own.yes, "Create?")
    pod = api.create(wish.as_input(), wish.is_spot)
    wait = f"`src/pod/test_connection.py --pod {pod.id}` waits for it"
    print(f"pod {pod.id}: created, ${pod.cost_per_hour:.3f} an hour; {wait}")


if __name__ == "__main__":
    run_script(main)
