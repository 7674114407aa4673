"""The ledger: which requests hold KV, how much each was promised, and whether that agrees with vLLM's block pool.

*Held* is what the pool says: its blocks minus the free ones (cached blocks that can be evicted count as free). Promises
are accounting: vLLM takes blocks as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from ecoserve.errors import EcoServeError
from ecoserve.serving.core.kv_use import KVUse
from ecoserve.serving.core.tasks import Task, TaskState


class LedgerError(EcoServeError):
    """The ledger does not agree with the pool: a defect of ours, never the user's."""


class Ledger:
    """The KV of one engine: ``usable_blocks`` (vLLM's ``num_gpu_blocks - 1``), used as ``kv_use`` says."""

    def __init__(self, usable_blocks: int, kv_use: KVUse) -> None:
        self.usable_blocks = usable_blocks
        self.kv_use = kv_use
        self.held_blocks = 0
        self.tasks: dict[str, Task] = {}
        self._holders: list[Task] = []

    def blocks(self, tokens: int) -> int:
        return self.kv_use.blocks(tokens)

    def holders(self) -> list[Task]:
        """Requests that hold KV (prefilling, decoding, paused), as of the last :meth:`set_holders`."""
        return self._holders

    def set_holders(self, holders: list[Task]) -> None:
        self._holders = holders

    def promised_blocks(self, task: Task) -> int:
        """Blocks promised to a holder, those it has written included."""
        return self.blocks(task.promised_span_tokens())

    def shared_blocks(self) -> int:
        """Blocks in use that no holder has for itself: shared prefixes, each counted once, and idle sessions' KV."""
        return max(
            0,
            self.held_blocks - sum(t.blocks - t.shared_blocks - t.passing_shared for t in self.holders() if not t.idle),
        )

    def reserved_blocks(self) -> int:
        return sum(self.promised_blocks(t) - self.blocks(t.written) for t in self._holders)

    def lent_blocks(self, reserved: int | None = None) -> int:
        """Promises and holdings beyond the cache; ``reserved``: :meth:`reserved_blocks`, if known."""
        if reserved is None:
            reserved = self.reserved_blocks()
        return max(0, self.held_blocks + reserved - self.usable_blocks)

    def check(
        self,
        blocks_of: Mapping[str, Sequence[int]],
        leaving: Set[int],
        free_blocks: int,
        states: Mapping[str, TaskState],
    ) -> None:
        """Recount everything from the pool's own lists.

        Args:
            blocks_of: block ids of every request that has any, null block left out.
            leaving: ids of blocks that no request holds and whose release is deferred.
            free_blocks: what the pool calls free.
            states: where vLLM has each unfinished request.

        Raises:
            LedgerError: with the equation that failed.
        """
        unique = {b for ids in blocks_of.values() for b in ids}.union(leaving)
        held = self.usable_blocks - free_blocks
        if len(unique) != held:
            raise LedgerError(f"unique blocks of requests and leaving {len(unique)} != usable - free {held}")
        for name, ids in blocks_of.items():
            if len(set(ids)) != len(ids):
                raise LedgerError(f"request {name} has a block twice")
            if ids and name not in self.tasks:
                raise LedgerError(f"request {name} holds {len(ids)} blocks and is not in the ledger")
        if states.keys() != self.tasks.keys():
            odd = sorted(states.keys() ^ self.tasks.keys())[:4]
            raise LedgerError(f"requests in vLLM != requests in the ledger: {', '.join(odd)}")
        for name, task in self.tasks.items():
            if task.state is not states[name]:
                raise LedgerError(f"request {name} is {task.state.value} in the ledger, {states[name].value} in vLLM")
            if task.state is TaskState.WAITING:
                if blocks_of.get(name):
                    raise LedgerError(f"request {name} waits and holds {len(blocks_of[name])} blocks")
            elif len(blocks_of.get(name, ())) < self.blocks(task.written):
                raise LedgerError(
                    f"request {name} has {len(blocks_of.get(name, ()))} blocks for {task.written} written tokens"
                )
            if task.generated > task.limit:
                raise LedgerError(f"request {name} generated {task.generated} > limit {task.limit} tokens")
