"""How threads wait.

Rule: the commands that compute let waiting threads sleep. OpenMP's threads spin by default, which is best on idle
cores; on a machine that is busy with other things it took the encoder's evaluation twice the CPU time. A user's own
setting stands.
"""

from __future__ import annotations

import os


def let_waiting_threads_sleep() -> None:
    """To be called before torch or LightGBM is loaded: OpenMP reads its environment once."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
