"""The options of ``ecoserve profile --collect``: what they mean, and what is said where they mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn, answer, fails, prompts_file, rows_of

from ecoserve.cli import collecting
from ecoserve.cli.collecting import SETTINGS, collect_trace, in_words
from ecoserve.cli.main import main
from ecoserve.serving.collect import CollectSettings


def test_every_setting_has_an_option() -> None:
    # The prompts are the command's TRACE; these are options of the command itself, and one that only tests need.
    elsewhere = {"prompts", "output", "format", "limit", "sample", "seed", "max_tokens", "api_key", "backoff_s"}
    assert set(SETTINGS.split()) | elsewhere == set(CollectSettings.model_fields)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--collect o.csv", "--collect: o.csv: a trace is written as .jsonl or .jsonl.gz"),
        ("--url nowhere", "--url: a URL starts with http"),
        ("--url http://u:secret@h", "--url: holds a user or password"),
        ("--body {", "--body: is not JSON"),
        ("--body []", "--body: must be a valid dictionary"),
        ("--serve-flags '", "--serve-flags: is not one text"),
        ("--timeout 0", "--timeout: must be greater than 0"),
        ("--model m --url http://h", "--collect: give url or model, not both"),
        ("--top-p 2", "--top-p: must be less than or equal to 1"),
        ("--api-key \N{LATIN SMALL LETTER SHARP S}secret", "--api-key: an API key is printable ASCII"),
    ],
)
def test_a_wrong_option_is_named(
    options: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["profile", "p.jsonl", "--collect", "o.jsonl", *options.split()]
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {words}")
    assert "secret" not in err
    assert not list(tmp_path.iterdir())


def test_what_came_of_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = prompts_file(tmp_path, 4), tmp_path / "out.jsonl"

    def behave(body: dict[str, Any], n: int) -> Any:
        text = body["messages"][0]["content"]
        if text == "question 1":
            return fails(400)
        return fails(500) if n == 0 and text == "question 2" else answer(body)

    with StandIn(behave) as server:
        options = {"url": server.url, "samples": 2, "temperature": 0.0, "backoff_s": 0.01}
        result = collect_trace(str(source), out, **options)
    note, line = capsys.readouterr().err.splitlines()
    assert "at temperature 0 all samples" in note
    assert line == in_words(result)
    assert line.startswith(f"6 answers of stand-in to 4 prompts in {out}, ")
    assert line.endswith("2 requests refused, 2 repetitions")
    assert result.refused == 2


def test_progress_is_drawn_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(
        "ecoserve.cli.common.stderr_console", lambda quiet=False: Console(file=screen, force_terminal=True, width=200)
    )
    monkeypatch.setattr(collecting, "stderr_console", lambda quiet=False: Console(file=screen, force_terminal=True))
    with StandIn() as server:
        collect_trace(str(prompts_file(tmp_path, 30)), tmp_path / "out.jsonl", url=server.url)
    drawn = screen.getvalue()
    assert "tokens/s" in drawn
    assert "30/30" in drawn


def test_the_options_reach_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    with StandIn(key="k") as server:
        line = ["profile", str(prompts_file(tmp_path, 2)), "--collect", str(out), "--url", server.url, "-k", "3"]
        line += ["--no-text", "--max-tokens", "64", "--served-model", "mine", "--timeout", "60", "--quiet"]
        monkeypatch.setenv("VLLM_API_KEY", "k")
        assert main([*line, "--body", '{"top_k": 4}']) == 0
    assert {(b["model"], b["max_tokens"], b["top_k"]) for b in server.bodies} == {("mine", 64, 4)}
    assert len(rows_of(out)) == 6
    assert capsys.readouterr().err == ""


def test_flags_of_a_server_are_one_text() -> None:
    @collecting.collects
    def command(**given: Any) -> dict[str, Any]:
        return given

    typed = dict.fromkeys(SETTINGS.split()) | {"server_flags": "--max-model-len 512 --dtype 'float32'"}
    assert command(**typed) == {"server_flags": ("--max-model-len", "512", "--dtype", "float32")}
