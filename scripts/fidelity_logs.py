"""Logs of real vLLM runs, in the layout of the ones in ``../shared/data/vllm_logs``: one folder a run.

    config.json        the machine: GPU, its memory, replicas, tensor parallelism, the link between GPUs
    meta.json          vLLM's version and engine arguments, when the run started
    workload.jsonl.gz  prompts as token ids, response lengths
    requests.jsonl     what happened to each request
    timeseries.csv     requests running and waiting, second by second

Two clocks are in ``requests.jsonl``. ``arrival_time`` is the API process's wall clock; ``queued_ts``, ``scheduled_ts``,
``first_token_ts`` and ``last_token_ts`` are the engine process's monotonic clock. They are brought together by the
smallest distance between a request's arrival and its being queued: the engine was idle then, and what remains, a
millisecond or two of the front end's work, is not seen. All times below are seconds since the first arrival.
"""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

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
        model, hardware: as the folder's config.json names them.
        tp: GPUs of one replica.
        expert_ranks: replicas that share out their experts; 1 where there is one replica.
        link: (seconds, bytes a second) of the way between GPUs, if stated.
        memory_share: vLLM's ``gpu_memory_utilization``.
        vllm: its version.
        engine: its arguments.
        requests: in order of arrival.
        ticks: (seconds since the first arrival, running, waiting), one a second.
    """

    name: str
    model: str
    hardware: str
    tp: int
    expert_ranks: int
    link: tuple[float, float] | None
    memory_share: float
    vllm: str
    engine: dict[str, Any]
    requests: list[LoggedRequest]
    ticks: list[tuple[float, int, int]]


def read_log(folder: Path) -> VllmLog:
    """Read a folder.

    Raises:
        InputError: if a file is missing, or is not as described.
    """
    try:
        return _read(folder)
    except FileNotFoundError as error:
        raise InputError("is missing", where=str(error.filename)) from None
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise InputError(f"is no log of vLLM ({type(error).__name__}: {error})", where=str(folder)) from None


def _read(folder: Path) -> VllmLog:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    engine = meta["engine_kwargs"]
    instances = [i for node in config["nodes"] for i in node["instances"]]
    first = instances[0]
    tp = int(engine.get("tensor_parallel_size") or first["tp_size"])
    replicas = int(engine.get("data_parallel_size") or 1)
    if replicas > 1 and not engine.get("enable_expert_parallel"):
        raise ValueError(f"{replicas} replicas that share no experts are several logs")
    link = None
    if config.get("link_bw"):
        link = (float(config.get("link_latency", 0)) * 1e-9, float(config["link_bw"]) * 1e9)
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text("utf-8").splitlines()]
    with gzip.open(folder / "workload.jsonl.gz", "rt", encoding="utf-8") as file:
        prompts = [json.loads(line)["input_tok_ids"] for line in file]
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
            r["output_toks"],
        )
        for r, prompt in zip(rows, prompts, strict=True)
    ]
    began = datetime.fromisoformat(meta["started_at"].replace("Z", "+00:00")).timestamp() - start
    with (folder / "timeseries.csv").open(encoding="utf-8", newline="") as file:
        ticks = [(float(r["t"]) + began, int(r["running"]), int(r["waiting"])) for r in csv.DictReader(file)]
    return VllmLog(
        name=folder.resolve().name,
        model=first["model_name"],
        hardware=first["hardware"],
        tp=tp,
        expert_ranks=replicas,
        link=link,
        memory_share=float(engine.get("gpu_memory_utilization") or first["npu_mem"].get("mem_util", 0.9)),
        vllm=meta["vllm_version"],
        engine=engine,
        requests=sorted(requests, key=lambda r: r.arrival_s),
        ticks=ticks,
    )
