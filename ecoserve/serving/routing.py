"""Which replica gets a request: one rule, for simulated replicas, for Ray Serve's, and for any other router.

A router knows what each replica last said of itself (:class:`Report`, maybe some time ago), what it has sent there
since, and which prompts it has sent there. A routing rule is a row of :data:`ROUTERS`: what it would cost to send a
request to a replica; the lowest cost wins, of equals the replica that was not chosen for longest. Plain values only:
no vLLM, no Ray, no clock.

Work is counted in tokens: a prompt token or a generated token is one, and a step over :data:`KV_TOKENS` of KV cache
one more. A request's expected work is what is left of it, given the tokens that it has so far. A newcomer shares a
replica with the requests there for as many steps as it has tokens itself: what these will do later delays it no more.
So work is reported within several :data:`HORIZONS`, and a newcomer is judged by the one of its own expected length.
"""

from __future__ import annotations

import operator
import random
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
#: Steps within which work is reported; the last one is all of it.
HORIZONS: Final = (64, 256, 1024, 4096, 1 << 24)
#: Tokens of prompt that one link of a prefix chain stands for.
PREFIX_TOKENS: Final = 256
#: Most tokens of a response that has no limit.
LONGEST: Final = 1 << 16
#: Responses whose lengths stand in for predictions.
_WINDOW: Final = 1000
#: Tokens of KV cache of a replica that has not said how many it has.
_KV_CACHE: Final = 400_000


#: Work within each of :data:`HORIZONS`, tokens.
Work = tuple[float, ...]
_IDLE: Final[Work] = (0.0,) * len(HORIZONS)


@dataclass(frozen=True, slots=True)
class Offer:
    """A request as a router sees it.

    Attributes:
        name: unique among those that are open. prompt_tokens: of the prompt, tokens.
        lengths: the distribution of the response length, predicted for it, or that of past responses.
        prefixes: a chain of hashes, one for every :data:`PREFIX_TOKENS` of the prompt, each of the prompt up to there.
    """

    name: str
    prompt_tokens: int
    lengths: LengthDistribution
    prefixes: Sequence[Hashable] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica says of itself at ``at_s``, on the router's clock.

    Attributes:
        running, waiting: requests.
        work: expected work that is left, tokens, within each of :data:`HORIZONS`.
        kv_tokens: of the KV cache; 0: not known.
    """

    at_s: float
    running: int = 0
    waiting: int = 0
    work: Work = _IDLE
    kv_tokens: int = 0


class RestOfResponse:
    """Expected work that is left of a response of this length distribution, at any number of its tokens."""

    __slots__ = ("_edges", "_integrals", "_survival")

    def __init__(self, lengths: LengthDistribution) -> None:
        edges = lengths.edges
        self._edges = edges
        self._survival = survival = [1.0 - c for c in lengths.cdf]
        # Of the survival, and of length x survival, from 0 to each edge.
        first = edges[0]
        integrals = [(float(first), first * first / 2)]
        for a, b, high, low in zip(edges, edges[1:], survival, survival[1:], strict=False):
            flat, moment = integrals[-1]
            slope, squares = (low - high) / (b - a), (b * b - a * a) / 2
            moment += high * squares + slope * ((b**3 - a**3) / 3 - a * squares)
            integrals.append((flat + (b - a) * (high + low) / 2, moment))
        self._integrals = integrals

    def work(self, prompt_tokens: int, tokens: int) -> Work:
        """Work of the tokens still to come, within each of :data:`HORIZONS`; ``tokens`` are out."""
        survival, flat, moment = self._until(tokens)
        if survival <= 1e-9:
            # Longer than was held possible: as much again as half of what there is.
            rest = max(1.0, tokens / 2)
            return tuple(response_work(prompt_tokens + tokens, min(rest, h)) for h in HORIZONS)
        found = []
        for horizon in HORIZONS:
            _, flat_then, moment_then = self._until(tokens + horizon)
            kv_time = (flat_then - flat) * prompt_tokens + moment_then - moment
            found.append((flat_then - flat + kv_time / KV_TOKENS) / survival)
        return tuple(found)

    def kv_time(self, prompt_tokens: int) -> float:
        """Expected KV x time of the whole response: tokens of KV, summed over its steps."""
        flat, moment = self._integrals[-1]
        return flat * prompt_tokens + moment

    def _until(self, n: int) -> tuple[float, float, float]:
        """The survival at ``n`` tokens, and its two integrals up to there."""
        edges = self._edges
        if n >= edges[-1]:
            return (0.0, *self._integrals[-1])
        if n <= edges[0]:
            return 1.0, float(n), n * n / 2
        k = bisect_left(edges, n) - 1
        a, high = edges[k], self._survival[k]
        slope, squares = (self._survival[k + 1] - high) / (edges[k + 1] - a), (n * n - a * a) / 2
        low = high + slope * (n - a)
        flat, moment = self._integrals[k]
        moment += high * squares + slope * ((n**3 - a**3) / 3 - a * squares)
        return low, flat + (n - a) * (high + low) / 2, moment


def response_work(kv_tokens: int, tokens: float) -> float:
    """Work of ``tokens`` more tokens of a request that holds ``kv_tokens``."""
    return tokens * (1 + (kv_tokens + tokens / 2) / KV_TOKENS)


def _sum(a: Work, b: Iterable[float]) -> Work:
    return tuple(map(operator.add, a, b))


def past_lengths() -> LengthHistory:
    """The lengths of responses that have ended, which stand in for predictions.

    One for all replicas: by histories of their own, their work could not be compared.
    """
    return LengthHistory(_WINDOW, LONGEST)


class KnownPrompts:
    """The beginnings of the prompts that a replica has had last: as many as its KV cache holds."""

    def __init__(self) -> None:
        self._links: OrderedDict[Hashable, None] = OrderedDict()

    def cached_tokens(self, offer: Offer) -> int:
        """Tokens of the prompt's beginning that are known. All beginnings of a known one are known."""
        chain, known = offer.prefixes, self._links
        if not chain or chain[0] not in known:
            return 0
        low, high = 1, len(chain) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if chain[middle - 1] in known else (low, middle)
        return min(low * PREFIX_TOKENS, offer.prompt_tokens)

    def add(self, offer: Offer, kv_tokens: int) -> None:
        known = self._links
        for link in reversed(offer.prefixes):  # the shorter, the longer kept
            known[link] = None
            known.move_to_end(link)
        while len(known) > max(1, (kv_tokens or _KV_CACHE) // PREFIX_TOKENS):
            known.popitem(last=False)


@dataclass(slots=True)
class _Open:
    prompt_tokens: int
    uncached_tokens: int
    rest: RestOfResponse


class OpenWork:
    """The requests that are open on one replica, and their expected work: the replica's side of routing.

    ``kv_tokens``: of the replica's KV cache; 0: not known.
    """

    def __init__(self, kv_tokens: int = 0) -> None:
        self._kv_tokens = kv_tokens
        self._open: dict[str, _Open] = {}
        self._prompts = KnownPrompts()

    def opened(self, offer: Offer) -> None:
        uncached = offer.prompt_tokens - self._prompts.cached_tokens(offer)
        self._open[offer.name] = _Open(offer.prompt_tokens, uncached, RestOfResponse(offer.lengths))
        self._prompts.add(offer, self._kv_tokens)

    def ended(self, name: str) -> None:
        del self._open[name]

    def report(self, at_s: float, tokens: Mapping[str, int], running: int, waiting: int) -> Report:
        """``tokens``: of each open response so far, by name; one that is not named has none."""
        work, prompts = _IDLE, 0
        for name, own in self._open.items():
            out = tokens.get(name, 0)
            work = _sum(work, own.rest.work(own.prompt_tokens, out))
            prompts += 0 if out else own.uncached_tokens
        return Report(at_s, running, waiting, tuple(w + prompts for w in work), self._kv_tokens)


@dataclass(slots=True)
class _Sent:
    at_s: float
    work: Work


@dataclass(slots=True)
class Load:
    """One replica as a router sees it: its last report, and on top what was sent there since."""

    report: Report = field(default_factory=lambda: Report(float("-inf")))
    sent: deque[_Sent] = field(default_factory=deque)
    work: Work = _IDLE
    chosen: int = 0
    prompts: KnownPrompts = field(default_factory=KnownPrompts)

    @property
    def requests(self) -> int:
        return self.report.running + self.waiting

    @property
    def waiting(self) -> int:
        return self.report.waiting + len(self.sent)

    def take(self, report: Report) -> None:
        self.report = report
        while self.sent and self.sent[0].at_s <= report.at_s:
            self.sent.popleft()
        self.work = report.work
        for sent in self.sent:
            self.work = _sum(self.work, sent.work)

    def send(self, at_s: float, work: Work) -> None:
        self.sent.append(_Sent(at_s, work))
        self.work = _sum(self.work, work)


#: A cost: compared as tuples are.
Cost = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """``cost``: of a request on a replica that has so many tokens of its prompt in the cache; the last argument is the
    place of its expected length in :data:`HORIZONS`.

    ``sampled``: only so many replicas, drawn at random, are looked at (0: all), and with ``by_prefix`` the one that
    knows most of the prompt. Without it nothing is cached as far as the rule knows.
    """

    cost: Callable[[Load, int, int], Cost]
    by_prefix: bool = False
    sampled: int = 0


def _requests(load: Load, cached: int, horizon: int) -> Cost:
    return (load.requests,)


def _least_work(load: Load, cached: int, horizon: int) -> Cost:
    return (load.work[horizon] - cached,)


#: The routing rules.
ROUTERS: Final[dict[RouterName, Rule]] = {
    "round-robin": Rule(lambda load, cached, horizon: ()),
    "least-requests": Rule(_requests),
    # Ray Serve's default.
    "power-of-two": Rule(_requests, sampled=2),
    # The balancer of vLLM's data parallelism.
    "vllm-dp": Rule(lambda load, cached, horizon: (4 * load.waiting + load.report.running,)),
    "prefix-affinity": Rule(lambda load, cached, horizon: (-cached, load.requests), by_prefix=True),
    # Least expected KV x time, less what the prefix cache saves there.
    "least-work": Rule(_least_work, by_prefix=True),
    "least-work-of-two": Rule(_least_work, by_prefix=True, sampled=2),
}


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
        """What a replica says of itself; one that is not known, or not newer than the last, is ignored."""
        load = self._loads.get(replica)
        if load is not None and report.at_s > load.report.at_s:
            load.take(report)

    def choose(self, offer: Offer, among: Collection[Name] | None = None) -> Name:
        """The best replica for a request now; ``among``: of these. Raises ValueError if there is none."""
        names = [n for n in self._loads if n in among] if among is not None else list(self._loads)
        if not names:
            raise ValueError("no replica to choose from")
        rule, loads = self._rule, self._loads
        cached = {name: loads[name].prompts.cached_tokens(offer) if rule.by_prefix else 0 for name in names}
        if 0 < rule.sampled < len(names):
            best = max(names, key=cached.__getitem__)
            drawn = self._random.sample(names, rule.sampled)
            names = [*drawn, best] if cached[best] and best not in drawn else drawn
        horizon = bisect_left(HORIZONS, offer.lengths.mean())
        return min(names, key=lambda n: (*rule.cost(loads[n], cached[n], horizon), loads[n].chosen))

    def sent(self, offer: Offer, replica: Name, now: float) -> None:
        """A request went to a replica ``now`` (seconds); one that is not known is ignored."""
        load = self._loads.get(replica)
        if load is None:
            return
        self._count += 1
        load.chosen = self._count
        uncached = offer.prompt_tokens
        if self._rule.by_prefix:
            uncached -= load.prompts.cached_tokens(offer)
            load.prompts.add(offer, load.report.kv_tokens)
        work = RestOfResponse(offer.lengths).work(offer.prompt_tokens, 0)
        load.send(now, tuple(w + uncached for w in work))
