"""Whatever a user gives that cannot be used ends in one line that names it, exit code 2, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoserve.cli.main import main

FILES = {
    "cut.json": '[{"instruction": "a", "output": "b"}, {"instr',
    "empty.json": "[]",
    "strange.json": '[{"x": 1}, {"x": 2}]',
    "words.txt": "hello\n",
    "damaged/config.json": "{",
    "hollow/README.md": "no config here",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("train-predictor absent.json -o out", "absent.json: no such file"),
        ("train-predictor cut.json -o out", "cut.json: JSON is cut off after 1 row"),
        ("train-predictor empty.json -o out", "empty.json: the trace is empty"),
        ("train-predictor strange.json -o out", "strange.json: unknown trace format"),
        ("train-predictor words.txt -o out", "words.txt: is neither JSON nor CSV nor Parquet"),
        ("train-predictor cut.json -o out --backend abacus", "--backend: no backend 'abacus'"),
        ("train-predictor cut.json -o out --seed -1", "--seed"),
        ("evaluate-predictor damaged cut.json", "damaged/config.json: is not valid JSON"),
        ("predict absent hello", "absent: no such checkpoint"),
        ("predict hollow hello", "hollow/config.json: is missing"),
        ("replay cut.json", "needs --url"),
        ("sweep absent.yaml -o out", "absent.yaml: there is no such file"),
        ("sweep words.txt -o out", "words.txt: is not a plan"),
        ("report hollow", "hollow: is not a result folder"),
    ],
)
def test_it_is_named_in_one_line_and_nothing_is_left(
    folder: Path, line: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert named in err
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
