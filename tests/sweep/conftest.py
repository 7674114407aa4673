"""Makes ``small_runs`` importable by name, here and in worker processes; processes that start with imports done."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def forked() -> ForkServerContext:
    """Starts processes from one server that has imported the sweep: no threads, as after a spawn, in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "ecoserve.sweep.execute", "ecoserve.sweep.expansion"])
    return context


@pytest.fixture
def quick_workers(forked: ForkServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a sweep come from that server; ``test_execute`` has tests of those that are spawned."""
    monkeypatch.setattr("ecoserve.sweep.execute.multiprocessing.get_context", lambda method: forked)
