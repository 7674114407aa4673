"""``ecoserve predict``: the length distribution of single prompts."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ecoserve.cli.common import JsonOption, QuietOption, emit_json
from ecoserve.cli.predictors import CheckpointArgument
from ecoserve.data import Message
from ecoserve.data.parameters import NO_PARAMETERS, parameters_of
from ecoserve.errors import ConfigError, TraceError
from ecoserve.predictor import load_predictor
from ecoserve.predictor.runtime import let_waiting_threads_sleep
from ecoserve.predictor.text import ChatRequest, Request

_QUANTILES = (0.1, 0.5, 0.8, 0.9, 0.95)
#: Level of the bound that is always in the JSON, where the predictor has it.
_BOUND = 0.9


def command(
    checkpoint: CheckpointArgument,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Prompts.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="FILE|-", help="One prompt a line; a line of JSON may hold chat messages."),
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option("--bound", metavar="LEVEL", help="Show an upper bound with this coverage too, such as 0.9."),
    ] = None,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Predict how many tokens the answers to prompts will have.

    A line of --input is a prompt, or JSON: a string, {"prompt": ...}, {"messages": [{"role": ..., "content": ...}]}; an
    object may also hold max_tokens, stop, tools and the like, as bodies of requests do.
    """
    let_waiting_threads_sleep()
    requests: list[Request] = list(texts or [])
    if source is not None:
        requests += _read(source)
    if not requests:
        raise ConfigError("no prompt given", where="TEXT", fix="give a text, or --input FILE")
    predictor = load_predictor(checkpoint)
    known = predictor.calibration.bounds
    level = bound if bound is not None else _BOUND
    bounds: Sequence[int | None] = [None] * len(requests)
    if bound is not None or (known is not None and level in known.levels):
        bounds = predictor.upper_bounds(requests, level)
    rows = [
        {
            "prompt": request if isinstance(request, str) else request[-1].content,
            "median_tokens": lengths.quantile(0.5),
            "mean_tokens": round(lengths.mean(), 1),
            "quantiles_tokens": {f"{q:g}": lengths.quantile(q) for q in _QUANTILES},
            "upper_bounds_tokens": {} if most is None else {f"{level:g}": most},
        }
        for request, lengths, most in zip(requests, predictor.predict(requests), bounds, strict=True)
    ]
    emit_json({"served_model": predictor.config.served_model, "predictions": rows}, json)
    if not quiet and json != "-":
        _show(rows, bound)


def _show(rows: Sequence[dict[str, object]], bound: float | None) -> None:
    """The predictions as a table on stdout, with a column for the bound that was asked for."""
    heads = ["median" if q == 0.5 else f"p{100 * q:g}" for q in _QUANTILES]
    heads += ["bound"] if bound is not None else []
    title = "tokens" if bound is None else f"tokens; {100 * bound:g} % stay within the bound"
    table = Table("prompt", "mean", *heads, title=title)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
        column.min_width = 6
    console = Console(highlight=False, markup=False)
    # The numbers first: a prompt gets the room that they leave.
    table.columns[0].max_width = max(12, console.width - 9 * (len(table.columns) - 1) - 6)
    for row in rows:
        quantiles, bounds = row["quantiles_tokens"], row["upper_bounds_tokens"]
        assert isinstance(quantiles, dict)
        assert isinstance(bounds, dict)
        numbers = [*quantiles.values(), *(bounds.values() if bound is not None else ())]
        prompt = " ".join(str(row["prompt"]).split())
        table.add_row(prompt, str(row["mean_tokens"]), *map(str, numbers))
    console.print(table)


def _read(source: str) -> list[Request]:
    try:
        content = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TraceError("no such file", where=source, fix="check the path") from error
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text, it has the byte 0x{error.object[error.start]:02x}"
        raise TraceError(what, where=source, fix="give one prompt a line, in UTF-8") from error
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror or error})", where=source, fix="give a file") from error
    lines = enumerate(content.splitlines(), start=1)
    return [_request(line, f"{source}:{number}") for number, line in lines if line.strip()]


def _request(line: str, where: str) -> Request:
    if not line.lstrip().startswith(("{", "[", '"')):
        return line
    try:
        content = json_module.loads(line)
    except ValueError:
        # A prompt may well begin with a bracket.
        return line
    except RecursionError as error:
        raise TraceError("is nested too deeply", where=where, fix="give the prompt as text") from error
    said = NO_PARAMETERS
    if isinstance(content, dict):
        said = parameters_of(content)
        content = content.get("messages", content.get("prompt"))
    if isinstance(content, str):
        return ChatRequest([Message("user", content)], said) if said else content
    try:
        messages = [Message(str(m["role"]), str(m["content"])) for m in content]
    except (TypeError, KeyError) as error:
        fix = 'give a text, {"prompt": ...} or {"messages": [{"role": ..., "content": ...}]}'
        raise TraceError("neither a prompt nor chat messages", where=where, fix=fix) from error
    if not messages:
        raise TraceError("no messages", where=where, fix="remove the line")
    return ChatRequest(messages, said) if said else messages
