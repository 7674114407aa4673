"""Names that have changed: old ones are accepted, or published beside the new ones, for one release.

Each table maps an old name to its new one; None means that the thing is gone and its name is ignored.
CHANGELOG.md has the same tables (a test compares them).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

_LOG = logging.getLogger(__name__)

#: Scheduler settings (``--additional-config '{"ecoserve": {...}}'``, ``knobs`` of sweeps).
SETTINGS: Final[dict[str, str | None]] = {
    "kvc": "kv_policy",
    "decode_fast_path": None,
    "forecast": None,
    "headroom": None,
    "reaction_steps": None,
}

#: Prometheus metrics, new ones with their label.
METRICS: Final[dict[str, str | None]] = {
    "ecoserve_rung_own_space_total": 'ecoserve_underprediction_actions_total{action="own_space"}',
    "ecoserve_rung_re_reserved_total": 'ecoserve_underprediction_actions_total{action="re_reserved"}',
    "ecoserve_rung_global_reserve_total": 'ecoserve_underprediction_actions_total{action="global_reserve"}',
    "ecoserve_rung_paused_total": 'ecoserve_underprediction_actions_total{action="paused"}',
    "ecoserve_rung_guest_moved_total": 'ecoserve_underprediction_actions_total{action="guest_moved"}',
    "ecoserve_rung_recomputed_total": 'ecoserve_underprediction_actions_total{action="recomputed"}',
    "ecoserve_ladder_preemptions_total": "ecoserve_shortage_preemptions_total",
    "ecoserve_believed": "ecoserve_length_source{source}",
    "ecoserve_fast_steps_total": None,
}

#: Keys of a run in ``summary.json``: rows have both.
SUMMARY_KEYS: Final[dict[str, str]] = {
    "rung_own_space": "underprediction_own_space",
    "rung_re_reserved": "underprediction_re_reserved",
    "rung_global_reserve": "underprediction_global_reserve",
    "rung_paused": "underprediction_paused",
    "rung_guest_moved": "underprediction_guest_moved",
    "rung_recomputed": "underprediction_recomputed",
    "kvc_used_mean": "kv_used_mean",
    "kvc_reserved_mean": "kv_reserved_mean",
    "kvc_lent_mean": "kv_lent_mean",
    "kvc_demand_peak": "kv_demand_peak",
}

#: Columns of ``requests/RUN.parquet``: old files are read.
REQUEST_COLUMNS: Final[dict[str, str]] = {"told_rank": "pit"}

#: Hyperparameters of predictors: keys of recipes and of :class:`~ecoserve.predictor.EncoderSettings`.
HYPERPARAMETERS: Final[dict[str, str | None]] = {"runs": None, "ranking": None}

#: Options of the command line. Those that are gone took a value, which is ignored with them.
CLI_OPTIONS: Final[dict[str, str | None]] = {
    "--prediction-timeout-ms": "--predict-timeout-ms",
    "--trust-client-predictions": "--trust-client",
    "--runs": None,
    "--ranking": None,
}


def renamed(given: Mapping[str, Any], table: Mapping[str, str | None], kind: str) -> dict[str, Any]:
    """``given`` under today's names, with one warning line per old name; where both are given, the new one counts.

    ``table`` is one of those above; ``kind`` says what the names are ("scheduler setting").
    """
    out = {name: value for name, value in given.items() if name not in table}
    for old in [name for name in given if name in table]:
        new = table[old]
        _warn(f"{kind} {old} " + (f"is now called {new}" if new else "has been removed and is ignored"))
        if new is not None:
            out.setdefault(new, given[old])
    return out


@cache
def _warn(line: str) -> None:
    _LOG.warning("%s; the old name will be an error in the next release", line)
