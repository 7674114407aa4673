"""Which replica gets a request: one rule, for simulated replicas, for Ray Serve's, and for any other router.

A router knows what each replica last said of itself (:class:`Report`, maybe some time ago), what it has sent there
since, and which prompts it has sent there. A routing rule is a row of :data:`ROUTERS`: what it would cost to send a
request to a replica; the lowest cost wins, of equals the replica that was not chosen for longest. Plain values only:
no vLLM, no Ray, no clock.

Work is counted in tokens: a prompt token or a generated token is one, and a step over :data:`KV_TOKENS` of KV cache
one more. A request's expected work is what is left of it, given the tokens that it has so far.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Generic, Literal, TypeVar

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.history import LengthHistory

RouterName = Literal[
    "round-robin", "least-requests", "power-of-two", "vllm-dp", "prefix-affinity", "least-work", "least-work-of-two"
]

#: What replicas are named by.
Name = TypeVar("Name", bound=Hashable)

#: KV cache, in tokens, whose reading or holding for one step costs as much as one more token.
KV_TOKENS: Final = 1024
#: Tokens of prompt that one link of a prefix chain stands for.
PREFIX_TOKENS: Final = 256
#: Responses that a replica learns the usual length from.
_WINDOW: Final = 1000
#: Tokens of a response without a limit.
_LONGEST: Final = 1 << 16
#: Tokens of KV cache of a replica that has not said how many it has.
_KV_CACHE: Final = 400_000


@dataclass(frozen=True, slots=True)
class Offer:
    """A request as a router sees it.

    Attributes:
        name: unique among those that are open. prompt_tokens: of the prompt, tokens.
        lengths: the predicted distribution of the response length, or None.
        limit: most tokens of the response.
        prefixes: a chain of hashes, one for every :data:`PREFIX_TOKENS` of the prompt, each of the prompt up to there.
    """

    name: str
    prompt_tokens: int
    lengths: LengthDistribution | None = None
    limit: int = _LONGEST
    prefixes: Sequence[Hashable] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself at ``at_s``, on the router's clock.

    Attributes:
        running, waiting: requests. work: expected work that is left, tokens.
        mean_tokens: of a response without a prediction. kv_tokens: of the KV cache; 0: not known.
    """

    at_s: float
    running: int = 0
    waiting: int = 0
    work: float = 0.0
    mean_tokens: float = 200.0
    kv_tokens: int = 0


class RestOfResponse:
    """Expected work that is left of a response of this length distribution, at any number of its tokens."""

    __slots__ = ("_edges", "_probs", "_tails")

    def __init__(self, lengths: LengthDistribution) -> None:
        edges, probs = lengths.edges, lengths.probs
        self._edges, self._probs = edges, probs
        # Of the bins above each edge: probability, mean and square of the length, each spread over its bin.
        pairs = list(zip(probs, edges, edges[1:], strict=False))[::-1]
        once = accumulate((p for p, _, _ in pairs), initial=0.0)
        mean = accumulate((p * (a + b) / 2 for p, a, b in pairs), initial=0.0)
        square = accumulate((p * (a * a + a * b + b * b) / 3 for p, a, b in pairs), initial=0.0)
        self._tails = list(zip(once, mean, square, strict=True))[::-1]

    def work(self, prompt_tokens: int, tokens: int) -> float:
        """Tokens still to come and the KV they are computed over; ``tokens`` are out."""
        edges, n = self._edges, tokens
        k = max(0, bisect_left(edges, n + 1) - 1)
        mass = mean = square = 0.0
        if k < len(self._probs):
            low, high = max(n, edges[k]), edges[k + 1]
            mass, mean, square = self._tails[k + 1]
            part = self._probs[k] * (high - low) / (high - edges[k])
            mass += part
            mean += part * (low + high) / 2
            square += part * (low * low + low * high + high * high) / 3
        if mass <= 1e-9:
            # Longer than was held possible: as much again as half of what there is.
            return response_work(prompt_tokens + n, max(1.0, n / 2))
        mean, square = mean / mass, square / mass
        rest = mean - n
        return rest * (1 + (prompt_tokens + n) / KV_TOKENS) + (square - 2 * n * mean + n * n) / (2 * KV_TOKENS)


def response_work(kv_tokens: int, tokens: float) -> float:
    """Work of ``tokens`` more tokens of a request that holds ``kv_tokens``."""
    return tokens * (1 + (kv_tokens + tokens / 2) / KV_TOKENS)


@dataclass(slots=True)
class _Open:
    offer: Offer
    prompt_work: int
    rest: RestOfResponse | None


class OpenWork:
    """The requests that are open on one replica, and their expected work: the replica's side of routing.

    Responses without a prediction count by the history of those that have ended here. ``kv_tokens``: of the replica's
    KV cache; 0: not known.
    """

    def __init__(self, kv_tokens: int = 0) -> None:
        self._kv_tokens = kv_tokens
        self._open: dict[str, _Open] = {}
        self._tokens: Mapping[str, int] = {}
        self._history = LengthHistory(_WINDOW, _LONGEST, running=lambda: self._tokens.values())
        self._usual: tuple[LengthDistribution, RestOfResponse] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, offer: Offer, cached_tokens: int = 0) -> None:
        """A request has come; ``cached_tokens`` of its prompt are expected in the prefix cache."""
        rest = RestOfResponse(offer.lengths) if offer.lengths is not None else None
        self._open[offer.name] = _Open(offer, max(0, offer.prompt_tokens - cached_tokens), rest)

    def ended(self, name: str, tokens: int, complete: bool = True) -> None:
        """It has ended after ``tokens`` tokens; not ``complete``: it was cut off."""
        offer = self._open.pop(name).offer
        if tokens > 0:
            self._history.record(tokens, complete and tokens < offer.limit)

    def report(self, at_s: float, tokens: Mapping[str, int], running: int, waiting: int) -> Report:
        """``tokens``: of each open response so far, by name; one that is not named has none."""
        self._tokens = tokens
        usual = self._history.distribution(_LONGEST)
        if self._usual is None or self._usual[0] is not usual:
            self._usual = (usual, RestOfResponse(usual))
        work = 0.0
        for name, own in self._open.items():
            out = tokens.get(name, 0)
            work += (own.rest or self._usual[1]).work(own.offer.prompt_tokens, out)
            if not out:
                work += own.prompt_work
        return Report(at_s, running, waiting, work, usual.mean(), self._kv_tokens)


@dataclass(slots=True)
class _Sent:
    at_s: float
    work: float


@dataclass(slots=True)
class Load:
    """One replica as a router sees it: its last report, and on top what was sent there since."""

    report: Report = field(default_factory=lambda: Report(float("-inf")))
    sent: deque[_Sent] = field(default_factory=deque)
    sent_work: float = 0.0
    chosen: int = 0
    prefixes: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)

    @property
    def requests(self) -> int:
        return self.report.running + self.waiting

    @property
    def waiting(self) -> int:
        return self.report.waiting + len(self.sent)

    @property
    def work(self) -> float:
        return self.report.work + self.sent_work

    def take(self, report: Report) -> None:
        self.report = report
        while self.sent and self.sent[0].at_s <= report.at_s:
            self.sent.popleft()
        self.sent_work = sum(s.work for s in self.sent)

    def cached_tokens(self, offer: Offer) -> int:
        """Tokens of the prompt's beginning that have been sent here before. All beginnings of a known one are known."""
        chain, known = offer.prefixes, self.prefixes
        if not chain or chain[0] not in known:
            return 0
        low, high = 1, len(chain) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if chain[middle - 1] in known else (low, middle)
        return min(low * PREFIX_TOKENS, offer.prompt_tokens)

    def remember(self, offer: Offer) -> None:
        known = self.prefixes
        for link in reversed(offer.prefixes):  # the shorter, the longer kept
            known[link] = None
            known.move_to_end(link)
        most = max(1, (self.report.kv_tokens or _KV_CACHE) // PREFIX_TOKENS)
        while len(known) > most:
            known.popitem(last=False)


#: A cost: compared as tuples are.
Cost = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """``cost``: of a request on a replica that has so many tokens of its prompt in the cache.

    ``sampled``: only so many replicas, drawn at random, are looked at (0: all), and with ``by_prefix`` the one that
    knows most of the prompt. Without it nothing is cached as far as the rule knows.
    """

    cost: Callable[[Load, int], Cost]
    by_prefix: bool = False
    sampled: int = 0


def _requests(load: Load, cached: int) -> Cost:
    return (load.requests,)


def _least_work(load: Load, cached: int) -> Cost:
    return (load.work - cached,)


#: The routing rules.
ROUTERS: Final[dict[RouterName, Rule]] = {
    "round-robin": Rule(lambda load, cached: ()),
    "least-requests": Rule(_requests),
    # Ray Serve's default.
    "power-of-two": Rule(_requests, sampled=2),
    # The balancer of vLLM's data parallelism.
    "vllm-dp": Rule(lambda load, cached: (4 * load.waiting + load.report.running,)),
    "prefix-affinity": Rule(lambda load, cached: (-cached, load.requests), by_prefix=True),
    # Least expected KV x time, less what the prefix cache saves there.
    "least-work": Rule(_least_work, by_prefix=True),
    "least-work-of-two": Rule(_least_work, by_prefix=True, sampled=2),
}


@dataclass(frozen=True, slots=True)
class Choice(Generic[Name]):
    """Where a request goes, and how much of its prompt is expected in the cache there, tokens."""

    replica: Name
    cached_tokens: int


class Router(Generic[Name]):
    """Chooses a replica for each request by one of :data:`ROUTERS`. ``seed``: of the replicas that are sampled."""

    def __init__(self, name: RouterName, replicas: Iterable[Name] = (), seed: int = 0) -> None:
        self._rule = ROUTERS[name]
        self._random = random.Random(seed)
        self._loads: dict[Name, Load] = {}
        self._count = 0
        self.update(replicas)

    def update(self, replicas: Iterable[Name]) -> None:
        """These are the replicas from now on; what is known of those that stay is kept."""
        self._loads = {name: self._loads.get(name) or Load() for name in replicas}

    def report(self, replica: Name, report: Report) -> None:
        """What a replica says of itself; one that is not known, or older than the last, is ignored."""
        load = self._loads.get(replica)
        if load is not None and report.at_s >= load.report.at_s:
            load.take(report)

    def choose(self, offer: Offer, now: float, among: Collection[Name] | None = None) -> Choice[Name]:
        """The replica for a request that arrives ``now`` (seconds), which counts as sent there; ``among``: of these.

        Raises ValueError if there is none.
        """
        names = [n for n in self._loads if n in among] if among is not None else list(self._loads)
        if not names:
            raise ValueError("no replica to choose from")
        rule, loads = self._rule, self._loads
        cached = {name: loads[name].cached_tokens(offer) if rule.by_prefix else 0 for name in names}
        if 0 < rule.sampled < len(names):
            best = max(names, key=cached.__getitem__)
            drawn = self._random.sample(names, rule.sampled)
            names = [*drawn, best] if cached[best] and best not in drawn else drawn
        chosen = min(names, key=lambda n: (*rule.cost(loads[n], cached[n]), loads[n].chosen))
        load = loads[chosen]
        self._count += 1
        load.chosen = self._count
        if offer.lengths is not None:
            work = RestOfResponse(offer.lengths).work(offer.prompt_tokens, 0)
        else:
            work = response_work(offer.prompt_tokens, min(load.report.mean_tokens, offer.limit))
        work += offer.prompt_tokens - cached[chosen]
        load.sent.append(_Sent(now, work))
        load.sent_work += work
        if rule.by_prefix:
            load.remember(offer)
        return Choice(chosen, cached[chosen])
