"""ServeGen's clients as a workload: each one's rates, laws of gaps, lengths and thinking, window by window."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ecoserve.data import Trace, load_trace, save_trace
from ecoserve.errors import TraceError

#: A shape so large that gaps are all alike.
EVEN = 1e12


def client(folder: Path, name: str, windows: list[str], parts: dict[str, tuple[str, str, str]]) -> None:
    (folder / f"chunk-{name}-trace.csv").write_text("".join(f"{w}\n" for w in windows))
    sides = ("input_tokens", "output_tokens", "reason_ratio")
    content = {start: dict(zip(sides, texts, strict=True)) for start, texts in parts.items()}
    (folder / f"chunk-{name}-dataset.json").write_text(json.dumps(content))


def load(folder: Path, n: int, **more: object) -> Trace:
    path = folder / "w.yaml"
    path.write_text(json.dumps({"requests": n, "servegen": {"clients": ".", **more}}))
    trace = load_trace(path)
    assert load_trace(save_trace(trace, folder / "again.jsonl")).records == trace.records
    return trace


@pytest.fixture
def two_clients(tmp_path: Path) -> Path:
    """One that asks every 2 s in its first 100 s of 200, one that asks every 5 s in its last 100."""
    day = {"0": ("{10: 1.0}", "{100: 1.0}", "{0.25: 1.0}"), "100": ("{20: 1.0}", "{}", "{}")}
    client(tmp_path, "1", [f"0,0.5,0.1,Gamma,{EVEN},0", "100,0,0,,0,0"], day)
    night = {"0": ("{}", "{}", "{}"), "100": ("{7: 0.5, 9: 0.5}", "{40: 1.0}", "{}")}
    client(tmp_path, "2", ["0,0,0,,0,0", f"100,0.2,0.1,Weibull,{EVEN},0"], night)
    client(tmp_path, "3", ["0,0,0,,0,0", "100,0,0,,0,0"], night)
    return tmp_path


def test_each_client_keeps_its_windows_and_lengths(two_clients: Path) -> None:
    trace = load(two_clients, 140)
    first, second = ([r for r in trace.records if r.conversation.startswith(f"client-{n}-")] for n in "12")
    # A day has 50 + 20 requests: two of them.
    assert (len(first), len(second)) == (100, 40)
    for records, gap, begin in ((first, 2.0, 0.0), (second, 5.0, 100.0)):
        times = np.array([r.arrival_s for r in records])
        day = len(times) // 2
        assert np.diff(times[:day]) == pytest.approx(np.full(day - 1, gap), rel=1e-3)
        assert begin <= times[0] < begin + gap
        assert begin + 200 <= times[day] < begin + 200 + gap
    assert {(r.prompt_tokens, r.response_tokens, r.thinking_tokens) for r in first} == {(10, 100, 25)}
    assert {(r.prompt_tokens, r.response_tokens, r.thinking_tokens) for r in second} == {(7, 40, None), (9, 40, None)}
    assert trace.length_source == "synthetic"


def test_a_rate_scales_all_and_the_load_may_begin_later(two_clients: Path) -> None:
    # On average 70 requests in 200 s.
    scaled = load(two_clients, 70, rate=3.5)
    assert max(r.arrival_s or 0.0 for r in scaled.records) < 20.0
    late = load(two_clients, 20, start_s=100.0)
    assert {r.conversation.split("-")[1] for r in late.records} == {"2"}
    assert 0.0 <= min(r.arrival_s or 0.0 for r in late.records) < 5.0


def test_what_is_cut_off_may_still_be_thinking(two_clients: Path) -> None:
    records = load(two_clients, 10, max_tokens=20).records
    assert {(r.response_tokens, r.thinking_tokens, r.censored, r.finish_reason) for r in records} == {
        (20, 20, True, "length")
    }


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("chunk-1-trace.csv", "0,fast,1,Gamma,1,1\n", r"chunk-1-trace\.csv: line 1 is no window"),
        ("chunk-1-trace.csv", "0,1,1,Zipf,1,1\n", r"line 1 is no window: start, rate, CV, Gamma or Weibull"),
        ("chunk-1-trace.csv", "0,1,1,Gamma,0,1\n", r"line 1 is no window"),
        ("chunk-1-dataset.json", "{}", None),
        ("chunk-1-dataset.json", '{"0": {"input_tokens": "{1: -1}"}}', r"is no dataset of ServeGen; download it again"),
        ("chunk-1-dataset.json", '{"0": {"input_tokens": "__import__(1)"}}', r"is no dataset of ServeGen"),
        ("chunk-2-trace.csv", "0,0,0,,0,0\n", None),
    ],
)
def test_a_damaged_client_is_one_line(two_clients: Path, file: str, content: str, what: str | None) -> None:
    (two_clients / file).write_text(content)
    if what is None:
        assert len(load(two_clients, 5)) == 5
        return
    with pytest.raises(TraceError, match=what):
        load(two_clients, 5)


def test_a_folder_without_clients_and_other_keys(two_clients: Path, tmp_path: Path) -> None:
    (two_clients / "chunk-1-dataset.json").unlink()
    with pytest.raises(TraceError, match="keep each client's two files together"):
        load(two_clients, 5)
    (tmp_path / "w.yaml").write_text("requests: 5\nservegen: {clients: nowhere}\n")
    with pytest.raises(TraceError, match="nowhere has no clients of ServeGen"):
        load_trace(tmp_path / "w.yaml")
    (tmp_path / "w.yaml").write_text("requests: 5\nservegen: {clients: .}\nprompt: {tokens: 5}\n")
    with pytest.raises(TraceError, match="`servegen` stands for all traffic: it goes without `prompt`"):
        load_trace(tmp_path / "w.yaml")
