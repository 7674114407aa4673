"""Makes the rigs beside this file importable by name, quietens vLLM before anything imports it, no deadlines."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

from ecoserve.serving.simulate.engine import quiet_vllm

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

quiet_vllm()

# No test passes or fails by the clock, and CI runs the same examples every time.
settings.register_profile("serving", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("serving")
