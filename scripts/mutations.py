"""Mutation check: small defects are put into the serving core and the adapter, one at a time; the soak must find each.

    python scripts/mutations.py [-o benchmarks/results/mutations.json] [--only NAME]

Each mutation replaces one piece of text in a temporary copy of the package; the working tree is never touched. The
state machine (tests/serving/stateful_machine.py) then runs over that copy, seed after seed, until it finds something or
has had ``--seeds`` of them. Without a mutation it must find nothing. Exit code 1 if a mutation survives.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ecoserve.files import write_atomically
from ecoserve.serving.simulate.engine import quiet_vllm

ROOT = Path(__file__).resolve().parent.parent

#: Runs of one seed: fewer than in a soak, for most defects are found at once.
RUNS = 12


@dataclass(frozen=True)
class Mutation:
    """One defect: in ``file`` (under ecoserve/serving), ``old`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "a loan is not entered with its host",
        "baselines/pipelined.py",
        "        insort(self.loans_in.setdefault(loan.host, []), loan)\n",
        "",
    ),
    Mutation(
        "a request's row in the forecast is released twice",
        "core/forecast.py",
        "            self._free_rows.append(task.row)\n            task.row = -1\n",
        "            self._free_rows += [task.row, task.row]\n            task.row = -1\n",
    ),
    Mutation(
        "a paused request stays in the list of the paused when its client goes away",
        "adapter/pausing.py",
        "        self.paused_at.pop(request.request_id, None)\n        return out\n",
        "        return out\n",
    ),
    Mutation(
        "a paused request may come back in the step that paused it",
        "adapter/pausing.py",
        "return int(request.num_in_flight_tokens) == dropped and self.current_step > paused_at + 1",
        "return True",
    ),
    Mutation(
        "an abort leaves a paused request in its queue",
        "adapter/queues.py",
        "            if request in self:\n                self.remove_request(request)\n\n    def __contains__",
        "            if request in self and not request.num_in_flight_tokens:\n"
        "                self.remove_request(request)\n\n    def __contains__",
    ),
    Mutation(
        "epsilon is ignored in the fit",
        "core/kv_policy.py",
        "self.forecast.peak(usage, deviations(self.settings.epsilon))",
        "self.forecast.peak(usage, 0.0)",
    ),
    Mutation(
        "the high-water mark of the paused is ignored",
        "core/shortage.py",
        "if some_run and idle_blocks <= paused_limit_blocks and not prefill_starves:",
        "if some_run and not prefill_starves:",
    ),
    Mutation(
        "a shortage is counted one block too small",
        "core/kv_use.py",
        "return max(0, need)",
        "return max(0, need - 1)",
    ),
    Mutation(
        "a dropped request keeps its promise",
        "core/planner.py",
        "        task.tables = ()\n        task.promised = 0\n",
        "        task.tables = ()\n",
    ),
    Mutation(
        "a window is promised without asking what others have",
        "baselines/exact.py",
        "        others = self._promised_blocks - self.charge(task)\n",
        "        others = 0\n",
    ),
    Mutation(
        "prompts let in within one step are not counted",
        "core/kv_policy.py",
        "        for other in (*self._new, task):\n",
        "        for other in (task,):\n",
    ),
    Mutation(
        "a resumed request stays in the list of the paused",
        "adapter/scheduler.py",
        "            del self.paused_at[name]\n            self.counters.resumes += 1\n",
        "            self.counters.resumes += 1\n",
    ),
    Mutation(
        "model runner V2 does not learn of a pause",
        "adapter/pausing.py",
        "            self.reset_preempted_req_ids.add(request.request_id)\n",
        "            pass\n",
    ),
    Mutation(
        "holders that rank before a newcomer are not counted",
        "core/kv_policy.py",
        "        usage = self._ahead(task)\n",
        "        usage = self._own(task)\n",
    ),
    Mutation(
        "prompts are admitted into the reserve",
        "core/kv_policy.py",
        "room = self.open_blocks - self.ledger.held_blocks",
        "room = self.ledger.usable_blocks - self.ledger.held_blocks",
    ),
    Mutation(
        "blocks of prompts admitted within one step are given out again",
        "core/kv_policy.py",
        "        self._taken += self._new_blocks(task)\n",
        "",
    ),
    Mutation(
        "a prompt's next chunk needs no blocks",
        "core/planner.py",
        "self._missing(t, t.written + chunk)",
        "0",
    ),
    Mutation(
        "a request that has ended still waits for its prefill",
        "core/planner.py",
        "        del self.ledger.tasks[task.request_id]\n        self.forward_size.waits_no_more(task)\n",
        "        del self.ledger.tasks[task.request_id]\n",
    ),
    Mutation(
        "a request whose key has changed is not put back",
        "adapter/queues.py",
        "            entry = (key, entry[1], request)\n            self._insert(entry)\n",
        "            entry = (key, entry[1], request)\n",
    ),
    Mutation(
        "admission by rank ignores client priority",
        "core/kv_policy.py",
        "before = (priority < own_priority) | ((priority == own_priority) & (rank <= own_rank))",
        "before = rank <= own_rank",
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation: the seed that found it, what was said, and how long it took."""

    name: str
    file: str
    caught: bool
    seed: int | None
    said: str
    seconds: float


def soak(copy: str, seeds: int, report: Connection) -> None:
    """In a process of its own: the state machine over the package in ``copy``; says (seed or None, steps, error)."""
    for name in [n for n in sys.modules if n == "ecoserve" or n.startswith("ecoserve.")]:
        del sys.modules[name]
    sys.path[:0] = [copy, str(ROOT / "tests" / "serving")]
    import ecoserve

    assert Path(ecoserve.__path__[0]).is_relative_to(copy), ecoserve.__path__
    from stateful_machine import soak_once

    steps = 0
    for seed in range(1, seeds + 1):
        try:
            sums, _ = soak_once(seed, shrink=False, runs=RUNS)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the defect was found by it
            where = traceback.extract_tb(error.__traceback__)[-1].line
            text = f"{type(error).__name__}: {str(error) or where}".splitlines()[0].removeprefix("AssertionError: ")
            report.send((seed, steps, text))
            return
        steps += sums["steps"]
    report.send((None, steps, ""))


def run(mutation: Mutation | None, seeds: int) -> Outcome:
    """The state machine over a copy of the package with ``mutation`` in it; None: as it is."""
    with tempfile.TemporaryDirectory(prefix="ecoserve-mutation-") as folder:
        copy = Path(folder) / "ecoserve"
        shutil.copytree(ROOT / "ecoserve", copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            path = copy / "serving" / mutation.file
            text = path.read_text()
            if text.count(mutation.old) != 1:
                raise SystemExit(f"error: {mutation.name}: its text is {text.count(mutation.old)} times in {path.name}")
            path.write_text(text.replace(mutation.old, mutation.new))
        began = time.monotonic()
        here, there = multiprocessing.Pipe(duplex=False)
        # Forked, so that vLLM is imported once, before the copies are.
        process = multiprocessing.get_context("fork").Process(target=soak, args=(folder, seeds, there))
        process.start()
        there.close()
        try:
            seed, steps, said = here.recv()
        except EOFError:
            raise SystemExit(f"error: the run over the copy of {mutation} broke") from None
        finally:
            process.join()
    return Outcome(
        name=mutation.name if mutation else "none",
        file=mutation.file if mutation else "",
        caught=seed is not None,
        seed=seed,
        said=said or f"nothing in {steps:,} steps",
        seconds=round(time.monotonic() - began, 1),
    )


def main() -> int:
    """Run the check; returns the exit code."""
    parser = argparse.ArgumentParser(description="put defects into a copy of the scheduler; the soak must find them")
    parser.add_argument("--seeds", type=int, default=12, help="seeds that a mutation must be found within")
    parser.add_argument("--only", help="only mutations with this in their name")
    parser.add_argument("-o", "--output", type=Path, help="file for the outcome, JSON")
    args = parser.parse_args()
    console = Console(stderr=True)
    chosen: list[Mutation | None] = [m for m in MUTATIONS if args.only is None or args.only in m.name]
    quiet_vllm()
    for name in (
        "vllm.config",
        "vllm.v1.core.sched.async_scheduler",
        "vllm.v1.structured_output",
        "hypothesis",
        "scipy",
    ):
        importlib.import_module(name)
    outcomes = []
    for mutation in [*chosen, None] if args.only is None else chosen:
        with console.status(mutation.name if mutation else "no mutation"):
            outcome = run(mutation, args.seeds)
        outcomes.append(outcome)
        console.print(f"{'caught' if outcome.caught else 'nothing found':14} {outcome.name} ({outcome.seconds} s)")
    table = Table("mutation", "file", "found by seed", "as", title="defects put into a copy of the scheduler")
    for o in outcomes:
        table.add_row(o.name, o.file, "-" if o.seed is None else str(o.seed), o.said)
    Console().print(table)
    survived = [o.name for o in outcomes if o.file and not o.caught]
    false_alarm = [o.said for o in outcomes if not o.file and o.caught]
    if args.output is not None:
        result = {
            "command": f"python scripts/mutations.py --seeds {args.seeds}",
            "mutations": sum(bool(o.file) for o in outcomes),
            "caught": sum(o.caught for o in outcomes if o.file),
            "false_alarms": len(false_alarm),
            "outcomes": [asdict(o) for o in outcomes],
        }
        write_atomically(args.output, json.dumps(result, indent=1) + "\n")
    for name in survived:
        print(f"survived: {name}", file=sys.stderr)
    for said in false_alarm:
        print(f"found without any mutation: {said}", file=sys.stderr)
    return 1 if survived or false_alarm else 0


if __name__ == "__main__":
    sys.exit(main())
