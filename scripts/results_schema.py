"""Rewrites the JSON Schema of ``summary.json`` and ``docs/reference/results-schema.md`` from their models."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from ecoserve.deprecations import SUMMARY_KEYS
from ecoserve.schema import extra_of
from ecoserve.sweep.summary import (
    SCHEMA_FILE,
    FailureRow,
    Meta,
    ModelledFigure,
    PredictorRow,
    PredictorTime,
    RunRow,
    SearchRow,
    StepTime,
    Summary,
    TraceInfo,
    TrialRow,
    json_schema,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "reference" / "results-schema.md"
MODELS: tuple[type[BaseModel], ...] = (
    *(Summary, RunRow, SearchRow, FailureRow, PredictorRow, TrialRow, StepTime, ModelledFigure, PredictorTime),
    *(Meta, TraceInfo),
)


def schema_text() -> str:
    """The schema as the file in the repository holds it."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def key_tables() -> dict[str, str]:
    """Markdown tables (key, unit, better, meaning) by model name; ``Deprecated``: old names of a run's keys."""
    tables: dict[str, str] = {}
    for model in MODELS:
        extras = {name: extra_of(model, name) for name in model.model_fields}
        directed = any("better" in extra for extra in extras.values())
        head = ["key", "unit", *(["better"] if directed else []), "meaning"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name, extra in extras.items():
            cells = [f"`{name}`", *(str(extra.get(column, "")) for column in head[1:-1])]
            lines.append(f"| {' | '.join(cells)} | {model.model_fields[name].description} |")
        tables[model.__name__] = "\n".join(lines)
    renamed = [f"| `{old}` | `{new}` |" for old, new in SUMMARY_KEYS.items()]
    tables["Deprecated"] = "\n".join(["| old key | key |", "|---|---|", *renamed])
    return tables


def fill_document(text: str) -> str:
    """``text`` with every block between ``<!-- keys: NAME -->`` and ``<!-- end -->`` renewed."""
    for name, table in key_tables().items():
        head, found, rest = text.partition(f"<!-- keys: {name} -->\n")
        if found:
            text = head + found + table + "\n" + rest[rest.index("<!-- end -->") :]
    return text


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    DOCUMENT.write_text(fill_document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
