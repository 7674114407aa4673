"""What a run against a URL reads from the server's metrics."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from ecoserve.serving.client_run import _metrics, _policy, _totals

OURS = """
# TYPE ecoserve_steps_total counter
ecoserve_steps_total{{engine="0"}} {steps}
ecoserve_steps_total{{engine="1"}} 5
# TYPE ecoserve_underprediction_actions_total counter
ecoserve_underprediction_actions_total{{action="paused"}} {paused}
# TYPE ecoserve_over_predictions_total counter
ecoserve_over_predictions_total 4
"""
STOCK = """
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{{engine="0"}} {preemptions}
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 3
"""


def read(text: str, status: int = 200) -> dict[str, float]:
    async def get() -> dict[str, float]:
        transport = httpx.MockTransport(lambda request: httpx.Response(status, text=text))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await _metrics(client)

    return asyncio.run(get())


def test_totals_are_what_the_servers_counters_have_grown_by() -> None:
    before = read((OURS + STOCK).format(steps=10, paused=1, preemptions=2))
    totals = _totals(before, read((OURS + STOCK).format(steps=30, paused=4, preemptions=9)))
    assert (totals.steps, totals.preemptions) == (20, 7)
    assert totals.mispredictions["underprediction_paused"] == 3
    assert totals.mispredictions["over_predictions"] == 0
    assert totals.kv_used_mean is None


ORDER = """
# TYPE ecoserve_level_info gauge
ecoserve_level_info{{level="order",reason="asked for"}} 1
"""


@pytest.mark.parametrize(
    ("text", "policy"), [(OURS + STOCK, "ecoserve"), (STOCK + ORDER, "order"), (STOCK, "vllm"), ("", "vllm")]
)
def test_the_policy_follows_from_the_metrics(text: str, policy: str) -> None:
    assert _policy(read(text.format(steps=1, paused=0, preemptions=2))) == policy


def test_a_server_without_our_scheduler_has_no_counts_of_predictions() -> None:
    assert _totals({}, read(STOCK.format(preemptions=2))).mispredictions == {}


@pytest.mark.parametrize(("text", "status"), [("", 404), ("no metrics {", 200)])
def test_a_server_without_metrics_counts_nothing(text: str, status: int) -> None:
    assert read(text, status) == {}
    assert _totals({}, {}).steps == 0
