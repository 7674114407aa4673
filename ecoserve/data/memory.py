"""How much memory there is, and how much records take.

Rule: what cannot be known is ``None``, never a guess; a container's limit counts as the machine's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ecoserve.data.records import Record

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can still be used without swapping, by this machine's and this container's account."""
    known = [n for n in (_of_machine(), _of_container()) if n is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_container() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files are given back when memory gets short.
        return limit - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def bytes_of(records: Iterable[Record]) -> int:
    """Bytes that ``records`` take, texts and messages that several of them share counted once."""
    seen: set[int] = set()
    total = 0

    def add(value: object) -> None:
        nonlocal total
        if value is not None and id(value) not in seen:
            seen.add(id(value))
            total += sys.getsizeof(value)

    for record in records:
        add(record)
        for text in (record.conversation, record.prompt, record.response, record.model, record.split):
            add(text)
        for number in (record.response_tokens, record.prompt_tokens, record.arrival_s):
            add(number)
        for part in (record.messages, record.sample_tokens, record.prefix_hashes):
            add(part)
            for value in part:
                add(value)
        for message in record.messages:
            add(message.content)
    return total
