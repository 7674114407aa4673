"""Makes ``small_runs`` importable by name, here and in worker processes (they inherit ``sys.path``)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
