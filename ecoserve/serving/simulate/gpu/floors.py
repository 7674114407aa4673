"""Lower bounds of kernel times: no kernel can beat the GPU's published peaks.

Every table is lifted to what memory and matrix units need at their peaks. Kernels were measured repeatedly on the same
weights; where these fit the GPU's cache (few tokens, small experts, the large cache of an L40S or an RTX PRO 6000), the
measurement never went to memory. In a model, with all other layers in between, it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ecoserve.serving.simulate.gpu.hardware import Gpu
from ecoserve.serving.simulate.gpu.shapes import ModelShape

Floats = NDArray[np.float64]


class Floors:
    """The least milliseconds of each table, all layers of one GPU.

    Args:
        shape: the model.
        gpu: the GPU.
        tp: GPUs of the replica.
        expert_ranks: replicas that share the experts.
    """

    def __init__(self, shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int = 1) -> None:
        self._shape, self._gpu, self._tp, self._ranks = shape, gpu, tp, expert_ranks
        self._wide = shape.weights == "bfloat16"
        self._peak = gpu.flops if self._wide else gpu.flops_fp8

    def _matrices(self, rows: Sequence[int], parameters: float, *, wide: bool, read: float | None = None) -> Floats:
        """``rows`` times matrices of so many parameters, of which ``read`` come from memory (None: all)."""
        size = (parameters if read is None else read) * (2 if wide else 1)
        peak = self._gpu.flops if wide else self._peak
        work = 2.0 * np.asarray(rows, dtype=np.float64) * parameters
        least: Floats = np.maximum(size / self._gpu.bandwidth, work / peak) / self._tp * 1e3
        return least

    def tokens(self, tokens: Sequence[int]) -> Floats:
        """Projections, and the feed-forward of a dense model."""
        s = self._shape
        parameters = s.attention_parameters + (0 if s.experts else s.expert_parameters)
        return self._matrices(tokens, s.layers * parameters, wide=self._wide)

    def experts(self, tokens: Sequence[int]) -> Floats:
        """Experts of ``tokens`` of each replica; at least the experts of one token are read."""
        s = self._shape
        used = float(s.layers * s.expert_parameters * s.experts_per_token)
        return self._matrices(tokens, used, wide=self._wide, read=used / self._ranks)

    def logits(self, samples: Sequence[int]) -> Floats:
        """The output layer."""
        return self._matrices(samples, self._shape.embedding_parameters, wide=True)

    def prefill_attention(self, new: Sequence[int], context: Sequence[int]) -> Floats:
        """Attention of a piece of a prompt; rows are new tokens, columns the tokens before them."""
        s = self._shape
        n = np.asarray(new, dtype=np.float64)[:, None]
        before = np.asarray(context, dtype=np.float64)[None, :]
        work = 4.0 * s.layers * s.heads * s.head_dim * n * (before + (n + 1) / 2)
        read = s.kv_token_bytes * (before + n)
        least: Floats = np.maximum(read / self._gpu.bandwidth, work / self._gpu.flops) / self._tp * 1e3
        return least
