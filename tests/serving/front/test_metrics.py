"""Metrics: every field has a name and a help text, and counters of two processes meet on one page."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields

import pytest

from ecoserve.deprecations import METRICS
from ecoserve.serving.adapter import metrics
from ecoserve.serving.core.counters import Counters, Gauges

OLD = set(METRICS)


def made(engine: int, **more: float) -> metrics.MetricsPublisher:
    return metrics.MetricsPublisher(engine=engine, model_name="m", **more)  # type: ignore[arg-type]


def sample(name: str, **labels: str) -> float | None:
    from prometheus_client import REGISTRY

    model = {} if name in OLD else {"model_name": "m"}
    return REGISTRY.get_sample_value(name, {**model, **labels})


def test_every_field_is_named_and_explained() -> None:
    assert all(f.metadata["help"].endswith(".") for f in (*fields(Counters), *fields(Gauges)))
    assert metrics.counter_series("recomputed_tokens") == "ecoserve_recomputed_tokens_total"
    assert metrics.counter_series("underprediction_paused") == 'ecoserve_underprediction_actions_total{action="paused"}'
    assert [metrics.gauge_name(f) for f in ("held_blocks", "running", "waiting_prompts")] == [
        "ecoserve_kv_held_blocks",
        "ecoserve_running_requests",
        "ecoserve_waiting_prompts",
    ]


def test_old_names_are_published_beside_the_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._warn_of_old_names.cache_clear()
    said: list[str] = []
    monkeypatch.setattr(metrics.logger, "warning", lambda line, *values: said.append(line % values))
    for _ in range(2):
        publisher = made(75, interval_s=0.0)
    counters = Counters(shortage_preemptions=2, underprediction_paused=3, underprediction_own_space=1)
    publisher.publish(counters, Gauges(length_source="history"))
    assert sample("ecoserve_underprediction_actions_total", engine="75", action="paused") == 3
    assert sample("ecoserve_underprediction_actions_total", engine="75", action="own_space") == 1
    assert sample("ecoserve_rung_paused_total", engine="75") == 3
    assert sample("ecoserve_shortage_preemptions_total", engine="75") == 2
    assert sample("ecoserve_ladder_preemptions_total", engine="75") == 2
    sources = [sample("ecoserve_length_source", engine="75", source=s) for s in ("predicted", "scaled", "history")]
    assert sources == [0, 0, 1]
    assert sample("ecoserve_believed", engine="75") == 2
    [line] = said
    assert all(name in line for name, new in METRICS.items() if new is not None)


def test_every_old_name_stands_for_a_metric() -> None:
    series = {metrics.counter_series(f.name) for f in fields(Counters)}
    assert {new for new in METRICS.values() if new} - series == {"ecoserve_length_source{source}"}


def test_only_what_is_new_is_added() -> None:
    publisher = made(71, interval_s=0.0)
    counters, gauges = Counters(), Gauges(usable_blocks=47, running=1)
    counters.pauses = 3
    publisher.publish(counters, gauges)
    publisher.publish(counters, gauges)
    counters.pauses = 5
    gauges.held_blocks = 12
    publisher.publish(counters, gauges)
    assert sample("ecoserve_pauses_total", engine="71") == 5
    assert sample("ecoserve_kv_held_blocks", engine="71") == 12
    assert sample("ecoserve_kv_usable_blocks", engine="71") == 47


def test_two_schedulers_in_one_process_add_up() -> None:
    for _ in range(2):
        publisher = made(72, interval_s=0.0)
        publisher.publish(Counters(steps=10), Gauges())
    assert sample("ecoserve_steps_total", engine="72") == 20


def test_a_busy_engine_publishes_now_and_then_and_an_idle_one_at_once() -> None:
    publisher = made(73, interval_s=3600)
    publisher.publish(Counters(steps=1), Gauges(running=1))
    publisher.publish(Counters(steps=2), Gauges(running=1))
    assert sample("ecoserve_steps_total", engine="73") == 1
    publisher.publish(Counters(steps=3), Gauges())
    assert sample("ecoserve_steps_total", engine="73") == 3


def test_errors_of_predictions_are_ratios() -> None:
    publisher = made(74)
    publisher.observe_error(100.0, 150)
    publisher.observe_error(0.0, 10)
    assert sample("ecoserve_prediction_error_ratio_sum", engine="74") == pytest.approx(1.5)
    assert sample("ecoserve_prediction_error_ratio_count", engine="74") == 1


SERVER = """
import os, subprocess, sys
from ecoserve.serving.adapter.metrics import multiprocess_dir, middleware_metrics
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
left = os.environ["PROMETHEUS_MULTIPROC_DIR"]
with multiprocess_dir() as path:
    assert path.startswith(left) and path != left and not os.listdir(path)
    engine = (
        "from ecoserve.serving.adapter.metrics import MetricsPublisher\\n"
        "from ecoserve.serving.core.counters import Counters, Gauges\\n"
        "p = MetricsPublisher(model_name='m'); p.observe_error(10, 20)\\n"
        "p.publish(Counters(pauses=4), Gauges(held_blocks=9))"
    )
    subprocess.run([sys.executable, "-c", engine], check=True)
    middleware_metrics().serve("m", MiddlewareSettings(api_key="s3cret", admin_key="s3cret"))
    middleware_metrics().predictions.labels("made").inc(2)
    middleware_metrics().seconds.labels().observe(0.01)
    from prometheus_client import CollectorRegistry, generate_latest, multiprocess
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    print(generate_latest(registry).decode())
assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == left
assert not os.path.exists(path)
"""


def test_counters_of_the_engines_process_reach_the_servers_page(tmp_path: object) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SERVER], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout
    lines = done.stdout.splitlines()
    for line in (
        'ecoserve_pauses_total{engine="0",model_name="m"} 4.0',
        'ecoserve_kv_held_blocks{engine="0",model_name="m"} 9.0',
        'ecoserve_prediction_error_ratio_sum{engine="0",model_name="m"} 2.0',
        'ecoserve_predictions_total{model_name="m",outcome="made"} 2.0',
        'ecoserve_predictions_total{model_name="m",outcome="timeout"} 0.0',
        'ecoserve_prediction_seconds_count{model_name="m"} 1.0',
        'ecoserve_client_keys_dropped_total{model_name="m"} 0.0',
        'ecoserve_prediction_queue_prompts{model_name="m"} 0.0',
        'ecoserve_predictor_info{model_name="m",predictor="none"} 1.0',
    ):
        assert line in lines
