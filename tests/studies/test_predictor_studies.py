"""The scripts that measure predictors, on small generated traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import predictor_data
import predictor_label_noise
import predictor_other_data
import predictor_study
import predictor_table
import pytest

from ecoserve.data import LoadReport, Record, Trace, fingerprint, synthetic_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import LengthPredictor, train_predictor
from ecoserve.predictor.baselines import Vectors
from ecoserve.predictor.boosting.predictor import BoostingPredictor
from ecoserve.predictor.examples import training_parts
from ecoserve.predictor.recipes import Recipe
from ecoserve.predictor.text import RequestView, asked_of


def trace_of(records: Sequence[Record]) -> Trace:
    return Trace(tuple(records), "made here", "generated", fingerprint(records), "generated", LoadReport())


class Letters:
    """An embedding that counts letters."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, views: Sequence[RequestView]) -> Vectors:
        self.seen += len(views)
        counts = np.asarray([[v.text.lower().count(c) + 0.1 for c in "aeioulnst"] for v in views], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


# -- shared parts ------------------------------------------------------------------------------------


def test_a_predictor_trained_on_the_spot_is_the_products(tmp_path: Path) -> None:
    trace = synthetic_trace(150, seed=4)
    product = train_predictor(trace, backend="lightgbm", output_dir=tmp_path / "ckpt", seed=1)
    here = predictor_data.boosted(training_parts(trace, seed=1), 1)
    rows = trace.records[:40]
    predictions = product.predict([asked_of(r) or "" for r in rows])
    for mine, its in zip(predictor_data.asked(here, rows), predictions, strict=True):
        assert mine.edges == its.edges
        assert mine.probs == pytest.approx(its.probs, abs=1e-9)


def test_spread_is_mean_and_deviation_of_what_all_runs_have() -> None:
    found = predictor_data.spread(
        [{"rows": 5, "mae_tokens": 1.0, "ece": 0.1, "other": 1}, {"rows": 5, "mae_tokens": 3.0}]
    )
    assert found == {"rows": 5.0, "mae_tokens": 2.0, "sd": {"rows": 0.0, "mae_tokens": pytest.approx(2**0.5, abs=1e-4)}}
    assert "sd" not in predictor_data.spread([{"rows": 5}])


def test_embeddings_are_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_data, "find_encoder", lambda name: (tmp_path, "here"))
    letters = Letters()
    monkeypatch.setattr(predictor_data, "FrozenEncoder", lambda folder: letters)
    views = [RequestView("list pets"), RequestView("name a colour"), RequestView("list pets")]
    first = predictor_data.Remembered(tmp_path / "kept.npz")
    vectors = first(views)
    assert letters.seen == 2
    assert (first(views) == vectors).all()
    again = predictor_data.Remembered(tmp_path / "kept.npz")
    assert (again(views[:2]) == vectors[:2]).all()
    assert letters.seen == 2


# -- the table ---------------------------------------------------------------------------------------


def test_rows_are_made_and_replaced_one_by_one(
    trace: Trace, boosted: LengthPredictor, boosted_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "table.json"
    baselines = predictor_table.baseline_rows(trace, [0], Letters())  # type: ignore[arg-type]
    out.write_text(json.dumps(predictor_table.merged(out, "alpaca", trace, baselines, "first command")))
    name, row = predictor_table.predictor_row(trace, f"mine={boosted_dir}", [0, 1])
    assert (name, row["seeds"], row["backend"]) == ("mine", [0], "lightgbm")
    assert row["mae_tokens"] == pytest.approx(boosted.config.metrics["dev"]["mae_tokens"], abs=1e-4)
    content = predictor_table.merged(out, "alpaca", trace, {name: row}, "second command")
    table = content["alpaca"]["table"]
    assert list(table) == [
        "constant_median", "prompt_length", "history_window", "nearest_prompts", "mine",
        "one_other_sample", "other_samples_mean",
    ]  # fmt: skip
    assert table["mine"]["command"] == "second command"
    assert table["constant_median"]["command"] == "first command"
    assert table["mine"]["crps"] < table["nearest_prompts"]["crps"] < table["constant_median"]["crps"]
    with pytest.raises(SystemExit, match="only lightgbm is trained here"):
        predictor_table.predictor_row(trace, "encoder", [0])


def test_commands_name_no_place_of_this_machine() -> None:
    command = predictor_table.shown_command(
        [
            "/some/where/data",
            "/tmp/x/out.json",
            "--trace",
            "alpaca",
            "--predictor",
            "a=/tmp/x/s0,/tmp/x/s1",
            "--seeds",
            "0",
        ]
    )
    assert command == (
        "python benchmarks/studies/predictor_table.py data out.json --trace alpaca --predictor a=s0,s1 --seeds 0"
    )


# -- noise and near-duplicates -----------------------------------------------------------------------


def answered(rng: np.random.Generator, count: int, sd: float) -> tuple[list[Record], np.ndarray]:
    """Prompts whose four answers scatter around a centre of their own."""
    centres = rng.uniform(200, 800, count)
    lengths = np.maximum(1, np.rint(centres[:, None] + rng.normal(0, sd, (count, 4)))).astype(int).tolist()
    records = [
        Record(str(i), prompt=f"p{i}", response_tokens=own, sample_tokens=(a, b, c), split="train")
        for i, (a, b, c, own) in enumerate(lengths)
    ]
    return records, centres


def test_noise_is_all_of_the_error_of_who_knows_the_law() -> None:
    records, centres = answered(np.random.default_rng(0), 3000, 30.0)
    law = [LengthDistribution.point(round(c)) for c in centres]
    found = predictor_label_noise.label_noise(records, law)
    assert found["noise_rms_tokens"] == pytest.approx(30.0, rel=0.05)
    assert found["noise_share_of_squared_error"] == pytest.approx(1.0, abs=0.06)
    low, high = found["noise_share_of_absolute_error"]
    assert low == pytest.approx(1.0, abs=0.05)
    assert high > low
    assert found["same_prompt_sd_tokens"] == pytest.approx(30.0 * 0.92, rel=0.05)
    vague = [LengthDistribution((0, 1000), (1.0,))] * len(records)
    assert predictor_label_noise.label_noise(records, vague)["noise_share_of_squared_error"] < 0.1


def test_answers_at_the_cap_are_kept_apart() -> None:
    records, centres = answered(np.random.default_rng(1), 400, 5.0)
    capped = [replace(r, response_tokens=1000) if i < 40 else r for i, r in enumerate(records)]
    found = predictor_label_noise.label_noise(capped, [LengthDistribution.point(round(c)) for c in centres])["cut_off"]
    assert found["share"] == pytest.approx(0.1)
    assert found["mae_tokens"] > 10 * found["mae_of_the_others_tokens"]
    assert found["predicted_cut_off"] == 0.0


def test_near_duplicates_are_found_across() -> None:
    known = ["Write a poem about the sea", "List three pets", "write a poem, about the sea!", "Explain gravity to me"]
    near = predictor_label_noise.near_duplicates(
        ["Write a poem about the sea now", "Explain gravity to me.", "What time is it?"], known
    )
    assert near == [[0, 2], [3], []]


def test_what_duplicates_across_the_split_are_worth() -> None:
    rng = np.random.default_rng(2)
    nouns = [f"w{i}x" for i in range(400)]
    records = []
    for i in range(240):
        # Half of dev asks what a row of train asked in the same words, and is answered alike.
        length = int(rng.integers(20, 900))
        text = f"{nouns[i]} {nouns[(7 * i) % 400]} {nouns[(13 * i) % 400]} please"
        records.append(Record(f"t{i}", prompt=text, response_tokens=length, split="train"))
        if i < 40:
            records.append(Record(f"d{i}", prompt=text + "!", response_tokens=length + 1, split="dev"))
        elif i < 80:
            other = int(rng.integers(20, 900))
            records.append(Record(f"d{i}", prompt=f"other {i} thing {i}", response_tokens=other, split="dev"))
    found = predictor_label_noise.duplicates_across(trace_of(records), [0])
    assert (found["dev_rows"], found["dev_rows_with_a_duplicate"], found["train_rows_with_a_duplicate"]) == (80, 40, 40)
    assert found["duplicates_mean_mae_tokens"] == 1.0
    assert set(found["found"]) == {
        f"{name}_{part}"
        for name in ("all_of_train", "without_duplicates", "as_many_at_random")
        for part in ("with", "other")
    }
    assert found["found"]["all_of_train_with"]["rows"] == 40


# -- learning curve and kinds of prompts -------------------------------------------------------------


def test_the_curve_looks_at_train_only_and_falls(trace: Trace) -> None:
    train = {r.conversation for r in trace.records if r.split == "train"}
    apart = predictor_study.tenth_apart(trace, 0)
    assert {r.conversation for r in apart.records} == train
    split = [r.split for r in apart.records]
    assert 0.02 < split.count("dev") / len(split) < 0.2
    found = predictor_study.learning_curve(trace, (70, 600), (0,), Letters())  # type: ignore[arg-type]
    for by_size in found.values():
        assert list(by_size) == ["70", "600"]
        assert by_size["600"]["rows"] == split.count("dev")
    assert found["lightgbm"]["600"]["crps"] < found["lightgbm"]["70"]["crps"]
    assert found["lightgbm"]["600"]["mae_tokens"] < found["ridge_on_embeddings"]["600"]["mae_tokens"]


def test_errors_are_sorted_into_kinds() -> None:
    asked = [("Write an essay on X", 150, 100), ("Translate this: hi", 100, 100), ("List pets", 60, 60)] * 150
    records = [
        Record(str(i), prompt=text, response_tokens=own, sample_tokens=(other,) * 3)
        for i, (text, own, other) in enumerate(asked)
    ]
    found = predictor_study.error_by_kind(records, [LengthDistribution.point(100)] * len(records))
    assert found["all"]["mae_tokens"] == 30.0
    essay, rewrite, listed = (found["kinds"][f"asks_{kind}"] for kind in ("long_text", "rewrite", "list"))
    assert (essay["rows"], essay["mae_tokens"], essay["bias_tokens"]) == (150, 50.0, -50.0)
    assert (rewrite["mae_tokens"], rewrite["avoidable_tokens"]) == (0.0, 0.0)
    # The other answers are as far off: nothing of it can be avoided. Of the lists everything can.
    assert essay["avoidable_tokens"] == 0.0
    assert (listed["avoidable_tokens"], listed["share_of_avoidable"]) == (40.0, 1.0)
    assert next(iter(found["kinds"])) == "asks_list"
    assert "asks_code" not in found["kinds"]


def test_held_out_rows_are_those_the_checkpoint_did_not_learn(trace: Trace, boosted_dir: Path) -> None:
    rows, predicted = predictor_study.held_out(trace, str(boosted_dir))
    assert rows == list(training_parts(trace, seed=0).held_records)
    assert len(rows) == len(predicted) > 30


# -- other traces ------------------------------------------------------------------------------------


def test_the_models_name_tells_who_talks_much() -> None:
    rng = np.random.default_rng(3)
    records = [
        Record(f"c{i}", prompt=f"q{i} r{i} s{i}", response_tokens=int(length * rng.uniform(0.9, 1.1)), model=model)
        for i in range(120)
        for model, length in (("brief-1", 40), ("chatty-2", 400))
    ]
    measured = predictor_other_data.alpaca_eval(trace_of(records), [0])
    found = measured["found"]
    assert set(measured["held_out"]) == {"model_unknown", "model_named"}
    assert set(found) == {"constant_per_model", "model_unknown", "model_named", "one_per_model"}
    assert found["model_named"]["mae_tokens"] < 0.3 * found["model_unknown"]["mae_tokens"]
    assert found["one_per_model"]["mae_tokens"] < 0.3 * found["model_unknown"]["mae_tokens"]
    assert set(found["model_named"]["models"]) == {"brief-1", "chatty-2"}
    rows = sum(values["rows"] for values in found["model_named"]["models"].values())
    assert rows == found["model_named"]["rows"]


def test_the_product_and_the_trees_learn_from_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What train-predictor makes by a recipe is what is trained on the spot, and a second look trains nothing."""
    conversations = [
        replace(r, conversation=f"{r.conversation}-{i % 40}", turn=turn, model=None, split=None)
        for turn in (0, 1)
        for i, r in enumerate(synthetic_trace(150, seed=4 + turn).records)
    ]
    trace = trace_of(conversations)
    on_the_spot = predictor_other_data.sharegpt(trace, [1], ways=["with_conversation"])
    recipe = Recipe(backend="lightgbm")
    product = predictor_other_data.OfRecipe(recipe, tmp_path)
    found = predictor_other_data.sharegpt(trace, [1], product, ["with_conversation"])
    assert set(found["found"]) == {f"with_conversation{part}" for part in ("", "_first_turn", "_later_turns")}
    for part in ("found", "held_out"):
        for way, mine in on_the_spot[part].items():
            assert found[part][way]["by_seed"] == mine["by_seed"]
    whole, first, later = (values["rows"] for values in found["found"].values())
    assert whole == first + later > 50
    monkeypatch.setattr(BoostingPredictor, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = predictor_other_data.OfRecipe(recipe, tmp_path)
    assert predictor_other_data.sharegpt(trace, [1], again, ["with_conversation"]) == found
    assert [(t["name"], t["seed"]) for t in again.trainings] == [("sharegpt-with_conversation", 1)]


def test_parts_of_the_file_are_replaced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"rows": 3.0, "mae_tokens": 1.0, "kendall_tau": 0.5, "coverage_90": 0.9}
    asked_for = []

    def measured(name: str, backend: str, *others: object) -> dict[str, object]:
        asked_for.append((name, backend, others[-1]))
        return {"found": {backend: row}}

    trace = trace_of([Record("a", prompt="p", response_tokens=1)])
    monkeypatch.setattr(predictor_other_data, "load", lambda folder, name: trace)
    monkeypatch.setattr(predictor_other_data, "measured", measured)
    out, common = tmp_path / "out.json", ["/some/data", str(tmp_path / "out.json"), "--traces", "sharegpt"]
    predictor_other_data.main(common)
    start = [
        "--backends",
        "stacked",
        "after",
        "--ways",
        "with_conversation",
        "--start-from",
        "mine=/some/where/seed0",
        "--work",
        "/some/work",
    ]
    predictor_other_data.main([*common, *start])
    section = json.loads(out.read_text())["sharegpt"]
    ways = ["with_conversation"]
    assert asked_for == [("sharegpt", b, w) for b, w in (("lightgbm", ()), ("stacked", ways), ("after", ways))]
    assert [*section["found"], *section["stacked"]["found"], *section["stacked_after_mine"]["found"]] == [
        "lightgbm", "stacked", "after",
    ]  # fmt: skip
    assert section["stacked_after_mine"]["command"] == (
        "python benchmarks/studies/predictor_other_data.py ../shared/data out.json --traces sharegpt --seeds 0 1 2"
        " --backends after --ways with_conversation --start-from mine=seed0 --work work"
    )
    assert "/some" not in out.read_text()


def test_what_a_training_needs_is_asked_for(tmp_path: Path) -> None:
    trace = trace_of([Record("a", prompt="p", response_tokens=1)])
    with pytest.raises(SystemExit, match="--work"):
        predictor_other_data.measured("sharegpt", "stacked", trace, [0], None, None)
    with pytest.raises(SystemExit, match="--start-from"):
        predictor_other_data.measured("sharegpt", "after", trace, [0], tmp_path, None)
