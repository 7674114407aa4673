"""The options of ``ecoserve profile --collect``: what they mean, and what is said where they mean nothing."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from stand_in import StandIn, answer, fails, prompts_file, rows_of

from ecoserve.cli import collecting
from ecoserve.cli.collecting import collect_trace, in_words, settings_of
from ecoserve.errors import ConfigError
from ecoserve.serving.collect import CollectSettings


def test_options_are_settings() -> None:
    options = {"url": "http://h", "samples": 3, "body": '{"top_k": 5}', "serve_flags": "", "api_key": "k"}
    made = settings_of("p", Path("o.jsonl"), options)
    assert (made.prompts, made.output, made.samples, made.body) == ("p", Path("o.jsonl"), 3, {"top_k": 5})
    flags = {"model": "m", "serve_flags": "--max-model-len 512 --dtype 'float32'"}
    assert settings_of("p", Path("o.jsonl"), flags).server_flags == ("--max-model-len", "512", "--dtype", "float32")


def test_every_option_has_a_setting_and_every_setting_an_option() -> None:
    names = {
        flag.partition("/")[0].removeprefix("--").replace("-", "_")
        for name, value in vars(collecting).items()
        if name.endswith("Option") and name != "Option"
        for option in get_args(value)[1:]
        for flag in (option.default, *option.param_decls)  # where typer puts them, in an Annotated
        if flag.startswith("--")
    }
    renamed = {"collect": "output", "timeout": "timeout_s", "patience": "patience_s", "text": "keep_text"}
    renamed |= {"serve_flags": "server_flags"}
    # The prompts are the command's TRACE; these are options of the command itself, and a test's wish for speed.
    elsewhere = {"prompts", "format", "limit", "sample", "seed", "backoff_s"}
    assert {renamed.get(n, n) for n in names} | elsewhere == set(CollectSettings.model_fields)
    assert inspect.getdoc(collect_trace)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "o.csv"}, "--collect: o.csv: a trace is written as .jsonl or .jsonl.gz"),
        ({"url": "nowhere"}, "--url: a URL starts with http"),
        ({"url": "http://u:secret@h"}, "--url: holds a user or password"),
        ({"body": "{"}, "--body: is not JSON"),
        ({"body": "[]"}, "--body: Input should be a valid dictionary"),
        ({"serve_flags": "'"}, "--serve-flags: cannot be read"),
        ({"timeout_s": 0}, "--timeout: Input should be greater than 0"),
        ({"model": "m", "url": "http://h"}, "--collect: give url or model, not both"),
        ({"top_p": 2}, "--top-p: Input should be less than or equal to 1"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], words: str) -> None:
    output = Path(options.pop("output", "o.jsonl"))
    with pytest.raises(ConfigError) as refused:
        settings_of("p", output, options)
    assert str(refused.value).startswith(words)
    assert "secret" not in str(refused.value)


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


def test_a_command_can_take_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(
        trace: str,
        collect: collecting.CollectOption = None,
        url: collecting.UrlOption = None,
        served_model: collecting.ServedModelOption = None,
        samples: collecting.SamplesOption = 1,
        max_tokens: collecting.MaxTokensOption = None,
        api_key: collecting.ApiKeyOption = None,
        body: collecting.BodyOption = None,
        keep_text: collecting.TextOption = True,
        timeout_s: collecting.TimeoutOption = 600.0,
    ) -> None:
        assert collect is not None
        collect_trace(
            trace,
            collect,
            quiet=True,
            url=url,
            served_model=served_model,
            samples=samples,
            max_tokens=max_tokens,
            api_key=api_key,
            body=body,
            keep_text=keep_text,
            timeout_s=timeout_s,
        )

    app = typer.Typer()
    app.command()(command)
    out = tmp_path / "out.jsonl"
    with StandIn(key="k") as server:
        arguments = [str(prompts_file(tmp_path, 2)), "--collect", str(out), "--url", server.url, "-k", "3", "--no-text"]
        arguments += ["--max-tokens", "64", "--served-model", "mine", "--timeout", "60", "--body", '{"top_k": 4}']
        monkeypatch.setenv("VLLM_API_KEY", "k")
        app(arguments, standalone_mode=False)
    assert {(b["model"], b["max_tokens"], b["top_k"]) for b in server.bodies} == {("mine", 64, 4)}
    assert len(rows_of(out)) == 6
    assert capsys.readouterr().err == ""
