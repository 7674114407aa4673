"""Runs on a Ray cluster, one task a run; Ray retries a task when its worker or node is gone.

A task computes the run's key again: a node with other contents of trace or checkpoint, or another version of vLLM,
fails its runs.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.worker import DIED, Outcome, Record, perform

#: Address of a cluster of this machine alone, for as long as the sweep takes.
LOCAL: Final = "local"
#: Times that Ray retries a task whose worker died; one that dies each time has failed.
_RETRIES: Final = 3
_CONNECT_S: Final = 5.0
_FIX: Final = "name the HOST:PORT that `ray start --head` printed, or local"


def on_ray(waiting: deque[PlannedRun], function: str, address: str, record: Record, cpus: int | None = None) -> None:
    """Run the queue (``record`` may add to it) on the cluster until it is empty.

    ``address`` is ``HOST:PORT`` of the head, ``ray://HOST:PORT``, ``auto`` (the cluster this machine belongs to), or
    ``local``, with ``cpus`` runs at once (None: all cores). Raises ConfigError if Ray is missing or no cluster answers.
    """
    ray = connected(address, cpus)
    try:
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(perform_here)
        in_flight: dict[Any, PlannedRun] = {}
        while waiting or in_flight:
            while waiting:
                run = waiting.popleft()
                in_flight[task.remote(function, run.key, dict(run.settings), dict(run.labels))] = run
            ended, _ = ray.wait(list(in_flight), num_returns=1)
            for reference in ended:
                record(in_flight.pop(reference), _outcome(ray, reference))
    finally:
        ray.shutdown()  # what is still in flight ends with its driver


def perform_here(function: str, key: str, settings: dict[str, Any], labels: dict[str, Any]) -> Outcome:
    """The task: one run, if its key is the same on this node."""
    if PlannedRun.of(settings, labels).key != key:
        what = "has another trace, checkpoint or version than the machine that sent the run"
        fix = "give all nodes the same files at the same paths and the same packages"
        return Outcome(None, f"node {socket.gethostname()} {what}; {fix}")
    return perform(function, settings)


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        return Outcome(None, f"{type(error).__name__}: {' '.join(str(error.cause).split())}", str(error))
    except ray.exceptions.RayError as error:
        words = " ".join(str(error).split())[:300]
        return Outcome(None, f"{DIED}, {1 + _RETRIES} times; Ray says {type(error).__name__}", words)
    return outcome


def look_for(address: str, where: str = "--ray") -> Any:
    """The module ``ray``; raises ConfigError if it is not installed or no cluster listens at the address."""
    # Read when Ray is imported: no usage statistics are sent.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed", where=where, fix="pip install 'ecoserve[ray]'") from error
    if address not in (LOCAL, "auto"):
        _answers(address.removeprefix("ray://"), f"{where} {address}")  # at once, where Ray would try for a minute
    return ray


def connected(address: str, cpus: int | None, where: str = "--ray") -> Any:
    """The module ``ray``, connected; ``cpus`` of a new cluster. ConfigError as of :func:`look_for`, about ``where``."""
    ray = look_for(address, where)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        words = " ".join(str(error).split())[:200]
        raise ConfigError(f"no Ray cluster ({words})", where=f"{where} {address}", fix=_FIX) from error
    return ray


def _answers(address: str, where: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"no Ray cluster answers ({words})", where=where, fix=_FIX) from error
