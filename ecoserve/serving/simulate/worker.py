"""A model runner's state without a model: checks a scheduler's output as a runner would execute it.

vLLM's runners keep state per request and trust the scheduler to update it. This class keeps the same state by the rules
of runner V1 and V2 and raises where a real runner would compute garbage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ecoserve.errors import EcoServeError

#: vLLM's block in the place of one that was given back.
NULL_BLOCK: Final = 0


class WorkerError(EcoServeError): ...


@dataclass(slots=True)
class _Seen:
    #: block table of each group of layers
    tables: list[list[int]] = field(default_factory=list)
    computed: int = 0
    #: whether it has had draft tokens: some may have been refused since the runner was sent its place
    drafted: bool = False


class WorkerModel:
    """The state of model runner V1 or V2 with room for ``slots`` requests (``max_num_seqs``).

    ``block_sizes``: tokens a block of each KV cache group.
    """

    def __init__(self, runner: int, slots: int, block_sizes: Sequence[int]) -> None:
        self.runner = runner
        self.slots = slots
        self.block_sizes = block_sizes
        self._known: dict[str, _Seen] = {}
        self._previous: set[str] = set()

    def execute(self, output: Any) -> None:
        """Check one SchedulerOutput and update the state; WorkerError names the request and the broken rule."""
        gone = set(output.finished_req_ids)
        if self.runner == 2:
            gone |= set(output.preempted_req_ids or ())
        for name in gone:
            self._known.pop(name, None)
        for new in output.scheduled_new_reqs:
            if self.runner == 2 and new.req_id in self._known:
                raise WorkerError(f"request {new.req_id} is sent as new and still has a slot")
            self._check(new.req_id, new.block_ids)
            self._known[new.req_id] = _Seen([list(ids) for ids in new.block_ids], new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            seen = self._known.get(name)
            if seen is None:
                raise WorkerError(f"request {name} is sent as cached and is not known")
            resumed = name in cached.resumed_req_ids
            sent = name in cached.all_token_ids
            if resumed and not sent:
                # A request of the last batch is taken to be there still, unless vLLM removed all requests and sent
                # their tokens again (reset_prefix_cache).
                raise WorkerError(f"request {name} left and came back in one step")
            if self.runner == 1 and name not in self._previous and not sent:
                raise WorkerError(f"request {name} was away for a step and its tokens are not sent")
            fresh: Sequence[Sequence[int]] = cached.new_block_ids[i] or [()] * len(seen.tables)
            if resumed:
                seen.tables = [list(ids) for ids in fresh]
            else:
                for table, ids in zip(seen.tables, fresh, strict=True):
                    table.extend(ids)
            if any(fresh):
                self._check(name, fresh)
            if not resumed and (
                cached.num_computed_tokens[i] > seen.computed
                or (cached.num_computed_tokens[i] < seen.computed and not seen.drafted)
            ):
                raise WorkerError(
                    f"request {name} goes on at token {cached.num_computed_tokens[i]}, the runner is at {seen.computed}"
                )
            seen.computed = cached.num_computed_tokens[i]
        for name, tokens in output.num_scheduled_tokens.items():
            seen = self._known[name]
            seen.computed += tokens
            seen.drafted = seen.drafted or name in output.scheduled_spec_decode_tokens
            for table, block_size in zip(seen.tables, self.block_sizes, strict=True):
                if seen.computed > len(table) * block_size:
                    raise WorkerError(f"request {name} writes token {seen.computed} into {len(table)} blocks")
        in_use = len(self._known) if self.runner == 2 else len(output.num_scheduled_tokens)
        if in_use > self.slots:
            raise WorkerError(f"{in_use} requests in a runner with {self.slots} slots")
        self._previous = set(output.num_scheduled_tokens)

    @staticmethod
    def _check(name: str, tables: Sequence[Sequence[int]]) -> None:
        """Blocks that a request gets. One that it gave back may come again, so whole tables tell nothing."""
        blocks = [b for table in tables for b in table if b != NULL_BLOCK]
        if len(set(blocks)) != len(blocks):
            raise WorkerError(f"request {name} has a block twice in its table")
