"""Public names that have changed: old -> new. Old ones are accepted, or published, for one release.

Every use of an old name gives one line in the log; CHANGELOG.md has the same tables.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Final

#: Settings: keys of ``--additional-config``, of plans and of recipes; environment variables follow them.
SETTINGS: Final[dict[str, str]] = {}

#: Prometheus metrics, with the labels that tell them apart.
METRICS: Final[dict[str, str]] = {
    "ecoserve_ladder_preemptions_total": "ecoserve_shortage_preemptions_total",
    "ecoserve_believed": "ecoserve_length_source{source}",
    **{
        f"ecoserve_rung_{action}_total": f'ecoserve_underprediction_actions_total{{action="{action}"}}'
        for action in ("own_space", "re_reserved", "global_reserve", "paused", "guest_moved", "recomputed")
    },
}

#: Keys of ``summary.json``.
SUMMARY_KEYS: Final[dict[str, str]] = {}

#: Options of the command line.
CLI_OPTIONS: Final[dict[str, str]] = {
    "--prediction-timeout-ms": "--predict-timeout-ms",
    "--trust-client-predictions": "--trust-client",
}

_logger = logging.getLogger("ecoserve")


@cache
def warn_renamed(old: str, new: str) -> None:
    """Say once that ``old`` is now called ``new``."""
    _logger.warning("%s is deprecated and will be removed in 0.3; use %s", old, new)
