"""Snapshots from the Hugging Face hub, asked only when a user names something that lives there.

Rule: the local cache is asked first; a hub that is out of reach is noticed within seconds and answered with one line.
Safetensors, JSON and text files only.
"""

from __future__ import annotations

from pathlib import Path

from ecoserve.data.hub import PATIENCE_S, require_hub
from ecoserve.errors import CheckpointError, TraceError

_PATTERNS = ["*.safetensors", "*.json", "*.txt", "README.md"]


def cached(repo_id: str) -> Path | None:
    """The folder of a hub repository that was fetched before, or ``None``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def snapshot(repo_id: str, *, fix: str = "give a folder, or connect to the hub") -> Path:
    """The local folder of a hub repository's files, downloaded if need be.

    Raises:
        CheckpointError: if it is not in the cache and cannot be fetched.
    """
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
        line = " ".join(str(error).split())[:160]
        raise CheckpointError(f"cannot be fetched from the hub: {line}", where=repo_id) from error
