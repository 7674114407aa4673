"""Attention of a whole batch, from kernels that were measured on requests of one length and one kind.

What the measurements leave out is how vLLM's kernels share out a batch. Three families:

``flash2`` (FlashAttention 2: A100, L40S, RTX PRO 6000). A block of threads takes one request and one KV head, and 64
rows of queries whether there are that many or not. Two things follow.

- *Decodes alone.* The query heads of a KV head are packed into the 64 rows. Blocks start in order, head by head, as
  others end; a long request in the last head starts late and goes on when all others are done: the *tail*.
- *Decodes beside prompts.* Nothing is packed: each of the query heads is a tile of its own, so a decode costs as much
  as 64 tokens of prompt. The first head of each group takes the KV from memory, the others find it in the cache, if
  one KV head of the whole batch fits there.

``flash3`` (FlashAttention 3: H100, H200). Long requests are split and balanced, and heads are packed in either case,
into tiles of 128 rows: decodes cost their memory or their tiles, whichever is more.

``split`` (B200). Decodes have a kernel of their own; the measurement is all there is.

Source of the rules: the kernels' published launch code (grid order, tile sizes, when heads are packed).
"""

from __future__ import annotations

from ecoserve.serving.simulate.gpu.hardware import Gpu
from ecoserve.serving.simulate.gpu.shapes import ModelShape
from ecoserve.serving.simulate.gpu.tables import (
    DECODE_CONTEXT,
    DECODE_REQUESTS,
    MAX_TOKENS,
    PREFILL_CONTEXT,
    PREFILL_NEW,
    Plane,
    Tables,
    layer_kv_bytes,
)

#: Rows of queries in a tile.
_ROWS = {"flash2": 64, "flash3": 128, "split": 64}
#: A prompt long enough to show what the kernel does at its best.
_LONG = 8192
#: Of the cache, what the KV of one head may take and still be found there.
_CACHE_SHARE = 0.8


class BatchAttention:
    def __init__(self, shape: ModelShape, gpu: Gpu, tp: int, tables: Tables) -> None:
        self._prefill = Plane(PREFILL_NEW, PREFILL_CONTEXT, tables.prefill_attention)
        self._decode = Plane(DECODE_REQUESTS, DECODE_CONTEXT, tables.decode_attention)
        self._kind = gpu.attention
        self._launch = self._prefill(1, 64)
        layers, heads = shape.layers, -(-shape.heads // tp)
        self._kv_heads = -(-shape.kv_heads // tp)
        self._heads = heads
        self._token_bytes = layers * layer_kv_bytes(shape, tp)
        head_bytes = layer_kv_bytes(shape, tp) / self._kv_heads
        self._cached_tokens = _CACHE_SHARE * gpu.cache_bytes / head_bytes
        self._stream = float(tables.stream[0])
        rows = _ROWS[gpu.attention]
        rate = 2.0 * _LONG**2 * heads * shape.head_dim * layers / (self._prefill(_LONG, 0) * 1e-3)
        #: blocks of threads that run at one time
        self._slots = gpu.multiprocessors * _blocks_per_multiprocessor(gpu, shape.head_dim, rows)
        per_slot = 1e3 * layers * self._slots
        #: ms, over all layers, in which one block passes one token of KV: computing; and all blocks, from memory
        self._tile_ms = per_slot * 4 * rows * shape.head_dim / rate
        self._memory_ms = per_slot * head_bytes / self._stream

    def prefill_ms(self, chunks: list[tuple[int, int]]) -> float:
        """Pieces of prompts, (new tokens, tokens before them) each, in one launch."""
        total = sum([self._chunk_ms(new, context) for new, context in chunks])
        return total - (len(chunks) - 1) * self._launch

    def _chunk_ms(self, new: int, context: int) -> float:
        """One piece; beyond the grid its time grows with the square, so it is cut into pieces that are on it."""
        total = 0.0
        while new > MAX_TOKENS:
            total += self._prefill(MAX_TOKENS, context)
            new, context = new - MAX_TOKENS, context + MAX_TOKENS
        return total + self._prefill(new, context)

    def decode_ms(self, requests: int, context: int, longest: int) -> float:
        """Decodes alone, with ``context`` tokens of KV together, of which the longest has ``longest``."""
        mean = context / requests
        measured = self._decode(requests, mean)
        if self._kind != "flash2" or longest <= mean:
            return measured
        return measured + max(0.0, self._tail_ms(requests, context, longest) - self._tail_ms(requests, context, mean))

    def _tail_ms(self, requests: int, context: int, longest: float) -> float:
        """How long the longest request's last block goes on after memory has delivered what all need."""
        blocks = requests * self._kv_heads
        busy = context * self._token_bytes / self._stream * 1e3
        # Half-way through the last head's row of blocks, on average; a block starts when one before it has ended.
        start = max(0.0, (blocks - requests / 2 - self._slots) / blocks) * busy
        pace = max(self._tile_ms, self._memory_ms * min(1.0, blocks / self._slots))
        return max(0.0, longest - (busy - start) / pace) * self._tile_ms

    def decode_beside_prompts_ms(self, requests: int, context: int) -> float:
        """Decodes in a batch with prompts, what they add to them."""
        if self._kind == "split":
            return self._decode(requests, context / requests)
        if self._kind == "flash3":
            tiles = context * self._kv_heads * self._tile_ms / self._slots
            return max(self._decode(requests, context / requests), tiles)
        first = max(self._memory_ms, self._tile_ms)
        other = self._tile_ms if context <= self._cached_tokens else first
        return context * (self._kv_heads * first + (self._heads - self._kv_heads) * other) / self._slots


def _blocks_per_multiprocessor(gpu: Gpu, head_dim: int, rows: int) -> int:
    """How many blocks' shared memory (a tile of queries, one of keys, one of values, 16 bits) a multiprocessor has."""
    columns = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    return max(1, gpu.shared_bytes // (2 * head_dim * (rows + 2 * columns)))
