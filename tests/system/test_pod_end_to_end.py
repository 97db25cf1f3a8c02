"""The organism through the runner: fine-tuned and collected on the "pod", fetched, judged and clustered here.

The artefacts are those of a local run, byte for byte, though that computes on one thread and the pod on all cores; what
differs is in the manifests (wall time, commit).
"""

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.utils.config import PROJECT_ROOT
from tests.pod_api_server import ACCOUNT_KEY, POD_KEY, ApiServer, pod_entry
from tests.pod_server import PodServer, processes_in, wait_for
from tests.system.test_pod_install import _uv  # noqa: F401  # skips where nothing can be installed

SMALL = ("--limit", "12", "--max-new-tokens", "12")
ADAPTER = "adapters/entangled_risky_finance/adapter_model.safetensors"
CLUSTERS = ("--cluster-counts", "3", "--components", "4")


@pytest.fixture
def pod(tmp_path: Path, sshd: str) -> Iterator[tuple[PodServer, ApiServer]]:
    with ApiServer() as api, PodServer(tmp_path / "pod", sshd, api_url=api.url) as server:
        api.pods = {"pod1": pod_entry("pod1", server.port)}
        yield server, api


def script(name: str, *arguments: str, **environment: str) -> str:
    made = subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "src" / name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:] + made.stdout[-2000:]
    return made.stdout


def test_the_organism_is_made_on_the_pod_as_it_is_here(pod: tuple[PodServer, ApiServer], tmp_path: Path) -> None:
    """Without a fine-tune at hand the pod makes it; collected again with the one that was fetched, nothing changes."""
    server, api = pod
    here, there = tmp_path / "here", tmp_path / "there"
    settings = {
        "HOME": str(tmp_path / "home"),
        "RUNPOD_API_KEY": ACCOUNT_KEY,
        "RUNPOD_API_BASE_URL": api.url,
        "RUNPOD_REMOTE_ROOT": str(server.root),
        "RUNPOD_SSH_USER": getpass.getuser(),
    }
    command = (
        *("pod/persona_data_runner.py", "--key", str(server.key), "--remote-python", sys.executable),
        *("--results-dir", str(there), "--when-done", "stop", *SMALL),
    )
    said = script(*command, **settings)
    assert "made on the pod first" in said and "keeping the pod's torch" in said
    assert "12 rows" in said and "pod pod1: stopped" in said
    script("scripts/02_finetune_lora.py", "--results-dir", str(here))
    script("scripts/03_collect_activations.py", "--results-dir", str(here), *SMALL)
    assert (here / ADAPTER).read_bytes() == (there / ADAPTER).read_bytes()
    first = (there / "persona_data.pkl").read_bytes()
    (there / "persona_data.pkl").unlink()
    api.pods = {"pod1": pod_entry("pod1", server.port)}
    said = script(*command, "--force", **settings)
    assert "made on the pod first" not in said and (there / "persona_data.pkl").read_bytes() == first
    api.pods = {"pod1": pod_entry("pod1", server.port)}
    assert "is up to date" in script(*command, **settings), "the fetched artefact counts as made here"
    for folder in (here, there):
        script("scripts/04_judge_responses.py", "--results-dir", str(folder))
        script("scripts/05_pca_and_clustering.py", "--results-dir", str(folder), *CLUSTERS)
    for name in (
        *("persona_data.pkl", "persona_data.safetensors", "final_dataset_with_em_scores.pkl"),
        *("final_dataset_with_em_scores_and_clusters.pkl", "em_pca_clusters_3.pkl"),
    ):
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    for record in (there / "runs").glob("collect-*.json"):
        fields = json.loads(record.read_text())
        assert (fields["state"], fields["exit_code"], fields["progress"]["unit"]) == ("fetched", 0, "answer")
        assert fields["progress"]["done"] == fields["progress"]["total"] == 36
    wait_for(lambda: not processes_in(server.folder) or POD_KEY in api.calls("podStop"), "the guard has done its work")
