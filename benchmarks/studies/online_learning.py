"""What ``serve --learn`` learns from its own answers, how fast, what it costs, and what it buys.

    python benchmarks/studies/online_learning.py ../shared/data benchmarks/results/online_learning.json
    python benchmarks/studies/online_learning.py ... --parts learning,changes,serving,cost

``learning``: answers in order of arrival (three orders). After N answers the model as the server would have it,
history (the last 1,000 lengths) and LightGBM trained offline on the same N rows predict the next 1,000. Lengths of
ShareGPT and of the thinking models are characters / 4, for neither names a tokenizer.

``changes``: 10 requests a second, 32 in flight; at request 2,000 answers become longer or shorter (another model),
other prompts come, or ``max_tokens`` changes. How many answers later it alarms, serves again, and is as good as at the
end: its pinball loss over the next hundred is within a quarter of that over the last five hundred.

``serving``: requests of Alpaca in their order on a modelled L40S, with the lengths that the online model had predicted
for each of them by then, beside none and true lengths. Virtual time.

``cost``: CPU time of the API process for each request, and of the process that fits at 10 answers a second.
"""

from __future__ import annotations

import gzip
import importlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import common
import numpy as np

from ecoserve.accuracy import kendall_tau, point_accuracy
from ecoserve.data import Message, load_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import Bins
from ecoserve.predictor.base import TrainingRun
from ecoserve.predictor.boosting.predictor import BoostingPredictor, BoostingSettings
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.linear import PARAMETERS
from ecoserve.predictor.runtime import silent
from ecoserve.predictor.text import Request, asked_of, read_request
from ecoserve.serving import length_source
from ecoserve.serving.adapter import learner
from ecoserve.serving.online import refit
from ecoserve.serving.online.model import Note, OnlineModel
from ecoserve.serving.simulate.run import SimulateSettings, simulate

STEPS: Final = (100, 300, 1000, 3000, 10_000)
NEXT: Final = 1000
SEEDS: Final = 3
RATE_RPS: Final = 10.0
IN_FLIGHT: Final = 32
#: Requests before and after a change.
CHANGE: Final = 2000
AFTER: Final = 1500
#: Requests of Alpaca that are simulated, by the number of answers before them; the rate is that of other studies.
WINDOWS: Final = ((0, 500), (1000, 1500), (2000, 2500), (4000, 4500))
SERVED: Final = {"gpu": "l40s", "model": "llama-13b", "max_tokens": 512, "max_model_len": 1024, "rate_rps": 40.0}
SLO_SCALE: Final = 5.0
_QUANTILES: Final = (0.1, 0.5, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests in order of arrival, the lengths of their answers, and their limits (0: none)."""

    requests: list[Request]
    lengths: list[int]
    limits: list[int] = field(default_factory=list)

    def shuffled(self, seed: int, most: int | None = None) -> Traffic:
        order = np.random.default_rng(seed).permutation(len(self.requests))[:most]
        return Traffic([self.requests[i] for i in order], [self.lengths[i] for i in order])


# -- data ------------------------------------------------------------------------------------------------------


def alpaca(data: Path) -> Traffic:
    trace = load_trace(data / "alpaca.json.gz", length_field="vicuna_7b_tokens[3]")
    rows = [r for r in trace.records if r.response_tokens and asked_of(r)]
    return Traffic([asked_of(r) or "" for r in rows], [int(r.response_tokens or 1) for r in rows])


def sharegpt(data: Path) -> Traffic:
    """All turns; those of a conversation stay in their order."""
    trace = load_trace(data / "sharegpt.json.gz")
    rows = [r for r in trace.records if r.response and asked_of(r)]
    return Traffic([asked_of(r) or "" for r in rows], [max(1, len(r.response or "") // 4) for r in rows])


def thinking(data: Path) -> Traffic:
    """Riddles to models that think: the length of thinking and answer, three answers a riddle and model."""
    with gzip.open(data / "thinking_lengths.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    requests: list[Request] = []
    lengths: list[int] = []
    for row in rows:
        for answer, thought in zip(row["answer_chars"], row["thinking_chars"], strict=False):
            if thought:
                requests.append((Message("system", row["model"]), Message("user", row["prompt"])))
                lengths.append(max(1, (answer + thought) // 4))
    return Traffic(requests, lengths)


def puzzles(data: Path) -> Traffic:
    """Puzzles to one model; characters / 4."""
    with gzip.open(data / "reasoning_gym_answers.json.gz", "rt") as file:
        rows = json.load(file)
    chosen = [r for r in rows if r["model"] == rows[0]["model"]]
    requests: list[Request] = [(Message("system", r["system"]), Message("user", r["prompt"])) for r in chosen]
    return Traffic(requests, [max(1, r["response_chars"][0] // 4) for r in chosen])


# -- a server without a server -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Served:
    """What an online model did with traffic: a note on each request, fits' CPU time, and what happened when."""

    model: OnlineModel
    notes: list[Note] = field(default_factory=list)
    cpu_s: float = 0.0
    fits: int = 0
    alarms: list[int] = field(default_factory=list)
    factors: list[tuple[int, float]] = field(default_factory=list)


def fit_once(model: OnlineModel) -> refit.Refit | float:
    answers, scores, _ = model.newest()
    about = {"base": None, "base_calibration": None, "served_model": None}
    return refit.read_result(refit.fit(refit.packed_rows(answers, about, scores=np.reshape(scores, (-1, 3)))), None)


def serve(traffic: Traffic) -> Served:
    """By the learner's own rules, in virtual time: when it fits, and how many answers it waits for."""
    served = Served(OnlineModel())
    model, last, next_s = served.model, 0, 0.0
    waiting: deque[int] = deque()
    for number, request in enumerate(traffic.requests):
        served.notes += model.predict([request])
        waiting.append(number)
        if len(waiting) > IN_FLIGHT:
            done = waiting.popleft()
            limit = traffic.limits[done] if traffic.limits else 0
            length = traffic.lengths[done]
            ended = not limit or length <= limit
            kept = length if ended else limit
            if model.observe(served.notes[done], kept, ended=ended, limit=limit or None):
                served.alarms.append(number)
        new = model.added - last
        least = learner.FEWEST if model.alarmed else max(learner.FEWEST, learner.SHARE * len(model.answers))
        if number / RATE_RPS >= next_s and model.added >= learner.MIN_ROWS and new >= least:
            last = model.added
            found = fit_once(model)
            took = found if isinstance(found, float) else found.cpu_s
            served.cpu_s, served.fits = served.cpu_s + took, served.fits + 1
            next_s = number / RATE_RPS + max(learner.REFIT_S, learner.REFIT_SHARE * took)
            if isinstance(found, refit.Refit):
                model.learned(found.model, found.gains, found.order, found.since, last)
                if found.since < len(model.answers):
                    served.factors.append((number, round(found.factor, 2)))
    return served


def figures(predicted: Sequence[LengthDistribution], lengths: Sequence[int]) -> dict[str, float]:
    y = np.asarray(lengths)
    q = {level: np.asarray([d.quantile(level) for d in predicted]) for level in _QUANTILES}
    return {
        "kendall_tau": round(kendall_tau(q[0.5], y) or 0.0, 3),
        "mae_tokens": round(point_accuracy(q[0.5], y)["mae_tokens"], 1),
        "pinball": round(losses(predicted, lengths).mean(), 2),
        **{f"coverage_{round(100 * level)}": round(float((y <= q[level]).mean()), 3) for level in _QUANTILES},
    }


def losses(predicted: Sequence[LengthDistribution], lengths: Sequence[int]) -> np.ndarray:
    """Pinball loss of each prediction, mean over the deciles, tokens."""
    levels = np.arange(1, 10) / 10
    off = np.asarray(lengths)[:, None] - np.asarray([[d.quantile(q) for q in levels] for d in predicted])
    return np.asarray(np.maximum(levels * off, (levels - 1.0) * off).mean(axis=1))


# -- the parts ---------------------------------------------------------------------------------------------------


def boosted(requests: Sequence[Request], lengths: Sequence[int], seed: int) -> BoostingPredictor:
    """LightGBM as ``train-predictor`` trains it, a tenth held out."""
    views = tuple(read_request(r, PARAMETERS) for r in requests)
    held = max(10, len(views) // 10)

    def rows(part: slice) -> Examples:
        n = len(views[part])
        return Examples(views[part], tuple(lengths[part]), ((),) * n, (False,) * n, PARAMETERS)

    fit = rows(slice(held, None))
    bins = Bins.fit(fit.all_lengths())
    config = PredictorConfig(
        backend="lightgbm",
        edges=bins.edges,
        closed_by=bins.closed_by,
        prior=tuple(bins.shares(fit.all_lengths()).tolist()),
        trace_name="online",
        trace_format="online",
        trace_sha256="0" * 64,
        length_source="",
        rows_trained=len(fit),
        rows_held_out=held,
        parameters=PARAMETERS,
        seed=seed,
    )
    return BoostingPredictor.fit(TrainingRun(config, fit, rows(slice(held)), Path(), False, silent), BoostingSettings())


def learning(data: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, traffic in (("alpaca", alpaca(data)), ("sharegpt", sharegpt(data)), ("thinking", thinking(data))):
        found: dict[int, dict[str, list[dict[str, float]]]] = {}
        for seed in range(SEEDS):
            # Conversations come in their order.
            mixed = traffic if name == "sharegpt" and not seed else traffic.shuffled(seed)
            for n in STEPS:
                if n + 200 > len(mixed.lengths):
                    continue
                model = OnlineModel()
                for request, length in zip(mixed.requests[:n], mixed.lengths[:n], strict=True):
                    model.observe(model.predict([request])[0], length, ended=True)
                fitted = fit_once(model)
                assert isinstance(fitted, refit.Refit)
                asked, true = mixed.requests[n : n + NEXT], mixed.lengths[n : n + NEXT]
                # Closed as the online model's, so that all are scored on the same lengths.
                history = model.predict([asked[0]])[0].history
                step = found.setdefault(n, {"online": [], "history": [], "lightgbm": []})
                step["online"].append(
                    figures(fitted.model.predict(asked), true) | {"fit_cpu_s": round(fitted.cpu_s, 3)}
                )
                step["history"].append(figures([history] * len(asked), true))
                began = time.process_time()
                trees = boosted(mixed.requests[:n], mixed.lengths[:n], seed)
                took = time.process_time() - began
                step["lightgbm"].append(figures(trees.predict(asked), true) | {"fit_cpu_s": round(took, 3)})
        out[name] = {
            "answers": len(traffic.lengths),
            "after": {
                str(n): {who: {k: _mean([r[k] for r in rows]) for k in rows[0]} for who, rows in step.items()}
                for n, step in found.items()
            },
        }
        print(name, {n: {w: r["kendall_tau"] for w, r in s.items()} for n, s in out[name]["after"].items()}, flush=True)
    return out


def changes(data: Path) -> dict[str, Any]:
    base, other = alpaca(data).shuffled(0, CHANGE + AFTER), puzzles(data).shuffled(0, AFTER)
    before = slice(CHANGE)
    cases: dict[str, Traffic] = {}
    for factor in (2.5, 0.4):
        later = [max(1, round(factor * n)) for n in base.lengths[CHANGE:]]
        cases[f"another model, lengths x {factor}"] = Traffic(base.requests, base.lengths[before] + later)
    cases["another model, lengths of others"] = Traffic(
        base.requests, base.lengths[before] + Traffic(base.requests[CHANGE:], base.lengths[CHANGE:]).shuffled(7).lengths
    )
    cases["other prompts"] = Traffic(base.requests[before] + other.requests, base.lengths[before] + other.lengths)
    cases["half of the prompts are others"] = Traffic(
        base.requests[before] + [r for pair in zip(base.requests[CHANGE:], other.requests, strict=False) for r in pair],
        base.lengths[before] + [n for pair in zip(base.lengths[CHANGE:], other.lengths, strict=False) for n in pair],
    )
    for name, limits in (("max_tokens 100 from then on", (0, 100)), ("max_tokens 100 until then", (100, 0))):
        cases[name] = Traffic(base.requests, base.lengths, [limits[0]] * CHANGE + [limits[1]] * AFTER)
    out: dict[str, Any] = {}
    for name, traffic in cases.items():
        served = serve(traffic)
        notes, lengths = served.notes, traffic.lengths[: len(served.notes)]
        limits = traffic.limits or [0] * len(notes)
        kept = [min(n, limit or n) for n, limit in zip(lengths, limits, strict=False)]

        def closed(d: LengthDistribution | None, limit: int) -> LengthDistribution:
            assert d is not None
            return d.closed_at(limit) if limit else d

        late = range(CHANGE, len(notes))
        ours = losses([closed(notes[i].predicted, limits[i]) for i in late], [kept[i] for i in late])
        theirs = losses([closed(notes[i].history, limits[i]) for i in late], [kept[i] for i in late])
        used = np.asarray([notes[i].lengths is not None for i in late])
        bought = np.where(used, ours, theirs)
        end = 1.25 * float(ours[-500:].mean())
        again = next((i for i in range(len(ours) - 100) if ours[i : i + 100].mean() <= end), None)
        out[name] = {
            "alarms_after": [a - CHANGE for a in served.alarms if a >= CHANGE],
            "alarms_before": sum(a < CHANGE for a in served.alarms),
            "factors_found": [(i - CHANGE, f) for i, f in served.factors if i >= CHANGE][:3],
            "as_good_as_at_the_end_after": again,
            "history_used_for": int((~used).sum()),
            "pinball": {
                f"{a}-{b}": {
                    "model": round(float(ours[a:b].mean()), 2),
                    "used": round(float(bought[a:b].mean()), 2),
                    "history": round(float(theirs[a:b].mean()), 2),
                }
                for a, b in ((0, 50), (50, 100), (100, 200), (200, 500), (500, 1000), (1000, 1500))
                if b <= len(ours)
            },
        }
        print(name, out[name], flush=True)
    return out


def serving(data: Path, work: Path) -> dict[str, Any]:
    """Each window alone, from an idle engine."""
    out: dict[str, Any] = {}
    for seed in range(2):
        traffic = alpaca(data).shuffled(seed, WINDOWS[-1][1])
        served = serve(traffic)
        for first, last in WINDOWS:
            given = {
                str(traffic.requests[i][-1].content if not isinstance(r := traffic.requests[i], str) else r): (
                    served.notes[i].lengths
                )
                for i in range(first, last)
            }
            rows = [
                {"instruction": prompt, "input": "", "output": "", "tokens": traffic.lengths[i]}
                for i, prompt in zip(range(first, last), given, strict=False)
            ]
            path = work / f"{seed}-{first}.json"
            path.write_text(json.dumps(rows), encoding="utf-8")

            def predicted(drawn: length_source.Drawn, _: Any, given: Any = given) -> length_source.Distributions:
                return [given.get(r.prompt) for r in drawn.records]

            length_source.REGISTRY["online"] = length_source.Form(predicted, "what was predicted in order")
            for lengths in ("none", "online", "true"):
                settings = SimulateSettings(
                    trace=str(path),
                    length_field="tokens",
                    lengths=lengths,
                    requests=len(rows),
                    seed=seed,
                    policy="ecoserve",
                    slo_scale=SLO_SCALE,
                    **SERVED,
                )
                result = simulate(settings)
                done = [r for r in result.rows if r.e2el_s is not None and r.output_tokens]
                ms = 1e3 * float(np.mean([(r.e2el_s or 0.0) / r.output_tokens for r in done]))
                in_slo = float(result.summary()["slo_attainment"] or 0.0)
                window = out.setdefault(f"{first}-{last}", {}).setdefault(
                    lengths, {"in_slo": [], "normalized_ms": [], "e2el_s": []}
                )
                window["in_slo"].append(in_slo)
                window["normalized_ms"].append(ms)
                window["e2el_s"].append(float(np.mean([r.e2el_s or 0.0 for r in done])))
            used = np.mean([served.notes[i].lengths is not None for i in range(first, last)])
            out[f"{first}-{last}"].setdefault("used", []).append(float(used))
            print(seed, first, out[f"{first}-{last}"], flush=True)
    return {
        window: {
            "used": _mean(rows.pop("used")),
            **{who: {k: _mean(v) for k, v in found.items()} for who, found in rows.items()},
        }
        for window, rows in out.items()
    }


def cost(data: Path) -> dict[str, Any]:
    traffic = alpaca(data).shuffled(0, 13_000)
    served = serve(traffic)
    model, out = served.model, {}
    for name, asked in (("alpaca", traffic.requests[:500]), ("sharegpt", sharegpt(data).requests[:500])):
        began = time.process_time()
        for request in asked:
            model.observe(model.predict([request])[0], 100, ended=True)
        out[f"api_ms_per_request_{name}"] = round(1e3 * (time.process_time() - began) / len(asked), 3)
    answers, _, _ = model.newest()
    began = time.process_time()
    content = refit.packed_rows(answers, {})
    out |= {
        "answers_kept": len(answers),
        "answers_mib": round(len(content) / 2**20, 2),
        "packing_ms": round(1e3 * (time.process_time() - began), 1),
        "fits": served.fits,
        "fit_cpu_s_per_fit": round(served.cpu_s / served.fits, 3),
        "share_of_a_core_at_10_rps": round(served.cpu_s / (len(traffic.requests) / RATE_RPS), 4),
    }
    print(out, flush=True)
    return out


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)


def main() -> int:
    parser = common.arguments_of(__doc__)
    parser.add_argument("data", type=Path, help="folder of the traces")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--parts", default="learning,changes,serving,cost")
    given = parser.parse_args()
    content: dict[str, Any] = common.read(given.output.resolve())
    content["command"] = common.command("online_learning", "DATA", "benchmarks/results/" + given.output.name)
    # So that no fit is charged with it.
    importlib.import_module("sklearn.linear_model")
    with common.kept(None) as work:
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "learning": lambda: learning(given.data),
            "changes": lambda: changes(given.data),
            "serving": lambda: serving(given.data, work),
            "cost": lambda: cost(given.data),
        }
        for part in given.parts.split(","):
            content[part] = parts[part]()
            common.write(given.output, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
