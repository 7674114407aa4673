"""The defects of ``scripts/mutations.py``: each one's text is in the code, once."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))


def test_every_mutation_has_its_place() -> None:
    from mutations import MUTATIONS

    serving = ROOT / "ecoserve" / "serving"
    found = {m.name: (serving / m.file).read_text(encoding="utf-8").count(m.old) for m in MUTATIONS}
    assert {name: times for name, times in found.items() if times != 1} == {}
