"""Data sets and tokenizers on the Hugging Face hub.

Whether the hub can be reached is known within :data:`PATIENCE_S` seconds, and ``HF_HUB_OFFLINE`` is obeyed; rows are
streamed, so that nothing is kept in the home directory.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import TraceError

#: Longest wait for a first answer of the hub, in seconds, name look-up included.
PATIENCE_S: Final = 4.0
HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_SUFFIXES: Final = (".json", ".jsonl", ".ndjson", ".parquet", ".gz", ".csv", ".txt")
_BATCH: Final = 1000
_FALSE: Final = ("", "0", "false", "no", "off")


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` means a data set on the hub: ``owner/name``, no such local path, no file's suffix."""
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        return False
    return not source.lower().endswith(_FILE_SUFFIXES) and not Path(source).exists()


def require_hub(where: str, fix: str) -> None:
    """Return if the hub can be reached within :data:`PATIENCE_S` and ``HF_HUB_OFFLINE`` is not set.

    Raises TraceError if not; ``where`` names what is wanted from it, ``fix`` what the user can do without a hub.
    """
    if offline():
        raise TraceError("is not on this machine, and HF_HUB_OFFLINE is set", where=where, fix=f"unset it, or {fix}")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[str | None] = []
    # A thread, because a name look-up knows no time-out.
    probe = threading.Thread(target=lambda: answer.append(_unreachable(endpoint)), daemon=True)
    probe.start()
    probe.join(PATIENCE_S)
    problem = answer[0] if answer else f"no answer within {PATIENCE_S:g} s"
    if problem is not None:
        raise TraceError(f"the hub at {endpoint} cannot be reached ({problem})", where=where, fix=fix)


def _unreachable(endpoint: str) -> str | None:
    import httpx

    try:
        status = httpx.head(endpoint, timeout=PATIENCE_S - 1).status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as e:
        return " ".join(str(e).split()) or type(e).__name__
    return f"status {status}" if status >= 500 else None


def hub_rows(name: str) -> Iterator[object]:
    """The rows of every split of the data set ``name``, streamed, each with its split's name if there are several.

    Under ``HF_HUB_OFFLINE`` they come from the cache of ``datasets``, if they are there.
    """
    fix = "there is no such file either: give the path of a file, or download the data set elsewhere"
    from_cache = offline()
    if not from_cache:
        require_hub(name, fix=fix)
    with _quiet_datasets() as datasets:
        try:
            splits: dict[str, Any] = datasets.load_dataset(name, streaming=not from_cache)
            for split, rows in splits.items():
                for row in _table_rows(rows):
                    if len(splits) > 1 and isinstance(row, dict):
                        row.setdefault("split", split)
                    yield row
        except (OSError, ValueError, LookupError, RuntimeError) as e:
            if from_cache:
                what = "is not in the cache of datasets, and HF_HUB_OFFLINE is set"
                raise TraceError(what, where=name, fix=f"unset it; {fix}") from e
            reason = " ".join(str(e).split())[:200]
            raise TraceError(f"the hub's data set cannot be read ({reason})", where=name, fix="give a file") from e


def _table_rows(dataset: Any) -> Iterator[object]:
    """The rows of a streaming ``datasets`` dataset, its JSON-encoded columns decoded."""
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        encoded = [f.name for f in table.schema if "json" in str(f.type)]
        for row in table.to_pylist():
            for name in encoded:
                if isinstance(row[name], str):
                    row[name] = json.loads(row[name])
            yield row


@contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """The ``datasets`` module, its progress bars and log lines off."""
    import datasets

    log = datasets.utils.logging
    level, quiet = log.get_verbosity(), datasets.are_progress_bars_disabled()
    log.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield datasets
    finally:
        log.set_verbosity(level)
        if not quiet:
            datasets.enable_progress_bars()


def offline() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").lower() not in _FALSE for name in names)
