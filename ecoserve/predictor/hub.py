"""Checkpoints from and to the Hugging Face hub, which is asked only when a user names something that lives there.

The local cache comes first; a hub that is out of reach is one error line within seconds. Safetensors, JSON and text
files only, in both directions. What is published is a checkpoint whose every file has been checked, in one commit.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ecoserve.data.hub import HUB_ID, PATIENCE_S, require_hub
from ecoserve.errors import CheckpointError, ConfigError, RunError, TraceError
from ecoserve.predictor import checkpoint

_SUFFIXES: Final = (".safetensors", ".json", ".txt")
_PATTERNS: Final = [*(f"*{s}" for s in _SUFFIXES), checkpoint.CARD]
#: What stands for the checkpoint's place in its model card.
_PLACE: Final = "THIS_FOLDER"


def locate(source: str | Path) -> Path:
    """The folder of a checkpoint: ``source`` itself, or a snapshot of the hub's repository of that id."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError("is a file, not a checkpoint's folder", where=str(source), fix="give the folder")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source) or folder.parent.is_dir():
        raise CheckpointError("no such checkpoint", where=str(source), fix="train one with ecoserve train-predictor")
    return snapshot(source)


def cached(repo_id: str) -> Path | None:
    """The folder of a hub repository that was fetched before, or ``None``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def snapshot(repo_id: str, *, fix: str = "give a folder, or connect to the hub") -> Path:
    """The local folder of a hub repository's files, downloaded if need be; a CheckpointError if it cannot be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    found = cached(repo_id)
    if found is not None:
        return found
    try:
        require_hub(repo_id, fix)
    except TraceError as error:
        raise CheckpointError(f"no such folder here, and {error.what}", where=repo_id, fix=fix) from error
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS, etag_timeout=PATIENCE_S))
    except RepositoryNotFoundError as error:
        raise CheckpointError("no such folder here, and no such repository on the hub", where=repo_id) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"cannot be fetched from the hub: {_line(error)}", where=repo_id) from error


def push(
    folder: str | Path, repo_id: str, *, private: bool = False, message: str | None = None
) -> tuple[str, list[str]]:
    """Publish a checkpoint as the model repository ``owner/name``, which is made (``private``?) if there is none.

    The token is huggingface_hub's: ``HF_TOKEN``, or what ``hf auth login`` has stored. ``HF_ENDPOINT`` names the hub.

    Returns:
        the repository's URL, and the names of the files in the commit.

    Raises CheckpointError if ``folder`` is no whole checkpoint; ConfigError if ``repo_id`` is no id, or the hub does
    not let this user write there; RunError if the hub cannot be reached, or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not HUB_ID.fullmatch(repo_id):
        raise ConfigError("is no id on the hub", where=repo_id, fix="give owner/name")
    source = Path(folder).expanduser()
    names = checkpoint.files_of(source)
    unfit = [n for n in names if not n.endswith(_SUFFIXES)]
    if unfit:
        raise CheckpointError(f"is of no kind that is published ({', '.join(_SUFFIXES)})", where=str(source / unfit[0]))
    card = source / checkpoint.CARD
    text = card.read_text(encoding="utf-8").replace(_PLACE, repo_id) if card.is_file() else ""
    parts = [CommitOperationAdd(name, source / name) for name in names]
    parts += [CommitOperationAdd(checkpoint.CARD, text.encode())] if text else []
    try:
        require_hub(repo_id, "connect to the hub")
    except TraceError as error:
        raise RunError(error.what, where=repo_id, fix="connect to it, or set HF_ENDPOINT") from error
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"), library_name="ecoserve")
    fix = "log in with hf auth login, or set HF_TOKEN to a token that may write there"
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, parts, commit_message=message or "Response length predictor, by ecoserve")
    except LocalTokenNotFoundError as error:
        raise ConfigError("the hub wants a token, and there is none", where=repo_id, fix=fix) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403, 404):
            what = f"the hub does not let you write there (status {status})"
            raise ConfigError(what, where=repo_id, fix=fix) from error
        if status in (400, 422):
            raise ConfigError(f"the hub refuses it: {_line(error)}", where=repo_id) from error
        raise RunError(f"the hub failed: {_line(error)}", where=repo_id, fix="try again later") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(f"cannot be sent to the hub: {_line(error)}", where=repo_id, fix="try again later") from error
    return str(address), sorted(p.path_in_repo for p in parts)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
