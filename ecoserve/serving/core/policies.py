"""The registries: policies, and the KV policies and orderings that they are made of.

To add one, write its class in one file and add one line here: ``module:object``, loaded when a run asks for it, so that
the default never imports the baselines. A policy is one row of :data:`POLICIES`; settings replace its parts.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, NamedTuple


class Policy(NamedTuple):
    """A policy's parts; docs/architecture.md has the table."""

    kv_policy: str
    ordering: str
    groups: bool = False
    correction: bool = False


DEFAULT: Final = "ecoserve"
#: Policies of our scheduler.
POLICIES: Final[dict[str, Policy]] = {
    DEFAULT: Policy("ranked", "slo", correction=True),
    "ecoserve-exact": Policy("exact", "srpt"),
    "ecoserve-d": Policy("exact", "fcfs"),
    "ecoserve-sd": Policy("exact", "fcfs", groups=True),
    "ecoserve-sdo": Policy("exact", "paper", groups=True),
    "ecoserve-paper": Policy("pipelined", "paper", groups=True),
    "orca": Policy("max", "fcfs"),
}
#: What level ``order`` serves: vLLM's own scheduler by request priorities.
ORDER: Final = "order"
#: Policies of vLLM's own scheduler.
STOCK_POLICIES: Final = ("vllm", "vllm-watermark", "vllm-priority", ORDER)

_CORE: Final = "ecoserve.serving.core"
_BASELINES: Final = "ecoserve.serving.baselines"

KV_POLICIES: Final[dict[str, str]] = {
    "on-demand": f"{_CORE}.kv_policy:KVPolicy",
    "pooled": f"{_CORE}.kv_policy:Pooled",
    "ranked": f"{_CORE}.kv_policy:Ranked",
    "max": f"{_BASELINES}.exact:Max",
    "exact": f"{_BASELINES}.exact:Exact",
    "pipelined": f"{_BASELINES}.pipelined:Pipelined",
}
ORDERINGS: Final[dict[str, str]] = {
    "fcfs": f"{_CORE}.orderings:Ordering",
    "sjf": f"{_CORE}.orderings:SJF",
    "srpt": f"{_CORE}.orderings:SRPT",
    "hrrn": f"{_CORE}.orderings:HRRN",
    "edf": f"{_CORE}.orderings:EDF",
    "slo": f"{_CORE}.orderings:SLO",
    "paper": f"{_BASELINES}.paper_ordering:PaperOrdering",
}
GROUPS: Final = f"{_BASELINES}.groups:Groups"


def load(entry: str) -> Any:
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)
