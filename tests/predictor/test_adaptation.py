"""Adapting a predictor to another model: better where that can be, never clearly worse, and a checkpoint like any."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecoserve.cli import main as cli
from ecoserve.data import Record, Trace, save_trace, synthetic_trace
from ecoserve.errors import CheckpointError, ConfigError, TraceError
from ecoserve.predictor import LengthPredictor, adapt_predictor, adaptation_fitting, evaluate_predictor, load_predictor
from ecoserve.predictor.adaptation import Adaptation, moved
from ecoserve.predictor.adaptation_fitting import adapted_bins, fit_adaptation
from ecoserve.predictor.examples import Examples

PROMPTS = ["Write an essay about winter.", "List three colours.", ""]


def other_model(trace: Trace, factor: float = 3.0, power: float = 1.0) -> Trace:
    """The same prompts answered by another model, whose lengths are a function of the first one's."""

    def answered(record: Record) -> Record:
        tokens = max(1, round(factor * (record.response_tokens or 1) ** power))
        return replace(record, response_tokens=tokens, sample_tokens=(), censored=False, response=None, model="other")

    return trace.with_records(answered(r) for r in trace.records)


@pytest.fixture(scope="module")
def fresh() -> Trace:
    """Rows that the base has not seen."""
    return synthetic_trace(700, seed=5)


@pytest.fixture(scope="module")
def adapted_dir(boosted_dir: Path, fresh: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted") / "checkpoint"
    adapt_predictor(boosted_dir, other_model(fresh), output_dir=folder, rows=300)
    return folder


def test_lengths_of_a_longer_model_are_learned(adapted_dir: Path, boosted_dir: Path) -> None:
    adapted, base = load_predictor(adapted_dir), load_predictor(boosted_dir)
    new = other_model(synthetic_trace(400, seed=9)).records
    after, before = evaluate_predictor(adapted, new), evaluate_predictor(base, new)
    assert after["mae_tokens"] < 0.6 * before["mae_tokens"]
    assert after["kendall_tau"] > before["kendall_tau"] - 0.03
    assert 0.84 < after["coverage_90"] < 0.97
    assert before["coverage_90"] < 0.7
    # Its answers are longer than any that the base has seen.
    assert adapted.config.edges[-1] > 1.5 * base.config.edges[-1]
    for lengths in adapted.predict(PROMPTS):
        assert lengths.edges == adapted.config.edges
        assert min(lengths.probs) > 0.0


def test_the_same_model_again_is_not_made_worse(boosted_dir: Path, fresh: Trace) -> None:
    base = load_predictor(boosted_dir)
    new = synthetic_trace(400, seed=9).records
    adapted = fit_adaptation(base, Examples.of(fresh.records[:150]))
    ratio = evaluate_predictor(adapted, new)["pinball_loss"] / evaluate_predictor(base, new)["pinball_loss"]
    assert ratio < 1.05


def test_unrelated_lengths_end_near_the_constant(boosted_dir: Path, fresh: Trace) -> None:
    rng = np.random.default_rng(0)
    records = other_model(fresh).records
    drawn = [replace(r, response_tokens=int(rng.integers(50, 1000))) for r in records]
    adapted = fit_adaptation(load_predictor(boosted_dir), Examples.of(drawn[:400]))
    after = evaluate_predictor(adapted, drawn[400:])
    assert abs(after["kendall_tau"]) < 0.12
    assert after["mae_tokens"] < 1.1 * np.abs(np.asarray([r.response_tokens for r in drawn[400:]]) - 525).mean()


def test_the_checkpoint_is_one_like_any_other(adapted_dir: Path, boosted_dir: Path, tmp_path: Path) -> None:
    adapted = load_predictor(adapted_dir)
    assert adapted.config.backend == "adapted"
    config = adapted.config
    assert config.model["base"]["sha256"] == json.loads((boosted_dir / "config.json").read_text())["sha256"]
    assert (config.served_model, config.rows_trained) == ("other", 300)
    assert set(config.metrics) == {"dev", "unadapted", "constant_median"}
    assert config.metrics["dev"]["pinball_loss"] < config.metrics["unadapted"]["pinball_loss"]
    # Not one file more than those of the base and the two that are JSON.
    names = {p.name for p in adapted_dir.iterdir()}
    assert names == {p.name for p in boosted_dir.iterdir()} | {"base.json", "adaptation.json"}
    again = load_predictor(adapted.save_pretrained(tmp_path / "again"))
    assert again.predict(PROMPTS) == adapted.predict(PROMPTS)
    assert "other" in (adapted_dir / "README.md").read_text()


@pytest.mark.parametrize("name", ["base.json", "adaptation.json", "model.txt"])
def test_what_was_changed_is_refused(adapted_dir: Path, tmp_path: Path, name: str) -> None:
    copy = load_predictor(adapted_dir).save_pretrained(tmp_path / "copy")
    (copy / name).write_text((copy / name).read_text().replace("1", "2", 1))
    with pytest.raises(CheckpointError, match=rf"{name}: is damaged or was changed"):
        load_predictor(copy)


def test_an_encoder_can_be_the_base(encoded: LengthPredictor, fresh: Trace, tmp_path: Path) -> None:
    folder = encoded.save_pretrained(tmp_path / "encoder")
    adapted = adapt_predictor(folder, other_model(fresh), output_dir=tmp_path / "adapted", rows=100)
    assert adapted.config.metrics["dev"]["mae_tokens"] < adapted.config.metrics["unadapted"]["mae_tokens"]
    assert load_predictor(tmp_path / "adapted").predict(PROMPTS) == adapted.predict(PROMPTS)


def test_a_moved_distribution_is_a_monotone_map_of_length() -> None:
    edges = np.array([0.0, 10.0, 100.0, 1000.0])
    cdf = np.array([[0.0, 0.2, 0.7, 1.0]])
    m = np.array([3.0])
    same = moved(cdf, edges, m, m, 1.0, edges)
    assert same[0] == pytest.approx(cdf[0])
    twice = moved(cdf, edges, m, m + np.log(2.0), 1.0, np.array([0, 20, 200, 2000]))
    assert twice[0] == pytest.approx(cdf[0])
    with pytest.raises(ValueError, match="none with 1 weights"):
        Adaptation(kind="none", means=(0.0,), scales=(1.0,), weights=(1.0,))


def test_bins_reach_beyond_what_few_answers_show_and_stop_at_a_cap() -> None:
    lengths = np.arange(1.0, 101.0)
    few = adapted_bins(lengths, (0, 10, 50), (False,) * 100)
    many = adapted_bins(np.tile(lengths, 20), (0, 10, 50), (False,) * 2000)
    assert few.edges[-1] > many.edges[-1] > 100
    assert adapted_bins(lengths, (0, 10, 5000), (False,) * 100).edges[-1] == 5000
    capped = np.minimum(lengths, 90)
    assert adapted_bins(capped, (0, 10, 5000), tuple(bool(n == 90) for n in capped)).edges[-1] == 90


def test_bad_input_is_one_clear_error(boosted_dir: Path, adapted_dir: Path, fresh: Trace, tmp_path: Path) -> None:
    trace, out = other_model(fresh), tmp_path / "out"
    with pytest.raises(TraceError, match=r"40 answers to adapt from .* need at least 50"):
        adapt_predictor(boosted_dir, trace, output_dir=out, rows=40)
    without = trace.with_records(replace(r, prompt=None, messages=()) for r in trace.records)
    with pytest.raises(TraceError, match="has lengths only"):
        adapt_predictor(boosted_dir, without, output_dir=out)
    alike = trace.with_records(replace(r, response_tokens=7) for r in trace.records)
    with pytest.raises(TraceError, match="there is nothing to adapt to"):
        adapt_predictor(boosted_dir, alike, output_dir=out)
    mixed = trace.with_records([replace(trace.records[0], model="a"), *trace.records[1:]])
    with pytest.raises(TraceError, match="answers of 2 models, none of gpt; name with --model one of a, other"):
        adapt_predictor(boosted_dir, mixed, output_dir=out, served_model="gpt")
    with pytest.raises(CheckpointError, match="is adapted already"):
        adapt_predictor(adapted_dir, trace, output_dir=out)
    with pytest.raises(ConfigError, match="is the folder of the predictor to start from"):
        adapt_predictor(boosted_dir, trace, output_dir=boosted_dir)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        adapt_predictor(tmp_path / "nothing", trace, output_dir=out)
    assert not out.exists()


def test_an_interruption_leaves_nothing(
    boosted_dir: Path, fresh: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("fit_calibration", "evaluate_predictor"):
        with monkeypatch.context() as patch:
            patch.setattr(adaptation_fitting, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                adapt_predictor(boosted_dir, other_model(fresh), output_dir=tmp_path / "a" / "out", rows=60)
    assert list(tmp_path.iterdir()) == []


def test_the_command(boosted_dir: Path, fresh: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out, damaged = tmp_path / "trace.jsonl", tmp_path / "out", tmp_path / "damaged"
    save_trace(other_model(fresh), file)
    assert (
        cli.main(["adapt-predictor", str(boosted_dir), str(file), "-o", str(out), "--rows", "200", "--json", "-"]) == 0
    )
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert (said["rows_adapted"], said["served_model"]) == (200, "other")
    assert said["kind"] in ("affine", "ridge")
    assert said["dev"]["mae_tokens"] < said["unadapted"]["mae_tokens"]
    assert "not adapted" in shown.err
    assert load_predictor(out).config.model["base"]["sha256"] == said["base_sha256"]

    load_predictor(boosted_dir).save_pretrained(damaged)
    (damaged / "model.txt").write_text("")
    for arguments, message in (
        ([str(boosted_dir), str(file), "--rows", "20"], "20 answers to adapt from"),
        ([str(damaged), str(file)], "model.txt: is damaged"),
        ([str(boosted_dir), str(tmp_path / "none.jsonl")], "no such file"),
    ):
        assert cli.main(["adapt-predictor", *arguments, "-o", str(tmp_path / "no")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
    assert not (tmp_path / "no").exists()
