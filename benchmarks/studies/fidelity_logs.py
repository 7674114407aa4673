"""Logs of real vLLM runs, in the layout of the ones in ``../shared/data/vllm_logs``: one folder a run.

    config.json        the machine: GPU, its memory, replicas, tensor parallelism, the link between GPUs
    meta.json          vLLM's version and engine arguments, when the run started
    workload.jsonl     prompts as token ids (or their lengths alone), response lengths
    requests.jsonl     what happened to each request
    timeseries.csv     requests running and waiting, second by second (may be missing)

Each may be gzipped (``.gz``). A row of requests.jsonl belongs to the row of the workload that its id's number names
(``bench-17``), else to the one in the same place; prompt lengths must agree.

Two clocks are in ``requests.jsonl``. ``arrival_time`` is the API process's wall clock; ``queued_ts``, ``scheduled_ts``,
``first_token_ts`` and ``last_token_ts`` are the engine process's monotonic clock. They are brought together by the
smallest distance between a request's arrival and its being queued: the engine was idle then, and what remains, a
millisecond or two of the front end's work, is not seen. All times below are seconds since the first arrival.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fidelity_settings import EngineSettings, engine_settings

from ecoserve.errors import InputError


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request of a log, seconds since the first arrival."""

    arrival_s: float
    queued_s: float
    first_token_s: float
    last_token_s: float
    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class VllmLog:
    """One run.

    Attributes:
        name: of the folder.
        model: as the folder names it.
        hardware: likewise; empty if it does not.
        link: (seconds, bytes a second) of the way between GPUs, if stated.
        settings: the engine's.
        requests: in order of arrival.
        ticks: (seconds since the first arrival, running, waiting), one a second; may be empty.
        notes: what the folder leaves out, in words.
    """

    name: str
    model: str
    hardware: str
    link: tuple[float, float] | None
    settings: EngineSettings
    requests: list[LoggedRequest]
    ticks: list[tuple[float, int, int]]
    notes: list[str]


def read_log(folder: Path) -> VllmLog:
    """Read a folder.

    Raises:
        InputError: if a file is missing, or is not as described.
        ConfigError: if the engine was set up in a way that is not modelled.
    """
    try:
        return _read(folder)
    except KeyError as error:
        raise InputError(f"is no log of vLLM: {error} is missing", where=str(folder)) from None
    except (TypeError, ValueError, IndexError, AttributeError, OSError, EOFError) as error:
        raise InputError(f"is no log of vLLM ({type(error).__name__}: {error})", where=str(folder)) from None


def _text(folder: Path, name: str) -> str:
    """A file's text, plain or gzipped."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            data = path.read_bytes()
            return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    raise InputError(f"has no {name}", where=str(folder), fix="the layout is in benchmarks/studies/fidelity_logs.py")


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(folder, name).splitlines() if line.strip()]


def _read(folder: Path) -> VllmLog:
    config = json.loads(_text(folder, "config.json"))
    meta = json.loads(_text(folder, "meta.json"))
    notes: list[str] = []
    first = next((i for node in config.get("nodes", []) for i in node.get("instances", [])), {})
    settings = engine_settings(meta["vllm_version"], meta["engine_kwargs"], first)
    link = None
    if config.get("link_bw"):
        link = (float(config.get("link_latency", 0)) * 1e-9, float(config["link_bw"]) * 1e9)
    rows = _rows(folder, "requests.jsonl")
    unfinished = sum(r.get("first_token_ts") is None or r.get("last_token_ts") is None for r in rows)
    if unfinished or not rows:
        raise ValueError(f"{unfinished} of {len(rows)} requests have no first or last token")
    prompts = _prompts(folder, rows, notes)
    start = min(r["arrival_time"] for r in rows)
    # From the engine's clock to seconds since the first arrival.
    offset = min(r["queued_ts"] - r["arrival_time"] for r in rows) + start
    requests = [
        LoggedRequest(
            r["arrival_time"] - start,
            r["queued_ts"] - offset,
            r["first_token_ts"] - offset,
            r["last_token_ts"] - offset,
            prompt,
            int(r["output_toks"]),
        )
        for r, prompt in zip(rows, prompts, strict=True)
    ]
    return VllmLog(
        name=folder.resolve().name,
        model=first.get("model_name") or meta.get("model") or meta["engine_kwargs"]["model"],
        hardware=first.get("hardware") or "",
        link=link,
        settings=settings,
        requests=sorted(requests, key=lambda r: r.arrival_s),
        ticks=_ticks(folder, meta, start, notes),
        notes=notes,
    )


def _prompts(folder: Path, rows: list[dict[str, Any]], notes: list[str]) -> list[list[int]]:
    """The prompt of each row."""
    load = _rows(folder, "workload.jsonl")
    numbers = [str(r.get("request_id", "")).rpartition("-")[2] for r in rows]
    named = all(n.isdecimal() and int(n) < len(load) for n in numbers) and len(set(numbers)) == len(rows)
    if not named and len(load) != len(rows):
        raise ValueError(f"{len(rows)} requests of a workload of {len(load)}, and no numbers that say which")
    places = [int(n) for n in numbers] if named else list(range(len(rows)))
    prompts = []
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        tokens = load[place].get("input_tok_ids")
        length = int(row["input_toks"])
        if tokens is None:
            # Only lengths: prompts that share nothing.
            tokens = [(i * 7919 + j) % 100_003 for j in range(length)]
        if len(tokens) != length:
            raise ValueError(f"request {i} had {length} prompt tokens, its row of the workload has {len(tokens)}")
        prompts.append(tokens)
    if any("input_tok_ids" not in r for r in load):
        notes.append("the workload has no token ids: prompts are taken to share nothing")
    return prompts


def _ticks(folder: Path, meta: dict[str, Any], start: float, notes: list[str]) -> list[tuple[float, int, int]]:
    began = meta.get("started_at")
    try:
        text = _text(folder, "timeseries.csv")
    except InputError:
        text = ""
    if not text or began is None:
        notes.append("no timeseries.csv, or no started_at in meta.json: running and waiting are not compared")
        return []
    offset = datetime.fromisoformat(began.replace("Z", "+00:00")).timestamp() - start
    return [(float(r["t"]) + offset, int(r["running"]), int(r["waiting"])) for r in csv.DictReader(io.StringIO(text))]
