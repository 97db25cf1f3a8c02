"""What is asked of RunPod for a new pod, and what it costs an hour."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from src.pod.api import Enum, RunPodApi
from src.pod.remote.resume import start_command
from src.pod.settings import DEFAULT_ROOT
from src.utils.errors import UserError

IMAGE = "runpod/pytorch:2.8.0-py3.11-cuda12.8.1-cudnn-devel-ubuntu22.04"


@dataclass(frozen=True)
class PodWish:
    """A pod to create. Sizes in GB; `bid` in US dollars an hour and GPU, for spot pods."""

    gpu: str
    gpu_count: int = 1
    image: str = IMAGE
    volume_gb: int = 50
    disk_gb: int = 30
    network_volume: str | None = None
    is_spot: bool = False
    bid: float | None = None
    max_hours: float = 24.0
    name: str = "em-persona"
    cloud: str = "ALL"
    remote_root: str = DEFAULT_ROOT

    @property
    def starts_guards(self) -> bool:
        """Whether its start command takes up the guards of runs: how an image starts is known of RunPod's alone."""
        return self.image.startswith("runpod/")

    def as_input(self, now: datetime | None = None) -> Mapping[str, Any]:
        """The mutation's input. RunPod itself terminates the pod after `max_hours`, whatever else fails."""
        end = (now or datetime.now(UTC)) + timedelta(hours=self.max_hours)
        fields: dict[str, Any] = {
            "cloudType": Enum(self.cloud),
            "gpuTypeId": self.gpu,
            "gpuCount": self.gpu_count,
            "name": self.name,
            "imageName": self.image,
            "containerDiskInGb": self.disk_gb,
            "volumeMountPath": "/workspace",
            "ports": "22/tcp",
            "startSsh": True,
            "supportPublicIp": True,
            "terminateAfter": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if self.starts_guards:
            fields["dockerArgs"] = start_command(self.remote_root)
        fields |= {"networkVolumeId": self.network_volume} if self.network_volume else {"volumeInGb": self.volume_gb}
        return fields | ({"bidPerGpu": self.bid} if self.is_spot else {})


def price_line(api: RunPodApi, wish: PodWish) -> str:
    """What the pod costs an hour, and at most; `UserError` where a spot pod has no bid, or the price is unknown."""
    if wish.bid is not None and not wish.is_spot:
        raise UserError("--bid: is for spot pods; give --spot with it, or leave it out", 2)
    listed = api.gpu_price(wish.gpu, wish.gpu_count, wish.is_spot)
    if wish.is_spot and wish.bid is None:
        least = f"; the least that is taken now is {listed / wish.gpu_count:.3f}" if listed else ""
        raise UserError(f"--spot: needs --bid, US dollars an hour and GPU{least}", 2)
    hourly = wish.bid * wish.gpu_count if wish.is_spot and wish.bid is not None else listed
    if hourly is None:
        raise UserError(
            f"--gpu {wish.gpu}: RunPod names no price for it; check the name (runpod.io/gpu-instance/pricing)", 2
        )
    kind = "spot, may be taken away" if wish.is_spot else "on demand"
    most = hourly * wish.max_hours
    end = f"terminated after {wish.max_hours:g} h at the latest"
    return f"${hourly:.3f} an hour ({kind}), {end}: at most ${most:.2f} and storage"
