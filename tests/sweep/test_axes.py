"""The further axes of a sweep: knobs, SLO scales, traces, GPUs, replicas, engines; and what each is refused for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoserve.errors import ConfigError
from ecoserve.serving.client_run import ClientRunSettings
from ecoserve.serving.engine_run import EngineRunSettings
from ecoserve.serving.simulate.settings import SimulateSettings
from ecoserve.sweep import worker
from ecoserve.sweep.execute import execute
from ecoserve.sweep.expansion import expand
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta
from ecoserve.sweep.worker import find_function


def load(tmp_path: Path, text: str) -> SweepPlan:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return SweepPlan.load(path)


def expanded(tmp_path: Path, text: str) -> list[PlannedRun]:
    runs = expand(load(tmp_path, text))
    assert len({run.key for run in runs}) == len(runs)
    return runs


def test_knobs_are_the_scheduler_s_and_vllm_has_none(tmp_path):
    runs = expanded(
        tmp_path,
        "{trace: synthetic, rates: 8, seeds: 0, lengths: none, policies: [vllm, ecoserve, ecoserve-paper],"
        " knobs: {epsilon: [0.05, 0.1], resume_steps: 8}, settings: {scheduler: {reserve: 0.05}}}",
    )
    found = [(r.settings["policy"], r.settings["scheduler"]) for r in runs]
    assert found == [
        ("vllm", {"reserve": 0.05}),
        ("ecoserve", {"reserve": 0.05, "epsilon": 0.05, "resume_steps": 8}),
        ("ecoserve", {"reserve": 0.05, "epsilon": 0.1, "resume_steps": 8}),
        ("ecoserve-paper", {"reserve": 0.05, "epsilon": 0.05, "resume_steps": 8}),
        ("ecoserve-paper", {"reserve": 0.05, "epsilon": 0.1, "resume_steps": 8}),
    ]
    assert runs[1].labels == {"engine": "virtual", "condition": None, "knob_epsilon": 0.05, "knob_resume_steps": 8}
    assert "knob_epsilon" not in runs[0].labels


def test_loads_multiply_and_label_their_runs(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("[]")
    runs = expanded(
        tmp_path,
        "{trace: [a.json, b.json], rates: [4, 8], seeds: [0, 1], policies: vllm, slo_scales: [3, 5], replicas: [1, 2],"
        " routers: vllm-dp,"
        " gpus: [{gpu: l40s, model: llama-2-13b}, {gpu: h100_sxm, model: llama-2-13b, tp: 2, blocks: 900}]}",
    )
    assert len(runs) == 2 * 2 * 2 * 2 * 2 * 2
    last = runs[-1]
    assert {k: v for k, v in last.labels.items() if k not in ("engine", "condition")} == {
        "trace": "b.json", "slo_scale": 5.0, "replicas": 2, "router": "vllm-dp",
        "gpu": "h100_sxm", "model": "llama-2-13b", "tp": 2, "blocks": 900,
    }  # fmt: skip
    assert last.settings["trace"] == str(tmp_path / "b.json")
    assert (last.settings["slo_scale"], last.settings["router"], last.settings["blocks"]) == (5.0, "vllm-dp", 900)
    assert [r.settings["seed"] for r in runs[:4]] == [0, 1, 0, 1]


def test_a_condition_may_change_any_axis(tmp_path):
    runs = expanded(
        tmp_path,
        "{trace: synthetic, rates: 8, seeds: 0, policies: ecoserve, lengths: none, slo_scales: 5,"
        " conditions: {one: {}, other: {slo_scales: [2, 3], knobs: {epsilon: 0.3}, trace: 'synthetic:50'}}}",
    )
    assert [(r.labels["condition"], r.labels["slo_scale"], r.labels.get("knob_epsilon")) for r in runs] == [
        ("one", 5.0, None),
        ("other", 2.0, 0.3),
        ("other", 3.0, 0.3),
    ]
    assert [r.settings["trace"] for r in runs] == ["synthetic", "synthetic:50", "synthetic:50"]


def test_an_axis_that_is_not_named_leaves_keys_as_they_were(tmp_path):
    text = "{trace: synthetic, rates: 8, seeds: 0, policies: ecoserve, lengths: none"
    (plain,) = expanded(tmp_path, text + "}")
    (named,) = expanded(tmp_path, text + ", slo_scales: 5}")
    (setting,) = expanded(tmp_path, text + ", settings: {slo_scale: 5}}")
    assert plain.key == PlannedRun.of(plain.settings, {"engine": "virtual", "condition": None}).key
    assert named.settings == setting.settings
    assert named.key != setting.key


def test_an_engine_in_the_process_gets_its_own_settings(tmp_path):
    plan = load(
        tmp_path,
        "{trace: synthetic, rates: 8, seeds: 0, lengths: [true, none], engine: in-process, blocks: 300,"
        " settings: {model: tiny, threads: 1}, knobs: {epsilon: [0.1, 0.2]}}",
    )
    runs = expand(plan)
    assert len(runs) == 1 + 2 * 2
    assert {run.labels["engine"] for run in runs} == {"in-process"}
    for run in runs:
        EngineRunSettings.model_validate(run.settings)
    _, model = find_function(plan.run)
    assert model is EngineRunSettings


def test_servers_are_named_by_policy(tmp_path, monkeypatch):
    plan = load(
        tmp_path,
        "{trace: synthetic, rates: [2, 4], seeds: [0], engine: url, blocks: 300,"
        " urls: {vllm: 'http://one:8000', ecoserve: 'http://two:8000'}, settings: {replay: false}}",
    )
    runs = expand(plan)
    assert [(r.settings["policy"], r.settings["url"], r.settings["lengths"]) for r in runs[:2]] == [
        ("vllm", "http://one:8000", "none"),
        ("ecoserve", "http://two:8000", "server"),
    ]
    for run in runs:
        ClientRunSettings.model_validate(run.settings)
    asked = []
    monkeypatch.setattr(worker, "run_client", asked.append)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    call, model = find_function(plan.run)
    assert model is ClientRunSettings
    call(ClientRunSettings.model_validate(runs[0].settings))
    assert asked[0].api_key == "secret"
    assert "secret" not in json.dumps([dict(r.settings) for r in runs])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("knobs: {epsilom: [0.1]}", "epsilom.*there is no such setting"),
        ("knobs: {epsilon: [0.1, 3]}", "epsilon.*less than or equal to 0.5"),
        ("settings: {max_num_seq: 3}", "max_num_seq: there is no such setting; one of trace, .*max_num_seqs"),
        ("settings: {scheduler: {epsilon: 3}}", "epsilon.*less than or equal"),
        ("gpus: {gpu: l40s, tpp: 2}", r"gpus\.0\.tpp: no such key; allowed: gpu, model, tp, blocks"),
        ("slo_scales: [0]", "slo_scales.0"),
        ("replicas: 0", "replicas.0"),
        ("trace: [gone.json]", "there is no gone.json"),
        ("engine: real", "engine"),
        ("engine: url", "urls: goes with engine: url"),
        ("urls: {vllm: 'http://a'}", "urls: goes with engine: url"),
        ("engine: url, urls: {vllm: 'http://a'}, policies: [ecoserve]", "names no server of policy ecoserve"),
        ("engine: url, urls: {vllm: 'http://a'}, settings: {api_key: x}", "a key has no place in a plan"),
        ("engine: in-process, settings: {threads: 1}", "model: is missing"),
        ("lengths: server", "`server` is for engine: url"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path, text, message):
    base = {"trace": "synthetic", "rates": "1"}
    given = text.partition(":")[0]
    plain = ", ".join(f"{key}: {value}" for key, value in base.items() if key != given)
    with pytest.raises(ConfigError, match=message) as caught:
        expand(load(tmp_path, f"{{{plain}, {text}}}"))
    assert "\n" not in str(caught.value)


def test_two_traces_of_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "t.json").write_text("[]")
    with pytest.raises(ConfigError, match="two files have one name"):
        load(tmp_path, "{trace: [a/t.json, b/t.json], rates: 1}")


def test_a_simulated_gpu_may_measure_a_knob_itself(tmp_path):
    (run,) = expanded(
        tmp_path,
        "{trace: synthetic, rates: 8, seeds: 0, policies: ecoserve, lengths: none,"
        " knobs: {target_forward_tokens: auto}, settings: {gpu: l40s, model: llama-2-13b}}",
    )
    assert run.settings["scheduler"] == {"target_forward_tokens": "auto"}


def test_knobs_and_scales_reach_the_simulated_scheduler(tmp_path):
    plan = load(
        tmp_path,
        "{trace: 'synthetic:60', rates: 30, seeds: 0, policies: ecoserve, lengths: true, requests: 20, blocks: 60,"
        " knobs: {kv_policy: [pooled, max]}, slo_scales: [1.5, 20], replicas: [1, 2],"
        " settings: {max_tokens: 256, max_model_len: 900}}",
    )
    assert set(SimulateSettings.model_fields) > {"slo_scale", "replicas", "scheduler"}
    folder = ResultFolder.create(tmp_path / "out", Meta())
    tally = execute(expand(plan), folder, function=plan.run, jobs=0)
    assert (tally.finished, tally.failed) == (8, 0), folder.summary().failures
    rows = {
        (r.model_extra["knob_kv_policy"], r.slo_scale, r.replicas): r
        for r in folder.summary().runs
        if r.model_extra is not None
    }
    assert len(rows) == 8
    assert rows["pooled", 20, 1].slo_attainment > rows["pooled", 1.5, 1].slo_attainment
    assert rows["pooled", 20, 2].e2el_mean_ms < rows["pooled", 20, 1].e2el_mean_ms
    assert rows["max", 20, 1].e2el_mean_ms > rows["pooled", 20, 1].e2el_mean_ms
