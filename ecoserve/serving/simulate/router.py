"""Routers in front of several replicas: a router is one weight of a request, and one row of :data:`ROUTERS`.

A request goes to the replica with the least outstanding weight; ties go to the one not chosen for longest. A router
decides when a request arrives, by what a real one would know then: the prompt's length, the predicted length if there
is one, and what it has handed out that has not ended. It learns a response's length when the response ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

RouterName = Literal["round-robin", "least-requests", "least-tokens"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a router knows of a request that has arrived. Lengths in tokens."""

    name: str
    prompt_tokens: int
    expected_tokens: float | None


def _tokens(offer: Offer, mean_tokens: float) -> float:
    """Prompt and predicted response; without a prediction, the mean of those that have ended."""
    return offer.prompt_tokens + (mean_tokens if offer.expected_tokens is None else offer.expected_tokens)


#: A request's weight by router, from the offer and the mean length of the responses that have ended.
ROUTERS: Final[dict[RouterName, Callable[[Offer, float], float]]] = {
    "round-robin": lambda offer, mean_tokens: 0.0,
    "least-requests": lambda offer, mean_tokens: 1.0,
    "least-tokens": _tokens,
}


class Router:
    """Chooses a replica for each request.

    Args:
        name: whose weights count.
        replicas: how many there are.
    """

    def __init__(self, name: RouterName, replicas: int) -> None:
        self._weight = ROUTERS[name]
        self._load = [0.0] * replicas
        self._chosen = [0] * replicas
        self._count = 0
        self._weights: dict[str, float] = {}
        self._ended = 0
        self._tokens = 0

    def choose(self, offer: Offer) -> int:
        """The index of the replica that serves a request."""
        index = min(range(len(self._load)), key=lambda i: (self._load[i], self._chosen[i], i))
        self._count += 1
        self._chosen[index] = self._count
        weight = self._weight(offer, self._tokens / self._ended if self._ended else 0.0)
        self._weights[offer.name] = weight
        self._load[index] += weight
        return index

    def ended(self, replica: int, name: str, output_tokens: int) -> None:
        """A request that was handed to ``replica`` has ended after ``output_tokens`` tokens."""
        self._load[replica] -= self._weights.pop(name)
        self._ended += 1
        self._tokens += output_tokens
