"""The tables of docs/guides/workloads.md: keys from the models that read them, figures from result files.

    python benchmarks/studies/workload_tables.py        # writes them between the marks in docs/guides/workloads.md

A test holds the document against this script.
"""

from __future__ import annotations

import json
from typing import Any, Final

import common
from pydantic import BaseModel

from ecoserve.data.laws import GIVEN_LAWS, LAWS
from ecoserve.data.laws import law as law_module
from ecoserve.data.workloads import parts, spec

DOCUMENT: Final = common.ROOT / "docs" / "guides" / "workloads.md"
FIGURES: Final = common.ROOT / "benchmarks" / "results" / "workload_fit.json"
SCALE: Final = common.ROOT / "benchmarks" / "results" / "workload_scale.json"

#: Heading, and the model whose keys stand below it.
SECTIONS: Final[tuple[tuple[str, type[BaseModel], str], ...]] = (
    ("The file", spec.Workload, "The keys of its traffic, below, stand beside these."),
    ("Traffic", spec.Traffic, "At the top of the file, or in a class."),
    ("A class", spec.TrafficClass, "Has the keys of traffic, too."),
    ("`prompt`", spec.Prompt, ""),
    ("`response`", spec.Response, ""),
    ("`rows`", spec.Rows, "Has the keys of a trace, too."),
    ("`conversations`", spec.Conversations, ""),
    ("`servegen`", spec.ServeGen, ""),
    ("A length: given", parts.GivenLength, "A bare number is a constant length."),
    ("A length: `fitted: ...`", parts.FittedTo, "Has the keys of a trace, too."),
    ("A length: `empirical: ...`", parts.EmpiricalLength, ""),
    ("A trace", parts.TraceSource, ""),
    ("`arrivals`: `process: poisson`", parts.PoissonArrivals, ""),
    ("`arrivals`: `process: gamma`", parts.GammaArrivals, ""),
    ("`arrivals`: `process: diurnal`", parts.DiurnalArrivals, ""),
    ("A wave", parts.Wave, ""),
    ("`arrivals`: `process: bursts`", parts.BurstArrivals, ""),
    ("`arrivals`: `process: recorded`", parts.RecordedArrivals, "Has the keys of a trace, too."),
    ("`arrivals`: `process: fitted`", parts.FittedArrivals, "Has the keys of a trace, too."),
    ("`arrivals`: `process: at-once`", parts.AtOnce, ""),
)
#: What a schema would say in more words.
VALUES: Final = {"words": "name -> list of words, or of word: factor", "classes": "name -> a class"}
#: What stands for a value that has keys of its own.
KINDS: Final = {
    **dict.fromkeys(("GivenLength", "FittedLength", "EmpiricalLength"), "a length"),
    **dict.fromkeys(("Prompt", "Response", "Rows", "Conversations", "FittedTo", "ServeGen"), "keys below"),
    "TraceSource": "a trace",
    "FittedCorrelation": "`fitted: {trace: ...}`",
    "Wave": "a wave",
    "TrafficClass": "a class",
}
SHARED: Final = {"TrafficClass": spec.Traffic, "Workload": spec.Traffic}


def fields() -> str:
    """The tables, as Markdown."""
    lines = ["### Laws of lengths", "", "| law | parameters | |", "|---|---|---|"]
    said = dict(_law_words())
    lines += [f"| `{name}` | {', '.join(names)} | {said[name]} |" for name, names in {**LAWS, **GIVEN_LAWS}.items()]
    for heading, model, remark in SECTIONS:
        shared = SHARED.get(model.__name__) or (parts.TraceSource if model is not parts.TraceSource else None)
        inherited = set(shared.model_fields) if shared is not None and issubclass(model, shared) else set()
        intro = " ".join((model.__doc__ or "").split())
        lines += ["", f"### {heading}", "", f"{intro} {remark}".strip()]
        if not set(model.model_fields) - inherited - {"process"}:
            continue
        lines += ["", "| key | value | default | |", "|---|---|---|---|"]
        schema = model.model_json_schema()
        for key, field in model.model_fields.items():
            if key in inherited or key == "process":  # which the heading says
                continue
            value = VALUES.get(key) or _value(schema["properties"][key])
            default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
            lines.append(f"| `{key}` | {value} | {default} | {field.description} |")
    return "\n".join(lines)


def laws_of_traces() -> str:
    """Which law describes each trace best, and how far off it is, as Markdown."""
    lines = ["| trace | | n | best law | KS | chance | p50 seen, fitted | p90 | p99 | with `longest` | KS | p99 |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for trace in json.loads(FIGURES.read_text(encoding="utf-8"))["traces"]:
        for side in ("response", "prompt"):
            if side not in trace:
                continue
            row = trace[side]
            best = row["laws"][0]
            cells = [
                trace["trace"],
                side,
                f"{row['n']:,}",
                best["law"],
                f"{best['ks']:.3f}",
                f"{row['ks_of_chance']:.3f}",
            ]
            cells += [_seen_and_fitted(best, q) for q in ("0.5", "0.9", "0.99")]
            if "laws_with_longest" in row:
                bound = row["laws_with_longest"][0]
                law = f"{bound['law']}, {bound['longest']:,}"
                cells += [law, f"{bound['ks']:.3f}", _seen_and_fitted(bound, "0.99")]
            else:
                cells += ["-", "-", "-"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def workloads_of_traces() -> str:
    """Traces beside the workloads that were fitted to them, as Markdown."""
    names = {
        "prompt_tokens_p50": "prompt p50",
        "prompt_tokens_p99": "prompt p99",
        "response_tokens_p50": "response p50",
        "response_tokens_p99": "response p99",
        "rank_correlation": "rank correlation",
        "gap_cv": "CV of gaps",
        "dispersion_1s": "dispersion, 1 s",
        "dispersion_10s": "10 s",
        "dispersion_60s": "60 s",
    }
    lines = [f"| trace | | {' | '.join(names.values())} |", "|---" * (len(names) + 2) + "|"]
    timed = {"fitted": "laws, fitted arrivals", "empirical": "empirical, gamma arrivals"}
    timed |= {"poisson": "laws, Poisson arrivals"}
    for trace in json.loads(FIGURES.read_text(encoding="utf-8"))["traces"]:
        rows = trace["workload"]
        kinds = timed if "poisson" in rows else {"fitted": "laws", "empirical": "empirical"}
        for kind, words in {"trace": "itself", **kinds}.items():
            cells = [_figure(key, rows[kind].get(key)) for key in names]
            lines.append(f"| {trace['trace']} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_of_many() -> str:
    """What making many requests takes, as Markdown."""
    kinds = {"stream": "as a stream", "load": "loaded whole"}
    lines = ["| workload | read | requests | CPU seconds | peak memory, MB |", "|---|---|---|---|---|"]
    for row in json.loads(SCALE.read_text(encoding="utf-8"))["rows"]:
        cells = [f"`{row['workload']}.yaml`", kinds[row["kind"]], f"{row['requests']:,}"]
        lines.append(f"| {' | '.join(cells)} | {row['cpu_s']:.0f} | {row['peak_memory_mb']:,} |")
    return "\n".join(lines)


SECTIONS_MADE: Final = {"keys": fields, "laws": laws_of_traces, "figures": workloads_of_traces, "scale": cost_of_many}


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if "_tokens_" in key else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def _seen_and_fitted(law: dict[str, Any], q: str) -> str:
    seen = law["quantiles_seen"][q]
    return f"{'-' if seen is None else f'{seen:,}'}, {law['quantiles_fitted'][q]:,}"


def _law_words() -> list[tuple[str, str]]:
    """What the table in the laws' own docstring says of each."""
    rows = []
    for line in (law_module.__doc__ or "").splitlines():
        name, _, rest = line.partition(" ")
        if name in {**LAWS, **GIVEN_LAWS}:
            words = rest.strip()
            for parameter in {**LAWS, **GIVEN_LAWS}[name]:
                words = words.removeprefix(parameter).lstrip(", ")
            rows.append((name, words))
    return rows


def _default(value: Any) -> str:
    return "-" if value is None or value == {} else f"`{value}`"


def _value(schema: dict[str, Any]) -> str:
    """What may stand there, in a few words."""
    if "$ref" in schema:
        return KINDS.get(schema["$ref"].rpartition("/")[2], "arrivals")
    for many in ("anyOf", "oneOf"):
        if many in schema:
            kinds = [_value(each) for each in schema[many]]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of: {_value(schema['items'])}"
    if kind == "object":
        # Names that must look like something are patterns' properties.
        inside = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"name -> {_value(inside)}"
    if kind == "null":
        return ""
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {schema[key]:,}" for key, sign in bounds.items() if key in schema)
    name = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}[str(kind)]
    return f"{name} {limits}".strip()


if __name__ == "__main__":
    common.renew(DOCUMENT, "workload_tables", SECTIONS_MADE)
