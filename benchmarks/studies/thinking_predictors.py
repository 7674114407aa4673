"""What can be predicted of answers that think and of agents' answers, and what the time since the start adds.

    python benchmarks/studies/thinking_predictors.py benchmarks/results/thinking_predictors.json --data DATA

- ``puzzles`` (reasoning_gym_answers), ``riddles`` (thinking_lengths): three answers a prompt and model. Splits by
  prompt. The constant median (history), that of the model, another answer to the same prompt (the noise floor),
  LightGBM with the model's name as the system message. Riddles: the total, and thinking and answer apart.
- ``transfer``: LightGBM of two models' puzzles on the third's, as it is and scaled by the median of 50 of its answers.
- ``agents`` (coding_agent_sessions), ``served`` (servegen_r1): lengths without texts. LightGBM on numbers that a server
  has: prompt, what of it is new, turn, last answers, wait. Splits by session (``served``: by chance).
- ``remaining``: riddles' answers while they run: the median rest by the count so far (a life table), by count and
  model, by count and whether it still thinks.

Lengths of the first three are characters / 4. Three seeds, each with its own split. Errors are of medians, in tokens.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import common
import numpy as np
from predictor_data import asked, boosted

from ecoserve.data import Message, Record, Trace, load_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import Bins
from ecoserve.predictor.evaluation import score
from ecoserve.predictor.examples import training_parts

SEEDS: Final = 3
KEYS: Final = ("rows", "mae_tokens", "within_100", "kendall_tau", "crps", "coverage_90")
#: Rows with a text that a predictor is trained and judged on, at most.
MOST: Final = 1500
#: Counts at which what remains is asked.
AFTER: Final = (0, 128, 512, 1024, 2048, 4096)
#: Answers of a new model that scale another's predictor.
FIRST: Final = 50


def one_a_prompt(trace: Trace) -> list[Record]:
    """One record a prompt and model, the lengths of its other answers beside it, the model's name before the prompt."""
    rows: dict[tuple[str, str | None], list[Record]] = {}
    for r in trace.records:
        rows.setdefault((r.conversation, r.model), []).append(r)
    found = []
    for first, *others in rows.values():
        name = re.sub(r"\W", "_", first.model or "")
        messages = (Message("system", name), Message("user", first.prompt or ""))
        more = tuple(r.response_tokens or 1 for r in others)
        found.append(replace(first, messages=messages, sample_tokens=more, conversation=first.prompt or ""))
    return found


def part_of(record: Record, which: str) -> Record | None:
    """The record with the length of its ``thinking`` or its ``answer`` in place of the whole."""
    thinking = record.thinking_tokens or 0
    tokens = thinking if which == "thinking" else (record.response_tokens or 0) - thinking
    return replace(record, response_tokens=tokens) if thinking and tokens > 0 else None


def figures(predicted: Sequence[LengthDistribution], true: Sequence[int]) -> dict[str, float]:
    """The study's keys of a score."""
    found = score(predicted, true)
    return {k: round(found[k], 4) for k in KEYS}


def point_figures(guess: Sequence[float], true: Sequence[int]) -> dict[str, float]:
    """Those of numbers without a distribution."""
    from ecoserve.accuracy import kendall_tau, point_accuracy

    g, y = np.asarray(guess, dtype=float), np.asarray(true, dtype=float)
    accuracy = point_accuracy(g, y)
    found = {"rows": len(y), **accuracy, "kendall_tau": kendall_tau(g, y) or 0.0}
    return {k: round(float(found[k]), 4) for k in KEYS if k in found}


def with_texts(trace: Trace, records: list[Record], seed: int) -> dict[str, dict[str, float]]:
    """Method -> its figures on prompts that training has not seen."""
    rng = np.random.default_rng(seed)
    if len(records) > MOST:
        records = [records[i] for i in sorted(rng.choice(len(records), MOST, replace=False))]
    parts = training_parts(trace.with_records(records), seed=seed)
    train, dev = [*parts.fit_records, *parts.held_records], parts.dev_records
    true = [r.response_tokens or 1 for r in dev]
    bins = Bins.fit([r.response_tokens or 1 for r in train])
    constant = bins.distribution(bins.shares([r.response_tokens or 1 for r in train]))
    of_model: dict[str | None, list[int]] = {}
    for r in train:
        of_model.setdefault(r.model, []).append(r.response_tokens or 1)
    models = {m: bins.distribution(bins.shares(lengths)) for m, lengths in of_model.items()}
    found = {
        "constant": figures([constant] * len(dev), true),
        "constant of the model": figures([models.get(r.model, constant) for r in dev], true),
        "lightgbm": figures(asked(boosted(parts, seed), dev), true),
    }
    again = [(r.sample_tokens, n) for r, n in zip(dev, true, strict=True) if r.sample_tokens]
    if again:
        lengths = [n for _, n in again]
        found["another answer"] = point_figures([s[0] for s, _ in again], lengths)
        found["mean of the others"] = point_figures([float(np.mean(s)) for s, _ in again], lengths)
    return found


def transferred(trace: Trace, records: list[Record], seed: int) -> dict[str, dict[str, float]]:
    """Model -> another's predictor on its prompts, as it is, and scaled by its first answers; and the constants."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, float]] = {}
    for model in sorted({r.model or "" for r in records}):
        source = [r for r in records if r.model != model]
        source = [source[i] for i in sorted(rng.choice(len(source), min(MOST, len(source)), replace=False))]
        plain = [replace(r, messages=()) for r in source]
        target = [replace(r, messages=()) for r in records if r.model == model]
        target = [target[i] for i in rng.permutation(len(target))]
        known = {r.conversation for r in source}
        first = target[:FIRST]
        dev = [r for r in target[FIRST:] if r.conversation not in known][:500] or target[FIRST : FIRST + 500]
        predictor = boosted(training_parts(trace.with_records(plain), seed=seed), seed)
        true = [r.response_tokens or 1 for r in dev]
        medians = np.array([d.quantile(0.5) for d in asked(predictor, dev)], dtype=float)
        early = np.array([d.quantile(0.5) for d in asked(predictor, first)], dtype=float)
        lengths = np.array([r.response_tokens or 1 for r in first], dtype=float)
        scale = float(np.exp(np.median(np.log(lengths) - np.log(np.maximum(1.0, early)))))
        found[f"{model}: constant of the others"] = point_figures(
            [float(np.median([r.response_tokens or 1 for r in plain]))] * len(dev), true
        )
        found[f"{model}: constant of its first {FIRST}"] = point_figures([float(np.median(lengths))] * len(dev), true)
        found[f"{model}: predictor of the others"] = point_figures(medians.tolist(), true)
        found[f"{model}: the same, scaled"] = point_figures((medians * scale).tolist(), true)
    return found


def numbers_of(records: Sequence[Record]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a server knows of each request without reading it, shape ``[n, 9]``; -1 where there is nothing before."""
    rows: list[list[float]] = []
    ordered = sorted(range(len(records)), key=lambda i: (records[i].conversation, records[i].turn))
    place: dict[int, list[float]] = {}
    for _, group in groupby(ordered, key=lambda i: records[i].conversation):
        before: list[int] = []
        prompt = 0
        for i in group:
            r = records[i]
            new = (r.prompt_tokens or 0) - prompt - (before[-1] if before else 0)
            last = [float(n) for n in before[-3:][::-1]] + [-1.0] * (3 - len(before[-3:]))
            mean = float(np.mean(before)) if before else -1.0
            wait = -1.0 if r.think_s is None else r.think_s
            place[i] = [float(r.prompt_tokens or 0), float(new), float(r.turn), mean, wait, *last, float(len(before))]
            before.append(r.response_tokens or 1)
            prompt = r.prompt_tokens or 0
    rows = [place[i] for i in range(len(records))]
    return np.asarray(rows, dtype=np.float64)


def without_texts(trace: Trace, seed: int, by_session: bool) -> dict[str, dict[str, float]]:
    """Method -> its figures; LightGBM on log lengths, its spread from rows held out of training."""
    import lightgbm

    records = list(trace.records)
    x, y = numbers_of(records), np.array([r.response_tokens or 1 for r in records], dtype=float)
    rng = np.random.default_rng(seed)
    groups = [r.conversation if by_session else str(i) for i, r in enumerate(records)]
    names = rng.permutation(sorted(set(groups)))
    side = {name: k / len(names) for k, name in enumerate(names)}
    at = np.array([side[g] for g in groups])
    fit, held, dev = at < 0.6, (at >= 0.6) & (at < 0.75), at >= 0.75
    bins = Bins.fit(y[fit | held].astype(int))
    constant = bins.distribution(bins.shares(y[fit | held].astype(int)))
    true = y[dev].astype(int).tolist()
    found = {"constant": figures([constant] * len(true), true)}
    if by_session:
        last = np.where(x[:, 5] > 0, x[:, 5], np.median(y[fit]))
        found["the session's last answer"] = point_figures(last[dev].tolist(), true)
        mean = np.where(x[:, 3] > 0, x[:, 3], np.median(y[fit]))
        found["mean of the session's answers"] = point_figures(mean[dev].tolist(), true)
    columns = {"lightgbm": range(x.shape[1]), "lightgbm, prompt's length alone": [0]}
    for name, chosen in columns.items():
        options = {"objective": "l2", "num_leaves": 15, "learning_rate": 0.05, "verbosity": -1, "num_threads": 1}
        data = lightgbm.Dataset(x[fit][:, list(chosen)], np.log(y[fit]))
        booster = lightgbm.train({**options, "seed": seed, "deterministic": True}, data, num_boost_round=120)
        spread_of = np.log(y[held]) - booster.predict(x[held][:, list(chosen)])
        levels = np.quantile(spread_of, np.linspace(0.0025, 0.9975, 200))
        guess = booster.predict(x[dev][:, list(chosen)])
        lengths = np.clip(np.exp(guess[:, None] + levels), 1, bins.edges[-1]).astype(int)
        found[name] = figures([bins.distribution(bins.shares(row)) for row in lengths], true)
    return found


def remaining(records: Sequence[Record], seed: int) -> dict[str, dict[str, float]]:
    """Count so far -> mean error of the predicted rest, by what is known beside the count."""
    rng = np.random.default_rng(seed)
    prompts = rng.permutation(sorted({r.conversation for r in records}))
    train_prompts = set(prompts[: int(0.75 * len(prompts))])
    rows = [(r.response_tokens or 1, r.thinking_tokens or 0, r.model, r.conversation) for r in records]
    found: dict[str, dict[str, float]] = {}
    ways: dict[str, Callable[[tuple[int, int, str | None, str], int], object]] = {
        "count": lambda r, n: None,
        "count and model": lambda r, n: r[2],
        "count and whether it thinks": lambda r, n: r[1] > n,
        "count, model and whether it thinks": lambda r, n: (r[2], r[1] > n),
    }
    for n in AFTER:
        alive = [r for r in rows if r[0] > n]
        train, dev = [r for r in alive if r[3] in train_prompts], [r for r in alive if r[3] not in train_prompts]
        true = np.array([r[0] - n for r in dev], dtype=float)
        errors: dict[str, float] = {"rows": len(dev)}
        for name, key in ways.items():
            rests: dict[object, list[int]] = {}
            for r in train:
                rests.setdefault(key(r, n), []).append(r[0] - n)
            general = float(np.median([r[0] - n for r in train]))
            medians = {k: float(np.median(v)) for k, v in rests.items() if len(v) >= 10}
            guess = np.array([medians.get(key(r, n), general) for r in dev])
            errors[name] = round(float(np.abs(guess - true).mean()), 1)
        found[str(n)] = errors
    return found


def means(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Method -> mean over seeds of each figure, and their standard deviation."""
    out: dict[str, Any] = {}
    for name in runs[0]:
        some = [run[name] for run in runs if name in run]
        keys = [k for k in some[0] if all(k in run for run in some)]
        out[name] = {k: round(float(np.mean([run[k] for run in some])), 4) for k in keys}
        if "mae_tokens" in keys:
            out[name]["sd_mae"] = round(float(np.std([run["mae_tokens"] for run in some])), 2)
    return out


def main() -> None:
    """Run all studies, each written as it is done."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", help="studies, separated by commas")
    given = parser.parse_args()
    riddles = load_trace(given.data / "thinking_lengths.jsonl.gz")
    thinkers = [r for r in riddles.records if r.thinking_tokens]
    puzzles = load_trace(given.data / "reasoning_gym_answers.json.gz")
    agents = load_trace(given.data / "traces" / "coding_agent_sessions.jsonl.gz")
    some = one_a_prompt(puzzles)

    def parts(which: str) -> list[Record]:
        trace = riddles.with_records(p for r in thinkers if (p := part_of(r, which)) is not None)
        return one_a_prompt(trace)

    def served() -> Trace:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(f"requests: 8000\nservegen: {{clients: {(given.data / 'servegen_r1').resolve()}}}\n")
            file.flush()
            return load_trace(file.name)

    studies: dict[str, Callable[[int], dict[str, dict[str, float]]]] = {
        "remaining": lambda seed: remaining(thinkers, seed),
        "agents": lambda seed: without_texts(agents, seed, by_session=True),
        "served": lambda seed: without_texts(served(), seed, by_session=False),
        "riddles of thinkers: total": lambda seed: with_texts(
            riddles, one_a_prompt(riddles.with_records(thinkers)), seed
        ),
        "riddles of thinkers: thinking": lambda seed: with_texts(riddles, parts("thinking"), seed),
        "riddles of thinkers: answer": lambda seed: with_texts(riddles, parts("answer"), seed),
        "puzzles": lambda seed: with_texts(puzzles, some, seed),
        "transfer": lambda seed: transferred(puzzles, some, seed),
    }
    content = dict(common.read(given.output)) if given.output.exists() else {}
    words = [f"benchmarks/results/{given.output.name}", "--data DATA"]
    words += [f"--only {shlex.quote(given.only)}"] if given.only else []
    content["command"] = common.command("thinking_predictors", *words)
    for name, study in studies.items():
        if given.only is not None and name not in given.only.split(","):
            continue
        content[name] = means([study(seed) for seed in range(SEEDS)])
        print(name, content[name], flush=True)
        common.write(given.output, content)


if __name__ == "__main__":
    main()
