"""``ecoserve profile --collect``: one command asks a server, writes the trace, and profiles what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_in import StandIn, answer, fails, prompts_file, rows_of

from ecoserve.cli.main import main
from ecoserve.data.profiling import Profile


def test_what_was_collected_is_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lengths.jsonl.gz"
    with StandIn(key="k") as server:
        line = ["profile", str(prompts_file(tmp_path, 60)), "--collect", str(out), "--url", server.url, "-k", "4"]
        line += ["--temperature", "0.7", "--top-p", "0.9", "--max-tokens", "64", "--api-key", "k", "--seed", "3"]
        line += [
            "--body",
            '{"top_k": 20}',
            "--no-text",
            "--concurrency",
            "7",
            "-o",
            str(tmp_path / "page"),
            "--json",
            "-",
        ]
        assert main(line) == 0
    printed, said = capsys.readouterr()
    sent = {(b["temperature"], b["top_p"], b["max_tokens"], b["top_k"]) for b in server.bodies}
    assert sent == {(0.7, 0.9, 64, 20)}
    assert server.most_open <= 7
    rows = rows_of(out)
    assert len(rows) == 240
    assert all("response" not in row for row in rows)
    assert "240 answers of stand-in to 60 prompts" in said
    profile = Profile.model_validate_json(printed)
    lengths = [row["response_tokens"] for row in rows]
    assert (profile.response.n, profile.response.max) == (240, max(lengths))
    assert profile.response.mean == pytest.approx(sum(lengths) / 240)
    assert profile.response.censored_share == pytest.approx(sum(row.get("censored", False) for row in rows) / 240)
    # Every answer is there as a row and as its siblings' sample, and counts once.
    assert profile.same_prompt is not None
    assert (profile.same_prompt.prompts, profile.same_prompt.answers) == (60, 240)
    assert (profile.waste.max_tokens, profile.waste.max_tokens_from) == (64, "given")
    assert (tmp_path / "page" / "profile.html").exists()


def test_the_same_command_goes_on_and_asks_nothing_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lengths.jsonl"
    with StandIn(
        lambda body, n: fails(500) if body["messages"][0]["content"] == "question 3" else answer(body)
    ) as broken:
        line = [
            "profile",
            str(prompts_file(tmp_path, 12)),
            "--collect",
            str(out),
            "-k",
            "2",
            "--retries",
            "0",
            "--quiet",
        ]
        assert main([*line, "--url", broken.url, "-o", str(tmp_path / "page")]) == 1
    assert not out.exists()
    assert not (tmp_path / "page").exists()
    assert capsys.readouterr().err.count("\n") == 1
    with StandIn() as server:
        assert main([*line, "--url", server.url, "-o", str(tmp_path / "page")]) == 0
    assert {b["messages"][0]["content"] for b in server.bodies} == {"question 3"}
    assert len(rows_of(out)) == 24
    assert (tmp_path / "page" / "profile.json").exists()


def test_an_unwilling_server_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StandIn(key="k") as server:
        line = ["profile", str(prompts_file(tmp_path, 3)), "--collect", str(tmp_path / "l.jsonl"), "--url", server.url]
        assert main([*line, "--api-key", "wrong-secret"]) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "wrong-secret" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts.jsonl"]
