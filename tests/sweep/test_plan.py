"""Plans: what YAML may say, how it resolves, what it expands to, and the line a mistake gets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from ecoserve.errors import ConfigError, TraceError
from ecoserve.serving.core.policies import LENGTH_BLIND
from ecoserve.sweep.expansion import expand, points_of
from ecoserve.sweep.identity import PlannedRun, fingerprint
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.search import Searches


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


BASIC = """
trace: synthetic
policies: [vllm, ecoserve]
lengths: [true, noise:0.50, none]
rates: [8, 16]
seeds: [0, 1, 2]
requests: 50
conditions:
  pressure: {blocks: 100}
  no-pressure: {blocks: 9000, rates: 8, lengths: [true, none]}
settings: {max_num_seqs: 64, max_tokens: 500, max_model_len: 1600}
"""


def test_axes_multiply_and_blind_policies_run_once(tmp_path):
    runs = expand(SweepPlan.load(write(tmp_path, BASIC)))
    keys = [(r.labels["condition"], r.settings["policy"], r.settings["lengths"], r.settings["rate_rps"]) for r in runs]
    pressure = [k for k in keys if k[0] == "pressure"]
    assert len(pressure) == 3 * 2 * (1 + 3)  # seeds x rates x (vllm once + ecoserve with three kinds of lengths)
    assert len(keys) - len(pressure) == 3 * 1 * (1 + 2)
    assert {k[2] for k in keys if k[1] == "vllm"} == {"none"}
    assert {k[2] for k in keys if k[1] == "ecoserve"} == {"true", "noise:0.5", "none"}
    assert len({r.key for r in runs}) == len(runs)
    assert all(r.settings["max_num_seqs"] == 64 for r in runs)
    assert {r.settings["blocks"] for r in runs if r.labels["condition"] == "no-pressure"} == {9000}


def test_seeds_are_innermost(tmp_path):
    runs = expand(SweepPlan.load(write(tmp_path, BASIC)))
    assert [r.settings["seed"] for r in runs[:6]] == [0, 1, 2, 0, 1, 2]


def test_yaml_booleans_and_scalars_are_lengths_and_axes(tmp_path):
    plan = SweepPlan.load(write(tmp_path, "{trace: synthetic, lengths: true, rates: recorded, policies: ecoserve}"))
    assert plan.lengths == ["true"]
    assert [r.settings["rate_rps"] for r in expand(plan)] == [None] * 3
    quoted = SweepPlan.load(write(tmp_path, '{trace: synthetic, lengths: ["true", null], rates: 1}'))
    assert quoted.lengths == ["true", "none"]


def test_paths_are_relative_to_the_plan_and_variables_expand(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "t.json").write_text("[]")
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "ckpt" / "config.json").write_text("{}")
    monkeypatch.chdir(here)  # what a variable holds was typed there
    monkeypatch.setenv("MY_TRACE", "t.json")
    plan = SweepPlan.load(
        write(tmp_path, "{trace: '${MY_TRACE}', predictor: ckpt, lengths: [predicted, 'predicted:ckpt'], rates: 1}")
    )
    assert plan.trace == [str(here / "t.json")]
    assert plan.lengths == [f"predicted:{tmp_path / 'ckpt'}"]
    hub = SweepPlan.load(write(tmp_path, "{trace: tatsu-lab/alpaca, lengths: none, rates: 1}"))
    assert hub.trace == ["tatsu-lab/alpaca"]


def test_the_command_line_replaces_trace_and_predictor(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "ckpt").mkdir(parents=True)
    (elsewhere / "t.json").write_text("[]")
    plan_file = write(tmp_path, "{trace: missing.json, lengths: predicted, rates: 1}")
    monkeypatch.chdir(elsewhere)
    plan = SweepPlan.load(plan_file, trace="t.json", predictor="ckpt")
    assert plan.trace == [str(elsewhere / "t.json")]
    assert plan.lengths == [f"predicted:{elsewhere / 'ckpt'}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{trace: synthetic}", "rates: Field required"),
        ("{trace: synthetic, rates: []}", "rates"),
        ("{trace: synthetic, rates: -1}", "rates.0"),
        ("{trace: synthetic, rates: .nan}", "rates.0"),
        ("{trace: synthetic, rates: 1, lengths: perfect}", "'perfect' is none of"),
        ("{trace: synthetic, rates: 1, lengths: 'noise:x'}", "noise:x is not a log-standard deviation between 0 and 5"),
        ("{trace: synthetic, rates: 1, lengths: 'noise:-1'}", "noise:-1 is not a log-standard deviation"),
        ("{trace: synthetic, rates: 1, lengths: predicted}", "`predicted` needs a checkpoint"),
        ("{trace: synthetic, rates: 1, lengths: 'predicted:nowhere'}", "there is no nowhere"),
        ("{trace: nowhere.json, rates: 1}", "trace: there is no nowhere.json"),
        ("{trace: '${NOT_SET_ANYWHERE}', rates: 1}", "NOT_SET_ANYWHERE is not set"),
        ("{trace: synthetic, rates: 1, polices: vllm}", "polices: no such key; allowed: trace, policies, lengths,"),
        (
            "{trace: synthetic, rates: 1, conditions: {a: {block: 3}}}",
            "conditions.a.block: no such key; allowed: trace, ",
        ),
        ("{trace: synthetic, rates: 1, depth: 3}", "depth"),
        ("{trace: synthetic, rates: 1, run: nonsense}", "run"),
        ("just text", "is not a plan"),
        ("{trace: [", "is not YAML (line"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        SweepPlan.load(write(tmp_path, text))
    assert message in str(caught.value)
    assert "sweep.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_modelled_gpu_is_a_setting_and_its_model_may_lie_beside_the_plan(tmp_path):
    (tmp_path / "own").mkdir()
    sizes = {"num_hidden_layers": 2, "hidden_size": 1024, "num_attention_heads": 8, "intermediate_size": 2048}
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 4096, **sizes}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = """
trace: synthetic
rates: 8
settings: {gpu: h100_sxm, model: MODEL, tp: 2}
conditions: {a: {settings: {model: own}}}
"""
    for name, found in (("own", str(tmp_path / "own")), ("llama-3.1-8b", "llama-3.1-8b")):
        plan = SweepPlan.load(write(tmp_path, text.replace("MODEL", name)))
        assert plan.settings["model"] == found
        assert {r.settings["model"] for r in expand(plan)} == {str(tmp_path / "own")}
    assert {(r.settings["gpu"], r.settings["tp"]) for r in expand(plan)} == {("h100_sxm", 2)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("gpu: l40s, model: llama-13b", "max_model_len 4096 is more than llama-13b's 2048"),
        ("blocks: 100", "100 KV blocks of 16 tokens cannot hold"),
        ("gpu: l40s, model: llama-3.1-70b", "does not fit"),
        ("max_tokens: 4096", "leaves no room for a prompt"),
        ("max_num_batched_tokens: 64", "max_num_batched_tokens (64) must be greater"),
    ],
)
def test_a_sweep_refuses_what_simulate_refuses(settings, said, tmp_path):
    """``ecoserve simulate`` and ``plan`` call the same check, and test it in their own words."""
    for text in (f"rates: 8, settings: {{{settings}}}", f"search: {SEARCH}, settings: {{{settings}}}"):
        plan = SweepPlan.load(write(tmp_path, f"{{trace: synthetic, policies: vllm, {text}}}"))
        with pytest.raises(ConfigError, match=re.escape(said)):
            Searches.of(plan) if plan.search else expand(plan)


SEARCH = "{range: [1, 8], metric: slo_attainment, at_least: 0.9}"


def test_missing_plan(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        SweepPlan.load(tmp_path / "nope.yaml")


def test_blind_policies_of_the_design_are_blind():
    assert {
        "vllm",
        "vllm-watermark",
        "orca",
        "vllm-2024",
        "sarathi",
        "fastgen",
        "fastserve",
        "past-future",
    } <= LENGTH_BLIND
    assert not {"ecoserve", "vllm-priority", "ecoserve-paper", "hrrn", "volume", "multires"} & LENGTH_BLIND


def test_keys_follow_contents_not_paths(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text("[1]")
    b.write_text("[1]")

    def key(path: Path, **more: object) -> str:
        return PlannedRun.of({"trace": str(path), "seed": 0, **more}, {"engine": "virtual"}).key

    first = key(a)
    assert key(b) == first
    assert key(a, depth=2) != first
    b.write_text("[1, 2]")
    assert key(b) != first


def test_kernel_times_of_another_version_are_another_run(monkeypatch):
    def key(version: str, **settings: object) -> str:
        monkeypatch.setattr("ecoserve.sweep.identity.versions", lambda: {"vllm": "1", "aiconfigurator-core": version})
        return PlannedRun.of({"seed": 0, **settings}).key

    assert key("1", gpu="h100_sxm") != key("2", gpu="h100_sxm")
    assert key("1", gpu="linear") == key("2", gpu="linear") != key("1", gpu="h100_sxm")
    assert key("1") == key("2")


def test_checkpoints_count_by_content(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    one, two = tmp_path / "one", tmp_path / "two"
    key = PlannedRun.of({"lengths": f"predicted:{one}"}).key
    assert PlannedRun.of({"lengths": f"predicted:{two}"}).key == key
    (two / "model.txt").write_text("tree")
    assert fingerprint(two) != fingerprint(one)
    assert PlannedRun.of({"lengths": f"predicted:{two}"}).key != key


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_plans_of_the_repository_expand(path, tmp_path, monkeypatch):
    (tmp_path / "ckpt").mkdir()
    for name in ("ensemble", "default", "encoder", "lightgbm"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "config.json").write_text(f'"{name}"', encoding="utf-8")
    monkeypatch.setenv("ECOSERVE_CHECKPOINTS", str(tmp_path / "checkpoints"))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    plan = SweepPlan.load(path, trace="synthetic", predictor="ckpt")
    runs = (
        expand(plan) if plan.search is None else [p.run(8.0, seed) for p in points_of(plan, None) for seed in p.seeds]
    )
    assert len(runs) >= 3 * len(content["seeds"])
    assert {"vllm", "ecoserve"} <= {run.settings["policy"] for run in runs}


@pytest.mark.parametrize("trace", ["data/gone.yaml", "data/gone.yml"])
def test_a_workload_file_that_is_not_there_is_no_hub_id(tmp_path, trace):
    with pytest.raises(ConfigError, match="there is no"):
        SweepPlan.load(write(tmp_path, BASIC.replace("trace: synthetic", f"trace: {trace}")))


def test_a_workload_file_that_is_wrong_is_said_before_any_run(tmp_path):
    (tmp_path / "traffic.yaml").write_text("requests: -3\n", encoding="utf-8")
    with pytest.raises(TraceError, match="requests"):
        SweepPlan.load(write(tmp_path, BASIC.replace("trace: synthetic", "trace: traffic.yaml")))
