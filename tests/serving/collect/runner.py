"""A collection in a process of its own, for tests that kill it: ``python runner.py SETTINGS_AS_JSON``."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path


def work(values: dict[str, object]) -> int:
    from ecoserve.cli.collecting import collect_trace
    from ecoserve.cli.common import guard

    prompts, output = str(values.pop("prompts")), Path(str(values.pop("output")))
    return guard(lambda: print(json.dumps(dataclasses.asdict(collect_trace(prompts, output, **values)), default=str)))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(work(json.loads(sys.argv[1])))
