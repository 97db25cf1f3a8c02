"""How fast files get to a pod and back, against scp and rsync, in one run.

    uv run python benchmarks/pod_transfer.py
    uv run python benchmarks/pod_transfer.py --megabytes 64 --repeats 3

A real OpenSSH server on this machine, random data. Ours includes finding out what is missing, SHA-256 of every block on
both sides, and publishing; "hashing" is what reading and hashing the file the first time takes, which is remembered.
Then: the second sync of the same file, and what a cut in mid-transfer sends twice.
"""

import argparse
import getpass
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reports import REPORTS, write_report
from src.pod.digests import DigestCache
from src.pod.link import PodLink
from src.pod.pods import Address
from src.pod.remote.blocks import digest_file
from src.pod.remote.layout import RunFolder
from src.pod.settings import PodSettings
from src.pod.ssh import Login
from src.pod.transfer import download, upload
from tests.pod_server import PodServer, Proxy

SSH_OPTIONS = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many (default: 3)")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None:
        sys.exit("no sshd here: apt install openssh-server")
    with tempfile.TemporaryDirectory() as folder, PodServer(Path(folder) / "pod", sshd) as pod:
        report = measure(pod, Path(folder), options.megabytes, options.repeats)
    print(write_report(report, options.output, "pod_transfer"))


def measure(pod: PodServer, folder: Path, megabytes: int, repeats: int) -> dict[str, Any]:
    big, back = folder / "big", folder / "back"
    big.write_bytes(os.urandom(megabytes << 20))
    os.utime(big, (0, 0))  # settled: its digest may be remembered
    began = time.perf_counter()
    digest = digest_file(big)
    hashing = time.perf_counter() - began
    rates: dict[str, dict[str, float]] = {}
    host = f"{getpass.getuser()}@127.0.0.1"
    there = pod.folder / "there"
    shell = " ".join(["ssh", "-p", str(pod.port), "-i", str(pod.key), *SSH_OPTIONS])

    def best(tool: str, direction: str, work: Callable[[], object], reset: Callable[[], object]) -> None:
        seconds = []
        for _ in range(repeats):
            reset()
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        rates.setdefault(tool, {})[direction] = megabytes / min(seconds)

    def forget() -> None:
        for path in (there, back, pod.root / "store" / digest.address[:2] / digest.address):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder / "here", ignore_errors=True)

    with link_to(pod, pod.port, folder) as link:
        link.ask("state", {"run_id": "x"})  # connected, the helper in place
        best("ours", "up", lambda: upload(link, "bench", [(big, digest)]), forget)
        work = RunFolder(pod.root, "bench").project
        work.mkdir(parents=True)
        shutil.copyfile(big, work / "big")
        best("ours", "down", lambda: download(link, "bench", {"big": digest}, folder / "here"), forget)
        assert (folder / "here/big").read_bytes() == big.read_bytes()
        cache = DigestCache(folder / "digests.json")
        cache.digest([big])
        cache.save()
    scp = ["scp", "-q", "-P", str(pod.port), "-i", str(pod.key), *SSH_OPTIONS]
    best("scp", "up", lambda: run([*scp, str(big), f"{host}:{there}"]), forget)
    run([*scp, str(big), f"{host}:{there}"])
    best("scp", "down", lambda: run([*scp, f"{host}:{there}", str(back)]), lambda: back.unlink(missing_ok=True))
    if shutil.which("rsync"):
        rsync = ["rsync", "-e", shell]
        best("rsync", "up", lambda: run([*rsync, str(big), f"{host}:{there}"]), forget)
        best("rsync", "down", lambda: run([*rsync, f"{host}:{there}", str(back)]), lambda: back.unlink(missing_ok=True))
    print(
        f"{megabytes} MiB over loopback, best of {repeats}, MiB/s; connections: scp's and rsync's included, ours made"
    )
    print(f"{'':<6} {'up':>8} {'down':>8}")
    for tool, found in rates.items():
        print(f"{tool:<6} {found['up']:>8.0f} {found['down']:>8.0f}")
    ratio = {direction: rates["ours"][direction] / rates["scp"][direction] for direction in ("up", "down")}
    print(f"ours / scp: {ratio['up']:.2f} up, {ratio['down']:.2f} down")
    print(
        f"hashing: {megabytes / hashing:.0f} MiB/s, once a file" + ("" if shutil.which("rsync") else "; no rsync here")
    )
    return {
        "mebibytes": megabytes,
        "repeats": repeats,
        "mebibytes_a_second": rates,
        "of_scp": ratio,
        "hashing_mebibytes_a_second": megabytes / hashing,
        "second_sync_seconds": second_sync(pod, folder, big),
        "sent_again_after_a_cut_bytes": after_a_cut(pod, folder, big),
    }


def second_sync(pod: PodServer, folder: Path, big: Path) -> float:
    """The same file again, from a client that has just been started."""
    with link_to(pod, pod.port, folder) as link:
        upload(link, "bench", [(big, digest_file(big))])
    began = time.perf_counter()
    with link_to(pod, pod.port, folder) as link:
        traffic = upload(link, "bench", [(big, DigestCache(folder / "digests.json").digest([big])[0])])
    seconds = time.perf_counter() - began
    print(f"second sync: {seconds:.2f} s with connecting, {traffic.bytes_moved} bytes sent")
    return seconds


def after_a_cut(pod: PodServer, folder: Path, big: Path) -> int:
    """What is sent again when the line is cut half-way."""
    digest = digest_file(big)
    (pod.root / "store" / digest.address[:2] / digest.address).unlink()
    with Proxy(pod.port) as line, link_to(pod, line.port, folder) as link:
        line.faults = [("cut", "up", digest.size // 2)]
        traffic = upload(link, "bench", [(big, digest)])
    again = traffic.bytes_moved - digest.size
    print(f"resume after a cut: {again / 2**20:.1f} MiB sent again (at most 4)")
    return again


def link_to(pod: PodServer, port: int, folder: Path) -> PodLink:
    settings = PodSettings("no key", key=pod.key, user=getpass.getuser(), remote_root=str(pod.root))
    login = Login("bench", settings, folder / "pins")
    return PodLink(lambda: Address("127.0.0.1", port), login, sys.executable, lambda text: None)


def run(command: list[str]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
