"""Memory is known by what the machine and the container say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoserve.data import memory
from ecoserve.data.memory import available_memory, bytes_of
from ecoserve.data.records import Message, Record


def test_shared_texts_are_counted_once() -> None:
    text = "x" * 100_000
    alone = bytes_of([Record("a", prompt=text)])
    message = Message("user", text)
    chats = [Record(str(i), prompt=text, messages=(message,)) for i in range(10)]
    assert 100_000 < alone < 101_000
    assert 100_000 < bytes_of(chats) < 105_000
    assert bytes_of([Record("a", prompt="y" * 100_000), Record("b", prompt=text)]) > 200_000


def test_this_machine_has_memory() -> None:
    assert (available_memory() or 0) > 1 << 20


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\n")
    return tmp_path


def limit(folder: Path, limit: str, used: int, files: int) -> None:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(used))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")


def test_a_containers_limit_counts(machine: Path) -> None:
    assert available_memory() == 64 * 1024
    limit(machine, "20000\n", 12000, 3000)
    assert available_memory() == 11000
    limit(machine, "2000000\n", 0, 0)
    assert available_memory() == 64 * 1024


@pytest.mark.parametrize("text", ["", "MemAvailable:\n", "MemAvailable: much\n"])
def test_what_is_not_known_is_not_guessed(machine: Path, text: str) -> None:
    limit(machine, "max\n", 12000, 3000)
    (machine / "meminfo").write_text(text)
    assert available_memory() is None
    (machine / "meminfo").unlink()
    assert available_memory() is None
