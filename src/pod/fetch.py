"""The results of a run, from the pod into the results folder: downloaded by content, verified, published."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from src.pod.client import PodClient
from src.pod.link import PodLink
from src.pod.payload import JUDGE_OUTPUT, JUDGE_TRAIN, REMOTE_RESULTS, judge_folder
from src.pod.remote.blocks import Digest
from src.pod.results import publish_results, verify_results
from src.pod.run_record import RunRecord, now
from src.pod.transfer import download
from src.utils.errors import UserError


def offered_files(listed: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Digest]:
    """The files that a pod offers, by name; `UserError` for one that was not asked for, or that cannot be."""
    asked = [PurePosixPath(output).as_posix() for output in outputs]  # ./out and out//x are as the user typed them
    for name in listed:
        if not any(name == output or name.startswith(f"{output}/") for output in asked):
            raise UserError(f"pod: offers a file named {name!r}, which was not asked for; nothing was fetched")
    try:
        return {name: Digest.from_json(value) for name, value in listed.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"pod: offers files that cannot be ({error}); nothing was fetched") from error


def fetch(
    client: PodClient, record: RunRecord, link: PodLink, results_dir: Path, force: bool = False
) -> tuple[RunRecord, dict[str, Any]]:
    """Download, verify, publish, and tell the pod (its guard may stop it then).

    Returns the record and what the pod says of other runs: which need it (`others`), and which are `unfetched`.

    Outputs under `results/` go to `results_dir`, a safety judge to where one that is trained here lies; others stay in
    the run's own folder beside its record. Nothing is published unless all of it holds; `force` lets it take the place
    of another profile's or world's.
    """
    listed = link.ask("list", {"run_id": record.run_id, "outputs": record.outputs})["files"]
    if not listed:
        raise UserError(f"run {record.run_id}: left none of its outputs ({', '.join(record.outputs)}); see its log")
    files = offered_files(listed, record.outputs)
    staged = client.records.staging_path(record.run_id)
    total = sum(digest.size for digest in files.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="download", disable=None, leave=False) as progress:
        traffic = download(link, record.run_id, files, staged, progress.update)
    found = verify_results(staged, record.outputs)
    published, left = publish_outputs(record, found, staged, results_dir, force)
    client.say(f"fetched {len(files)} files, {traffic.bytes_moved / 1e6:.1f} MB")
    for path in published:
        if not path.name.endswith(".manifest.json"):
            client.say(f"  {path}")
    if left:
        client.say(f"  {staged}")
    record = client.records.save(record.updated(state="fetched", last_seen=now()))
    state = link.ask("fetched", {"run_id": record.run_id})
    shutil.rmtree(staged / ".parts" if left else staged, ignore_errors=True)
    shutil.rmtree(staged / REMOTE_RESULTS, ignore_errors=True)
    return record, state


def publish_outputs(
    record: RunRecord, found: Sequence[Path], staged: Path, results_dir: Path, force: bool
) -> tuple[list[Path], list[Path]]:
    """Put what was fetched where it belongs; the paths there, and what has no place but the staging folder."""
    ours = [path for path in found if path.is_relative_to(staged / REMOTE_RESULTS)]
    published = publish_results(ours, staged / REMOTE_RESULTS, results_dir, force)
    left = [path for path in found if path not in ours]
    if record.step == JUDGE_TRAIN and left:
        judge = staged / JUDGE_OUTPUT
        published += publish_results(sorted(judge.iterdir()), judge, judge_folder(record.options), force)
        left = []
    return published, left
