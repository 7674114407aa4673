"""KVC policies, one module each: what a request is promised, and who may start."""

from __future__ import annotations

from ecoserve.serving.core.kvc.base import KvcKnobs, KvcPolicy, KvcPolicyName
from ecoserve.serving.core.kvc.exact import Exact, Max
from ecoserve.serving.core.kvc.pipelined import Pipelined
from ecoserve.serving.core.kvc.pooled import Pooled, PoolForecast
from ecoserve.serving.core.ledger import Ledger

__all__ = [
    "Exact",
    "KvcKnobs",
    "KvcPolicy",
    "KvcPolicyName",
    "Max",
    "Pipelined",
    "PoolForecast",
    "Pooled",
    "make_policy",
]


def make_policy(knobs: KvcKnobs, ledger: Ledger, forecast: PoolForecast) -> KvcPolicy:
    """The policy that ``knobs.policy`` names."""
    match knobs.policy:
        case "on-demand":
            return KvcPolicy(knobs, ledger)
        case "max":
            return Max(knobs, ledger)
        case "exact":
            return Exact(knobs, ledger)
        case "pipelined":
            return Pipelined(knobs, ledger)
        case "pooled":
            return Pooled(knobs, ledger, forecast)
