"""A trace of unlabelled prompts with the lengths that a trained predictor expects.

    python scripts/pseudo_lengths.py TEACHER auxiliary.jsonl pseudo.jsonl

Every prompt gets ten lengths that stand for the teacher's distribution, its quantiles at 0.05, 0.15, ... 0.95, so that
``ecoserve train-predictor pseudo.jsonl --length-field 'lengths[5]' --sample-field lengths`` learns that distribution
(self-training by soft labels, as in Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). A predictor
that starts from what was learned so has seen three times as many prompts as there are answers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ecoserve.predictor import load_predictor

LEVELS = tuple((i + 0.5) / 10 for i in range(10))
BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("teacher", help="checkpoint of a trained predictor")
    parser.add_argument("prompts", type=Path, help="JSON lines in Alpaca's format")
    parser.add_argument("output", type=Path, help="JSON lines to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_predictor(arguments.teacher)
    rows = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    with arguments.output.open("w", encoding="utf-8") as file:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            # As the Alpaca format reads a row.
            asked = [f"{r['instruction']}\n{r['input']}" if r["input"] else r["instruction"] for r in batch]
            for row, lengths in zip(batch, teacher.predict(asked), strict=True):
                found = [max(1, lengths.quantile(level)) for level in LEVELS]
                file.write(json.dumps({**row, "output": "", "lengths": found}, ensure_ascii=False) + "\n")
    print(f"{len(rows)} prompts")


if __name__ == "__main__":
    main()
