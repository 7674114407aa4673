"""What the API server sees of the engine's work: one more stat logger beside vLLM's own.

vLLM loads stat loggers of others by entry point, in every server of an environment. This one is added by the
middleware, where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from ecoserve.serving.adapter.metrics import logger, normalized_latency
from ecoserve.serving.adapter.work_bound import WorkBound

if TYPE_CHECKING:
    from ecoserve.serving.adapter.learner import Learner


class EngineStats(AggregateStatLoggerBase):
    """Observes the normalized latency of finished requests, and gives the engine's work to the bound of the queue, and
    finished requests to the learner."""

    def __init__(
        self, vllm_config: Any, engine_indexes: list[int], bound: WorkBound, learner: Learner | None = None
    ) -> None:
        self._bound = bound
        self._learner = learner
        name = str(vllm_config.model_config.served_model_name)
        self._latency = {engine: normalized_latency(name, engine) for engine in engine_indexes}

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if iteration_stats is None:
            return
        for finished in iteration_stats.finished_requests:
            if self._learner is not None:
                tokens, reason = finished.num_generation_tokens, str(finished.finish_reason)
                self._learner.finished(finished.request_id, tokens, reason, finished.max_tokens_param)
            if finished.num_generation_tokens:
                self._bound.finished(finished.num_generation_tokens)
                self._latency[engine_idx].observe(finished.e2e_latency / finished.num_generation_tokens)

        if scheduler_stats is not None:
            waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs > 0
            self._bound.step(engine_idx, iteration_stats.num_generation_tokens, waiting)

    def log_engine_initialized(self) -> None: ...


def watch_engine(engine_client: Any, bound: WorkBound, learner: Learner | None = None) -> None:
    """Add an :class:`EngineStats` to vLLM's engine client; without statistics (``--disable-log-stats``) nothing."""
    manager = engine_client.logger_manager
    if manager is not None:
        stats = EngineStats(engine_client.vllm_config, manager.engine_indexes, bound, learner)
        manager.stat_loggers.append(stats)
    elif learner is not None:
        logger.warning("ecoserve: without vLLM's statistics (--disable-log-stats) nothing is learned")
