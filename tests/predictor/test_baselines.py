"""Baselines, the upper bound, and the table in which they stand beside trained predictors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecoserve.data import Record, Trace
from ecoserve.errors import ConfigError, TraceError
from ecoserve.predictor import Bins, LengthPredictor
from ecoserve.predictor.baselines import (
    NEIGHBOURS,
    POINT_KEYS,
    UPPER_BOUNDS,
    HistoryWindow,
    NearestPrompts,
    OtherSample,
    Vectors,
    side_by_side,
)
from ecoserve.predictor.encoder.predictor import FrozenEncoder
from ecoserve.predictor.examples import Examples, Parts, training_parts
from ecoserve.predictor.text import RequestView

Call = Callable[..., Any]
BINS = Bins((0, 10, 20, 40, 80, 160, 320))


def examples(rows: Sequence[tuple[str, int, tuple[int, ...]]]) -> Examples:
    return Examples.of(
        Record(str(i), prompt=text, response_tokens=own, sample_tokens=more) for i, (text, own, more) in enumerate(rows)
    )


@pytest.fixture(scope="module")
def parts(trace: Trace) -> Parts:
    return training_parts(trace, seed=0)


def test_the_history_window_forgets_and_never_looks_ahead() -> None:
    window = HistoryWindow(BINS, [5] * 100, window=50)
    followed = window.follow([300] * 50 + [5])
    assert followed[0].quantile(0.5) <= 10
    assert followed[0] == HistoryWindow(BINS, [5] * 50).predict(["anything"])[0]
    medians = [d.quantile(0.5) for d in followed]
    assert medians == sorted(medians)
    # Fifty long answers later nothing of the short ones is left, although the next one will be short.
    assert medians[-1] > 160
    assert window.predict(["a", "b"]) == HistoryWindow(BINS, [300] * 49 + [5]).predict(["a", "b"])


def test_the_order_of_later_rows_changes_nothing_before_them() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 300, 40).tolist()
    other = [*lengths[:20], *reversed(lengths[20:])]
    a, b = HistoryWindow(BINS).follow(lengths), HistoryWindow(BINS).follow(other)
    assert a[:21] == b[:21]
    assert a[22:] != b[22:]


def first_letter(views: Sequence[RequestView]) -> Vectors:
    """An embedding that knows only what a prompt begins with."""
    return np.eye(26, dtype=np.float32)[[ord(v.prompt[0].lower()) - 97 for v in views]]


def test_nearest_prompts_answer_with_their_neighbours_lengths() -> None:
    rng = np.random.default_rng(1)
    rows = [
        (f"{letter}{i}", int(typical * rng.uniform(0.9, 1.1)), ())
        for i in range(100)
        for letter, typical in (("a", 15), ("b", 60), ("c", 250))
    ]
    nearest = NearestPrompts.fit(examples(rows), examples(rows[:30]), BINS, first_letter)
    a, b, c = nearest.predict(["apples", "bread", "cheese"])
    assert 10 <= a.quantile(0.5) <= 20
    assert 40 < b.quantile(0.5) <= 80
    assert c.quantile(0.5) > 160
    # There are a hundred like it; farther prompts do not help.
    assert nearest.k in NEIGHBOURS
    assert nearest.k <= 100
    assert nearest.predict([]) == []


def test_more_neighbours_where_a_neighbour_says_little() -> None:
    rng = np.random.default_rng(2)
    noise = [("a", int(n), ()) for n in rng.integers(1, 320, 1200)]
    assert NearestPrompts.fit(examples(noise[:800]), examples(noise[800:]), BINS, first_letter).k == max(NEIGHBOURS)
    few = examples(noise[:3])
    assert NearestPrompts.fit(few, few, BINS, first_letter).k == 3


def test_the_frozen_encoder_gives_the_same_vector_in_any_company(tiny_encoder: Path) -> None:
    embed = FrozenEncoder(tiny_encoder)
    views = [RequestView("list three pets"), RequestView("explain " * 200), RequestView(""), RequestView("why")]
    together = embed(views * 30)
    assert together.shape == (120, 32)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
    for view, vector in zip(views, together, strict=False):
        # In bfloat16, where the CPU has it, sums differ a little with the batch's shape.
        assert embed([view])[0] == pytest.approx(vector, abs=0.02)


def test_another_sample_tells_as_much_as_it_knows() -> None:
    rng = np.random.default_rng(3)
    centres = rng.integers(5, 300, 2000)
    alike = [("p", int(n), (1, int(n))) for n in centres]
    unlike = [("p", int(n), (1, int(m))) for n, m in zip(centres, rng.permutation(centres), strict=True)]
    asked = [Record("x", prompt="p", response_tokens=1, sample_tokens=(1, n)) for n in (15, 250)]
    sure = OtherSample.fit(examples(alike[:1500]), examples(alike[1500:]), BINS)
    short, long = sure.given(asked)
    assert short.quantile(0.5) <= 20
    assert long.quantile(0.1) > 100
    vague = OtherSample.fit(examples(unlike[:60]), examples(unlike[60:]), BINS)
    short, long = vague.given(asked)
    assert abs(short.quantile(0.5) - long.quantile(0.5)) < 60
    assert vague.width > sure.width
    with pytest.raises(TraceError, match="not every row has another answer"):
        sure.given([Record("x", prompt="p", response_tokens=1)])
    with pytest.raises(TraceError, match="--sample-field"):
        OtherSample.fit(examples([("p", 3, ())] * 9), examples(alike[:9]), BINS)


def test_all_stand_in_one_table(parts: Parts, boosted: LengthPredictor, tiny_encoder: Path) -> None:
    asked: list[str] = []
    table = side_by_side(
        parts,
        parts.dev_records,
        boosted.config.bins,
        trained={"lightgbm": boosted},
        embed=FrozenEncoder(tiny_encoder),
        progress=lambda what, done, total: asked.append(what),
    )
    order = ["constant_median", "prompt_length", "history_window", "nearest_prompts", "lightgbm", *UPPER_BOUNDS]
    assert list(table) == order
    assert set(table["other_samples_mean"]) == set(POINT_KEYS)
    assert {values["rows"] for values in table.values()} == {len(parts.dev_records)}
    for name in order[:5]:
        assert set(table[name]) == set(boosted.config.metrics["dev"])
    assert table["lightgbm"]["mae_tokens"] == pytest.approx(boosted.config.metrics["dev"]["mae_tokens"])
    errors = {name: values["mae_tokens"] for name, values in table.items()}
    assert errors["other_samples_mean"] < errors["constant_median"]
    assert table["one_other_sample"]["crps"] < table["constant_median"]["crps"]
    assert table["nearest_prompts"]["kendall_tau"] > 0.3 > abs(table["history_window"]["kendall_tau"])
    assert "evaluating lightgbm" in asked


def test_without_other_samples_and_encoder_their_rows_are_missing(trace: Trace, boosted: LengthPredictor) -> None:
    alone = trace.with_records(
        Record(r.conversation, prompt=r.prompt, response_tokens=r.response_tokens, split=r.split) for r in trace.records
    )
    parts = training_parts(alone, seed=0)
    table = side_by_side(parts, parts.dev_records[:50], boosted.config.bins, trained={}, latency=False)
    assert list(table) == ["constant_median", "prompt_length", "history_window"]
    assert "latency_p50_ms" not in table["prompt_length"]


# -- the command -------------------------------------------------------------------------------------


def test_the_command_prints_the_table(call: Call, trace_file: Path, boosted_dir: Path, tiny_encoder: Path) -> None:
    done = call(
        "evaluate_predictor",
        boosted_dir,
        trace_file,
        "--baselines",
        "--beside",
        boosted_dir,
        "--encoder",
        tiny_encoder,
        "--json",
        "-",
    )
    said = json.loads(done.stdout)
    first, second = f"lightgbm ({boosted_dir.name})", str(boosted_dir)
    assert list(said["table"]) == [
        "constant_median", "prompt_length", "history_window", "nearest_prompts", first, second, *UPPER_BOUNDS
    ]  # fmt: skip
    timeless = {k: v for k, v in said["table"][first].items() if "latency" not in k}
    assert timeless.items() <= said["table"][second].items()
    assert timeless.items() <= said.items()
    assert said["constant_median"] == said["table"]["constant_median"]
    for word in ("nearest", "history", "CRPS", "ECE"):
        assert word in done.stderr


def test_another_checkpoint_beside_it_without_baselines(call: Call, trace_file: Path, boosted_dir: Path) -> None:
    said = json.loads(
        call("evaluate_predictor", boosted_dir, trace_file, "--beside", boosted_dir, "--json", "-", "--quiet").stdout
    )
    assert len(said["table"]) == 2
    assert "nearest_prompts" not in said["table"]


def test_what_does_not_go_together_is_refused(call: Call, trace_file: Path, boosted_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--baselines: would be tested on the rows they learn from"):
        call("evaluate_predictor", boosted_dir, trace_file, "--baselines", "--split", "all")
    with pytest.raises(ConfigError, match="--encoder: is for the nearest neighbours"):
        call("evaluate_predictor", boosted_dir, trace_file, "--encoder", tmp_path)
    with pytest.raises(ConfigError, match="no such encoder"):
        call("evaluate_predictor", boosted_dir, trace_file, "--baselines", "--encoder", tmp_path / "none")
