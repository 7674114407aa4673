"""What scheduling costs beside vLLM's own: a step, its worst case, and a request's arrival.

    python benchmarks/studies/scheduling_cost.py benchmarks/results/scheduling_cost.json [--steps 2000]

``schedule()`` and ``update_from_output()`` of the classes that serve, driven without a model, in CPU time of the
thread. So many requests run and so many wait; a response ends in each step and a request arrives, so that queues move.
Variants: predicted lengths; with deadlines; with eight LoRA adapters of which vLLM holds four. The collector of Python
is off while a step is timed. vLLM's class and ours take turns, a hundred steps each.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import common

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.policies import policy_arguments
from ecoserve.serving.core import keys
from ecoserve.serving.simulate.engine import EOS, WORD, EngineShape, make_request, make_scheduler
from ecoserve.sweep.identity import hardware, versions

RUNNING: Final = (64, 256, 1024)
WAITING: Final = (0, 1_000, 10_000)
VARIANTS: Final = ("lengths", "deadlines", "adapters")
POLICIES: Final = ("vllm", "ecoserve")
ADAPTERS: Final = 8
PLACES: Final = 4
PROMPT: Final = 128
TURN: Final = 100


@dataclass
class Drive:
    """One scheduler with ``running`` requests in its batch and ``waiting`` in its queue."""

    policy: str
    running: int
    waiting: int
    variant: str
    step_s: list[float] = field(default_factory=list)
    arrival_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        from vllm.utils.import_utils import resolve_obj_by_qualname

        arguments = policy_arguments(self.policy, {})
        shape = EngineShape(
            kv_blocks=self.running * 300,
            max_num_seqs=self.running,
            max_num_batched_tokens=max(2048, 2 * self.running),
            max_model_len=4096,
        )
        cls = resolve_obj_by_qualname(arguments["scheduler_cls"])
        self.scheduler = make_scheduler(cls, shape, arguments.get("additional_config"))
        if self.variant == "adapters":
            self.scheduler.lora_config = SimpleNamespace(max_loras=PLACES)
        self._made = 0
        for _ in range(self.running + self.waiting):
            self.arrive()
        while len(self.scheduler.running) < self.running:
            self.step(timed=False, turnover=False)

    def arrive(self) -> float:
        """A request arrives; CPU seconds of ``add_request()``."""
        number = self._made
        self._made += 1
        lengths = LengthDistribution.lognormal(150.0 + 37 * (number % 11), 0.8, 4096)
        extra: dict[str, Any] = {keys.LENGTHS: lengths.to_wire()}
        if self.variant == "deadlines":
            extra |= {keys.SLO_TTFT: 2.0, keys.SLO_TPOT: 0.05}
        request = make_request(f"r{number}", [WORD] * PROMPT, 2000, 0.0, extra)
        if self.variant == "adapters":
            from vllm.lora.request import LoRARequest

            adapter = 1 + number % (PLACES if number < self.running else ADAPTERS)
            request.lora_request = LoRARequest(f"a{adapter}", adapter, "adapter")
        begun = time.thread_time()
        self.scheduler.add_request(request)
        return time.thread_time() - begun

    def step(self, *, timed: bool = True, turnover: bool = True) -> None:
        """One step; with ``turnover`` the request that runs longest ends and another arrives."""
        from vllm.v1.outputs import ModelRunnerOutput

        scheduler = self.scheduler
        begun = time.thread_time()
        output = scheduler.schedule()
        spent = time.thread_time() - begun
        names = list(output.num_scheduled_tokens)
        oldest = scheduler.running[0].request_id if turnover and scheduler.running else None
        sampled = [[] if scheduler.requests[n].is_prefill_chunk else [EOS if n == oldest else WORD] for n in names]
        result = ModelRunnerOutput(
            req_ids=names, req_id_to_index={n: i for i, n in enumerate(names)}, sampled_token_ids=sampled
        )
        begun = time.thread_time()
        scheduler.update_from_output(output, result)
        spent += time.thread_time() - begun
        if timed:
            self.step_s.append(spent)
        if turnover:
            arrival = self.arrive()
            if timed:
                self.arrival_s.append(arrival)

    def figures(self) -> dict[str, float]:
        steps, arrivals = sorted(self.step_s), sorted(self.arrival_s)
        return {
            "step_ms": round(1e3 * statistics.median(steps), 3),
            "step_p99_ms": round(1e3 * steps[int(0.99 * len(steps))], 3),
            "step_worst_ms": round(1e3 * steps[-1], 3),
            "add_request_us": round(1e6 * statistics.median(arrivals), 1),
        }


def cell(running: int, waiting: int, variant: str, steps: int) -> dict[str, Any]:
    """Both schedulers under one load."""
    drives = {policy: Drive(policy, running, waiting, variant) for policy in POLICIES}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for begin in range(0, steps + TURN, TURN):
            for drive in drives.values():
                for _ in range(TURN):
                    drive.step(timed=begin >= TURN)
            gc.collect(0)
    finally:
        gc.enable()
        gc.unfreeze()
    out: dict[str, Any] = {"running": running, "waiting": waiting, "variant": variant, "steps": steps}
    out |= {policy: drive.figures() for policy, drive in drives.items()}
    stock, ours = out["vllm"], out["ecoserve"]
    out["ratio"] = round(ours["step_ms"] / stock["step_ms"], 2)
    out["more_ms"] = round(ours["step_ms"] - stock["step_ms"], 3)
    out["worst_more_ms"] = round(ours["step_worst_ms"] - stock["step_worst_ms"], 2)
    return out


def main() -> int:
    parser = common.arguments_of(__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--running", type=int, nargs="*", default=RUNNING)
    parser.add_argument("--waiting", type=int, nargs="*", default=WAITING)
    parser.add_argument("--variants", nargs="*", default=VARIANTS)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for variant in given.variants:
        for running in given.running:
            for waiting in given.waiting:
                rows.append(cell(running, waiting, variant, given.steps))
                print(rows[-1], flush=True)
                words = ["benchmarks/results/" + given.output.name, "--steps", given.steps]
                for name in ("running", "waiting", "variants"):
                    words += [f"--{name}", *getattr(given, name)]
                command = common.command("scheduling_cost", *words)
                content = {"command": command, "versions": versions(), "hardware": hardware(), "rows": rows}
                common.write(given.output, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
