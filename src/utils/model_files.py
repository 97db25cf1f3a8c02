"""Where a model's files are, in a folder of this repository or in the hub's cache, without loading the model."""

import hashlib
from functools import lru_cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from src.utils.config import resolve_path
from src.utils.errors import UserError
from src.utils.hub import settle_hub
from src.utils.manifests import sha256_folder

ADAPTER_CONFIG = "adapter_config.json"


def local_or_hub(model: str) -> str:
    """A configured model name as transformers takes it: a folder if there is one, else the hub name as it stands."""
    folder = resolve_path(model)
    if folder.is_dir():
        return str(folder)
    settle_hub()
    return model


def public_name(model: str) -> str:
    """A model's name as reports and manifests give it: of a folder elsewhere its own name, no path of this machine."""
    return Path(model).name if Path(model).is_absolute() else model


def find_file(model: str, file: str) -> Path | None:
    """A file of a local folder or of a hub model; None if the model has no such file."""
    folder = resolve_path(model)
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    settle_hub()
    try:
        return Path(hf_hub_download(model, file))
    except LocalEntryNotFoundError:
        return None  # neither cached nor reachable; whether the model is there at all is asked by `fingerprint`
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise unavailable(model, error) from error


def is_adapter(model: str) -> bool:
    """Whether a name means a peft adapter; else it is a full checkpoint."""
    return find_file(model, ADAPTER_CONFIG) is not None


def fingerprint(model: str) -> str:
    """What tells one state of a model from another: the hash of a local folder, the commit of a hub model.

    A hub model that is neither cached nor reachable raises `UserError`.
    """
    folder = resolve_path(model)
    if folder.is_dir():
        return _folder_hash(folder, _stamps(folder))
    config = find_file(model, "config.json") or find_file(model, ADAPTER_CONFIG)
    if config is None:
        raise unavailable(model, FileNotFoundError("no such folder, and not in the hub's cache"))
    commit = next(
        (part for before, part in zip(config.parts, config.parts[1:], strict=False) if before == "snapshots"), ""
    )
    return hashlib.sha256(f"{model}@{commit}".encode()).hexdigest()


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes with the files of a folder, without reading them: name, size, time of change in ns."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)


@lru_cache(maxsize=32)
def _folder_hash(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The hash of the folder while its files have these stamps: several gigabytes are read once a process."""
    return sha256_folder(folder)


def unavailable(model: str, error: Exception) -> UserError:
    """One line for a model that cannot be had, whatever the loader's reason."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{model}: cannot be loaded ({reason}); name a folder, or a hub model that is cached or reachable")
