"""The shape of ``summary.json``: one definition of every key, its unit and its meaning.

The JSON Schema in ``ecoserve/sweep/schema/`` and the tables of ``docs/results-schema.md`` are made from these models
(``python -m ecoserve.sweep.summary`` rewrites both; a test fails when they are behind). A key is never renamed or
given another meaning without a new :data:`SCHEMA_VERSION`; new keys may appear within a version.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 1
SCHEMA_FILE: Final = Path(__file__).parent / "schema" / f"summary-{SCHEMA_VERSION}.schema.json"

Engine = Literal["virtual", "in-process", "url"]


def _key(description: str, unit: str = "", default: Any = None, **limits: Any) -> Any:
    """A key of the summary: what it means, and its unit ("" for names, counts and shares)."""
    return Field(default, description=description, json_schema_extra={"unit": unit} if unit else {}, **limits)


def _count(description: str) -> Any:
    return _key(description, "count", ..., ge=0)


def _maybe(description: str) -> Any:
    return _key(f"{description} Null where nobody counts.", "count", ge=0)


def _share(description: str) -> Any:
    return _key(description, "share 0..1", ge=0, le=1)


def _latency(name: str, what: str) -> Any:
    return _key(f"{what}: {name} over the completed requests.", "ms", ge=0)


_TTFT = "Time to first token, from arrival"
_TPOT = "Time per output token after the first"
_E2EL = "End-to-end latency (JCT), arrival to last token"
_NORM = "Normalized latency: E2EL divided by the generated tokens"
_WALL = "Wall-clock time of this machine, so it differs from run to run."


class RunRow(BaseModel):
    """One run: one policy, one kind of lengths, one rate, one seed. Flat; figures that cannot be given are null."""

    model_config = ConfigDict(extra="allow")

    run: str = _key(
        "Name of the run: a hash of its resolved settings. Its request rows are `requests/<run>.parquet`.", default=...
    )
    engine: Engine = _key(
        "What ran it: vLLM's scheduler classes in virtual time, a vLLM engine in this process, or a server at a URL.",
        default="virtual",
    )
    condition: str | None = _key("Name of the load condition: `pressure`, `no-pressure`, or the plan's own name.")
    policy: str = _key("Scheduling policy.", default=...)
    lengths: str = _key(
        "What the policy is told: `true`, `predicted:CHECKPOINT`, `noise:SIGMA` or `none`.", default=...
    )
    search: str | None = _key(
        "Of a search's runs: `step` (a rate tried) or `unloaded` (what its bound refers to). Null for the plan's own."
    )
    rate_rps: float | None = _key("Mean arrival rate; null for recorded arrivals.", "requests/s", ge=0)
    seed: int = _key("Seed of arrivals, sampling and noise.", default=...)
    trace: str | None = _key("Name of the trace, where the plan has several.")
    slo_scale: float | None = _key("Deadline over what an idle engine needs, where the plan has such an axis.")
    gpu: str | None = _key("The modelled GPU, if there is one.")
    model: str | None = _key("The served model, if one is named.")
    replicas: int | None = _key("Engines behind the router, if several, or where the plan has such an axis.", "count")

    requests: int = _count("Requests sent.")
    completed: int = _count("Requests answered to the end.")
    rejected: int = _count("Requests refused at the door.")
    failed: int = _count("Requests that ended in an error.")
    duration_s: float = _key("First arrival to last token.", "s", default=..., ge=0)
    throughput_rps: float | None = _key("Completed requests per second of the run.", "requests/s", ge=0)
    output_tokens_per_s: float | None = _key("Generated tokens of completed requests per second.", "tokens/s", ge=0)
    goodput_rps: float | None = _key("Requests that met their deadline, per second.", "requests/s", ge=0)
    slo_attainment: float | None = _share("Share of the accepted requests with a deadline that met it.")

    ttft_mean_ms: float | None = _latency("mean", _TTFT)
    ttft_p50_ms: float | None = _latency("median", _TTFT)
    ttft_p90_ms: float | None = _latency("90th percentile", _TTFT)
    ttft_p99_ms: float | None = _latency("99th percentile", _TTFT)
    tpot_mean_ms: float | None = _latency("mean", _TPOT)
    tpot_p50_ms: float | None = _latency("median", _TPOT)
    tpot_p90_ms: float | None = _latency("90th percentile", _TPOT)
    tpot_p99_ms: float | None = _latency("99th percentile", _TPOT)
    e2el_mean_ms: float | None = _latency("mean", _E2EL)
    e2el_p50_ms: float | None = _latency("median", _E2EL)
    e2el_p90_ms: float | None = _latency("90th percentile", _E2EL)
    e2el_p99_ms: float | None = _latency("99th percentile", _E2EL)
    normalized_latency_mean_ms: float | None = _latency("mean", _NORM)
    normalized_latency_p50_ms: float | None = _latency("median", _NORM)
    normalized_latency_p90_ms: float | None = _latency("90th percentile", _NORM)
    normalized_latency_p99_ms: float | None = _latency("99th percentile", _NORM)

    preemptions: int = _count("Requests whose KV was dropped while running.")
    recomputed_tokens: int = _key("Tokens computed again after preemptions.", "tokens", default=..., ge=0)
    pauses: int = _count("Decoding requests stopped with their KV kept.")
    re_reservations: int = _count("New reservations for responses that outlived the old one.")
    under_predictions: int | None = _maybe("Responses that outlived their reservation.")
    over_predictions: int | None = _maybe("Responses that ended before their reservation.")
    underprediction_own_space: int | None = _maybe("Outlived reservations met from the request's own unlent space.")
    underprediction_re_reserved: int | None = _maybe("Outlived reservations met by reserving again from the posterior.")
    underprediction_global_reserve: int | None = _maybe("Outlived reservations met from the global reserve.")
    underprediction_paused: int | None = _maybe("Outlived reservations and shortages met by a pause with the KV kept.")
    underprediction_guest_moved: int | None = _maybe("Hosts freed of their guest, which moved or stopped.")
    underprediction_recomputed: int | None = _maybe("Shortages met by dropping the KV of a victim.")
    kv_used_mean: float | None = _key("KV held, as a share of the usable KV, averaged over time.", "share 0..1", ge=0)
    kv_reserved_mean: float | None = _key(
        "KV promised beyond what is written, as a share of the usable KV, averaged over time.", "share", ge=0
    )
    kv_lent_mean: float | None = _key("KV lent to guests, as a share of the usable KV.", "share", ge=0)
    kv_demand_peak: float | None = _key(
        "Peak KV demand of the load if nobody waited, as a share of the usable KV "
        "(pressure: at least 1.3; no pressure: at most 0.7).",
        "share",
        ge=0,
    )
    schedule_p50_ms: float | None = _key(f"Time of one `schedule()` call, median. {_WALL}", "ms", ge=0)
    schedule_p99_ms: float | None = _key(f"Time of one `schedule()` call, 99th percentile. {_WALL}", "ms", ge=0)
    update_p50_ms: float | None = _key(f"Time of one `update_from_output()` call, median. {_WALL}", "ms", ge=0)
    steps: int = _count("Engine steps.")

    prediction_mae_tokens: float | None = _key(
        "Mean absolute error of the lengths the policy was told, over the completed requests.", "tokens", ge=0
    )
    prediction_within_50: float | None = _share("Completed requests whose told length was within 50 tokens.")
    prediction_within_100: float | None = _share("Completed requests whose told length was within 100 tokens.")
    prediction_kendall_tau: float | None = _key(
        "Kendall's tau-b of told against true lengths: 1 is the right order, 0 is chance.", "-1..1", ge=-1, le=1
    )
    requests_sha256: str | None = _key("Hash of the run's request rows: equal for equal rows.")
    wall_s: float | None = _key(f"What the run took to compute. {_WALL}", "s", ge=0)


class SearchRow(BaseModel):
    """A search for the highest rate that meets a bound: one for every setting of the sweep."""

    model_config = ConfigDict(extra="allow")

    engine: Engine = _key("What ran it.", default="virtual")
    condition: str | None = _key("Name of the load condition.")
    policy: str = _key("Scheduling policy.", default=...)
    lengths: str = _key("What the policy is told.", default=...)
    metric: str = _key("Key of a run that the bound is for; its mean over the seeds counts.", default=...)
    at_least: float | None = _key("The bound from below, in the metric's unit.")
    at_most: float | None = _key("The bound from above, in the metric's unit.")
    state: str = _key(
        "`found`; `met everywhere` or `met nowhere` in the range; `out of runs` (the bracket is wider than the "
        "tolerance); `a run failed`; `no such figure`; `not ended`.",
        default=...,
    )
    rate_rps: float | None = _key("The answer: the highest rate tried that meets the bound.", "requests/s")
    missed_from_rps: float | None = _key("The lowest rate tried that misses it.", "requests/s")
    value: float | None = _key("The metric at `rate_rps`.")
    value_missed: float | None = _key("The metric at `missed_from_rps`.")
    tried: list[float] = Field(default_factory=list, description="Rates tried, ascending.")
    missed_below_rps: list[float] = Field(
        default_factory=list,
        description="Rates below the answer that miss the bound all the same: more load does not always make it worse.",
    )
    met_above_rps: list[float] = Field(
        default_factory=list,
        description="Rates above `missed_from_rps` that meet the bound all the same.",
    )
    runs: list[str] = Field(default_factory=list, description="Its runs, in the order in which they were asked for.")


class FailureRow(BaseModel):
    """A run that failed; `--resume` tries it again."""

    model_config = ConfigDict(extra="allow")

    run: str = _key("Name of the run.", default=...)
    policy: str | None = _key("Scheduling policy.")
    lengths: str | None = _key("What the policy is told.")
    rate_rps: float | None = _key("Mean arrival rate.", "requests/s")
    seed: int | None = _key("Seed.")
    error: str = _key("What went wrong, one line; the whole traceback is in `runs/<run>.json`.", default=...)


class PredictorRow(BaseModel):
    """How good one length predictor is on records it was not trained on. The point scored is the median."""

    model_config = ConfigDict(extra="allow")

    rows: int = _key("Records it was evaluated on.", "count", default=..., ge=0)
    mae_tokens: float | None = _key("Mean absolute error.", "tokens", ge=0)
    within_50: float | None = _share("Predictions within 50 tokens of the truth.")
    within_100: float | None = _share("Predictions within 100 tokens of the truth.")
    kendall_tau: float | None = _key("Kendall's tau-b of predicted against true lengths.", "-1..1", ge=-1, le=1)
    bin_accuracy: float | None = _share("Predictions whose most likely bin is the true one.")
    pinball_loss: float | None = _key("Mean pinball loss over the quantiles.", "tokens", ge=0)
    crps: float | None = _key("Continuous ranked probability score: the whole distribution's error.", "tokens", ge=0)
    ece: float | None = _share("Expected calibration error of the stated P(length <= n).")
    coverage_50: float | None = _share("Records not longer than the predicted 50 % quantile.")
    coverage_80: float | None = _share("Records not longer than the predicted 80 % quantile.")
    coverage_90: float | None = _share("Records not longer than the predicted 90 % quantile.")
    coverage_95: float | None = _share("Records not longer than the predicted 95 % quantile.")
    latency_p50_ms: float | None = _key(f"Time to predict for one request, median. {_WALL}", "ms", ge=0)
    latency_p99_ms: float | None = _key(f"Time to predict for one request, 99th percentile. {_WALL}", "ms", ge=0)


class TraceInfo(BaseModel):
    """Where the requests came from."""

    model_config = ConfigDict(extra="allow")

    source: str = _key("File, hub id, or `synthetic`.", default=...)
    format: str | None = _key("Format it was read as.")
    sha256: str | None = _key("Hash of its content.")
    length_source: str | None = _key(
        "Where response lengths came from: a field, a tokenizer, the trace, or characters."
    )
    records: int | None = _key("Records kept.", "count", ge=0)


class Meta(BaseModel):
    """What ran, where, and how to run it again."""

    model_config = ConfigDict(extra="allow")

    title: str = _key("Title of the report.", default="ecoserve results")
    created: str | None = _key("When it was run (ISO 8601, UTC).")
    synthetic: bool = _key("The workload is made up; the report says so loudly.", default=False)
    trace: TraceInfo | None = _key("Where the requests came from.")
    served_predictor: str | None = _key("Name in `predictor` of the one that the runs with predicted lengths used.")
    baseline_policy: str = _key("Policy that the others are compared with.", default="vllm")
    scheduler_mode: str | None = _key("`async` or `sync`, and the pipeline depth.")
    model_runner: str | None = _key("vLLM's model runner (`V1`, `V2`), or `none` in virtual time.")
    versions: dict[str, str] = Field(default_factory=dict, description="Versions of Python and of what did the work.")
    hardware: dict[str, str | int | float] = Field(
        default_factory=dict, description="Machine: `cpu`, `cores`, `memory_gib`, `gpu`, `platform`."
    )
    commands: list[str] = Field(default_factory=list, description="Commands that made these results, in order.")
    notes: list[str] = Field(default_factory=list, description="What a reader must know, one sentence each.")
    settings: dict[str, Any] = Field(default_factory=dict, description="The sweep's plan, as resolved.")
    runs_sha256: str | None = _key("Hash of all runs without wall-clock times: equal for equal results.")
    tables_sha256: str | None = _key(
        "The same with every run's request rows: equal only if all tables are, wherever and however they came about."
    )


class Summary(BaseModel):
    """The whole of ``summary.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(default=1, description="Version of this layout.")
    runs: list[RunRow] = Field(default_factory=list, description="Finished runs.")
    failures: list[FailureRow] = Field(default_factory=list, description="Runs that failed.")
    searches: list[SearchRow] = Field(
        default_factory=list, description="What the searches came to, if the plan has one."
    )
    predictor: dict[str, PredictorRow] = Field(
        default_factory=dict, description="Predictors by name: `encoder`, `lightgbm`, `constant-median`, ..."
    )
    meta: Meta = Field(default_factory=Meta, description="What ran, where, and how to run it again.")


#: Keys of a run that differ between two runs of the same settings, because a real clock is in them.
WALL_CLOCK_KEYS: Final = frozenset({"schedule_p50_ms", "schedule_p99_ms", "update_p50_ms", "wall_s"})


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``summary.json`` (draft 2020-12)."""
    schema = Summary.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"ecoserve summary.json, version {SCHEMA_VERSION}",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text() -> str:
    """The schema as the file in the repository holds it."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def key_tables() -> dict[str, str]:
    """Markdown tables (key, unit, meaning) by model name, for ``docs/results-schema.md``."""
    tables: dict[str, str] = {}
    for model in (Summary, RunRow, SearchRow, FailureRow, PredictorRow, Meta, TraceInfo):
        lines = ["| key | unit | meaning |", "|---|---|---|"]
        for name, info in model.model_fields.items():
            extra = info.json_schema_extra
            unit = extra.get("unit", "") if isinstance(extra, dict) else ""
            lines.append(f"| `{name}` | {unit} | {info.description} |")
        tables[model.__name__] = "\n".join(lines)
    return tables


def fill_document(text: str) -> str:
    """``text`` with every block between ``<!-- keys: NAME -->`` and ``<!-- end -->`` renewed."""
    for name, table in key_tables().items():
        head, found, rest = text.partition(f"<!-- keys: {name} -->\n")
        if found:
            text = head + found + table + "\n" + rest[rest.index("<!-- end -->") :]
    return text


def _rewrite() -> None:
    document = Path(__file__).parents[2] / "docs" / "results-schema.md"
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    document.write_text(fill_document(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _rewrite()
