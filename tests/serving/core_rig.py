"""Tasks and distributions for tests of the serving core: plain values, no vLLM."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.kv_use import Table
from ecoserve.serving.core.tasks import Task, TaskState


def a_task(name: str = "t", **fields: Any) -> Task:
    """A task with a prompt of 16 tokens and a known response length of 50, but for ``fields``."""
    known: dict[str, Any] = {
        "request_id": name,
        "prompt_tokens": 16,
        "lengths": LengthDistribution.point(50),
        "limit": 4096,
        "most_tokens": 4096,
        "predicted": True,
        "arrival_s": 0.0,
    }
    return Task(**(known | fields))


def holder(name: str, state: TaskState, written: int, **fields: Any) -> Task:
    """A task that holds KV for ``written`` tokens, all of its ``blocks`` in one table."""
    tables = (Table(fields.get("blocks", 0), 0),)
    return a_task(name, state=state, written=written, **({"tables": tables} | fields))


def draw_lengths(lengths: LengthDistribution, longer_than: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` samples of response length given response length > ``longer_than``, by inverting the survival
    function over all lengths.
    """
    support = np.arange(longer_than + 1, lengths.upper + 1)
    survive = lengths.survival_at(np.arange(longer_than, lengths.upper + 1))
    mass = -np.diff(survive)
    return rng.choice(support, size=count, p=mass / mass.sum())


@st.composite
def distributions(draw: st.DrawFn, upper: int = 200) -> LengthDistribution:
    """Any distribution with at most eight bins."""
    edges = sorted(draw(st.sets(st.integers(0, upper), min_size=2, max_size=9)))
    weights = draw(st.lists(st.floats(0.01, 1.0), min_size=len(edges) - 1, max_size=len(edges) - 1))
    return LengthDistribution.from_weights(edges, weights)
