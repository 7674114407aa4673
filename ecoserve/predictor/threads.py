"""How threads wait.

Rule: the commands that compute let waiting threads sleep after a moment. OpenMP's threads spin by default, which is
best on idle cores; on a machine that is busy with other things, a request took fifty times as long. Threads that sleep
at once are half as slow again as those that spin for some microseconds first, where cores are free. A user's own
setting stands. Measured in ``docs/predictor-speed.md``.
"""

from __future__ import annotations

import os
from typing import Final

#: Turns of GNU OpenMP's waiting loop, some 30 microseconds: longer than from one layer's product to the next.
_SPINS: Final = "1000"


def let_waiting_threads_sleep() -> None:
    """To be called before torch or LightGBM is loaded: OpenMP reads its environment once."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # What is not GNU's knows the policy alone; GNU's takes the number for it.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
