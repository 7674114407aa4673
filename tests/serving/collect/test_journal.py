"""The journal: cut off anywhere it goes on, nothing twice, nothing of another run, and one writer at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stand_in import StandIn, answer, fails, prompts_file, rows_of, settings

from ecoserve.data import Record
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect import collect
from ecoserve.serving.collect.journal import Journal, journal_of
from ecoserve.serving.collect.lines import NumberedLines, line_at
from ecoserve.serving.collect.replies import Answer, Failed, Outcome, Refused

PROMPTS, SAMPLES = 3, 2
OUTCOMES: list[tuple[int, int, Outcome]] = [
    (0, 1, Answer(5, "stop", 7, "five Ünicode\n lines")),
    (2, 0, Refused("HTTP 400: too long")),
    (0, 0, Answer(64, "length")),
    (1, 0, Failed("HTTP 500")),
    (1, 1, Answer(9, "stop", 3, "x" * 200_000)),
]


def begun(folder: Path) -> Path:
    """A journal that has begun and is empty."""
    with Journal(folder) as journal:
        journal.keep_prompts((Record(conversation=f"c{i}", prompt=f"question {i}"), "") for i in range(PROMPTS))
        journal.begin({"identity": {}, "model": "m", "prompts": PROMPTS, "prompts_sha256": ""})
    return folder


def written(folder: Path, count: int = len(OUTCOMES)) -> bytes:
    """A journal with outcomes; returns its lines."""
    with Journal(begun(folder)) as journal:
        assert journal.open(SAMPLES, PROMPTS) == 0
        for outcome in OUTCOMES[:count]:
            journal.add(*outcome)
    return (folder / "answers.jsonl").read_bytes()


def held(journal: Journal) -> dict[tuple[int, int], Any]:
    """What a journal says of each pair."""
    answers = {(p, s): a for p in range(PROMPTS) for s, a in journal.answers(p)}
    refused = {(p, s): "refused" for p in range(PROMPTS) for s in range(SAMPLES) if journal.tokens[p, s] < 0}
    return answers | refused


def expected(count: int) -> dict[tuple[int, int], Any]:
    """What it has to say after ``count`` outcomes."""
    return {
        (p, s): o if isinstance(o, Answer) else "refused" for p, s, o in OUTCOMES[:count] if not isinstance(o, Failed)
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        assert journal.open(SAMPLES, PROMPTS) == 0
        assert held(journal) == expected(5)
        assert (journal.answered, journal.refused, journal.open_pairs) == (3, 1, 2)
        assert list(journal.to_do()) == [(1, 0), (2, 1)]
        assert journal.record(2) == Record(conversation="c2", prompt="question 2")


def test_torn_at_any_byte_the_whole_lines_count_and_the_next_is_its_own(tmp_path: Path) -> None:
    data = written(tmp_path / "j")
    path = tmp_path / "j" / "answers.jsonl"
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    # Every byte of the short lines; of the long text its beginning and end.
    for cut in [*range(ends[3] + 300), *range(len(data) - 300, len(data) + 1)]:
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        with Journal(tmp_path / "j") as journal:
            assert journal.open(SAMPLES, PROMPTS) == 0
            assert held(journal) == expected(whole)
            assert path.stat().st_size == ([0, *ends][whole])
            if whole < 5:
                journal.add(*OUTCOMES[4])
        with Journal(tmp_path / "j") as journal:
            assert journal.open(SAMPLES, PROMPTS) == 0
            assert held(journal) == expected(whole) | {(1, 1): OUTCOMES[4][2]}


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), junk=st.binary(max_size=40), cut=st.integers(0, 60))
def test_whatever_happens_to_its_bytes_it_opens_and_asks_again(
    tmp_path: Path, place: int, junk: bytes, cut: int
) -> None:
    data = written(tmp_path / "j", 3)
    path = tmp_path / "j" / "answers.jsonl"
    place = min(place, len(data))
    path.write_bytes(data[:place] + junk + data[place + cut :])
    with Journal(tmp_path / "j") as journal:
        journal.open(SAMPLES, PROMPTS)
        assert journal.answered + journal.refused + journal.open_pairs == PROMPTS * SAMPLES
        for prompt, sample in list(journal.to_do()):
            journal.add(prompt, sample, Answer(3, "stop"))
        assert journal.open_pairs == 0
    with Journal(tmp_path / "j") as journal:
        journal.open(SAMPLES, PROMPTS)
        assert journal.open_pairs == 0
        assert len(held(journal)) == PROMPTS * SAMPLES


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\x00\x00",
        b"{}",
        b"[]",
        b'{"p": 0}',
        b'{"p": 9, "s": 0, "tokens": 3, "reason": "stop"}',
        b'{"p": -1, "s": 0, "tokens": 3, "reason": "stop"}',
        b'{"p": true, "s": 0, "tokens": 3, "reason": "stop"}',
        b'{"p": 0, "s": 0, "tokens": 0, "reason": "stop"}',
        b'{"p": 0, "s": 0, "tokens": -1, "reason": "stop"}',
        b'{"p": 0, "s": 0, "tokens": 99999999999, "reason": "stop"}',
        b'{"p": 0, "s": 0, "tokens": 3}',
        b'{"p": 0, "s": 0, "tokens": 3, "reason": 7}',
        b'{"p": 0, "s": 0, "tokens": 3, "reason": "stop", "text": 7}',
        b'{"p": 0, "s": 0, "tokens": 3, "reason": "stop", "prompt_tokens": "7"}',
    ],
)
def test_a_damaged_line_is_passed_over_and_counted(tmp_path: Path, line: bytes) -> None:
    begun(tmp_path / "j")
    good = b'{"p":1,"s":1,"tokens":4,"reason":"stop"}\n'
    (tmp_path / "j" / "answers.jsonl").write_bytes(line + b"\n" + good)
    with Journal(tmp_path / "j") as journal:
        assert journal.open(SAMPLES, PROMPTS) == 1
        assert held(journal) == {(1, 1): Answer(4, "stop")}


def test_of_two_answers_to_one_sample_the_first_counts(tmp_path: Path) -> None:
    begun(tmp_path / "j")
    lines = [{"p": 0, "s": 0, "failed": "x"}, *({"p": 0, "s": 0, "tokens": n, "reason": "stop"} for n in (4, 5))]
    (tmp_path / "j" / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(tmp_path / "j") as journal:
        journal.open(SAMPLES, PROMPTS)
        assert held(journal) == {(0, 0): Answer(4, "stop")}
        with pytest.raises(AssertionError):
            journal.add(0, 0, Answer(6, "stop"))


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(tmp_path / "j")
    real = os.write

    def full(file: int, data: bytes) -> int:
        return real(file, data[: len(data) // 2])

    def broken(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with Journal(tmp_path / "j") as journal:
        journal.open(SAMPLES, PROMPTS)
        journal.add(*OUTCOMES[0])
        before = (tmp_path / "j" / "answers.jsonl").read_bytes()
        for writer, words in ((full, "half a line"), (broken, "No space left")):
            monkeypatch.setattr(os, "write", writer)
            with pytest.raises(RunError, match=words):
                journal.add(*OUTCOMES[2])
            monkeypatch.setattr(os, "write", real)
            assert (tmp_path / "j" / "answers.jsonl").read_bytes() == before
            assert held(journal) == expected(1)
        journal.add(*OUTCOMES[2])
        assert len(held(journal)) == 2


def test_a_second_collector_is_turned_away_until_the_first_has_gone(tmp_path: Path) -> None:
    folder = begun(tmp_path / "j")
    other = "import sys, pathlib; from ecoserve.serving.collect.journal import Journal;"
    other += "Journal(pathlib.Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    with Journal(folder), pytest.raises(ConfigError, match="another collector is writing to it"):
        Journal(folder)
    command = [sys.executable, "-c", other, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mine\n"
        with pytest.raises(ConfigError, match="another collector"):
            Journal(folder)
        process.kill()
        process.wait()
    Journal(folder).close()


def test_a_lock_on_a_folder_that_was_taken_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner finishes and removes it, between another's opening and locking."""
    import fcntl

    real, once = fcntl.flock, []

    def flock(file: int, how: int) -> None:
        if not once:
            once.append(file)
            (tmp_path / "j" / "lock").unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Journal(tmp_path / "j"):
        monkeypatch.undo()
        assert (tmp_path / "j" / "lock").exists()
        with pytest.raises(ConfigError, match="another collector"):
            Journal(tmp_path / "j")


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
        before = {p.name: p.read_bytes() for p in journal_of(out).iterdir()}
        with pytest.raises(ConfigError, match=words):
            collect(settings(source, out, server.url, **({"samples": 2} | changes)))
        assert {p.name: p.read_bytes() for p in journal_of(out).iterdir()} == before
        # How fast, how patiently and from where may change.
        s = settings(source, out, f"{server.url}/v1", samples=2, concurrency=3, rate=1000, timeout_s=9)
        assert collect(s).rows_earlier == 4
    assert len(rows_of(out)) == 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", b"{"),
        ("settings.json", b"[]"),
        ("settings.json", b'{"ecoserve_collect": 99}'),
        ("settings.json", b'{"ecoserve_collect": 1}'),
        ("prompts.jsonl", b'{"conversation": "c0", "turn": 0, "prompt": "question 0"}\n'),
        ("prompts.jsonl", None),
    ],
)
def test_a_damaged_journal_is_not_touched(tmp_path: Path, name: str, content: bytes | None) -> None:
    source, out = prompts_file(tmp_path, 3), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: answer(body) if len(server.bodies) < 3 else fails(401)) as server:
        with pytest.raises(RunError):
            collect(settings(source, out, server.url, concurrency=1))
        broken = journal_of(out) / name
        broken.unlink() if content is None else broken.write_bytes(content)
        answers = (journal_of(out) / "answers.jsonl").read_bytes()
        with pytest.raises(ConfigError, match=r"remove .*out\.jsonl\.journal to begin anew"):
            collect(settings(source, out, server.url))
        assert (journal_of(out) / "answers.jsonl").read_bytes() == answers


def test_a_folder_that_holds_more_than_a_journal_stays(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 2), tmp_path / "out.jsonl"
    folder = journal_of(out)
    folder.mkdir()
    (folder / "mine").write_text("mine")
    (folder / ".prompts.jsonl.x7").write_text("of a beginning that was killed")
    with StandIn() as server:
        collect(settings(source, out, server.url))
    assert [p.name for p in folder.iterdir()] == ["mine"]


def test_other_prompts_of_the_same_number_are_others(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 6), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: answer(body) if len(server.bodies) < 5 else fails(401)) as server:
        with pytest.raises(RunError):
            collect(settings(source, out, server.url, concurrency=1))
        source.write_text(source.read_text().replace("question 5", "question 6"))
        with pytest.raises(ConfigError, match=r"was begun with other prompts; give the same, name another output"):
            collect(settings(source, out, server.url))


def test_what_an_unfinished_beginning_left_does_not_count(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 2), tmp_path / "out.jsonl"
    folder = journal_of(out)
    folder.mkdir()
    (folder / "answers.jsonl").write_bytes(b'{"p":0,"s":0,"tokens":4,"reason":"stop"}\n')
    (folder / "prompts.jsonl").write_bytes(b"half a")
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


def test_lines_by_number_and_place(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\n" + b"x" * 200_000 + b"\nend")
    lines = NumberedLines(path)
    assert [len(lines[i]) for i in (3, 2, 1, 0)] == [3, 200_001, 1, 4]
    assert len(lines) == 4
    lines.close()
    with path.open("rb") as file:
        assert [len(line_at(file.fileno(), place)) for place in (0, 4, 5, 200_006, 200_009)] == [4, 1, 200_001, 3, 0]
