"""Who is next: orderings of the two queues, as keys that sort ascending.

Each ordering gives a key that does not change while a request waits, so that a queue is a sorted list and the order
within one scheduling step cannot move.

``fcfs``: by arrival.

``sjf``: shortest job first with linear ageing. The job's size is its expected response plus what its prompt costs;
ageing subtracts ``ageing`` tokens per second waited. Since everybody ages at the same pace, size + ageing * arrival
gives the same order at all times. A request of size S is overtaken only by requests that arrive within
(S - their size) / ageing seconds after it, so its wait is bounded however many short ones keep coming.

vLLM's request priority (lower first) goes before all of it; it is 0 for everybody unless clients set it. What is still
equal (siblings of one request, a batch that arrived at once) goes in the order in which the scheduler was given it, so
that whoever is put back keeps its place.
"""

from __future__ import annotations

from typing import Final, Literal

from ecoserve.serving.core.tasks import Task

OrderingName = Literal["fcfs", "sjf"]
SortKey = tuple[float, ...]

#: A prompt token costs about this share of a generated one: prompts are computed in parallel.
PROMPT_WEIGHT: Final = 0.1


def prompt_key(name: OrderingName, task: Task, ageing: float) -> SortKey:
    """The key of a PT in its queue. ``ageing`` in tokens per second."""
    if name == "fcfs":
        return (task.priority, task.arrival_s, task.number)
    size = task.expected_rest() + PROMPT_WEIGHT * (task.prompt_tokens + task.generated)
    return (task.priority, size + ageing * task.arrival_s, task.arrival_s, task.number)


def generation_key(name: OrderingName, task: Task, ageing: float) -> SortKey:
    """The key of a GT in its queue: its KVC is there, so only what is still to come counts."""
    if name == "fcfs":
        return (task.priority, task.arrival_s, task.number)
    return (task.priority, task.expected_rest() + ageing * task.arrival_s, task.arrival_s, task.number)
