"""A trace to start a predictor from: other answers to like prompts, apart from the rows that are to be learned.

    python scripts/auxiliary_trace.py alpaca.json.gz auxiliary.jsonl --length-field 'vicuna_7b_tokens[3]'

Alpaca's file has answers of text-davinci-003 to every prompt and Vicuna's lengths for a third of them. This writes the
rows without the length field, and of those none whose prompt is a near-duplicate of a row that has it, so that nothing
``ecoserve train-predictor`` later holds out or evaluates on was seen before. Two rows in a hundred are marked ``dev``.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ecoserve.data.splitting import near_duplicate_groups

DEV_SHARE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("trace", type=Path, help="a JSON list in Alpaca's format, with gzip or without")
    parser.add_argument("output", type=Path, help="JSON lines to write")
    parser.add_argument("--length-field", required=True, help="field of the rows to keep apart from")
    arguments = parser.parse_args()
    data = arguments.trace.read_bytes()
    rows: list[dict[str, Any]] = json.loads(gzip.decompress(data) if arguments.trace.suffix == ".gz" else data)
    name = arguments.length_field.partition("[")[0]
    group = near_duplicate_groups([f"{r['instruction']}\n{r.get('input') or ''}" for r in rows])
    apart = {g for g, r in zip(group, rows, strict=True) if r.get(name) is not None}
    fate: Counter[str] = Counter()
    kept: list[int] = []
    for i, (g, row) in enumerate(zip(group, rows, strict=True)):
        if row.get(name) is not None:
            fate["with the field"] += 1
        elif g in apart:
            fate["near-duplicates of those"] += 1
        elif not row.get("output"):
            fate["without an answer"] += 1
        else:
            kept.append(i)
    groups = np.random.default_rng(0).permutation(np.unique(group[kept]))
    dev = set(groups[: round(DEV_SHARE * len(groups))].tolist())
    with arguments.output.open("w", encoding="utf-8") as file:
        for i in kept:
            part = "dev" if int(group[i]) in dev else "train"
            fate[part] += 1
            row = {k: rows[i].get(k) or "" for k in ("instruction", "input", "output")}
            file.write(json.dumps({**row, "split": part}, ensure_ascii=False) + "\n")
    print(", ".join(f"{count} {what}" for what, count in fate.items()))


if __name__ == "__main__":
    main()
