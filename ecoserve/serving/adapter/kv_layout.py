"""vLLM's KV cache configuration as the core's model of KV use, and what a scheduler's block tables say of a request."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ecoserve.serving.core.kv_use import Group, KVUse, Table
from ecoserve.serving.core.tasks import Task


def group_of(spec: Any, vllm_config: Any) -> Group | None:
    """The core's view of one vLLM spec; None for a kind that the model of KV use does not know."""
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        CircularBufferSpec,
        FullAttentionSpec,
        MambaSpec,
        MLAAttentionSpec,
        SinkFullAttentionSpec,
        SlidingWindowMLASpec,
        SlidingWindowSpec,
        UniformTypeKVCacheSpecs,
    )

    if type(spec) is UniformTypeKVCacheSpecs:
        spec = spec.first_spec  # all of them need the same number of entries
    ranks = vllm_config.parallel_config.decode_context_parallel_size if spec.dcp_sharded else 1
    block_size = spec.block_size * ranks
    kind = type(spec)
    if kind in (FullAttentionSpec, MLAAttentionSpec, SinkFullAttentionSpec):
        return Group(block_size)
    if kind is CircularBufferSpec:
        return Group(vllm_config.model_config.max_model_len)  # one block a request
    if kind in (SlidingWindowSpec, SlidingWindowMLASpec, ChunkedLocalAttentionSpec):
        most = spec.max_admission_blocks_per_request(
            max_in_flight_tokens=vllm_config.max_in_flight_tokens,
            max_model_len=vllm_config.model_config.max_model_len,
        )
        if kind is ChunkedLocalAttentionSpec:
            return Group(block_size, chunk=spec.attention_chunk_size, most=most)
        if not spec.prefix_cacheable:
            return None  # a window that is computed again after a prefix hit
        return Group(block_size, window=spec.sliding_window - 1 + spec.extra_retained_tokens, most=most)
    if kind is MambaSpec:
        extra = spec.num_speculative_blocks
        if spec.mamba_cache_mode != "align":
            return Group(spec.block_size, window=1, extra=extra)
        states = 1 + spec.num_prefill_checkpoint_blocks
        most = 1 + states * vllm_config.max_concurrent_batches + extra
        return Group(spec.block_size, window=1, extra=extra, most=most, states=states)
    return None


class KVLayout:
    """The groups of one scheduler's KV cache: those of one layout are counted once.

    Attributes:
        kv_use: the model of KV use. managers: vLLM's managers, one for each of its groups.
    """

    def __init__(self, vllm_config: Any, kv_cache_config: Any, managers: Any) -> None:
        groups = [group_of(g.kv_cache_spec, vllm_config) for g in kv_cache_config.kv_cache_groups]
        copies = Counter(groups)
        self.kv_use = KVUse(
            [replace(g, copies=n) for g, n in copies.items() if g is not None],
            vllm_config.num_speculative_tokens + vllm_config.num_lookahead_tokens,
        )
        self.managers = tuple(managers)
        #: of each layout, the block tables of one group
        self._tables = [(g, n, managers[groups.index(g)].req_to_blocks) for g, n in copies.items() if g is not None]
        #: the block tables where there is one group, whose KV is kept to the end
        self._only = self._tables[0][2] if len(groups) == 1 and self.kv_use.lasting else None
        self._lasting = [i for i, g in enumerate(groups) if g is not None and g.lasting]
        self._passing = [i for i, g in enumerate(groups) if g is not None and not g.lasting]

    def update(self, task: Task) -> None:
        """``tables`` and ``blocks`` of a task."""
        if self._only is not None:
            entries = len(self._only.get(task.request_id, ()))
            if entries != task.blocks or not task.tables:
                task.blocks = entries
                task.tables = (Table(entries, 0),)
            return
        tables = []
        task.blocks = 0
        for group, copies, blocks_of in self._tables:
            held = blocks_of.get(task.request_id, ())
            if group.lasting:
                empty = 0
            elif group.states is None:
                empty = bisect_left(held, True, key=_not_empty)
            else:
                empty = sum(b.is_null for b in held)
            tables.append(Table(len(held), empty))
            task.blocks += copies * (len(held) - empty)
        task.tables = tuple(tables)

    def count_shared(self, task: Task) -> None:
        """``shared_blocks`` and ``passing_shared`` of a holder: of KV kept to the end, the first blocks are shared."""
        name = task.request_id
        tables = [m.req_to_blocks.get(name, ()) for m in self.managers]
        task.shared_blocks = sum(bisect_left(tables[i], True, key=_alone) for i in self._lasting)
        task.passing_shared = sum(sum(not _alone(b) and not b.is_null for b in tables[i]) for i in self._passing)

    def held_by_others(self, hit: Sequence[Sequence[Any]]) -> int:
        """Of the blocks of a prefix hit, one list a manager, those kept to the end that some request holds."""
        return sum(sum(b.ref_cnt > 0 for b in hit[i]) for i in self._lasting)

    def held(self, name: str) -> int:
        """Blocks that a request holds, shared ones included."""
        return sum(not b.is_null for m in self.managers for b in m.req_to_blocks.get(name, ()))

    def private_blocks(self, name: str) -> int:
        """Blocks that come free if a request is preempted."""
        return sum(_alone(b) and not b.is_null for m in self.managers for b in m.req_to_blocks.get(name, ()))

    def ids(self) -> dict[str, list[int]]:
        """Block ids of every request that has any, empty entries left out."""
        out: dict[str, list[int]] = {}
        for m in self.managers:
            for name, held in m.req_to_blocks.items():
                out.setdefault(name, []).extend(b.block_id for b in held if not b.is_null)
        return out


def _not_empty(block: Any) -> bool:
    return not block.is_null


def _alone(block: Any) -> bool:
    return bool(block.ref_cnt < 2)
