"""The routing rules on plain values: what counts as work, what a router knows, and where a request goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.routing import (
    HORIZONS,
    KV_TOKENS,
    PREFIX_TOKENS,
    ROUTERS,
    KnownPrompts,
    Offer,
    OpenWork,
    Report,
    RestOfResponse,
    Router,
    RouterName,
    Work,
    response_work,
)

SPREAD = LengthDistribution((0, 100, 400, 2000), (0.5, 0.3, 0.2))


ALL = len(HORIZONS) - 1


@pytest.mark.parametrize("tokens", [0, 1, 50, 100, 399, 1999])
def test_the_rest_of_a_response_is_its_mean_over_what_is_still_possible(tokens: int) -> None:
    density = np.repeat(np.array(SPREAD.probs) / np.diff(SPREAD.edges), np.diff(SPREAD.edges))
    rest = np.arange(1, 2001) - 0.5 - tokens
    likely = density * (rest > 0)
    work = RestOfResponse(SPREAD).work(300, tokens)
    for horizon, found in zip(HORIZONS, work, strict=True):
        each = [response_work(300 + tokens, min(r, horizon)) for r in rest.clip(0)]
        assert found == pytest.approx(np.average(each, weights=likely), rel=0.01)


def test_beyond_what_was_held_possible_a_response_still_has_a_rest() -> None:
    rest = RestOfResponse(LengthDistribution.point(100))
    assert rest.work(0, 0)[ALL] == pytest.approx(response_work(0, 100), rel=0.01)
    assert rest.work(0, 99)[ALL] == pytest.approx(1, rel=0.5)
    assert rest.work(0, 100)[ALL] < rest.work(0, 1000)[ALL] == response_work(1000, 500)


def test_a_kv_cache_of_kv_tokens_counts_as_one_more_token_a_step() -> None:
    assert response_work(KV_TOKENS, 1e-9) / 1e-9 == pytest.approx(2)


def test_a_replica_reports_the_work_that_is_left() -> None:
    work = OpenWork(kv_tokens=1000)
    work.opened(Offer("before", 300, SPREAD, ("x",)))
    work.ended("before")
    work.opened(Offer("a", 500, LengthDistribution.point(100), ("x", "xy")))
    fresh = work.report(0.0, {}, 0, 1).work
    assert fresh[ALL] == pytest.approx(500 - 256 + response_work(500, 100), rel=0.01)
    assert fresh[0] == pytest.approx(500 - 256 + response_work(500, HORIZONS[0]), rel=0.01)
    halfway = work.report(1.0, {"a": 50}, 1, 0).work
    assert halfway[ALL] == pytest.approx(response_work(550, 50), rel=0.02), "the prompt is done"
    work.ended("a")
    assert work.report(2.0, {}, 0, 0) == Report(2.0, kv_tokens=1000)


def same(work: float) -> Work:
    """Work that is done at once: the same within every horizon."""
    return (work,) * len(HORIZONS)


def send(router: Router[Any], offer: Offer, at_s: float, among: Any = None) -> Any:
    chosen = router.choose(offer, among)
    router.sent(offer, chosen, at_s)
    return chosen


def routed(name: RouterName, reports: dict[str, Report], *offers: Offer) -> list[str]:
    router = Router(name, reports)
    for replica, report in reports.items():
        router.report(replica, report)
    return [send(router, offer, 1.0) for offer in offers]


LONG, SHORT = (Offer(n, 100, LengthDistribution.point(t)) for n, t in (("long", 4000), ("short", 20)))


@pytest.mark.parametrize(
    ("router", "chosen"),
    [
        ("round-robin", ["a", "b", "c", "a"]),
        ("least-requests", ["b", "b", "b", "c"]),
        ("vllm-dp", ["c", "c", "c", "c"]),
        ("least-work", ["a", "b", "c", "a"]),
    ],
)
def test_where_four_requests_go(router: RouterName, chosen: list[str]) -> None:
    reports = {
        "a": Report(0.0, running=9, waiting=9, work=same(1000.0)),
        "b": Report(0.0, running=0, waiting=9, work=same(2000.0)),
        "c": Report(0.0, running=12, waiting=0, work=same(8000.0)),
    }
    assert routed(router, reports, LONG, LONG, LONG, LONG) == chosen


def test_a_short_request_shares_a_replica_with_what_is_done_in_its_time() -> None:
    """A long response far from its end is little work for a short newcomer, and much for a long one."""
    one, five = OpenWork(), OpenWork()
    one.opened(LONG)
    for i in range(5):
        five.opened(replace(SHORT, name=str(i)))
    reports = {"long": one.report(0.0, {"long": 10}, 1, 0), "short": five.report(0.0, dict.fromkeys("01234", 1), 5, 0)}
    assert routed("least-work", reports, replace(SHORT, name="new")) == ["long"]
    assert routed("least-work", reports, replace(LONG, name="new")) == ["short"]


def test_what_was_sent_since_a_report_is_added_to_it() -> None:
    router = Router[int]("least-requests", range(2))
    router.report(0, Report(0.0, running=1))
    assert [send(router, SHORT, at) for at in (0.1, 0.2)] == [1, 0]
    # A report from between the two: it knows of what was sent to replica 1, and of nothing on replica 0.
    for replica in range(2):
        router.report(replica, Report(0.15, running=0))
    assert send(router, SHORT, 0.3) == 1
    router.report(0, Report(0.05, running=7))  # came late
    router.report(2, Report(0.4, running=7))  # is no replica
    assert send(router, SHORT, 0.4) == 0


def test_a_prompt_goes_where_its_beginning_is_known_until_the_work_there_outweighs_it() -> None:
    router = Router[int]("least-work", range(3))
    first = Offer("first", 2048, SPREAD, prefixes=("a", "ab", "abc"))
    where = send(router, first, 0.0)
    for i in range(3):
        router.report(i, Report(1.0, work=same(300.0 * (i == where))))
    grown = Offer("grown", 2304, SPREAD, prefixes=("a", "ab", "abc", "abcd"))
    assert send(router, grown, 2.0) == where
    other = Offer("other", 2048, SPREAD, prefixes=("x", "xy"))
    assert send(router, other, 2.1) != where
    for i in range(3):
        router.report(i, Report(3.0, work=same(5000.0 * (i == where))))
    assert send(router, grown, 4.0) != where


def test_prompts_are_known_from_their_beginning_and_as_many_as_the_kv_cache_holds() -> None:
    known = KnownPrompts()
    known.add(Offer("a", 512, SPREAD, ("a", "ab")), 3 * PREFIX_TOKENS)
    assert known.cached_tokens(Offer("b", 900, SPREAD, ("a", "ab", "abc"))) == 2 * PREFIX_TOKENS
    assert known.cached_tokens(Offer("b", 500, SPREAD, ("a", "ab"))) == 500
    known.add(Offer("x", 512, SPREAD, ("x", "xy")), 3 * PREFIX_TOKENS)
    assert known.cached_tokens(Offer("b", 512, SPREAD, ("a", "ab"))) == PREFIX_TOKENS


def test_replicas_come_and_go() -> None:
    router = Router[str]("least-requests", "ab")
    router.report("a", Report(0.0, running=5))
    router.update("ac")
    router.report("c", Report(0.0, running=9))
    assert send(router, SHORT, 1.0) == "a"
    assert send(router, SHORT, 1.0, among=["c"]) == "c"
    router.update("")
    with pytest.raises(ValueError, match="no replica"):
        router.choose(SHORT)


@pytest.mark.parametrize("name", get_args(RouterName))
def test_equal_replicas_take_turns_and_few_are_looked_at_where_a_rule_samples(name: RouterName) -> None:
    router = Router[int](name, range(3))
    chosen = []
    for i in range(6):
        for replica in range(3):
            router.report(replica, Report(float(i)))
        chosen.append(send(router, SHORT, i + 0.5))
    if not ROUTERS[name].sampled:
        assert chosen == [0, 1, 2, 0, 1, 2]
    assert set(chosen) == {0, 1, 2}
    assert set(ROUTERS) == set(get_args(RouterName))
