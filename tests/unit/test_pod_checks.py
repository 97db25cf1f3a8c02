"""The table of what works on a pod, from facts that a pod told."""

from paramiko import SFTPError

from src.pod.api import Pod
from src.pod.checks import all_passed, check_facts, check_sftp
from tests.pod_api_server import pod_entry


def test_a_pod_without_torch_shows_its_gpu_all_the_same() -> None:
    facts = {
        "python": [3, 11, 9],
        "torch": None,
        "free_bytes": 30 * 2**30,
        "hub": "",
        "unguarded": "",
        "is_on_volume": False,
    }
    pod = Pod.model_validate(pod_entry("p", 1, gpuCount=1))
    found = {check.name: check for check in check_facts({**facts, "visible_gpus": 1}, pod, "/w")}
    assert found["CUDA"].passed and not found["torch"].passed and all_passed(list(found.values()))
    assert "loses it: name a folder on the volume with --remote-root" in found["volume"].line()
    found = {check.name: check for check in check_facts({**facts, "visible_gpus": 0}, pod, "/w")}
    assert not found["CUDA"].passed and "create another" in found["CUDA"].remedy


def test_sftp_that_talks_nonsense_is_a_warning() -> None:
    def open_sftp() -> None:
        raise SFTPError("Incompatible sftp protocol")

    check = check_sftp(open_sftp, "/w/x")
    assert not check.passed and check.is_warning and "Incompatible" in check.found
