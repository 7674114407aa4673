"""The routing rules as a request router of Ray Serve, and autoscaling by expected work: Ray's extension points."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray.serve.config import AutoscalingContext
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from ecoserve.serving.routing import Offer, Report, Router, RouterName


class WorkRouter(RequestRouter):
    """Sends a request to the replica that the rule chooses, else to any other that has room.

    The first argument of a call is its :class:`~ecoserve.serving.routing.Offer`. Replicas report by
    ``record_routing_stats``: see :func:`stats_of`.
    """

    def initialize_state(self, rule: RouterName = "least-work", seed: int = 0) -> None:
        self._rule: Router[ReplicaID] = Router(rule, seed=seed)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._rule.update(r.replica_id for r in replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        offer = _offer_of(pending_request)
        if offer is None or not candidate_replicas:
            return [candidate_replicas]
        by_id = {r.replica_id: r for r in candidate_replicas}
        for replica in candidate_replicas:
            if replica.routing_stats:
                self._rule.report(replica.replica_id, report_of(replica.routing_stats))
        best = self._rule.choose(offer, by_id)
        return [[by_id.pop(best)], list(by_id.values())]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if (offer := _offer_of(pending_request)) is not None:
            self._rule.sent(offer, replica_id, time.time())


def _offer_of(pending_request: PendingRequest | None) -> Offer | None:
    arguments: Sequence[Any] = pending_request.args if pending_request is not None else ()
    return arguments[0] if arguments and isinstance(arguments[0], Offer) else None


def stats_of(report: Report) -> dict[str, Any]:
    """A report as Ray carries it."""
    return asdict(report)


def report_of(stats: dict[str, Any]) -> Report:
    return Report(**{**stats, "work": tuple(stats["work"])})


class ByWork:
    """Autoscaling policy: as many replicas as keep ``target_work`` tokens of expected work open on each.

    Replicas state their work by ``record_autoscaling_stats``. Ray applies its bounds, factors and delays.
    """

    def __init__(self, target_work: float) -> None:
        self._target = target_work

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        by_replica = (context.aggregated_metrics or {}).get("work", {})
        # Requests that still wait for a replica count like the mean of those that have one.
        running = max(1.0, context.total_running_requests)
        work = sum(by_replica.values()) * (1 + context.total_queued_requests / running)
        return math.ceil(work / self._target), {}
