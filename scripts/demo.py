"""The main job, end to end: traces in, a trained predictor, vLLM with our scheduler beside vLLM's own, a report out.

    make demo                                   # the hub's Alpaca, or a synthetic workload where there is no hub
    ECOSERVE_DATA=alpaca.json.gz make demo      # your own trace (Alpaca or ShareGPT format)

Settings from the environment: ECOSERVE_DATA (a trace file), ECOSERVE_DEMO_BACKEND (lightgbm or encoder; the encoder
takes about eight minutes more), ECOSERVE_DEMO_DIR (where results go; default results/demo). An interrupted demo goes on
where it was; ECOSERVE_DEMO_FRESH=1 starts again.

It ends in one JSON line with the paths of report.html and summary.json.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HUB_DATA = "tatsu-lab/alpaca"
ENGINE_SEEDS = (0, 1, 2)
#: a cache of 40 blocks of 32 tokens, so that requests must share it; arrivals faster than it can serve
ENGINE = {
    "requests": 200,
    "rate_rps": 48.0,
    "blocks": 40,
    "block_size": 32,
    "max_num_seqs": 64,
    "max_model_len": 1024,
    "max_tokens": 512,
    "threads": 1,
    "clock": "cpu",
    "prefix_caching": False,
    "engine": {"use_tqdm_on_load": False},
}
ENGINE_POLICIES = (("vllm", "none"), ("vllm-watermark", "none"), ("ecoserve", "predicted"), ("ecoserve", "true"))


@dataclass(frozen=True)
class Data:
    """Where the requests come from."""

    source: str
    length_field: str | None
    sample_field: str | None
    synthetic: bool


def main() -> int:
    """Run the demo; returns the exit code."""
    sys.path.insert(0, str(ROOT / "scripts"))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from ecoserve.cli.common import guard

    return guard(demo)


def demo() -> None:
    """All stages; what a finished stage left on disk is used again unless a fresh start is asked for."""
    began = time.monotonic()
    out = Path(os.environ.get("ECOSERVE_DEMO_DIR", ROOT / "results" / "demo")).resolve()
    if os.environ.get("ECOSERVE_DEMO_FRESH") == "1" and (out / "sweep.yaml").is_file():
        shutil.rmtree(out)
    with stage("1/5 traces"):
        data, trace = choose_data()
    with stage("2/5 predictor"):
        checkpoint, metrics = train(data, trace, out.with_name(f"{out.name}-predictor"))
    # Everything after this reads the trace as a file or by its name: runs happen in processes of their own.
    os.environ["ECOSERVE_DATA"] = data.source
    folder = open_folder(out, data, trace, metrics)
    with stage("3/5 vLLM engine with a tiny model"):
        engine = run_engines(folder, data, checkpoint, out)
    with stage("4/5 sweep in virtual time"):
        run_sweep(folder, data, checkpoint, out, engine)
    with stage("5/5 report"):
        from ecoserve.sweep.report import write_report

        folder.write_summary()
        report = write_report(folder)
    print(
        json.dumps(
            {"report": str(report), "summary": str(out / "summary.json"), "seconds": round(time.monotonic() - began)}
        )
    )


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say what is being done and how long it took, on stderr."""
    say(f"== {name}")
    began = time.monotonic()
    yield
    say(f"   {name}: {time.monotonic() - began:.0f} s")


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


# -- 1. traces ------------------------------------------------------------------------------------------


def choose_data() -> tuple[Data, Any]:
    """The user's file, else the hub's Alpaca, else a synthetic workload that says so."""
    from ecoserve.data import load_trace
    from ecoserve.errors import TraceError
    from ecoserve.serving.workload import trace_for

    named = os.environ.get("ECOSERVE_DATA")
    if named:
        data = with_recorded_lengths(str(Path(named).resolve()))
        trace = load_trace(data.source, length_field=data.length_field, sample_field=data.sample_field)
    else:
        try:
            data = Data(HUB_DATA, None, None, synthetic=False)
            trace = load_trace(data.source)
        except TraceError as error:
            say(f"   {error}")
            for line in (
                "   " + "!" * 88,
                "   NO DATA AND NO HUB: this demo runs on a SYNTHETIC workload (templated instructions with a",
                "   known length law). Its figures say nothing about real traffic. Set ECOSERVE_DATA to a trace file.",
                "   " + "!" * 88,
            ):
                say(line)
            data = Data("synthetic:6000", None, None, synthetic=True)
            trace = trace_for(data.source, None, None, None)
    say(
        f"   {data.source}: {trace.report.kept} of {trace.report.rows_in} rows kept, lengths from {trace.length_source}"
    )
    for reason, count in sorted(trace.report.dropped.items()):
        say(f"     dropped {count}: {reason}")
    return data, trace


def with_recorded_lengths(source: str) -> Data:
    """Use a model's recorded token counts where an Alpaca file has them (temperature 0.7), else its own answers."""
    from ecoserve.data import load_trace
    from ecoserve.errors import TraceError

    field = "vicuna_7b_tokens"
    try:
        load_trace(source, length_field=f"{field}[3]")
    except TraceError:
        return Data(source, None, None, synthetic=False)
    return Data(source, f"{field}[3]", field, synthetic=False)


# -- 2. predictor ---------------------------------------------------------------------------------------


def train(data: Data, trace: Any, checkpoint: Path) -> tuple[Path, dict[str, dict[str, float]]]:
    """Train (or reuse) a predictor, and measure it on rows it has not seen."""
    from ecoserve.data import split_trace
    from ecoserve.errors import CheckpointError
    from ecoserve.predictor import ConstantMedian, evaluate_predictor, load_predictor, train_predictor

    backend = os.environ.get("ECOSERVE_DEMO_BACKEND", "lightgbm")
    parts = split_trace(trace)
    predictor = None
    try:
        known = load_predictor(checkpoint)
        if known.config.trace_sha256 == trace.sha256 and known.config.backend == backend:
            predictor = known
            say(f"   using the {backend} predictor in {checkpoint}")
    except CheckpointError:
        pass
    if predictor is None:
        predictor = train_predictor(
            trace, backend=backend, output_dir=checkpoint, resume=checkpoint.is_dir(), progress=tenths()
        )
    metrics = {
        backend: evaluate_predictor(predictor, parts["dev"].records),
        "constant-median": evaluate_predictor(ConstantMedian.of(predictor.config), parts["dev"].records),
    }
    for name, values in metrics.items():
        say(
            f"   {name}: mean error {values['mae_tokens']:.1f} tokens, within 50 {values['within_50']:.0%}, "
            f"tau {values['kendall_tau']:.2f}"
        )
    return checkpoint, metrics


def tenths() -> Any:
    """A progress callback that says a line at every tenth of each piece of work."""
    said: dict[str, int] = {}

    def progress(what: str, done: int, total: int, /) -> None:
        tenth = 10 * done // max(1, total)
        if tenth > said.get(what, -1):
            said[what] = tenth
            say(f"   {what}: {tenth * 10} %")

    return progress


# -- 3. a real engine -----------------------------------------------------------------------------------


def name_of(data: Data) -> str:
    """The trace as the report names it: no folders of this machine."""
    return data.source if data.synthetic or data.source == HUB_DATA else Path(data.source).name


def open_folder(out: Path, data: Data, trace: Any, metrics: dict[str, dict[str, float]]) -> Any:
    """The result folder, with what is known so far."""
    from ecoserve.sweep.identity import describe_run
    from ecoserve.sweep.results import ResultFolder

    folder = ResultFolder.create(out, describe_run("What are predicted lengths worth?"), resume=True)
    for name, values in metrics.items():
        folder.set_predictor(name, values)
    command = "make demo" if data.source == HUB_DATA or data.synthetic else f"ECOSERVE_DATA={name_of(data)} make demo"
    folder.describe(
        served_predictor=next(iter(metrics)),
        synthetic=data.synthetic,
        trace={
            "source": name_of(data),
            "format": trace.format,
            "sha256": trace.sha256,
            "length_source": trace.length_source,
            "records": len(trace.records),
        },
        scheduler_mode="engine: sync; virtual time: async, depth 2",
        model_runner="engine: V1; virtual time: the rules of V2",
        commands=[command],
        notes=[
            "The engine is vLLM's CPU build with a tiny random model; recorded response lengths are replayed.",
            "Engine times are CPU time of one thread, so that other processes on the machine do not count.",
            "Virtual time has a linear step cost, which stands for no particular GPU.",
        ],
    )
    return folder


def run_engines(folder: Any, data: Data, checkpoint: Path, out: Path) -> list[Any]:
    """The same loads on vLLM's CPU engine, a policy at a time."""
    from tiny_model import make_tiny_model

    from ecoserve.errors import RunError
    from ecoserve.serving.engine_run import EngineRunSettings, run_engine
    from ecoserve.sweep.identity import PlannedRun

    model = out.with_name("tiny-llama")
    if not (model / "config.json").is_file():
        make_tiny_model(model)
    planned = []
    for seed in ENGINE_SEEDS:
        for policy, lengths in ENGINE_POLICIES:
            source = f"predicted:{checkpoint}" if lengths == "predicted" else lengths
            settings = ENGINE | {
                "model": str(model),
                "trace": data.source,
                "length_field": data.length_field,
                "policy": policy,
                "lengths": source,
                "seed": seed,
            }
            planned.append(PlannedRun.of(settings, {"engine": "in-process", "condition": "pressure"}))
    folder.expect(planned)
    finished = folder.finished()
    for number, run in enumerate(planned, 1):
        if run.key in finished:
            continue
        began = time.monotonic()
        try:
            result = run_engine(EngineRunSettings(**run.settings))
        except RunError as error:
            folder.add_failure(run, str(error))
            say(f"   {number}/{len(planned)} {run}: failed: {error}")
            continue
        row = folder.add(run, result, wall_s=time.monotonic() - began)
        say(
            f"   {number}/{len(planned)} {run}: {row['normalized_latency_mean_ms']:.0f} ms/token, "
            f"{row['preemptions']} preemptions, {row['pauses']} pauses"
        )
    return planned


# -- 4. the sweep -----------------------------------------------------------------------------------------


def run_sweep(folder: Any, data: Data, checkpoint: Path, out: Path, engine: list[Any]) -> None:
    """Accuracy against throughput in virtual time, two processes at a time."""
    from ecoserve.cli.common import stderr_console
    from ecoserve.sweep.execute import execute
    from ecoserve.sweep.expansion import expand
    from ecoserve.sweep.plan import SweepPlan

    plan = SweepPlan.load(ROOT / "sweeps" / "demo.yaml", trace=data.source, predictor=str(checkpoint))
    if data.length_field:
        plan = plan.model_copy(update={"settings": {**plan.settings, "length_field": data.length_field}})
    runs = expand(plan)
    folder.expect([*engine, *runs])
    jobs = max(1, min(2, len(os.sched_getaffinity(0))))
    tally = execute(runs, folder, jobs=jobs, console=stderr_console())
    say(f"   {tally.finished} runs, {tally.skipped} kept from before, {tally.failed} failed")


if __name__ == "__main__":
    sys.exit(main())
