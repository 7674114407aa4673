"""How threads wait.

Rule: the commands that compute let waiting threads sleep after a moment. OpenMP's threads spin by default, which is
best on idle cores and ruinous on a machine that is busy with other things; threads that sleep at once are slow to wake
where cores are free. So they spin shortly first. A user's own setting stands. What was tried is in ``docs/log.md``.
"""

from __future__ import annotations

import os
from typing import Final

#: Turns of GNU OpenMP's waiting loop. Of 0 to 10,000 that were tried, the most that costs little on busy cores.
_SPINS: Final = "1000"


def let_waiting_threads_sleep() -> None:
    """To be called before torch or LightGBM is loaded: OpenMP reads its environment once."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # What is not GNU's knows the policy alone; GNU's takes the number for it.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
