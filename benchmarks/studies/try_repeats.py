"""Does the sentence of ``ecoserve try`` say "no difference" of equals, and does it find steps that take 5 % longer?

    python benchmarks/studies/try_repeats.py benchmarks/results/try_repeats_virtual.json \
        --noise 0.01 [--trials 10] [--repeats 5] [--seconds 20]
    python benchmarks/studies/try_repeats.py benchmarks/results/try_repeats_engine.json --seconds 3

With ``--noise`` in virtual time, where the machine's pace differs from run to run by that share (log-normal). Without
it the tiny model on vLLM's CPU engine, CPU time of one thread. Three rows: vLLM's default, the same again, and the same
with steps that take 5 % longer (on the engine a scheduler that spends this share of a step's time on nothing). Each
trial has its own repeats; the default's runs serve for both comparisons. What a repeat measures is in the file, so that
other numbers of repeats are judged from the same runs (``--again`` judges them anew).
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import common

from ecoserve.sweep.identity import PlannedRun, describe_run
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.trial_parts import sentence
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import RunRow, Summary, TrialRow

#: By how much padded steps take longer.
PADDING: Final = 0.05
POLICIES: Final = {"again": "same", "padded": "padded"}
KEPT: Final = ("e2el_mean_ms", "output_tokens_per_s")
FLAGS: Final = (
    "--load-format dummy --dtype float32 --enforce-eager --max-model-len 1024 --max-num-seqs 64 --block-size 32 "
    "--num-gpu-blocks-override 65 --no-enable-prefix-caching"
)


def measure(trials: int, repeats: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Run all repeats; the rows of their runs, and the capacity."""
    from tiny_model import make_config_only

    from ecoserve.serving import engine_run
    from ecoserve.serving.trial_engine import calibrate, facts, plan_engine, start
    from ecoserve.sweep.trial import Trial

    engine_run.prepare(1)
    planned = plan_engine(str(make_config_only(folder / "model")), FLAGS.split(), folder)
    engine, _ = start(planned)
    scheduler_of = engine_run.policy_arguments

    def arguments(policy: str, settings: Any) -> dict[str, Any]:
        if policy not in POLICIES:
            return scheduler_of(policy, settings)
        return {
            **scheduler_of("vllm", {}),
            **({"scheduler_cls": "try_padded.PaddedScheduler"} if policy == "padded" else {}),
        }

    engine_run.policy_arguments = arguments
    limits = {k: v for k, v in facts(engine).items() if k in engine_run.EngineRunSettings.model_fields}
    load = {"model": "tiny", "trace": "synthetic:2000", "max_tokens": 512, "threads": 1, "clock": "cpu"}
    settings = engine_run.EngineRunSettings(**load, **limits, policy="vllm", lengths="none")
    trial = trial_of(Trial, engine, settings, folder)
    capacity = calibrate(engine, settings, trial.longest_prompt, 30.0)
    return repeated(trial, trials * repeats, seconds, capacity.rps)


def simulated(trials: int, repeats: int, seconds: float, noise: float, folder: Path) -> dict[str, Any]:
    """The same in virtual time, at a pace of the machine that is drawn anew for every run."""
    from ecoserve.serving.engine_run import EngineRunSettings
    from ecoserve.serving.simulate.cost import LinearCost
    from ecoserve.serving.simulate.run import simulate
    from ecoserve.serving.simulate.settings import SimulateSettings
    from ecoserve.sweep.trial import Trial

    pace = random.Random(1)
    engine = {"blocks": 400, "block_size": 16, "max_num_seqs": 32, "max_model_len": 1024}

    def run(planned: Any, factor: float) -> Any:
        known = {k: planned.settings[k] for k in ("trace", "max_tokens", "seed", "requests", "rate_rps")}
        cost = LinearCost(**{name: factor * value for name, value in LinearCost().model_dump().items()})
        return simulate(SimulateSettings(**known, **engine, policy="vllm", lengths="none", cost=cost))

    class Virtual(Trial):
        def _one(self, planned: Any) -> None:
            padded = PADDING if planned.settings["policy"] == "padded" else 0.0
            result = run(planned, (1 + padded) * pace.lognormvariate(0.0, noise))
            result.policy = planned.settings["policy"]
            self.folder.add(planned, result)

    settings = EngineRunSettings(
        model="none", trace="synthetic:2000", max_tokens=512, policy="vllm", lengths="none", **engine
    )
    trial = trial_of(Virtual, None, settings, folder)
    at_once = settings.model_copy(update={"rate_rps": float("inf"), "requests": 400}).model_dump()
    capacity = run(PlannedRun("calibration", at_once), 1.0).summary()["throughput_rps"]
    return repeated(trial, trials * repeats, seconds, capacity)


def trial_of(kind: Any, engine: Any, settings: Any, folder: Path) -> Any:
    result = ResultFolder.create(folder / "results", describe_run("repeats"))
    row = TrialRow(level="full", level_reason="", order_seed=0)
    rows = [("vllm", "none"), ("again", "none"), ("padded", "none")]
    now = time.monotonic()
    return kind(engine, result, settings, rows, {}, row, now, now + 86400, lambda *_: None)


def repeated(trial: Any, repeats: int, seconds: float, capacity_rps: float) -> dict[str, Any]:
    order = random.Random(0)
    for number in range(repeats):
        trial.repeat(number, seconds, capacity_rps, order)
        print(f"repeat {number + 1} of {repeats}", file=sys.stderr, flush=True)
    keys = ("condition", "policy", "rate_rps", "seed", "requests", *KEPT)
    runs = [[getattr(run, k) for k in keys] for run in trial.folder.summary().runs]
    return {"capacity_rps": capacity_rps, "run_keys": list(keys), "runs": runs}


def judged(content: dict[str, Any], policy: str, repeats: int) -> list[str]:
    """The sentence of every trial of so many repeats, of ``policy`` against vLLM's default."""
    rows = [dict(zip(content["run_keys"], run, strict=True)) for run in content["runs"]]
    zero = ("completed", "rejected", "failed", "duration_s", "preemptions", "recomputed_tokens", "pauses", "steps")
    blank = {**dict.fromkeys((*zero, "re_reservations"), 0), "run": "", "engine": "in-process", "lengths": "none"}
    seeds = sorted({row["seed"] for row in rows})
    said = []
    for i in range(0, len(seeds) - repeats + 1, repeats):
        mine = [r for r in rows if r["seed"] in seeds[i : i + repeats] and r["policy"] in ("vllm", policy)]
        said.append(sentence(ReportData(Summary(runs=[RunRow.model_validate({**blank, **r}) for r in mine]))))
    return said


def verdicts(content: dict[str, Any], counts: Sequence[int]) -> list[dict[str, Any]]:
    """For each number of repeats: trials, in how many something was found, of equals and of padded steps."""
    out = []
    for repeats in counts:
        row: dict[str, Any] = {"repeats": repeats}
        for policy in POLICIES:
            if not (said := judged(content, policy, repeats)):
                break
            row["trials"] = len(said)
            row[f"{policy}_called_different"] = sum("costs" in text or "buys" in text for text in said)
            row[f"{policy}_first"] = said[0]
        out += [row] if "trials" in row else []
    return out


def main() -> None:
    parser = common.arguments_of(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--noise", type=float, help="in virtual time, with this noise")
    parser.add_argument("--again", action="store_true", help="judge the runs that are in the file again")
    options = parser.parse_args()
    size = (options.trials, options.repeats, options.seconds)
    if options.again:
        content = common.read(options.out.resolve())
    else:
        words = [f"--{name} {value}" for name, value in zip(("trials", "repeats", "seconds"), size, strict=True)]
        words += [] if options.noise is None else [f"--noise {options.noise}"]
        content = {
            "command": common.command("try_repeats", f"benchmarks/results/{options.out.name}", *words),
            **({"flags": FLAGS} if options.noise is None else {}),
        }
        with common.kept(None) as folder:
            content |= measure(*size, folder) if options.noise is None else simulated(*size, options.noise, folder)
    content["verdicts"] = verdicts(content, (3, 4, 5, 6))
    common.write(options.out, content)


if __name__ == "__main__":
    main()
