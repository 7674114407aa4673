"""What the front end can see by itself, as a plug-in of vLLM (entry point group ``vllm.stat_logger_plugins``).

Rule: only what vLLM's metrics lack. Counters of the scheduler live in the engine's process and are not seen here; see
:mod:`ecoserve.serving.adapter.metrics`. vLLM loads such plug-ins in every server of the environment they are
installed in, so this one does nothing but observe finished requests.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase

from ecoserve.serving.adapter.metrics import normalized_latency


class FrontStatLogger(StatLoggerBase):
    """Observes the normalized latency of finished requests."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._latency = normalized_latency().labels(str(engine_index))

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if iteration_stats is None:
            return
        for request in iteration_stats.finished_requests:
            if request.num_generation_tokens > 0:
                self._latency.observe(request.e2e_latency / request.num_generation_tokens)

    def log_engine_initialized(self) -> None:
        pass
