"""The shape of ``summary.json``: the one definition of every key, its unit, its meaning and its direction.

``python scripts/results_schema.py`` makes the JSON Schema and the tables of ``docs/reference/results-schema.md`` from
these models. A key is never renamed or given another meaning without a new :data:`SCHEMA_VERSION` or an entry in
:data:`~ecoserve.deprecations.SUMMARY_KEYS`; new keys may appear within a version.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ecoserve.deprecations import SUMMARY_KEYS
from ecoserve.schema import Better, count, extra_of, key, maybe, share, tokens

SCHEMA_VERSION: Final = 1
SCHEMA_FILE: Final = Path(__file__).parent / "schema" / f"summary-{SCHEMA_VERSION}.schema.json"

#: Peak KV demand over the usable KV cache from which a load is under pressure, and up to which it is not.
PRESSURE_FROM: Final = 1.3
NO_PRESSURE_TO: Final = 0.7

#: What executes runs: vLLM's scheduler classes in virtual time, a vLLM engine in the process, a server at a URL.
Engine = Literal["virtual", "in-process", "url"]


def _counted(meaning: str) -> Any:
    return maybe(f"{meaning} Null where it is not counted.", "count", ge=0)


def _latency(statistic: str, meaning: str) -> Any:
    return maybe(f"{meaning}: {statistic} over the completed requests.", "ms", ge=0, better="lower")


def _wall(meaning: str, unit: str = "ms") -> Any:
    return maybe(f"{meaning} Wall-clock time of this machine, so it differs from run to run.", unit, ge=0)


_TTFT = "Time to first token, from arrival"
_TPOT = "Time per output token after the first"
_E2EL = "End-to-end latency (JCT), arrival to last token"
_NORM = "Normalized latency: E2EL divided by the generated tokens"
_LENGTHS = "Source of the policy's lengths"


class _Row(BaseModel):
    """A flat row; further keys (labels of a plan, keys of a later version) are kept."""

    model_config = ConfigDict(extra="allow")


class RunRow(_Row):
    """One run: one policy, one kind of lengths, one rate, one seed. Flat; figures that cannot be given are null."""

    run: str = key("Name of the run: a hash of its resolved settings. Its request rows are `requests/<run>.parquet`.")
    engine: Engine = key(
        "What ran it: virtual time, a vLLM engine in this process, or a server at a URL.", default="virtual"
    )
    condition: str | None = maybe("Name of the load condition: `pressure`, `no-pressure`, or the plan's own name.")
    policy: str = key("Scheduling policy.")
    lengths: str = key(f"{_LENGTHS}: `true`, `predicted:CHECKPOINT`, `noise:SIGMA`, `none`, ...")
    search: str | None = maybe(
        "Of a search's runs: `step` (a rate tried) or `unloaded` (the reference of its bound). Null for the plan's own."
    )
    rate_rps: float | None = maybe("Mean arrival rate; null for recorded arrivals.", "requests/s", ge=0)
    seed: int = key("Seed of arrivals, sampling and noise.")
    trace: str | None = maybe("Name of the trace, where the plan has several.")
    slo_scale: float | None = maybe("Deadline over what an idle engine needs, where the plan has such an axis.")
    gpu: str | None = maybe("The modelled GPU, if there is one.")
    model: str | None = maybe("The served model, if one is named.")
    replicas: int | None = maybe("Engines behind the router, if several, or where the plan has such an axis.", "count")
    router: str | None = maybe("How the router chooses a replica, if there are several.")

    requests: int = count("Requests sent.")
    completed: int = count("Requests answered to the end.")
    rejected: int = count("Requests refused on arrival.")
    failed: int = count("Requests that ended in an error.")
    duration_s: float = key("First arrival to last token.", "s", ge=0)
    throughput_rps: float | None = maybe("Completed requests per second.", "requests/s", ge=0, better="higher")
    output_tokens_per_s: float | None = maybe("Generated tokens per second.", "tokens/s", ge=0, better="higher")
    goodput_rps: float | None = maybe("Requests that met their SLO, per second.", "requests/s", ge=0, better="higher")
    slo_attainment: float | None = share(
        "Share of the accepted requests with an SLO that met it.", None, better="higher"
    )

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

    preemptions: int = count("Requests whose KV was dropped while running.", better="lower")
    recomputed_tokens: int = tokens("Tokens computed again after preemptions.", better="lower")
    pauses: int = count("Decoding requests stopped with their KV kept.")
    re_reservations: int = count("New reservations for responses that outgrew the old one.")
    under_predictions: int | None = _counted("Responses that outgrew their reservation.")
    over_predictions: int | None = _counted("Responses that ended before their reservation.")
    underprediction_own_space: int | None = _counted("Under-predictions met from the request's own unlent space.")
    underprediction_re_reserved: int | None = _counted("Under-predictions met by reserving again from the posterior.")
    underprediction_global_reserve: int | None = _counted("Under-predictions met from the global reserve.")
    underprediction_paused: int | None = _counted("Under-predictions and shortages met by a pause with the KV kept.")
    underprediction_guest_moved: int | None = _counted("Hosts freed of their guest, which moved or stopped.")
    underprediction_recomputed: int | None = _counted("Shortages met by dropping the KV of a victim.")
    prefix_hits: float | None = maybe(
        "Prompt tokens that were in the prefix cache when their requests began, as a share.", "share 0..1", ge=0
    )
    kv_used_mean: float | None = maybe("KV held, as a share of the usable KV, averaged over time.", "share 0..1", ge=0)
    kv_reserved_mean: float | None = maybe(
        "KV promised beyond what is written, as a share, averaged over time.", "share", ge=0
    )
    kv_lent_mean: float | None = maybe("KV lent to guests, as a share of the usable KV.", "share", ge=0)
    kv_demand_peak: float | None = maybe(
        "Peak KV demand of the load if every request started on arrival, as a share of the usable KV "
        "(pressure: at least 1.3; no pressure: at most 0.7).",
        "share",
        ge=0,
    )
    schedule_p50_ms: float | None = _wall("Time of one `schedule()` call, median.")
    schedule_p99_ms: float | None = _wall("Time of one `schedule()` call, 99th percentile.")
    update_p50_ms: float | None = _wall("Time of one `update_from_output()` call, median.")
    steps: int = count("Engine steps.")

    prediction_mae_tokens: float | None = tokens("Mean absolute error of the policy's lengths.", None, better="lower")
    prediction_within_50: float | None = share("Completed requests whose length was within 50 tokens.", None)
    prediction_within_100: float | None = share("Completed requests whose length was within 100 tokens.", None)
    prediction_kendall_tau: float | None = maybe(
        "Kendall's tau-b of predicted against true lengths: 1 is the right order, 0 is chance.", "-1..1", ge=-1, le=1
    )
    requests_sha256: str | None = maybe("Hash of the run's request rows: equal for equal rows.")
    wall_s: float | None = _wall("Time to compute the run.", "s")

    @model_validator(mode="before")
    @classmethod
    def _with_current_names(cls, row: Any) -> Any:
        return with_current_names(row) if isinstance(row, Mapping) else row


class SearchRow(_Row):
    """A search for the highest rate that meets a bound: one for every setting of the sweep."""

    engine: Engine = key("What ran it.", default="virtual")
    condition: str | None = maybe("Name of the load condition.")
    policy: str = key("Scheduling policy.")
    lengths: str = key(f"{_LENGTHS}.")
    metric: str = key("Key of a run that the bound is for; its mean over the seeds counts.")
    at_least: float | None = maybe("The bound from below, in the metric's unit.")
    at_most: float | None = maybe("The bound from above, in the metric's unit.")
    state: str = key(
        "`found`; `met everywhere` or `met nowhere` in the range; `out of runs` (the bracket is wider than the "
        "tolerance); `a run failed`; `no such figure`; `not ended`."
    )
    rate_rps: float | None = maybe("The answer: the highest rate tried that meets the bound.", "requests/s")
    missed_from_rps: float | None = maybe("The lowest rate tried that misses it.", "requests/s")
    value: float | None = maybe("The metric at `rate_rps`.")
    value_missed: float | None = maybe("The metric at `missed_from_rps`.")
    tried: list[float] = key("Rates tried, ascending.", default=[])
    missed_below_rps: list[float] = key("Rates below the answer that miss the bound.", default=[])
    met_above_rps: list[float] = key("Rates above `missed_from_rps` that meet the bound: likewise.", default=[])
    runs: list[str] = key("Its runs, in the order in which they were requested.", default=[])


class FailureRow(_Row):
    """A run that failed; `--resume` tries it again."""

    run: str = key("Name of the run.")
    policy: str | None = maybe("Scheduling policy.")
    lengths: str | None = maybe(f"{_LENGTHS}.")
    rate_rps: float | None = maybe("Mean arrival rate.", "requests/s")
    seed: int | None = maybe("Seed.")
    error: str = key("The error in one line; the whole traceback is in `runs/<run>.json`.")


class PredictorRow(_Row):
    """How good one length predictor is on records it was not trained on. The point scored is the median."""

    rows: int = count("Records it was evaluated on.")
    mae_tokens: float | None = tokens("Mean absolute error.", None)
    within_50: float | None = share("Predictions within 50 tokens of the truth.", None)
    within_100: float | None = share("Predictions within 100 tokens of the truth.", None)
    kendall_tau: float | None = maybe("Kendall's tau-b of predicted against true lengths.", "-1..1", ge=-1, le=1)
    bin_accuracy: float | None = share("Predictions whose most likely bin is the true one.", None)
    pinball_loss: float | None = tokens("Mean pinball loss over the quantiles.", None)
    crps: float | None = tokens("Continuous ranked probability score: the whole distribution's error.", None)
    ece: float | None = share("Expected calibration error of the stated P(length <= n).", None)
    coverage_50: float | None = share("Records not longer than the predicted 50 % quantile.", None)
    coverage_80: float | None = share("Records not longer than the predicted 80 % quantile.", None)
    coverage_90: float | None = share("Records not longer than the predicted 90 % quantile.", None)
    coverage_95: float | None = share("Records not longer than the predicted 95 % quantile.", None)
    latency_p50_ms: float | None = _wall("Time to predict for one request, median.")
    latency_p99_ms: float | None = _wall("Time to predict for one request, 99th percentile.")


class StepTime(BaseModel):
    """A step of decodes alone, as measured and as modelled."""

    batch: int = count("Decoding requests.")
    context_tokens: int = tokens("Tokens of their contexts, mean.")
    measured_ms: float = key("Time of a step on this GPU.", "ms")
    modelled_ms: float = key("The same by the GPU's model.", "ms")


class ModelledFigure(BaseModel):
    """A figure of one repeat at capacity, as measured and in virtual time on the modelled GPU."""

    policy: str = key("Scheduling policy.")
    metric: str = key("Key of a run.")
    measured: float = key("As measured, in the metric's unit.")
    modelled: float = key("On the modelled GPU.")


class PredictorTime(BaseModel):
    """How long a predictor takes on this machine."""

    name: str = key("The predictor, or what was trained.")
    device: str = key("`cpu` or `cuda`.")
    one_prompt_ms: float | None = maybe("One prompt alone, median.", "ms")
    prompts_per_s: float = key("Prompts in batches, or rows learned from.", "prompts/s")


class TrialRow(BaseModel):
    """What ``ecoserve try`` found, beside its runs."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    sentence: str = key("What it buys, where it does not, and how sure that is.", default="")
    level: str = key("Level that served: `full` or `order`.")
    level_reason: str = key("Why that level.")
    repeats: int = count("Repeats of every row at every rate that were finished.", 0)
    order_seed: int = key("Seed of the order in which rows and rates were run.")
    ended: str = key("Why it ended: `done`, `time`, or `interrupted`.", default="done")
    capacity_rps: float | None = maybe("What vLLM's default can serve, by calibration.", "requests/s")
    engine_start_s: float | None = maybe("Seconds until the engine could serve.", "s")
    wall_s: float | None = maybe("Seconds of the whole trial, report not included.", "s")
    steps: list[StepTime] = key("Step times, where the GPU is modelled.", default=[])
    modelled: list[ModelledFigure] = key("Figures of the modelled GPU, where there is one.", default=[])
    predictor_times: list[PredictorTime] = key("Times of the predictor.", default=[])


class TraceInfo(_Row):
    """Where the requests came from."""

    source: str = key("File, hub id, or `synthetic`.")
    format: str | None = maybe("Format it was read as.")
    sha256: str | None = maybe("Hash of its content.")
    length_source: str | None = maybe("Source of response lengths: a field, a tokenizer, the trace, or characters.")
    records: int | None = maybe("Records kept.", "count", ge=0)


class Meta(_Row):
    """What ran, where, and how to run it again."""

    title: str = key("Title of the report.", default="ecoserve results")
    created: str | None = maybe("When it was run (ISO 8601, UTC).")
    synthetic: bool = key("The workload is made up; the report says so on top.", default=False)
    trace: TraceInfo | None = maybe("Where the requests came from.")
    served_predictor: str | None = maybe("Name in `predictor` of the one that the runs with predicted lengths used.")
    baseline_policy: str = key("Policy that the others are compared with.", default="vllm")
    scheduler_mode: str | None = maybe("`async` or `sync`, and the pipeline depth.")
    model_runner: str | None = maybe("vLLM's model runner (`V1`, `V2`), or `none` in virtual time.")
    versions: dict[str, str] = key("Versions of Python and of the packages that can change a result.", default={})
    hardware: dict[str, str | int | float] = key("`cpu`, `cores`, `memory_gib`, `gpu`, `platform`.", default={})
    commands: list[str] = key("Commands that made these results, in order.", default=[])
    notes: list[str] = key("What a reader must know, one sentence each.", default=[])
    settings: dict[str, Any] = key("The sweep's plan, as resolved.", default={})
    runs_sha256: str | None = maybe("Hash of all runs without wall-clock times: equal for equal results.")
    tables_sha256: str | None = maybe("The same with every run's request rows: equal for equal tables.")


class Summary(BaseModel):
    """The whole of ``summary.json``."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(default=1, description="Version of this layout.")
    runs: list[RunRow] = key("Finished runs.", default=[])
    failures: list[FailureRow] = key("Runs that failed.", default=[])
    searches: list[SearchRow] = key("Results of the searches, if the plan has one.", default=[])
    predictor: dict[str, PredictorRow] = key("Predictors by name (`encoder`, `lightgbm`, ...).", default={})
    trial: TrialRow | None = maybe("What `ecoserve try` found, beside its runs.")
    meta: Meta = Field(default_factory=Meta, description="What ran, where, and how to run it again.")

    @model_serializer(mode="wrap")
    def _with_deprecated_names(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Rows carry the names of before, too, for one release."""
        content: dict[str, Any] = serialize(self)
        for row in content.get("runs", ()):
            row |= {old: row[new] for old, new in SUMMARY_KEYS.items() if new in row}
        return content


#: Keys of a run that differ between two runs of the same settings, because a real clock is in them.
WALL_CLOCK_KEYS: Final = frozenset({"schedule_p50_ms", "schedule_p99_ms", "update_p50_ms", "wall_s"})


def with_current_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row as an older version may have written it, under the keys of this one."""
    return {SUMMARY_KEYS.get(name, name): value for name, value in row.items() if SUMMARY_KEYS.get(name) not in row}


def better(metric: str) -> Better | None:
    """Which way a metric of a run is better; None where neither is."""
    return extra_of(RunRow, metric).get("better")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of ``summary.json`` (draft 2020-12)."""
    schema = Summary.model_json_schema()
    keys = schema["$defs"]["RunRow"]["properties"]
    for old, new in SUMMARY_KEYS.items():
        keys[old] = {**keys[new], "description": f"Deprecated name of `{new}`.", "deprecated": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"ecoserve summary.json, version {SCHEMA_VERSION}",
        **{name: value for name, value in schema.items() if name != "title"},
    }
