"""Files over a line that cuts, stalls and corrupts: whole or not published, and little is sent twice."""

import argparse
import getpass
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.pod_transfer import measure
from src.pod.digests import DigestCache
from src.pod.link import PodLink
from src.pod.pods import Address
from src.pod.remote.blocks import BLOCK_BYTES, IN_FLIGHT, Digest, digest_file
from src.pod.remote.frames import HEARTBEAT_SECONDS
from src.pod.settings import PodSettings
from src.pod.ssh import Login
from src.pod.transfer import download, upload
from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY
from tests.pod_server import PodServer, Proxy

SIZE = 12 * BLOCK_BYTES + 12345
CHUNK = 4 << 20
FAULTS_UP = {
    "cut": [("cut", "up", 7_000_000), ("cut", "up", 3_000_000)],
    "stall": [("stall", "up", 7_000_000)],
    "corrupt": [("corrupt", "up", 7_000_000)],
}
FAULTS_DOWN = {what: [(what, "down", after) for _, _, after in faults] for what, faults in FAULTS_UP.items()}


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, sshd: str) -> Iterator[PodServer]:
    with PodServer(tmp_path_factory.mktemp("pod"), sshd) as server:
        yield server


@pytest.fixture
def line(pod: PodServer) -> Iterator[Proxy]:
    with Proxy(pod.port) as proxy:
        yield proxy


@pytest.fixture
def link(pod: PodServer, line: Proxy, tmp_path: Path) -> Iterator[PodLink]:
    settings = PodSettings(ACCOUNT_KEY, user=getpass.getuser(), key=pod.key, remote_root=str(pod.root))
    login = Login(pod.pod_id, settings, tmp_path / "pins", silence=HEARTBEAT_SECONDS + 1)  # who is only slow is heard
    with PodLink(lambda: Address("127.0.0.1", line.port), login, sys.executable, lambda text: None) as one:
        yield one


def random_file(path: Path, size: int = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    return path


def stored(pod: PodServer, digest: Digest) -> Path:
    return pod.root / "store" / digest.address[:2] / digest.address


def run_files(pod: PodServer, run_id: str, sizes: dict[str, int]) -> dict[str, Digest]:
    work = pod.root / "runs" / run_id / "project"
    return {name: digest_file(random_file(work / name, size)) for name, size in sizes.items()}


def test_files_of_all_sizes_arrive_and_a_second_time_cost_nothing(
    pod: PodServer, link: PodLink, tmp_path: Path
) -> None:
    sizes = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES)
    paths = [random_file(tmp_path / str(size), size) for size in sizes]
    pairs = [(path, digest_file(path)) for path in paths]
    named = {str(number): digest for number, (_, digest) in enumerate(pairs)}
    asked = {"run_id": "any", "files": {name: digest.as_json() for name, digest in named.items()}}
    assert link.ask("room", asked)["bytes"] == 2 * sum(sizes), "in the store, and in the run's folder"
    contact, forgotten = pod.folder / f"tmp/em-persona-{os.getuid()}/any.contact", []

    def forget_contact(count: int) -> None:
        if not forgotten:
            contact.unlink()
            time.sleep(1.1)
        forgotten.append(count)

    traffic = upload(link, "any", [*pairs, pairs[-1]], forget_contact)
    assert contact.exists(), "every second of a transfer is a sign of life"
    assert (traffic.files_published, traffic.bytes_moved) == (len(sizes), sum(sizes))
    for path, digest in pairs:
        assert stored(pod, digest).read_bytes() == path.read_bytes()
    again = upload(link, "any", pairs)
    assert (again.files_published, again.bytes_moved) == (0, 0)
    assert link.ask("room", asked)["bytes"] == sum(sizes)
    link.ask("place", {"run_id": "any", "files": {name: digest.address for name, digest in named.items()}})
    assert link.ask("room", asked)["bytes"] == 0


@pytest.mark.parametrize("what", ["cut", "stall", "corrupt"])
def test_an_upload_survives_a_bad_line(what: str, pod: PodServer, link: PodLink, line: Proxy, tmp_path: Path) -> None:
    """What is sent twice is one chunk for each fault, at most."""
    path = random_file(tmp_path / "big")
    digest = digest_file(path)
    link.ask("state", {"run_id": "none"})  # the helper is there
    link.close()
    line.faults = list(FAULTS_UP[what])
    faults = len(line.faults)
    traffic = upload(link, "any", [(path, digest)])
    assert stored(pod, digest).read_bytes() == path.read_bytes()
    assert traffic.bytes_moved - SIZE <= faults * CHUNK and IN_FLIGHT <= CHUNK
    assert not line.faults and not list((pod.root / "store/parts").glob(f"{digest.address}*"))


@pytest.mark.parametrize("what", ["cut", "stall", "corrupt"])
def test_a_download_survives_a_bad_line(what: str, pod: PodServer, link: PodLink, line: Proxy, tmp_path: Path) -> None:
    files = run_files(pod, f"run-{what}", {"out/big": SIZE, "out/small": 10, "out/empty": 0})
    link.ask("state", {"run_id": "none"})
    link.close()
    line.faults = list(FAULTS_DOWN[what])
    before, faults = line.bytes["down"], len(line.faults)
    download(link, f"run-{what}", files, tmp_path / "here")
    for name in files:
        original = pod.root / "runs" / f"run-{what}" / "project" / name
        assert (tmp_path / "here" / name).read_bytes() == original.read_bytes()
    assert line.bytes["down"] - before - SIZE <= faults * CHUNK + 200_000  # and the protocol's own
    assert not line.faults and not list((tmp_path / "here/.parts").iterdir())


def test_a_file_that_changes_on_the_pod_is_never_published(pod: PodServer, link: PodLink, tmp_path: Path) -> None:
    files = run_files(pod, "changing", {"out/a": 3 * BLOCK_BYTES})
    path = pod.root / "runs/changing/project/out/a"
    content = bytearray(path.read_bytes())
    content[2 * BLOCK_BYTES] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="out/a: changes while it is transferred"):
        download(link, "changing", files, tmp_path / "here")
    assert not (tmp_path / "here/out/a").exists()
    path.write_bytes(content[:BLOCK_BYTES])  # truncated
    link.close()
    with pytest.raises(UserError, match="out/a: changes while it is transferred"):
        download(link, "changing", files, tmp_path / "here")
    assert not (tmp_path / "here/out/a").exists()


def test_a_file_that_changes_here_is_never_stored(pod: PodServer, link: PodLink, tmp_path: Path) -> None:
    path = random_file(tmp_path / "changing", 2 * BLOCK_BYTES)
    digest = digest_file(path)
    random_file(path, 2 * BLOCK_BYTES)
    with pytest.raises(UserError, match="changing: changes while it is transferred"):
        upload(link, "any", [(path, digest)])
    assert not stored(pod, digest).exists()


def test_a_part_that_a_crash_has_damaged_is_sent_again(
    pod: PodServer, link: PodLink, line: Proxy, tmp_path: Path
) -> None:
    """Blocks that are marked as there and are not, as after a power cut."""
    path = random_file(tmp_path / "big", 6 * BLOCK_BYTES)
    digest = digest_file(path)
    parts = pod.root / "store/parts"
    parts.mkdir(parents=True, exist_ok=True)
    (parts / f"{digest.address}.part").write_bytes(path.read_bytes()[: 2 * BLOCK_BYTES])
    (parts / f"{digest.address}.have").write_bytes(b"\1\1\1\1")
    traffic = upload(link, "any", [(path, digest)])
    assert traffic.bytes_moved == 4 * BLOCK_BYTES
    assert stored(pod, digest).read_bytes() == path.read_bytes()


def test_names_that_lead_out_of_the_folder_are_refused(link: PodLink, tmp_path: Path) -> None:
    for name in ("../evil", "/tmp/evil", ".parts/x", "", ".", "a//b", "a/../b", "a\0b", "a\x1b[2Jb"):
        with pytest.raises(UserError, match="leads out of"):
            download(link, "any", {name: Digest(0, ())}, tmp_path / "here")


def test_more_than_fits_here_is_not_fetched(link: PodLink, tmp_path: Path) -> None:
    blocks = ("0" * 64,) * (1 << 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("src.pod.transfer.shutil.disk_usage", lambda path: argparse.Namespace(free=(1 << 32) - 1))
        with pytest.raises(UserError, match=r"has 4.0 GiB free, and 4.0 are to come; make room"):
            download(link, "any", {"big": Digest(1 << 32, blocks)}, tmp_path / "here")


def test_a_full_or_forbidden_disk_is_one_line(pod: PodServer, line: Proxy, tmp_path: Path) -> None:
    settings = PodSettings(ACCOUNT_KEY, user=getpass.getuser(), key=pod.key, remote_root="/proc/nothing")
    login = Login(pod.pod_id, settings, tmp_path / "pins")
    with (
        PodLink(lambda: Address("127.0.0.1", line.port), login, sys.executable, lambda text: None) as link,
        pytest.raises(UserError, match=r"cannot put the helper into /proc/nothing .*--remote-root"),
    ):
        link.ask("state", {"run_id": "x"})


def test_what_the_shell_says_at_login_is_passed_over(tmp_path: Path, sshd: str) -> None:
    """Images whose .bashrc greets, also where nobody is there to read it."""
    greeting = tmp_path / "greeting"
    greeting.write_text("echo Welcome to this pod; echo for the documentation see below >&2\n")
    greeted = PodServer(tmp_path / "greeted", sshd)
    greeted.environment["BASH_ENV"] = str(greeting)
    settings = PodSettings(ACCOUNT_KEY, user=getpass.getuser(), key=greeted.key, remote_root=str(greeted.root))
    login = Login(greeted.pod_id, settings, tmp_path / "pins")
    said: list[str] = []
    with greeted, PodLink(lambda: Address("127.0.0.1", greeted.port), login, sys.executable, said.append) as link:
        heard = link.session().execute("true").read_exactly(1 << 10)
        if not heard.startswith(b"Welcome"):
            pytest.skip("the login shell here is not bash")
        assert link.ask("state", {"run_id": "x"})["state"] == "absent"
    assert not [line for line in said if "connection lost" in line]


def test_the_transfer_benchmark_measures_what_it_says(pod: PodServer, tmp_path: Path) -> None:
    report = measure(pod, tmp_path, megabytes=6, repeats=1)
    assert set(report["mebibytes_a_second"]) >= {"ours", "scp"}
    assert 0 < report["sent_again_after_a_cut_bytes"] <= CHUNK


def test_a_pod_without_that_python_is_one_line(pod: PodServer, line: Proxy, tmp_path: Path) -> None:
    settings = PodSettings(ACCOUNT_KEY, user=getpass.getuser(), key=pod.key, remote_root=str(pod.root))
    login = Login(pod.pod_id, settings, tmp_path / "pins")
    with (
        PodLink(lambda: Address("127.0.0.1", line.port), login, "/no/python", lambda text: None) as link,
        pytest.raises(UserError, match=r"/no/python cannot put the helper .*name a Python with --remote-python"),
    ):
        link.ask("state", {"run_id": "x"})


def test_digests_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    path = random_file(tmp_path / "big", 1 << 20)
    subprocess.run(["touch", "-d", "1 hour ago", str(path)], check=True)
    cache = DigestCache(tmp_path / "digests.json")
    first = cache.digest([path])
    cache.save()
    assert first == [digest_file(path)]
    stat = path.stat()
    path.write_bytes(b"\0" * (1 << 20))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert DigestCache(tmp_path / "digests.json").digest([path]) == first, "known by size, time and inode: not read"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert DigestCache(tmp_path / "digests.json").digest([path]) == [digest_file(path)]
