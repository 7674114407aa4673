"""Heads and losses of a length predictor, compared on the same rows under the same budget.

    python benchmarks/studies/compare_heads.py ../shared/data benchmarks/results/heads_alpaca.json

Alpaca prompts with Vicuna-7B's lengths. Rows of ``train`` only: a fifth of them, near-duplicates on one side, is what
is measured. Part one trains a small network over the mean-pooled output of the frozen encoder, each head with three
seeds; part two fine-tunes the whole encoder for one pass over 3,000 rows; part three learns AlpacaEval's nine models at
once, with and without the model's name as an input, and is measured on prompts that no model answered in training.
Nine minutes of CPU time on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from length_heads import Batch, Hazard, Head, LogNormals, Ordinal, Quantile, Softmax, ranking_loss
from torch import nn

from ecoserve.data import load_trace, split_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.boosting.request_features import request_features
from ecoserve.predictor.boosting.training import boost
from ecoserve.predictor.calibration import softmax
from ecoserve.predictor.config import BoostingSettings
from ecoserve.predictor.encoder.inference import for_cpu
from ecoserve.predictor.encoder.model import LengthEncoder, pretrained
from ecoserve.predictor.encoder.predictor import pad
from ecoserve.predictor.encoder.source import find_encoder
from ecoserve.predictor.encoder.tokenizing import RequestTokenizer
from ecoserve.predictor.evaluation import score
from ecoserve.predictor.examples import Examples, training_parts
from ecoserve.predictor.progress import silent

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SEEDS = (0, 1, 2)
EPOCHS, BATCH, HIDDEN, RATE = 12, 64, 512, 1e-3
SHORT_ROWS = 3000
KEYS = ("mae_tokens", "within_50", "within_100", "kendall_tau", "pinball_loss", "crps", "coverage_90")
T = torch.Tensor


def batch_of(examples: Examples, bins: Bins, smoothing: float = 0.0) -> Batch:
    """All rows as one batch."""
    width = max(len(s) for s in examples.samples)
    lengths = [[n, *s, *[n] * (width - len(s))] for n, s in zip(examples.lengths, examples.samples, strict=True)]
    cut = [int(bins.index([n])[0]) if c else -1 for n, c in zip(examples.lengths, examples.censored, strict=True)]
    shares = torch.from_numpy(examples.targets(bins, smoothing))
    return Batch(shares, torch.tensor(lengths, dtype=torch.float32), torch.tensor(cut))


def part(batch: Batch, rows: T) -> Batch:
    return Batch(batch.shares[rows], batch.lengths[rows], batch.cut[rows])


def alone(examples: Examples) -> Examples:
    """Only the answer at the served temperature."""
    return replace(examples, samples=tuple(() for _ in examples.samples))


def cut_off(examples: Examples, asked: float) -> Examples:
    """A share of the requests has a ``max_tokens`` that knows nothing of the answer: another row's length."""
    rng = np.random.default_rng(0)
    own = np.asarray(examples.lengths)
    room = np.where(rng.random(len(own)) < asked, rng.permutation(own), own)
    return replace(
        alone(examples),
        lengths=tuple(np.minimum(own, room).tolist()),
        censored=tuple((room < own).tolist()),
    )


def measure(probabilities: T | np.ndarray, bins: Bins, lengths: tuple[int, ...]) -> dict[str, float]:
    rows = [LengthDistribution.from_weights(bins.edges, row, bins.closed_by) for row in np.asarray(probabilities)]
    found = score(rows, lengths)
    return {k: round(found[k], 4) for k in KEYS if k in found}


def small_network(head: Head, x: T, batch: Batch, seed: int, ranking: float) -> nn.Module:
    """Train the network over frozen features ``[n, F]``."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Dropout(0.2), nn.Linear(HIDDEN, head.outputs))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05, fused=True)
    steps = EPOCHS * -(-len(x) // BATCH)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1.0 - s / steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            here = part(batch, rows)
            out = net(x[rows])
            loss = head.loss(out, here)
            if ranking:
                loss = loss + ranking * ranking_loss(head, out, here)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    return net.eval()


def fine_tuned(head: Head, ids: list[list[int]], batch: Batch, body: tuple[Path, T], seed: int) -> LengthEncoder:
    """One pass over the rows, the whole encoder in motion."""
    torch.manual_seed(seed)
    model, _ = pretrained(*body)
    model.head = nn.Linear(model.head.in_features, head.outputs)
    nn.init.normal_(model.head.weight, std=0.02)
    groups = [{"params": model.body.parameters(), "lr": 1e-4}, {"params": model.head.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    order = torch.randperm(len(ids)).split(32)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / 6) * (1.0 - s / len(order)))
    for rows in order:
        inputs, mask = pad([ids[i] for i in rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(inputs, mask)["logits"]
        loss = head.loss(out.float(), part(batch, rows))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return model.eval().requires_grad_(False)


def run(model: LengthEncoder, ids: list[list[int]]) -> T:
    """The network's outputs on all rows."""
    network, out = for_cpu(model), None
    with torch.inference_mode():
        for rows in torch.tensor(sorted(range(len(ids)), key=lambda i: len(ids[i]))).split(32):
            got = network(*pad([ids[i] for i in rows]))["logits"].float()
            out = torch.empty(len(ids), got.shape[1]) if out is None else out
            out[rows] = got
    assert out is not None
    return out.clone()


def summary(name: str, runs: list[dict[str, float]], cpu_s: float) -> dict[str, Any]:
    mean = {k: round(float(np.mean([r[k] for r in runs])), 4) for k in runs[0]}
    spread = {k: round(float(np.ptp([r[k] for r in runs])), 4) for k in ("mae_tokens", "kendall_tau")}
    row = {"head": name, "seeds": len(runs), **mean, "spread": spread, "cpu_s_per_seed": round(cpu_s / len(runs), 1)}
    print(
        f"{name:52} MAE {mean['mae_tokens']:.2f}  tau {mean['kendall_tau']:.3f}  {row['cpu_s_per_seed']} s", flush=True
    )
    return row


def compared(
    make: Callable[[int], T | np.ndarray], name: str, seeds: tuple[int, ...], bins: Bins, held: Examples
) -> Any:
    runs, started = [], time.process_time()
    for seed in seeds:
        runs.append(measure(make(seed), bins, held.lengths))
    return summary(name, runs, time.process_time() - started)


def frozen_part(x: T, y: T, fit: Examples, held: Examples, bins: Bins) -> list[Any]:
    edges = torch.tensor(bins.edges)
    every, smooth, single = batch_of(fit, bins), batch_of(fit, bins, 1.0), batch_of(alone(fit), bins)
    cut = cut_off(fit, 0.6)
    whole = batch_of(replace(cut, censored=(False,) * len(cut)), bins)
    variants: list[tuple[str, Head, Batch, float]] = [
        ("softmax, the served temperature's answer", Softmax(edges), single, 0),
        ("softmax, four answers", Softmax(edges), every, 0),
        ("softmax, four answers, smoothed (what ships)", Softmax(edges), smooth, 0),
        ("softmax, four answers, smoothed, ranking loss", Softmax(edges), smooth, 1.0),
        ("ordinal, four answers", Ordinal(edges), every, 0),
        ("ordinal, four answers, ranking loss", Ordinal(edges), every, 1.0),
        ("hazard, four answers", Hazard(edges), every, 0),
        ("quantiles (pinball), four answers", Quantile(edges), every, 0),
        ("three log-normals, four answers", LogNormals(edges), every, 0),
        ("30 % cut off by max_tokens: softmax, taken for whole", Softmax(edges), whole, 0),
        ("30 % cut off by max_tokens: softmax, spread over later bins", Softmax(edges), batch_of(cut, bins), 0),
        ("30 % cut off by max_tokens: hazard, survival only", Hazard(edges), batch_of(cut, bins), 0),
    ]
    rows = []
    for name, head, batch, ranking in variants:

        def make(seed: int, head: Head = head, batch: Batch = batch, ranking: float = ranking) -> T:
            net = small_network(head, x, batch, seed, ranking)
            with torch.inference_mode():
                return head.probabilities(net(y))

        rows.append(compared(make, name, SEEDS, bins, held))

    def trees(seed: int) -> np.ndarray:
        projection = np.linalg.svd(x.numpy() - x.numpy().mean(0), full_matrices=False)[2][:48].T
        features = [np.hstack([request_features(e.views), z.numpy() @ projection]) for e, z in ((fit, x), (held, y))]
        targets = [e.targets(bins).astype(np.float64) for e in (fit, held)]
        prior = np.log(bins.shares(fit.all_lengths()))
        # The round is fixed, not chosen on the rows that are measured.
        settings = BoostingSettings(rounds=60, patience=60)
        booster = boost(
            (features[0], targets[0]), (features[1], targets[1]), prior, settings, seed=seed, progress=silent
        )
        raw = booster.predict(features[1], raw_score=True, num_threads=1, num_iteration=settings.rounds)
        return softmax(raw.reshape(len(held), -1) + prior)

    rows.append(compared(trees, "boosted trees on 48 components and counts", (0,), bins, held))
    return rows


def short_part(ids: list[list[int]], held_ids: list[list[int]], fit: Examples, held: Examples, bins: Bins) -> list[Any]:
    edges = torch.tensor(bins.edges)
    body = (find_encoder(ENCODER)[0], torch.tensor(bins.shares(fit.all_lengths()), dtype=torch.float32))
    chosen = np.random.default_rng(0).permutation(len(ids))[:SHORT_ROWS]
    every, smooth = batch_of(fit, bins), batch_of(fit, bins, 1.0)
    rows = []
    for name, head, batch in (
        ("softmax, four answers, smoothed (what ships)", Softmax(edges), smooth),
        ("ordinal, four answers", Ordinal(edges), every),
        ("hazard, four answers", Hazard(edges), every),
    ):

        def make(seed: int, head: Head = head, batch: Batch = batch) -> T:
            few = part(batch, torch.from_numpy(chosen))
            model = fine_tuned(head, [ids[i] for i in chosen], few, body, seed)
            return head.probabilities(run(model, held_ids))

        rows.append(compared(make, name, (0,), bins, held))
    return rows


def models_part(embed: Callable[[Examples], T], folder: Path) -> list[Any]:
    trace = load_trace(folder / "alpaca_eval.json.gz")
    inner = split_trace(split_trace(trace, seed=0)["train"], dev=0.25, seed=0)
    fit, held = (Examples.of(inner[name].records) for name in ("train", "dev"))
    names = sorted({r.model or "" for r in trace.records})
    one_hot = torch.eye(len(names))
    # All rows have a text and a length: records and examples are in the same order.
    a, b = (one_hot[[names.index(r.model or "") for r in inner[name].records]] for name in ("train", "dev"))
    bins = Bins.fit(fit.all_lengths())
    x, y = embed(fit), embed(held)
    head, rows = Softmax(torch.tensor(bins.edges)), []
    batch = batch_of(fit, bins, 1.0)
    for name, left, right in (
        ("nine models, none named", x, y),
        ("nine models, named", torch.cat([x, 3 * a], 1), torch.cat([y, 3 * b], 1)),
    ):

        def make(seed: int, left: T = left, right: T = right) -> T:
            net = small_network(head, left, batch, seed, 0)
            with torch.inference_mode():
                return head.probabilities(net(right))

        rows.append(compared(make, name, SEEDS, bins, held))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with alpaca.json.gz and alpaca_eval.json.gz")
    parser.add_argument("output", type=Path, help="JSON to write")
    parser.add_argument("--without-fine-tuning", action="store_true", help="leave out part two")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    field = "vicuna_7b_tokens"
    trace = load_trace(arguments.data / "alpaca.json.gz", length_field=f"{field}[3]", sample_field=field)
    parts = training_parts(trace, seed=0, held_out=0.2)
    bins = Bins.fit(parts.fit.all_lengths())
    folder, _ = find_encoder(ENCODER)
    tokenizer = RequestTokenizer.load(folder, 128)
    frozen, _ = pretrained(folder, torch.ones(2) / 2)
    size = frozen.head.in_features
    frozen.head = nn.Identity()  # type: ignore[assignment]
    frozen.eval().requires_grad_(False)

    def embed(examples: Examples) -> T:
        """Mean over tokens, scaled to unit variance or so, ``[n, hidden]``."""
        z = run(frozen, tokenizer(examples.views))
        return nn.functional.normalize(z, dim=-1) * size**0.5

    result: dict[str, Any] = {
        "command": "python benchmarks/studies/compare_heads.py ../shared/data benchmarks/results/heads_alpaca.json",
        "rows": {"learned": len(parts.fit), "measured": len(parts.held), "of": "train"},
        "cut_off_share": round(float(np.mean(cut_off(parts.fit, 0.6).censored)), 3),
        "budget": {"epochs": EPOCHS, "batch": BATCH, "hidden": HIDDEN, "rate": RATE, "short_rows": SHORT_ROWS},
    }
    started = time.process_time()
    x, y = embed(parts.fit), embed(parts.held)
    result["embedding_cpu_s"] = round(time.process_time() - started, 1)
    result["frozen"] = frozen_part(x, y, parts.fit, parts.held, bins)
    result["nine_models"] = models_part(embed, arguments.data)
    if not arguments.without_fine_tuning:
        ids = [tokenizer(e.views) for e in (parts.fit, parts.held)]
        result["short_fine_tune"] = short_part(ids[0], ids[1], parts.fit, parts.held, bins)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
