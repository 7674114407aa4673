"""KV policies, one module each: what a request is promised, and who may start."""

from __future__ import annotations

from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.kv.base import KVKnobs, KVPolicy, KVPolicyName
from ecoserve.serving.core.kv.exact import Exact, Max
from ecoserve.serving.core.kv.pipelined import Pipelined
from ecoserve.serving.core.kv.pooled import Pooled, PoolForecast
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.padded import Padded
from ecoserve.serving.core.scenarios import Scenarios

__all__ = [
    "Exact",
    "KVKnobs",
    "KVPolicy",
    "KVPolicyName",
    "Max",
    "Pipelined",
    "PoolForecast",
    "Pooled",
    "make_forecast",
    "make_policy",
]


def make_policy(knobs: KVKnobs, ledger: Ledger, forecast: PoolForecast) -> KVPolicy:
    """The policy that ``knobs.policy`` names."""
    match knobs.policy:
        case "on-demand":
            return KVPolicy(knobs, ledger)
        case "max":
            return Max(knobs, ledger)
        case "exact":
            return Exact(knobs, ledger)
        case "pipelined":
            return Pipelined(knobs, ledger)
        case "pooled":
            return Pooled(knobs, ledger, forecast)


def make_forecast(knobs: KVKnobs, block_size: int, upper: int, rho: float, reaction: float) -> PoolForecast:
    """The forecast that ``knobs.forecast`` names; the arguments are those of :class:`Forecast`."""
    match knobs.forecast:
        case "spread":
            return Forecast(block_size, upper, rho, reaction)
        case "scenarios":
            return Scenarios(block_size, upper, rho, reaction)
        case "padded":
            return Padded(block_size, upper, rho, reaction, knobs.quantile)
