"""The tutorial (docs/start.md) as it is typed: its files, its commands up to the server, and what they print.

A block of ``text`` after a command shows some of its lines, ``...`` for those that are left out. Words must be equal;
figures may differ by a fifth, since they come from floating point and from a scheduler that is worked on.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ecoserve.cli.main import main

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "start.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
#: Virtual columns of the terminal make no difference: parts of a line are compared, not its spaces.
IGNORED = re.compile(r"[\s│]+")


def alike(shown: str, printed: str) -> bool:
    """Equal words, and figures within a fifth (or within two)."""
    if IGNORED.sub(" ", NUMBER.sub("#", shown)).strip() != IGNORED.sub(" ", NUMBER.sub("#", printed)).strip():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    values = [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs]
    return all(abs(a - b) <= max(2.0, 0.2 * abs(a)) for a, b in values)


def steps() -> list[tuple[str, str, str]]:
    """The blocks in order: language, text before, content."""
    found = re.finditer(r"^```(\w+)\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE)
    return [(block[1], TEXT[: block.start()].rstrip().splitlines()[-1], block[2]) for block in found]


def test_the_tutorial_does_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    ran = compared = 0
    for language, before, content in steps():
        if language == "yaml":
            Path(re.findall(r"`([\w.]+)`", before)[-1]).write_text(content, encoding="utf-8")
        elif language == "bash":
            for line in content.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] != ["ecoserve"] or words[1] in ("serve", "doctor"):
                    continue  # a server needs a model; the doctor's answer is the machine's
                assert main([*words[1:], *(["--jobs", "0"] if words[1] == "sweep" else [])]) == 0, line
                out = capsys.readouterr()
                printed = [*out.out.splitlines(), *out.err.splitlines()]
                ran += 1
        elif language == "text":
            at = 0
            for line in (line for line in content.splitlines() if line != "..."):
                found = [i for i in range(at, len(printed)) if alike(line, printed[i])]
                assert found, f"{line!r} is not in:\n" + "\n".join(printed)
                at, compared = found[0] + 1, compared + 1
    assert (ran, compared) == (5, 18)
    assert (tmp_path / "results" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("printed", "same"), [("12.1 ms, 3 left", True), ("15.9 ms, 3 left", False), ("12 s, 3", False)]
)
def test_lines_are_compared_by_words_and_figures(printed: str, same: bool) -> None:
    assert alike("12 ms,  3 left", printed) is same
