"""``--learn DIR``: the folder, the process that fits, and what happens when they fail."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ecoserve.data import synthetic_trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import load_predictor, train_predictor
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.boosting.predictor import BoostingSettings
from ecoserve.serving.adapter import learner as module
from ecoserve.serving.adapter.learner import ANSWERS, ASIDE, CHECKPOINT, Learner

LONGEST_S = 120.0


@contextmanager
def learning(folder: Path, base: LengthPredictor | None = None, *, patch: pytest.MonkeyPatch) -> Iterator[Learner]:
    """Without waits between fits, writes and looks."""
    for name, value in (("REFIT_S", 0.0), ("REFIT_SHARE", 0.0), ("SAVE_S", 0.0), ("_POLL_S", 0.01)):
        patch.setattr(module, name, value)
    learner = Learner(folder, base)
    learner.start()
    try:
        yield learner
    finally:
        learner.close()


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answer(learner: Learner, count: int, seed: int = 0) -> None:
    """Responses that vLLM reports before they are over."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        long = bool(rng.integers(2))
        notes = learner.predict([f"{'essay' if long else 'word'} about thing{i % 20}"])
        name = f"chatcmpl-{seed}-{i}"
        learner.finished(name, max(1, round((300 if long else 30) * np.exp(0.3 * rng.standard_normal()))), "stop", 900)
        learner.over(learner.learnable(notes), {"request_metadata": SimpleNamespace(request_id=name)})


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a server has learned, whose process was killed on the way."""
    folder = tmp_path_factory.mktemp("learner") / "learned"
    with pytest.MonkeyPatch.context() as patch, learning(folder, patch=patch) as learner:
        assert learner.model.model is None
        answer(learner, 100)
        until(lambda: learner.model.model)
        first, pid = learner.model.model, learner._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        answer(learner, 100, seed=1)
        until(lambda: learner.model.model is not first and learner.model.serving)
        assert learner._process.pid != pid
        pid = learner._process.pid
        with pytest.raises(ConfigError, match="another server learns there"):
            Learner(folder)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    return folder


@pytest.fixture
def copy(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "learned", symlinks=True))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the learner says, whether vLLM has set its loggers up or not."""
    said: list[tuple[str, str]] = []
    logger = logging.Logger("learner")
    logger.addFilter(lambda record: said.append((record.levelname, record.getMessage())) or False)
    monkeypatch.setattr(module, "logger", logger)
    return said


def test_it_starts_from_what_it_has_learned(copy: Path) -> None:
    assert load_predictor(copy / CHECKPOINT).config.backend == "linear"
    assert sum(p.is_dir() for p in copy.iterdir()) == 2, "the checkpoint and the link to it"
    learner = Learner(copy)
    short, long = (learner.predict([f"{word} about thing1"])[0].lengths for word in ("word", "essay"))
    assert short is not None
    assert long is not None
    assert short.quantile(0.9) < long.quantile(0.1)
    assert len(learner.model.answers) == 200
    learner.close()


def test_a_full_disk_takes_nothing_but_time(
    copy: Path, monkeypatch: pytest.MonkeyPatch, lines: list[tuple[str, str]]
) -> None:
    def full(path: Path, content: bytes) -> Path:
        raise OSError(28, "No space left on device")

    learner = Learner(copy)
    answer(learner, 30, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        assert not any(learner._save() for _ in range(3))
    assert learner.predict(["essay about thing1"])[0].lengths is not None
    assert learner._save()
    said = "\n".join(line for _, line in lines)
    assert said.count("cannot write in") == 1, "one line, not one a second"
    assert said.count("can be written again") == 1
    learner.close()
    again = Learner(copy)
    assert len(again.model.answers) == 230
    again.close()


@pytest.mark.parametrize("spoil", [b"", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0{}"])
def test_what_is_damaged_is_kept_aside_and_history_serves(
    copy: Path, spoil: bytes, lines: list[tuple[str, str]]
) -> None:
    (copy / CHECKPOINT / "linear.safetensors").write_bytes(spoil)
    (copy / ANSWERS).write_bytes(spoil)
    learner = Learner(copy)
    assert learner.predict(["essay about thing1"])[0].lengths is None
    assert not learner.model.answers
    learner.close()
    warned = [line for level, line in lines if level == "WARNING"]
    assert len(warned) == 2
    assert all("cannot be used" in line and "\n" not in line for line in warned)
    assert (copy / (ANSWERS + ASIDE)).read_bytes() == spoil
    assert (copy / (CHECKPOINT + ASIDE)).is_dir()


def test_a_predictor_is_adapted_from_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BoostingSettings(rounds=5)
    trace = synthetic_trace(200, seed=0)
    base = train_predictor(trace, backend="lightgbm", output_dir=tmp_path / "base", settings=settings)
    folder = tmp_path / "learned"
    with learning(folder, base, patch=monkeypatch) as learner:
        assert learner.predict(["word about thing1"])[0].lengths is not None, "the predictor serves from the start"
        answer(learner, 120)
        until(lambda: learner.model.model)
        assert len(learner.predict(["word about thing1"])[0].row.places) == 0
    loaded = load_predictor(folder / CHECKPOINT)
    assert loaded.config.backend == "adapted"
    with pytest.raises(ConfigError, match="no base to adapt"):
        Learner(tmp_path / "other", loaded)
    again = Learner(folder, base)
    assert len(again.model.answers) == 120
    assert again.predict(["word about thing1"])[0].lengths == loaded.predict(["word about thing1"])[0]
    again.close()
    # Without the predictor they mean nothing, and are kept aside.
    other = Learner(folder)
    assert not other.model.answers
    assert other.model.model is None
    other.close()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        Learner(tmp_path / "file")


async def _aborted(learner: Learner, sent: int) -> None:
    request = learner.learnable(learner.predict(["essay"]))

    async def nothing(message: object) -> None: ...

    for _ in range(sent):
        await request.counting(nothing)({"type": "http.response.body"})
    learner.over(request, {"request_metadata": SimpleNamespace(request_id="chatcmpl-x")})
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(("sent", "rows"), [(1, []), (12, [(10, False)])])
def test_an_aborted_stream_is_a_lower_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int, rows: list[tuple[int, bool]]
) -> None:
    monkeypatch.setattr(module, "_LATE_S", 0.01)
    learner = Learner(tmp_path / "learned")
    asyncio.run(_aborted(learner, sent))
    assert [(a.length, a.ended) for a in learner.model.answers] == rows
    learner.close()
