"""The registries: policies, and the KV policies and orderings that they are made of.

To add one, write its class in one file and add one line here: ``module:object``, loaded when a run asks for it, so that
the default never imports the baselines. A policy is one row of :data:`POLICIES`; settings replace its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

_CORE: Final = "ecoserve.serving.core"
_BASELINES: Final = "ecoserve.serving.baselines"


class Policy(NamedTuple):
    """A policy's parts; docs/how/architecture.md has the table.

    ``fixed_forward``: every forward may have vLLM's own ``max_num_batched_tokens``. ``lengths``: whether predicted
    lengths are used; ``needs_lengths``: without them the policy is none.
    """

    kv_policy: str
    ordering: str
    groups: bool = False
    correction: bool = False
    fixed_forward: bool = False
    lengths: bool = True
    needs_lengths: bool = False


class Stock(NamedTuple):
    """A policy of vLLM's own scheduler: engine arguments, and a class of its own where they are not enough."""

    arguments: Mapping[str, Any] = {}
    scheduler: str = "ecoserve.serving.adapter.counting.CountingScheduler"
    lengths: bool = False
    needs_lengths: bool = False


DEFAULT: Final = "ecoserve"
#: Policies of our scheduler.
POLICIES: Final[dict[str, Policy]] = {
    DEFAULT: Policy("ranked", "slo", correction=True),
    "ecoserve-exact": Policy("exact", "srpt"),
    "ecoserve-d": Policy("exact", "fcfs"),
    "ecoserve-sd": Policy("exact", "fcfs", groups=True),
    "ecoserve-sdo": Policy("exact", "paper", groups=True),
    "ecoserve-paper": Policy("pipelined", "paper", groups=True),
    "orca": Policy("max", "fcfs", lengths=False),
    "fastserve": Policy("mlfq", "mlfq", fixed_forward=True, lengths=False),
    "past-future": Policy("past-future", "fcfs", fixed_forward=True, lengths=False),
    "hrrn": Policy("on-demand", "hrrn", fixed_forward=True, needs_lengths=True),
    "volume": Policy("on-demand", "volume", fixed_forward=True, needs_lengths=True),
}
#: What level ``order`` serves: vLLM's own scheduler by request priorities.
ORDER: Final = "order"
#: Prefill and decode on engines of their own, in virtual time only (simulate/pools.py).
SPLIT: Final = "distserve"
#: Policies of vLLM's own scheduler.
STOCK_POLICIES: Final[dict[str, Stock]] = {
    "vllm": Stock(),
    "vllm-watermark": Stock({"watermark": 0.05}),
    "vllm-priority": Stock({"scheduling_policy": "priority"}, lengths=True),
    "vllm-priority-watermark": Stock({"scheduling_policy": "priority", "watermark": 0.05}, lengths=True),
    ORDER: Stock({"scheduling_policy": "priority"}, lengths=True),
    "vllm-2024": Stock(
        {"enable_chunked_prefill": False, "watermark": 0.01}, f"{_BASELINES}.vllm_2024.WholePromptScheduler"
    ),
    # Both systems' own defaults; a modelled GPU has a budget of its own (baselines/token_budget.py).
    "sarathi": Stock({"max_num_batched_tokens": 512}),
    "fastgen": Stock({"max_num_batched_tokens": 768}),
    SPLIT: Stock(),
    "multires": Stock({}, f"{_BASELINES}.multires.NearestScheduler", lengths=True, needs_lengths=True),
}
#: A reference in virtual time, no policy: the default with true lengths, KV to spare where it helps, no host time.
BOUND: Final = "bound"
#: Policies for which predicted lengths change nothing, and those that are none without them.
_ALL: Final[Mapping[str, Policy | Stock]] = {**POLICIES, **STOCK_POLICIES}
LENGTH_BLIND: Final = frozenset({BOUND, *(name for name, row in _ALL.items() if not row.lengths)})
LENGTH_BOUND: Final = frozenset(name for name, row in _ALL.items() if row.needs_lengths)

KV_POLICIES: Final[dict[str, str]] = {
    "on-demand": f"{_CORE}.kv_policy:KVPolicy",
    "pooled": f"{_CORE}.kv_policy:Pooled",
    "ranked": f"{_CORE}.kv_policy:Ranked",
    "max": f"{_BASELINES}.exact:Max",
    "exact": f"{_BASELINES}.exact:Exact",
    "pipelined": f"{_BASELINES}.pipelined:Pipelined",
    "past-future": f"{_BASELINES}.past_future:PastFuture",
    "mlfq": f"{_BASELINES}.fastserve:BestOfBatch",
}
ORDERINGS: Final[dict[str, str]] = {
    "fcfs": f"{_CORE}.orderings:Ordering",
    "sjf": f"{_CORE}.orderings:SJF",
    "srpt": f"{_CORE}.orderings:SRPT",
    "hrrn": f"{_CORE}.orderings:HRRN",
    "edf": f"{_CORE}.orderings:EDF",
    "slo": f"{_CORE}.orderings:SLO",
    "paper": f"{_BASELINES}.paper_ordering:PaperOrdering",
    "mlfq": f"{_BASELINES}.fastserve:SkipJoin",
    "volume": f"{_BASELINES}.volume:Volume",
}
GROUPS: Final = f"{_BASELINES}.groups:Groups"


def load(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)
