"""The names that users write down: settings, metrics, summary keys, options. A change here is a change for them.

A name that goes belongs into ``ecoserve/deprecations.py`` and CHANGELOG.md; then run this file to
write ``tests/public_names.txt`` anew.
"""

from __future__ import annotations

from pathlib import Path

import typer

from ecoserve import deprecations

NAMES = Path(__file__).with_name("public_names.txt")


def settings() -> set[str]:
    """Keys of the scheduler's settings and of the API server's."""
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
    from ecoserve.serving.core.settings import SchedulerSettings

    return {*SchedulerSettings.model_fields, *MiddlewareSettings.model_fields}


def metrics() -> set[str]:
    """Prometheus metrics, as ``/metrics`` spells them."""
    from prometheus_client import REGISTRY

    from ecoserve.serving.adapter import metrics
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

    metrics.middleware_metrics().serve("", MiddlewareSettings())
    metrics.MetricsPublisher()
    metrics.normalized_latency("", 0)
    metrics.publish_level("full", "")
    metrics.publish_run_level("full")
    samples = [
        sample
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("ecoserve_") and not sample.name.endswith("_created")
    ]
    assert {s.name for s in samples if "model_name" not in s.labels} <= set(deprecations.METRICS)
    assert not [s.name for s in samples if "quantile" in s.labels], "the label of summaries"
    return {s.name for s in samples}


def summary_keys() -> set[str]:
    """Keys of a run in ``summary.json``."""
    from ecoserve.sweep.summary import RunRow

    return set(RunRow.model_fields)


def options() -> set[str]:
    """Options of every command."""
    from ecoserve.cli.main import COMMANDS

    found = set()
    for entry in COMMANDS:
        app = typer.Typer()
        app.command(context_settings=entry.context_settings)(entry.load())
        for parameter in typer.main.get_command(app).params:
            names = (*parameter.opts, *parameter.secondary_opts)
            found |= {f"{entry.name} {name}" for name in names if name.startswith("-")}
    return found


def public_names() -> str:
    """All of them, one a line."""
    kinds = {"setting": settings(), "metric": metrics(), "summary key": summary_keys(), "option": options()}
    return "".join(f"{kind}: {name}\n" for kind, names in kinds.items() for name in sorted(names))


def test_public_names_are_those_that_were_written_down() -> None:
    written, found = NAMES.read_text(encoding="utf-8").splitlines(), public_names().splitlines()
    new, gone = sorted(set(found) - set(written)), sorted(set(written) - set(found))
    assert found == written, f"new: {new}; gone: {gone}; python {Path(__file__).name} writes {NAMES.name}"


def test_new_names_of_the_table_exist_and_old_ones_are_published_or_gone() -> None:
    assert {new for new in deprecations.SETTINGS.values() if new} <= settings()
    assert {new.partition("{")[0] for new in deprecations.METRICS.values() if new} <= metrics()
    assert {new for new in deprecations.SUMMARY_KEYS.values() if new} <= summary_keys()
    spelled = {option.split(" ", 1)[1] for option in options()}
    assert {new for new in deprecations.CLI_OPTIONS.values() if new} <= spelled


if __name__ == "__main__":
    NAMES.write_text(public_names(), encoding="utf-8")
