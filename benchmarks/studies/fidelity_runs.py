"""A log's requests on the modelled machine that its folder names: what ``fidelity.py`` and its kin run.

vLLM's own scheduler is given the requests, with their arrivals, prompts and response lengths and the engine's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from fidelity_expert_parallel import ExpertParallel
from fidelity_logs import VllmLog

from ecoserve.errors import ConfigError, InputError
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.engine import EngineShape, make_request, make_scheduler, quiet_vllm
from ecoserve.serving.simulate.gpu.hardware import Link, find_gpu
from ecoserve.serving.simulate.gpu.model import GpuModel, HostTimes, gpu_model
from ecoserve.serving.simulate.gpu.shapes import load_shape
from ecoserve.serving.simulate.loop import Arrival, run_replicas
from ecoserve.serving.simulate.replica import Replica, Step

#: The scheduler is made with a small model of its own, whose longest sequence this is.
LONGEST: Final = 131072


@dataclass(slots=True)
class Watcher:
    """Keeps what each step did: a recorder of the simulation."""

    steps: list[tuple[int, float, float, StepWork, int, int]] = field(default_factory=list)

    def arrived(self, replica: int, row: RequestRow) -> None:
        """Nothing to keep."""

    def stepped(self, replica: int, scheduler: Any, step: Step) -> None:
        """Replica, when the step was scheduled, when it ended, its work, and who runs and waits."""
        running, waiting = scheduler.get_request_counts()
        self.steps.append((replica, step.began_s, step.end_s, step.work, running, waiting))

    def ended(self, replica: int, row: RequestRow, at_s: float) -> None:
        """Nothing to keep."""


@dataclass(frozen=True, slots=True)
class Other:
    """What to take instead of what the log says; None: nothing.

    Attributes:
        model: built-in name, or folder with a config.json.
        gpu: its name.
        host: constants around the kernels.
        link: seconds and bytes a second between GPUs.
    """

    model: str | None = None
    gpu: str | None = None
    host: HostTimes | None = None
    link: tuple[float, float] | None = None


def model_of(log: VllmLog, other: Other) -> GpuModel:
    """The modelled machine that a log names.

    Raises:
        ConfigError: if its model or GPU is not modelled.
    """
    s = log.settings
    shape = load_shape(other.model or log.model)
    stored = {k: v for k, v in (("weights", s.weights), ("kv_cache", s.kv_cache)) if v is not None}
    shape = shape.model_copy(update=stored)
    found = other.gpu or log.hardware
    if not found:
        raise ConfigError("config.json names no GPU", where=log.name, fix="give one with --gpu")
    # The stated link is that of cards without NVLink; where none is stated it is the GPU's.
    stated = (other.link or log.link) if find_gpu(found).link != "nvlink" else None
    link = Link(*stated) if stated else None
    return gpu_model(found, shape, s.tp, host=other.host, link=link, expert_ranks=s.expert_ranks)


def engine_of(log: VllmLog, model: GpuModel) -> EngineShape:
    """The engine's settings, with as much KV as the modelled machine has."""
    s = log.settings
    blocks = s.kv_blocks or model.kv_blocks(s.block_size, s.max_num_seqs, s.max_num_batched_tokens, s.memory_share)
    longest = min(LONGEST, s.max_model_len or model.shape.max_model_len, blocks * s.block_size)
    return EngineShape(
        kv_blocks=blocks,
        block_size=s.block_size,
        max_num_seqs=s.max_num_seqs,
        # Without pieces a step must take the longest prompt.
        max_num_batched_tokens=max(s.max_num_batched_tokens, 0 if s.chunked_prefill else longest),
        max_model_len=longest,
        prefix_caching=s.prefix_caching,
        chunked_prefill=s.chunked_prefill,
        scheduling_policy=s.scheduling_policy,
        runner=s.depth,
        depth=s.depth,
    )


def simulate(log: VllmLog, model: GpuModel) -> tuple[list[RequestRow], Watcher]:
    """Run a log's requests on the modelled machine; the rows are in the log's order."""
    quiet_vllm()
    from ecoserve.serving.adapter.counting import CountingScheduler

    shape = engine_of(log, model)
    hashed = shape.block_size if shape.prefix_caching else None
    arrivals = [
        Arrival(
            at_s=r.arrival_s,
            request=make_request(f"r{i}", r.prompt, r.output_tokens, r.arrival_s, block_size=hashed),
            response_tokens=r.output_tokens,
        )
        for i, r in enumerate(log.requests)
    ]
    depth, ranks = log.settings.depth, log.settings.expert_ranks
    replicas = [Replica(make_scheduler(CountingScheduler, shape), model, depth, index=i) for i in range(ranks)]
    watcher = Watcher()
    if ranks > 1:
        return ExpertParallel(replicas, model, depth, watcher).run(arrivals), watcher
    return run_replicas(replicas, arrivals, recorder=watcher).rows, watcher


def calibrate(log: VllmLog, other: Other, rounds: int = 4, say: Callable[[str], None] = print) -> float:
    """The gap a request that makes requests' times from first to last token right, in the least squares sense.

    Every step between a request's first and last token adds ``gap_request_s`` for each request of its batch. The steps
    are those of the simulation with the constant of the round before.

    Raises:
        InputError: if no response is long enough.
    """
    host = other.host or HostTimes()
    found = 0.0
    for _ in range(rounds):
        trial = Other(other.model, other.gpu, host.model_copy(update={"gap_request_s": found}), other.link)
        rows, watcher = simulate(log, model_of(log, trial))
        ends = np.asarray(sorted({step[2] for step in watcher.steps}))
        requests = np.zeros(len(ends))
        for _, _, end, work, *_ in watcher.steps:
            # Of replicas in lockstep the one with the longer gap decides.
            at = int(np.searchsorted(ends, end))
            requests[at] = max(requests[at], work.requests)
        passed = np.concatenate([[0.0], np.cumsum(requests)])
        batch, missing = [], []
        for real, row in zip(log.requests, rows, strict=True):
            if real.output_tokens < 20 or row.first_token_s is None or row.finish_s is None:
                continue
            first, last = np.searchsorted(ends, (row.first_token_s - 1e-9, row.finish_s - 1e-9))
            tokens = real.output_tokens - 1
            batch.append((passed[last + 1] - passed[first + 1]) / tokens)
            span = (real.last_token_s - real.first_token_s) - (row.finish_s - row.first_token_s)
            missing.append(span / tokens)
        if not batch:
            raise InputError("has no response of 20 tokens or more to calibrate on", where=log.name)
        x, y = np.asarray(batch), np.asarray(missing)
        found = max(0.0, found + float(x @ y / (x @ x)))
        say(f"{log.name}: gap_request_s {found * 1e6:.2f} us")
    return found
