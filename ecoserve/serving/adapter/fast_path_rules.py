"""When the decode-only fast path (:mod:`~ecoserve.serving.adapter.fast_path`) must not be taken at all.

Its rules were read from the source of vLLM 0.32. :data:`READ` holds digests of the methods that they were read from,
and the fields of what ``schedule()`` returns are all known by name. In a vLLM where one of them says something else,
or for a scheduler with a feature that the rules do not cover, the fast path is off: that costs time, never correctness.
After vLLM has moved, read what has changed, see that the twin tests pass, and only then put in the new digest.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import fields
from functools import cache
from typing import Any, Final

#: Methods whose effect on a decoding request is relied on, by class, and digests of the source that was read.
READ: Final[dict[str, dict[str, str]]] = {
    "vllm.v1.core.sched.async_scheduler.AsyncScheduler": {
        "schedule": "da4f2cf2fc39c39e",
        "_make_cached_request_data": "8aeb1dc3ba937dd2",
        "_update_after_schedule": "138d47daea23cdfd",
        "_get_new_block_ids_to_zero": "fb239c609e3dd0ec",
    },
    "vllm.v1.core.kv_cache_manager.KVCacheManager": {
        "allocate_slots": "8c60d937fd9eb0c8",
        "create_kv_cache_blocks": "300bc309b9a12709",
        "take_kv_cache_block_copies": "807042512478e8f2",
        "take_boundary_state_offloads": "19849f8e7da40c57",
    },
    "vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator": {
        "remove_skipped_blocks": "03a961e76820d666",
        "get_num_blocks_to_allocate": "4500949e3f03d550",
        "allocate_new_blocks": "2ceddac003607879",
        "cache_blocks": "8a801b2adf06ab1a",
        "get_num_cacheable_tokens": "d7221b47aebf9a46",
    },
    "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager": {
        "cache_blocks": "973ea9fec0745c95",
    },
    "vllm.v1.core.single_type_kv_cache_manager.FullAttentionManager": {
        "remove_skipped_blocks": "7bf0e2a87ec3ccd0",
        "get_num_skipped_tokens": "fddbc3bd2f06dc8a",
        "get_num_blocks_to_allocate": "f50d7c5b545195c3",
        "allocate_new_blocks": "b8edfbf2e1667228",
        "cache_blocks": "981125e4caafbec8",
    },
}

#: Every field of what ``schedule()`` returns.
OUTPUT_FIELDS: Final = frozenset(
    [
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "scheduled_spec_decode_tokens",
        "scheduled_encoder_inputs",
        "finished_req_ids",
        "free_encoder_mm_hashes",
        "scheduled_encoder_input_stats",
        "preempted_req_ids",
        "has_structured_output_requests",
        "pending_structured_output_tokens",
        "num_invalid_spec_tokens",
        "kv_connector_metadata",
        "has_sync_kv_loads",
        "aux_output_connector_metadata",
        "ec_connector_metadata",
        "ec_manager_metadata",
        "new_block_ids_to_zero",
        "kv_cache_block_copies",
        "kv_connector_block_state",
        "num_spec_tokens_to_schedule",
        "num_common_prefix_blocks",
    ]
)
CACHED_FIELDS: Final = frozenset(
    [
        "req_ids",
        "resumed_req_ids",
        "new_token_ids",
        "all_token_ids",
        "new_block_ids",
        "num_computed_tokens",
        "num_output_tokens",
    ]
)

#: What a scheduler must have for the rules to hold: attribute, value, and what it is called.
PLAIN: Final[tuple[tuple[str, object, str], ...]] = (
    ("connector", None, "a KV connector"),
    ("ec_connector", None, "an encoder-cache connector"),
    ("aux_output_connector", None, "auxiliary outputs"),
    ("dynamic_sd_lookup", None, "speculative decoding"),
    ("num_spec_tokens", 0, "speculative decoding"),
    ("num_lookahead_tokens", 0, "speculative decoding"),
    ("num_prefill_lookahead", 0, "speculative decoding"),
    ("use_pp", False, "pipeline parallelism"),
    ("defer_block_free", False, "blocks that are freed late"),
    ("need_mamba_block_aligned_split", False, "Mamba layers"),
    ("num_sampled_tokens_per_step", 1, "a model that does not sample one token a step"),
    ("max_num_encoder_input_tokens", 0, "an encoder"),
    ("is_encoder_decoder", False, "an encoder"),
)


def digest(cls: str, method: str) -> str | None:
    """A digest of the source of a method of a vLLM class, given as module.Class; None if it cannot be had."""
    module, name = cls.rsplit(".", 1)
    try:
        source = inspect.getsource(getattr(getattr(importlib.import_module(module), name), method))
    except (ImportError, AttributeError, OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:16]


@cache
def unknown() -> str | None:
    """What in the installed vLLM is not what the rules were read from; None if all of it is."""
    from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput

    for output, known in ((SchedulerOutput, OUTPUT_FIELDS), (CachedRequestData, CACHED_FIELDS)):
        odd = sorted({f.name for f in fields(output)} ^ known)
        if odd:
            return f"vLLM's {output.__name__} differs in {', '.join(odd)}"
    for cls, methods in READ.items():
        for method, read in methods.items():
            if digest(cls, method) != read:
                return f"vLLM's {cls.rpartition('.')[2]}.{method} is not the one that the rules were read from"
    return None


def unsuited(scheduler: Any) -> str | None:
    """What in a scheduler's configuration the rules do not cover; None if they cover all of it."""
    missing = object()
    for attribute, plain, what in PLAIN:
        if getattr(scheduler, attribute, missing) != plain:
            return what
    if scheduler.log_stats and scheduler.observability_config.enable_logging_iteration_details:
        return "details of iterations in the log"
    coordinator = scheduler.kv_cache_manager.coordinator
    groups = coordinator.single_type_managers
    names = {type(coordinator).__name__, *(type(g).__name__ for g in groups)}
    if not names <= {"UnitaryKVCacheCoordinator", "KVCacheCoordinatorNoPrefixCache", "FullAttentionManager"}:
        return "a KV cache other than one full-attention group"
    if len(groups) != 1:
        return "several KV cache groups"
    if not groups[0].block_size == scheduler.block_size == coordinator.block_pool.hash_block_size:
        return "blocks of several sizes"
    if coordinator.num_reprefillable_tokens:
        return "tokens that are computed twice"
    return None
