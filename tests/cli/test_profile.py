"""``ecoserve profile``: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecoserve.cli.main import main
from ecoserve.data.profiling import Comparison, Profile

LENGTHS = np.random.default_rng(0).lognormal(5, 0.6, 600).round().astype(int) + 1


def rows(lengths: Sequence[int] | np.ndarray, **more: Any) -> list[dict[str, Any]]:
    """Rows of ecoserve's own format: every prompt is asked twice."""
    return [
        {"id": f"c{i}", "prompt": f"Tell me about <b>number</b> {i // 2}", "prompt_tokens": 9, "model": "m & <i>n</i>",
         "response_tokens": int(n), **more}
        for i, n in enumerate(lengths)
    ]  # fmt: skip


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace.jsonl", rows(LENGTHS))


def test_tables_for_people_and_nothing_on_stdout(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(trace)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    p50, p99 = (int(np.quantile(LENGTHS, q, method="inverted_cdf")) for q in (0.5, 0.99))
    assert f"median {p50:,}" in " ".join(err.split())
    for caption in (
        "Lengths in tokens",
        "Ways to reserve KV cache",
        "Laws fitted to all answers",
        "Error of each way to predict",
    ):
        assert caption in err
    answers = next(line for line in err.splitlines() if line.strip().startswith("Answers"))
    assert {f"{len(LENGTHS)}", f"{p50}", f"{p99}"} <= set(answers.split())
    assert "\x1b[" not in err
    assert all(len(line) <= 80 for line in err.splitlines()), "tables fit a terminal"


def test_tables_fit_a_narrow_terminal_and_lose_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = [{"censored": bool(n >= 300), **row} for n, row in zip(LENGTHS, rows(np.minimum(LENGTHS, 300)), strict=True)]
    thrice = [{**row, "prompt": f"question {i // 3}", "arrival_s": i / 7} for i, row in enumerate(cut)]
    assert main(["profile", str(write(tmp_path / "cut.jsonl", thrice))]) == 0
    err = capsys.readouterr().err
    assert max(len(line) for line in err.splitlines()) <= 80
    words = set(err.split())
    assert {
        "Max",
        "Corrected",
        "τ",
        "100",
        "Explained",
        "99.9",
        "log-normal",
        "Requests",
        "Outgrown",
        "Records",
    } <= words
    assert "…" not in err


def test_json_is_the_whole_profile(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(trace), "--json", "-", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    profile = Profile.model_validate_json(out)
    assert profile.response.mean == pytest.approx(LENGTHS.mean())
    assert profile.same_prompt is not None
    assert profile.same_prompt.prompts == 300
    assert main(["profile", str(trace), "--json", str(tmp_path / "deep" / "p.json"), "--quiet"]) == 0
    assert json.loads((tmp_path / "deep" / "p.json").read_text()) == json.loads(out)


def test_the_same_seed_gives_the_same_files(trace: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["profile", str(trace), "-o", str(tmp_path / name), "--quiet", "--seed", "3"]) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["profile.html", "profile.json"]
    for name in ("profile.json", "profile.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Profile.model_validate_json((tmp_path / "a" / "profile.json").read_text()).seed == 3


def check_page(page: str) -> None:
    """A page asks for nothing, and forbids it besides; what the trace says is text, never markup."""
    assert "default-src 'none'" in page
    assert "connect-src" not in page
    without_scripts = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    for attribute in re.findall(r"""\b(?:src|href|action|data|poster|srcset)\s*=\s*["']([^"']*)""", without_scripts):
        assert attribute.startswith(("#", "data:")), attribute
    assert "@import" not in without_scripts
    assert not re.search(r"url\(\s*['\"]?(?!data:|#)", without_scripts)
    assert not re.search(r"<(?:link|iframe|object|embed|base)\b(?![^>]*\bdata:)", without_scripts)
    assert not re.search(r"<script[^>]*\bsrc\s*=", page)
    assert "<i>n</i>" not in page
    assert "<b>number</b>" not in page


def test_the_page_stands_alone(trace: Path, tmp_path: Path) -> None:
    assert main(["profile", str(trace), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    page = (tmp_path / "out" / "profile.html").read_text()
    check_page(page)
    for title in ("How long answers are", "The longest answers", "How predictable lengths are", "Over the trace"):
        assert title in page
    assert "<title>Response lengths of trace.jsonl" in page
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert data
    assert all(spec["data"] for spec in data.values())


def test_two_traces_side_by_side(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other.jsonl", rows(LENGTHS * 2))
    out = tmp_path / "out"
    assert main(["profile", str(trace), "--compare", str(other), "-o", str(out), "--json", "-"]) == 0
    printed, err = capsys.readouterr()
    comparison = Comparison.model_validate_json(printed)
    assert comparison.verdict == "recalibrate"
    assert comparison.shared_prompts[0].ratio == pytest.approx(2.0)
    assert "recalibrated" in err
    assert sorted(p.name for p in out.iterdir()) == [
        "comparison.html", "comparison.json", "profile.html", "profile.json",
    ]  # fmt: skip
    check_page((out / "comparison.html").read_text())
    assert main(["profile", str(trace), "--compare", str(trace), "--json", "-", "--quiet"]) == 0
    assert Comparison.model_validate_json(capsys.readouterr().out).verdict == "same"


def test_lengths_of_a_field_on_one_side_or_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "alpaca.jsonl", [
        {"instruction": f"Say {i}", "input": "", "output": "x" * 400, "lengths": [10 + i, 40 + i, 30 + i]}
        for i in range(200)
    ])  # fmt: skip
    fields = ["--length-field", "lengths[0]", "--sample-field", "lengths"]
    assert main(["profile", str(path), *fields, "--json", "-", "--quiet"]) == 0
    profile = Profile.model_validate_json(capsys.readouterr().out)
    assert (profile.response.min, profile.trace.length_source) == (10, "field:lengths[0]")
    assert profile.same_prompt is not None
    assert profile.same_prompt.answers == 600
    plain = write(tmp_path / "plain.jsonl", rows(LENGTHS))
    for other, field, middle in ((path, "lengths[1]", 139), (path, "none", 101), (plain, "none", np.median(LENGTHS))):
        line = ["profile", str(path), *fields, "--compare", str(other), "--compare-length-field", field]
        assert main([*line, "--json", "-", "--quiet"]) == 0
        b = Comparison.model_validate_json(capsys.readouterr().out).response_b
        assert b.p50 is not None
        assert abs(b.p50 - middle) <= 1


def test_some_of_the_records(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, n in ((["--limit", "50"], 50), (["--sample", "40"], 40)):
        assert main(["profile", str(trace), *options, "--json", "-", "--quiet"]) == 0
        assert Profile.model_validate_json(capsys.readouterr().out).response.n == n


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["trace.jsonl", "--max-tokens", "0"], "--max-tokens"),
        (["trace.jsonl", "--compare", "absent.jsonl"], "absent.jsonl: no such file"),
        (["trace.jsonl", "--compare", "empty.jsonl"], "empty.jsonl: the trace is empty"),
        (["trace.jsonl", "--compare-format", "chat"], "--compare-format: is an option of --compare"),
        (["trace.jsonl", "--predictor", "absent"], "absent: no such checkpoint"),
        (["trace.jsonl", "-o", "empty.jsonl"], "-o empty.jsonl: is a file; give a folder"),
        (["trace.jsonl", "--json", "."], "--json .: is a folder"),
        (["trace.jsonl", "--length-field", "lengths[3]"], "lengths[3]"),
        (["trace.jsonl", "--length-field", "a[b"], "length_field"),
        (["trace.jsonl", "--format", "word"], "word"),
        (["trace.jsonl", "--url", "http://localhost:1"], "--url: is an option of --collect, which is not given"),
        (["trace.jsonl", "-k", "3"], "--samples: is an option of --collect"),
        (["trace.jsonl", "--temperature", "0"], "--temperature: is an option of --collect"),
        (["trace.jsonl", "--collect", "new.jsonl", "--tokenizer", "x"], "--tokenizer: is for a trace with lengths"),
        (["trace.jsonl", "--collect", "new.csv", "--url", "http://localhost:1"], "--collect: new.csv"),
        (["unanswered.jsonl"], "unanswered.jsonl"),
        (["empty.jsonl"], "empty.jsonl: the trace is empty"),
        (["."], "is a folder"),
        ([], "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    options: list[str], words: str, trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trace.parent)
    Path("empty.jsonl").write_text("")
    write(Path("unanswered.jsonl"), [{"id": "a", "prompt": "Why?"}, {"id": "b", "prompt": "When?"}])
    before = sorted(p.name for p in trace.parent.iterdir())
    assert main(["profile", *options, *([] if "-o" in options else ["-o", "out"])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(p.name for p in trace.parent.iterdir()) == before


def test_a_key_is_not_on_the_page(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecoserve.cli import profile

    typed = ["ecoserve", "profile", "t", "--api-key", "secret", '--body={"k": "secret"}', "--api-key=secret"]
    monkeypatch.setattr("sys.argv", typed)
    assert profile._command_line() == ["ecoserve profile t --api-key ... --body=... --api-key=..."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor, and beside it the trace it was trained on: stories are long, names are short."""
    folder = tmp_path_factory.mktemp("predictor")
    rng = np.random.default_rng(0)
    long = rng.random(600) < 0.5
    lengths = np.where(long, rng.normal(600, 60, 600), rng.normal(30, 5, 600)).round().astype(int)
    # Near-duplicates are kept on one side of a split, so that no two prompts may be alike.
    words = ["".join(rng.choice(list("bcdfglmnprst") + list("aeiou"), 6)) for _ in range(3000)]
    things = [" ".join(rng.choice(words, 8)) for _ in range(600)]
    prompts = [f"{'story' if big else 'colour'} {thing}" for big, thing in zip(long, things, strict=True)]
    content = [
        {"id": f"c{i}", "prompt": p, "response_tokens": int(n)}
        for i, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    trace = write(folder / "trace.jsonl", content)
    line = [
        "train-predictor",
        str(trace),
        "-o",
        str(folder / "ckpt"),
        "--backend",
        "lightgbm",
        "--rounds",
        "20",
        "--quiet",
    ]
    assert main(line) == 0
    return folder


def test_what_a_predictor_tells_and_saves(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_predictor = ["--predictor", str(checkpoint / "ckpt"), "--json", "-"]
    assert main(["profile", str(checkpoint / "trace.jsonl"), *with_predictor, "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    profile = Profile.model_validate_json(out)
    predicted = profile.predicted
    assert predicted is not None
    # Only what was kept apart in training; there it tells stories from names, and little more.
    assert predicted.rows_are == "held out"
    assert 20 < predicted.rows < 200
    assert predicted.mae_tokens < 0.3 * predicted.mae_constant_tokens
    assert profile.worth == "yes"
    assert {"predicted p50", "predicted p90", "predicted p95"} <= {r.policy for r in profile.waste.reservations}
    saved = {order.by: order.wait_saved for order in profile.orderings}
    assert saved["predictor"] == pytest.approx(saved["true length"], abs=0.1)
    assert "The predictor is off by" in " ".join(err.split())
    # On another trace any row will do.
    other = write(tmp_path / "other.jsonl", rows(LENGTHS))
    assert main(["profile", str(other), *with_predictor, "--quiet"]) == 0
    found = Profile.model_validate_json(capsys.readouterr().out).predicted
    assert found is not None
    assert (found.rows_are, found.rows) == ("all", 600)


def test_a_predictor_reads_texts(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("prompt_tokens,response_tokens\n" + "".join(f"{i},{i + 1}\n" for i in range(1, 200)))
    assert main(["profile", str(path), "--predictor", str(checkpoint / "ckpt")]) == 2
    err = capsys.readouterr().err
    assert "has no prompts with texts, which a predictor reads" in err
    assert err.count("\n") == 1
