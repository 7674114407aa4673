"""The journal: cut off anywhere it resumes, nothing twice, nothing of another run, and one writer at a time."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn, answer, fails, journaled, prompts_file, rows_of, settings

from ecoserve.data import Record
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect import collect
from ecoserve.serving.collect.endpoint import Answer, Failed, Outcome, Refused
from ecoserve.serving.collect.journal import Journal, journal_of

PROMPTS, SAMPLES = 3, 2
OUTCOMES: list[tuple[int, int, Outcome]] = [
    (0, 1, Answer(5, "stop", 7, "five Ünicode\n lines\0")),
    (2, 0, Refused("HTTP 400: too long")),
    (0, 0, Answer(64, "length")),
    (1, 0, Failed("HTTP 500")),
    (1, 1, Answer(9, "stop", 3, "x" * 20_000)),
]


def begun(path: Path) -> Path:
    """A journal that has begun and is empty."""
    with Journal(path) as journal:
        journal.keep_prompts(Record(conversation=f"c{i}", prompt=f"question {i}") for i in range(PROMPTS))
        journal.begin({"model": "m"})
    return path


def loaded(path: Path) -> Journal:
    journal = Journal(path)
    journal.load(SAMPLES, PROMPTS)
    return journal


def held(journal: Journal) -> dict[tuple[int, int], Answer]:
    """The answers in a journal."""
    return {(p, s): a for p in range(PROMPTS) for s, a in journal.answers(p)}


def expected(count: int) -> dict[tuple[int, int], Answer]:
    """Those after ``count`` outcomes."""
    return {(p, s): o for p, s, o in OUTCOMES[:count] if isinstance(o, Answer)}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with loaded(begun(tmp_path / "j")) as journal:
        for outcome in OUTCOMES:
            journal.add(*outcome)
    with loaded(tmp_path / "j") as journal:
        assert journal.settings() == {"model": "m"}
        assert held(journal) == expected(5)
        assert (journal.answered, journal.refused, journal.open_pairs) == (3, 1, 2)
        assert list(journal.to_do()) == [(1, 0), (2, 1)]
        assert journal.record(2) == Record(conversation="c2", prompt="question 2")
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_torn_at_any_place_the_first_outcomes_count_and_it_goes_on(tmp_path: Path) -> None:
    """A killed process leaves a log that may end anywhere, here in steps that hit every part of its pages."""
    with loaded(begun(tmp_path / "j")) as journal:
        for outcome in OUTCOMES:
            journal.add(*outcome)
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"j{suffix}", tmp_path / f"killed{suffix}")
    log = (tmp_path / "killed-wal").read_bytes()
    database = (tmp_path / "killed").read_bytes()
    seen = set()
    for cut in [*range(0, len(log), 1021), len(log)]:
        (tmp_path / "killed").write_bytes(database)
        (tmp_path / "killed-wal").write_bytes(log[:cut])
        with loaded(tmp_path / "killed") as journal:
            count = next(n for n in range(6) if held(journal) == expected(n))
            seen.add(count)
            for prompt, sample in list(journal.to_do()):
                journal.add(prompt, sample, Answer(3, "stop"))
            assert journal.open_pairs == 0
        with loaded(tmp_path / "killed") as journal:
            assert journal.open_pairs == 0
            assert expected(count).items() <= held(journal).items()
    assert seen == {0, 1, 3, 5}


def test_a_settled_sample_is_never_replaced_a_failed_one_is(tmp_path: Path) -> None:
    with loaded(begun(tmp_path / "j")) as journal:
        journal.add(0, 0, Failed("x"))
        journal.add(0, 0, Failed("y"))
        journal.add(0, 0, Answer(4, "stop"))
        with pytest.raises(AssertionError, match="sample 0 of prompt 0 is settled"):
            journal.add(0, 0, Answer(6, "stop"))
        assert (journal.answered, held(journal)) == (1, {(0, 0): Answer(4, "stop")})


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    with loaded(begun(tmp_path / "j")) as journal:
        journal.add(*OUTCOMES[0])
        journal._db.execute("PRAGMA max_page_count = 1")  # SQLite takes the pages in use
        with pytest.raises(RunError, match=r"cannot be written \(database or disk is full\).*make room"):
            journal.add(*OUTCOMES[4])
        assert held(journal) == expected(1)
        journal._db.execute("PRAGMA max_page_count = 100000")
        journal.add(*OUTCOMES[4])
    with loaded(tmp_path / "j") as journal:
        assert journal.answered == 2


def test_a_second_collector_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = begun(tmp_path / "j")
    other = "import sys, pathlib; from ecoserve.serving.collect.journal import Journal;"
    other += "j = Journal(pathlib.Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    with Journal(path), pytest.raises(ConfigError, match="another collector is writing to it"):
        Journal(path)
    command = [sys.executable, "-c", other, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(ConfigError, match="another collector"):
            Journal(path)
        process.kill()
        process.wait()
    Journal(path).close()


def test_a_journal_removed_while_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner finishes and removes it, between another's opening and locking."""
    path = tmp_path / "j"
    owner = Journal(path)
    real = Journal._lock

    def lock(self: Journal) -> None:
        owner.remove()
        real(self)

    monkeypatch.setattr(Journal, "_lock", lock)
    with pytest.raises(ConfigError, match="another collector"):
        Journal(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.5}, "was begun with temperature not given, now it is 0.5"),
        ({"samples": 3}, "was begun with samples 2, now it is 3"),
        ({"top_p": 0.9}, "top_p not given, now it is 0.9"),
        ({"max_tokens": 9}, "was begun with max_tokens not given, now it is 9"),
        ({"seed": 1}, "was begun with seed 0, now it is 1"),
        ({"api": "completions"}, "was begun with api chat, now it is completions"),
        ({"keep_text": False}, "was begun with keep_text True, now it is False"),
        ({"body": {"top_k": 3}}, "was begun with other fields in --body"),
        ({"served_model": "other"}, "was begun with the model stand-in, now it is other"),
        ({"limit": 3}, r"was begun with other prompts \(6 there, 3 now\)"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_nothing_is_lost(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    source, out = prompts_file(tmp_path, 6), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: answer(body) if len(server.bodies) < 5 else fails(401)) as server:
        with pytest.raises(RunError):
            collect(settings(source, out, server.url, samples=2, concurrency=1))
        server.behave = lambda body, n: answer(body)
        before = journal_of(out).read_bytes()
        with pytest.raises(ConfigError, match=words):
            collect(settings(source, out, server.url, **({"samples": 2} | changes)))
        assert journal_of(out).read_bytes() == before
        assert journaled(out) == {"answered": 4}
        # How fast, how patiently and from where may change.
        s = settings(source, out, f"{server.url}/v1", samples=2, concurrency=3, rate=1000, timeout_s=9)
        assert collect(s).rows_earlier == 4
    assert len(rows_of(out)) == 12


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"{}" * 5000), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged"),
        (lambda path: change(path, "DELETE FROM prompts WHERE prompt = 1"), "is damaged"),
        (lambda path: change(path, "PRAGMA user_version = 99"), "is of another version of ecoserve"),
    ],
)
def test_a_damaged_journal_is_not_touched(tmp_path: Path, damage: Any, words: str) -> None:
    source, out = prompts_file(tmp_path, 300), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: answer(body) if len(server.bodies) < 3 else fails(401)) as server:
        with pytest.raises(RunError):
            collect(settings(source, out, server.url, concurrency=1))
        damage(journal_of(out))
        before = journal_of(out).read_bytes()
        with pytest.raises(ConfigError, match=rf"{words}; remove .*out\.jsonl\.journal to start over"):
            collect(settings(source, out, server.url))
        assert journal_of(out).read_bytes() == before


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


def test_a_journal_of_the_former_format_is_refused(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 2), tmp_path / "out.jsonl"
    journal_of(out).mkdir()
    (journal_of(out) / "answers.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"is a journal of an earlier version of ecoserve; finish it .* or remove"):
        collect(settings(source, out, "http://127.0.0.1:9"))
    assert (journal_of(out) / "answers.jsonl").exists()


def test_other_prompts_of_the_same_number_are_others(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 6), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: answer(body) if len(server.bodies) < 5 else fails(401)) as server:
        with pytest.raises(RunError):
            collect(settings(source, out, server.url, concurrency=1))
        source.write_text(source.read_text().replace("question 5", "question 6"))
        with pytest.raises(ConfigError, match=r"was begun with other prompts; give the same, name another output"):
            collect(settings(source, out, server.url))


def test_what_an_unfinished_start_left_does_not_count(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 2), tmp_path / "out.jsonl"
    with Journal(journal_of(out)) as journal:
        journal.keep_prompts([Record(conversation="old", prompt="old")])
        journal.add(0, 0, Answer(4, "stop"))
    with StandIn() as server:
        result = collect(settings(source, out, server.url))
    assert (result.rows, result.rows_earlier, result.requests_sent) == (2, 0, 2)


def test_a_run_that_ended_between_trace_and_journal_just_ends(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 2), tmp_path / "out.jsonl"
    with StandIn() as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "remove", lambda self: None)
            collect(settings(source, out, server.url))
        assert journal_of(out).exists()
        first = out.read_bytes()
        result = collect(settings(source, out, server.url))
    assert (result.rows, result.requests_sent) == (2, 0)
    assert out.read_bytes() == first
    assert not journal_of(out).exists()
