"""Routers in front of several replicas.

A router decides when a request arrives, by what a real one would know then: the prompt's length, the predicted length
if there is one, and the requests it has handed out that have not ended. It never sees a recorded length; it learns a
response's length when the response ends. Ties go to the replica that was not chosen for longest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

RouterName = Literal["round-robin", "least-requests", "least-tokens"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What a router knows of a request that has arrived. Lengths in tokens."""

    name: str
    prompt_tokens: int
    expected_tokens: float | None


class Router(Protocol):
    """Chooses a replica for each request."""

    def choose(self, offer: Offer) -> int:
        """The index of the replica that serves it."""
        ...

    def ended(self, replica: int, name: str, output_tokens: int) -> None:
        """A request that was handed to ``replica`` has ended after ``output_tokens`` tokens."""
        ...


class RoundRobin:
    """One replica after the other."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._turn = -1

    def choose(self, offer: Offer) -> int:
        """The next one."""
        self._turn = (self._turn + 1) % self._replicas
        return self._turn

    def ended(self, replica: int, name: str, output_tokens: int) -> None:
        """Nothing to learn."""


class _LeastLoad:
    """The replica with the least outstanding weight."""

    def __init__(self, replicas: int) -> None:
        self._load = [0.0] * replicas
        self._chosen = [0] * replicas
        self._count = 0
        self._weights: dict[str, float] = {}

    def weight(self, offer: Offer) -> float:
        """The request's share of its replica's load."""
        raise NotImplementedError

    def choose(self, offer: Offer) -> int:
        """The least loaded one."""
        index = min(range(len(self._load)), key=lambda i: (self._load[i], self._chosen[i], i))
        self._count += 1
        self._chosen[index] = self._count
        self._weights[offer.name] = weight = self.weight(offer)
        self._load[index] += weight
        return index

    def ended(self, replica: int, name: str, output_tokens: int) -> None:
        """Its weight comes off its replica."""
        self._load[replica] -= self._weights.pop(name)


class LeastRequests(_LeastLoad):
    """The fewest outstanding requests: the usual reference."""

    def weight(self, offer: Offer) -> float:
        """1 for each request."""
        return 1.0


class LeastTokens(_LeastLoad):
    """The fewest outstanding tokens: prompts and predicted responses.

    Without a prediction a response counts as the mean of those that have ended.
    """

    def __init__(self, replicas: int) -> None:
        super().__init__(replicas)
        self._ended = 0
        self._tokens = 0

    def weight(self, offer: Offer) -> float:
        """Prompt and predicted response, in tokens."""
        expected = offer.expected_tokens
        if expected is None:
            expected = self._tokens / self._ended if self._ended else 0.0
        return offer.prompt_tokens + expected

    def ended(self, replica: int, name: str, output_tokens: int) -> None:
        """Its weight comes off its replica, and its length enters the mean."""
        super().ended(replica, name, output_tokens)
        self._ended += 1
        self._tokens += output_tokens


#: Routers by name; each is made with the number of replicas.
ROUTERS: Final[dict[RouterName, Callable[[int], Router]]] = {
    "round-robin": RoundRobin,
    "least-requests": LeastRequests,
    "least-tokens": LeastTokens,
}
