"""The three commands as a user gives them, in processes of their own: exit codes, tables, no secret."""

import getpass
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.pod.config import main
from src.utils.cli import run_script
from src.utils.config import PROJECT_ROOT
from tests.pod_api_server import ACCOUNT_KEY, ApiServer, pod_entry
from tests.pod_server import PodServer

pytestmark = pytest.mark.usefixtures("fresh_api")


def command(
    script: str, *arguments: str, api: ApiServer, pod: PodServer, home: Path
) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "RUNPOD_API_KEY": ACCOUNT_KEY,
        "RUNPOD_PRIVATE_KEY": "",
        "HF_TOKEN": "",
        "RUNPOD_API_BASE_URL": api.url,
        "RUNPOD_REMOTE_ROOT": str(pod.root),
        "RUNPOD_SSH_USER": getpass.getuser(),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, str(PROJECT_ROOT / "src/pod" / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_config_lists_creates_and_terminates(
    api: ApiServer, pod: PodServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The first in a process of its own, the others as `run_script` runs them in one."""
    listed = command("config.py", api=api, pod=pod, home=tmp_path)
    assert listed.returncode == 0 and f"127.0.0.1:{pod.port}" in listed.stdout and "$0.500/h" in listed.stdout
    monkeypatch.setenv("RUNPOD_API_KEY", ACCOUNT_KEY)
    monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def config(*arguments: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as left:
            run_script(main, arguments)
        return left.value.code, *capsys.readouterr()

    code, told, complaint = config("create", "--gpu", 'RTX "4090"', "--max-hours", "2")
    assert code == 2 and "at most $1.00" in told and "--yes does it without asking" in complaint
    assert not api.created and "cost guard" not in told
    _, told, _ = config("create", "--gpu", "RTX", "--image", "mine/torch")
    assert "--image mine/torch: a run's cost guard will not come back" in told, "how it starts is not known"
    code, told, _ = config("create", "--gpu", 'RTX "4090"', "--max-hours", "2", "--spot", "--bid", "0.25", "--yes")
    assert code == 0 and "pod new1: created" in told
    assert r'gpuTypeId: "RTX \"4090\""' in api.created[0] and "bidPerGpu: 0.25" in api.created[0]
    assert "terminateAfter: " in api.created[0] and ACCOUNT_KEY not in api.created[0]
    assert config("terminate", "new1", "--yes")[0] == 0 and "new1" not in api.pods
    code, _, complaint = config("stop", "new1", "--yes")
    assert code == 2 and complaint.startswith("error: --pod new1: the account has no such pod")


def test_the_connection_table(api: ApiServer, pod: PodServer, tmp_path: Path) -> None:
    table = command(
        *("test_connection.py", "--key", str(pod.key), "--remote-python", sys.executable),
        api=api,
        pod=pod,
        home=tmp_path,
    )
    marks = {line[6:].split("  ")[0].strip(): line[:4] for line in table.stdout.splitlines() if line[4:6] == "  "}
    for name in ("state", "host key", "SSH", "SFTP", "Python", "torch", "guard key"):
        assert marks[name] == "pass", table.stdout
    assert pod.fingerprint() in table.stdout and "GiB free at" in table.stdout
    assert {"disk", "hub"} <= marks.keys()
    is_apart = pod.root.stat().st_dev != Path("/").stat().st_dev
    assert marks["volume"] == ("pass" if is_apart else "warn")
    is_fit = "FAIL" not in table.stdout
    assert table.returncode == (0 if is_fit else 1) and ACCOUNT_KEY not in table.stdout + table.stderr


def test_the_connection_table_ends_where_nothing_can_follow(api: ApiServer, pod: PodServer, tmp_path: Path) -> None:
    table = command("test_connection.py", api=api, pod=pod, home=tmp_path)
    assert table.returncode == 1 and "FAIL  SSH" in table.stdout
    assert f"holds no key; {tmp_path}/.ssh/id_ed25519: does not exist)\n{'':19}give the key that" in table.stdout
    api.pods = {"pod1": pod_entry("pod1")}
    table = command("test_connection.py", "--no-wait", api=api, pod=pod, home=tmp_path)
    assert table.returncode == 1 and "image is being pulled" in table.stdout
    assert "FAIL  state" in table.stdout and "leave --no-wait out" in table.stdout


def test_the_runner_runs_a_script_and_tells_its_state(api: ApiServer, pod: PodServer, tmp_path: Path) -> None:
    """From a fresh home; the job's options are the script's own, and the file that they name is uploaded."""
    (tmp_path / "words.txt").write_text("one two three")
    (tmp_path / "count.py").write_text(
        "import argparse, json, pathlib\nfrom src.utils.errors import UserError\n"
        "parser = argparse.ArgumentParser()\nparser.add_argument('--text')\nparser.add_argument('--times', type=int)\n"
        "own = parser.parse_args()\nfound = len(pathlib.Path(own.text).read_text().split()) * own.times\n"
        "pathlib.Path('out').mkdir()\npathlib.Path('out/count.json').write_text(json.dumps(found))\n"
        "print('counted', found)\n"
    )
    run = ("persona_data_runner.py", "--key", str(pod.key), "--remote-python", sys.executable, "--no-install")
    where = ("--results-dir", str(tmp_path / "results"))
    made = command(
        *(*run, "--step", "script", "--script", str(tmp_path / "count.py"), "--output", "out", *where),
        *("--text", str(tmp_path / "words.txt"), "--times", "2", "--when-done", "stop"),
        api=api,
        pod=pod,
        home=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    assert "counted 6" in made.stdout and "pod pod1: stopped" in made.stdout
    assert api.pods["pod1"]["desiredStatus"] == "EXITED"
    (found,) = (tmp_path / "results/runs").glob("*.files/out/count.json")
    assert found.read_text() == "6"
    status = command(*run, "--status", *where, api=api, pod=pod, home=tmp_path)
    assert status.returncode == 0 and "fetched" in status.stdout and "$0.500 an hour" in status.stdout
