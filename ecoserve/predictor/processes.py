"""Training on several processes (torchrun, accelerate): who writes, and when the others wait.

Rule: all processes fine-tune together; whatever is done once (the work folder, trees, calibration, evaluation, the
checkpoint) is done by the first, and the others wait for it.
"""

from __future__ import annotations

import os


def alone() -> bool:
    """Whether this is the only process."""
    return int(os.environ.get("WORLD_SIZE", "1")) <= 1


def first() -> bool:
    """Whether this process is the only one, or the first of several."""
    return alone() or int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if not alone():
        from accelerate import PartialState

        PartialState().wait_for_everyone()
