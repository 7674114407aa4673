"""A modelled GPU, or several that serve one model together: how long a step takes and how much KV there is.

A step is the sum of its parts, because one stream of the GPU runs them one after the other: what scales with tokens,
what scales with sampled requests, attention, communication within a replica, and the gap to the next step. A batch of
decodes alone is run by a captured graph of the next size, so it costs what that size costs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.cost import StepWork
from ecoserve.serving.simulate.gpu.attention import BatchAttention
from ecoserve.serving.simulate.gpu.hardware import Gpu, Link, find_gpu, find_link
from ecoserve.serving.simulate.gpu.shapes import ModelShape
from ecoserve.serving.simulate.gpu.tables import SAMPLES, TOKENS, Line, Tables, load_tables

_GIB = 1 << 30
#: Of the memory that the driver reports, what a process sees.
_VISIBLE = 0.99
#: CUDA's context and libraries; with several GPUs the collectives' buffers too.
_CONTEXT_BYTES = int(0.6 * _GIB)
_COLLECTIVE_BYTES = int(0.4 * _GIB)
#: Captured graphs keep their buffers: a base, and one more for every so many decoding requests.
_GRAPH_BYTES = int(0.3 * _GIB)
_GRAPH_REQUEST_BYTES = int(2.5 * (1 << 20))


def gpu_weight_bytes(shape: ModelShape, tp: int, expert_ranks: int = 1) -> float:
    """Weights on one GPU; small ones that every GPU of a replica keeps are left out."""
    experts = shape.layers * shape.experts * shape.expert_parameters * (2 if shape.weights == "bfloat16" else 1)
    return (shape.weight_bytes - experts) / tp + experts / (tp * expert_ranks)


def activation_bytes(shape: ModelShape, tp: int, max_num_seqs: int, max_num_batched_tokens: int) -> float:
    """Peak memory of the largest step on one GPU, beside weights and KV."""
    width = shape.intermediate * (shape.experts_per_token or 1) / tp
    qkv = (shape.heads + 2 * shape.kv_heads) * shape.head_dim / tp
    # Residual and normed stream, then either heads or the feed-forward's gate, up and their product; 16 bits each.
    layer = 2 * max_num_batched_tokens * (3 * shape.hidden + max(2 * qkv, 3 * width))
    # vLLM samples from logits in 32 bits, and keeps those of 16 bits and a sorted copy beside them.
    logits = max_num_seqs * shape.vocab * (2 + 4 + 4 + 4)
    return max(layer, logits) + 2 * max_num_batched_tokens * shape.hidden


def kv_blocks(
    shape: ModelShape,
    gpu: Gpu,
    tp: int,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    gpu_memory_utilization: float,
    expert_ranks: int = 1,
) -> int:
    """Usable KV blocks of one replica: the GPU's memory, less weights, less what a step needs while it runs.

    Mirrors how vLLM sizes its cache. Its constants are estimates, good to about one GiB a GPU. Raises ConfigError if
    the weights leave no room for even one request of 1,024 tokens.
    """
    weights = gpu_weight_bytes(shape, tp, expert_ranks)
    room = gpu.memory_bytes * _VISIBLE * gpu_memory_utilization - weights
    room -= activation_bytes(shape, tp, max_num_seqs, max_num_batched_tokens)
    room -= _CONTEXT_BYTES + (_COLLECTIVE_BYTES if tp * expert_ranks > 1 else 0)
    room -= _GRAPH_BYTES + _GRAPH_REQUEST_BYTES * min(max_num_seqs, 512)
    # KV heads that cannot be divided among the GPUs are kept on several of them.
    token = shape.kv_token_bytes / shape.kv_heads * -(-shape.kv_heads // tp)
    blocks = int(room // (token * block_size)) - 1  # one is vLLM's null block
    if blocks * block_size < 1024:
        raise ConfigError(
            f"{shape.name} does not fit: {weights / _GIB:.0f} GiB of weights on each of {tp} x {gpu.name} with "
            f"{gpu.memory_bytes / _GIB:.0f} GiB",
            where="tp",
            fix="raise tp, or take a smaller model or a larger GPU",
        )
    return blocks


#: Bytes that sampling moves for one logit: read in 16 bits, written and read again in 32.
_LOGIT_BYTES: Final = 10
#: Share of the memory's peak bandwidth that such simple kernels reach.
_SIMPLE_KERNELS: Final = 0.8
#: Batch sizes for which vLLM captures graphs of decodes.
_GRAPHS: Final[list[int]] = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]


class HostTimes(BaseModel):
    """Seconds around the model's kernels.

    What lies between two steps on the GPU itself (block tables and tokens copied into the next step's inputs, small
    kernels before and after the model) cannot be hidden: that is the *gap*, a part of the step's time. It does not grow
    with the model's layers, since a captured graph is one launch. The gap a request is the one calibrated constant, on
    the log of Llama-3.1-8B on an RTX PRO 6000 (vLLM 0.19; docs/results/fidelity.md). The host's own times never show in
    that log and are estimates: of the scheduler, about half of what vLLM 0.32's takes on two slow cores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gap_s: float = Field(5e-5, ge=0, description="between any two steps on the GPU: a dozen small kernels")
    gap_request_s: float = Field(2.3e-6, ge=0, description="more of it for each request; calibrated")
    schedule_s: float = Field(0.3e-3, ge=0, description="scheduling a step and taking its output")
    schedule_request_s: float = Field(25e-6, ge=0, description="more of it for each request")
    launch_s: float = Field(1.0e-3, ge=0, description="preparing inputs and launching")
    launch_request_s: float = Field(5e-6, ge=0, description="more of it for each request")


@dataclass(frozen=True, slots=True)
class StepParts:
    """A step's seconds on the GPU, by what takes them.

    ``tokens``: projections, norms, feed-forward of a dense model; ``experts``: of a mixture of experts; ``sampling``:
    with the output layer; ``links``: between GPUs; ``gap``: to the next step's beginning, if the host is ahead.
    """

    tokens: float
    experts: float
    sampling: float
    attention: float
    links: float
    gap: float

    @property
    def total(self) -> float:
        return self.tokens + self.experts + self.sampling + self.attention + self.links + self.gap


class GpuModel:
    """One replica, ``tp`` GPUs of one kind with one model: a :class:`~ecoserve.serving.simulate.cost.StepCost`.

    ``link``: between GPUs, if it is not as where the kernels were measured. ``expert_ranks``: replicas that share the
    experts; times are then one replica's part.
    """

    def __init__(
        self,
        shape: ModelShape,
        gpu: Gpu,
        tp: int,
        tables: Tables,
        *,
        host: HostTimes | None = None,
        link: Link | None = None,
        expert_ranks: int = 1,
    ) -> None:
        self.shape = shape
        self.gpu = gpu
        self.tp = tp
        self.host = host or HostTimes()
        self.link = link
        self.expert_ranks = expert_ranks
        self.attention = BatchAttention(shape, gpu, tp, tables)
        self._tokens = Line(TOKENS, tables.tokens)
        self._experts = Line(TOKENS, tables.experts)
        self._reduce = Line(TOKENS, tables.reduce)
        self._dispatch = Line(TOKENS, tables.dispatch)
        self._logits = Line(SAMPLES, tables.logits)
        self._gather = Line(SAMPLES, tables.gather)
        self._sample_s = shape.vocab * _LOGIT_BYTES / (_SIMPLE_KERNELS * gpu.bandwidth)

    def seconds(self, work: StepWork) -> float:
        return self.parts(work).total

    def parts(self, work: StepWork) -> StepParts:
        tokens = self.run_tokens(work)
        own = self.own_parts(work)
        experts = self._experts(tokens) * 1e-3 if self.shape.experts else 0.0
        links = own.links + (self.exchange_s([tokens] * self.expert_ranks) if self.expert_ranks > 1 else 0.0)
        return StepParts(own.tokens, experts, own.sampling, own.attention, links, own.gap)

    def run_tokens(self, work: StepWork) -> int:
        """Tokens that the kernels run with: a graph's size for decodes alone."""
        tokens = work.prefill_tokens + work.decodes
        if not work.chunks and 0 < tokens <= _GRAPHS[-1]:
            return _GRAPHS[bisect_left(_GRAPHS, tokens)]
        return max(1, tokens)

    def own_parts(self, work: StepWork) -> StepParts:
        """A replica's own parts: all but experts, and what replicas exchange."""
        tokens = self.run_tokens(work)
        samples = max(1, work.decodes + len(work.chunks))
        links = self._replica_links_s(tokens, samples) if self.tp > 1 else 0.0
        return StepParts(
            self._tokens(tokens) * 1e-3,
            0.0,
            self._logits(samples) * 1e-3 + samples * self._sample_s,
            self._attention_ms(work) * 1e-3,
            links,
            self.host.gap_s + self.host.gap_request_s * work.requests,
        )

    def _attention_ms(self, work: StepWork) -> float:
        attention, decodes, context = self.attention, work.decodes, work.decode_context_tokens
        if not work.chunks:
            return attention.decode_ms(decodes, context, work.decode_longest_tokens) if decodes else 0.0
        prompts = attention.prefill_ms(work.chunks)
        return prompts + (attention.decode_beside_prompts_ms(decodes, context) if decodes else 0.0)

    def _replica_links_s(self, tokens: int, samples: int) -> float:
        if self.link is None:
            return (self._reduce(tokens) + self._gather(samples)) * 1e-3
        # Two sums a layer (after attention, after the feed-forward), one after the embedding; logits in 16 bits.
        sums = 2 * self.shape.layers + 1
        message = 2.0 * tokens * self.shape.hidden
        logits = 2.0 * samples * self.shape.vocab / self.tp
        return sums * self.link.all_reduce_s(message, self.tp) + self.link.gather_s([logits] * self.tp)

    def experts_s(self, tokens: int) -> float:
        """Seconds of the experts for ``tokens`` of each replica that shares them."""
        return self._experts(max(1, tokens)) * 1e-3

    def exchange_s(self, tokens: list[int]) -> float:
        """Seconds in which replicas send tokens to their experts and back, all layers; one entry a replica."""
        if self.link is None:
            return self._dispatch(max(1, *tokens)) * 1e-3
        pieces = [2.0 * n * self.shape.hidden for n in tokens]
        return 2 * self.shape.layers * self.link.gather_s(pieces)

    def host_s(self, work: StepWork) -> float:
        """Seconds the host needs for a step: schedule, prepare, launch, take the output."""
        host = self.host
        return host.schedule_s + host.schedule_request_s * work.requests + self.launch_s(work)

    def launch_s(self, work: StepWork) -> float:
        return self.host.launch_s + self.host.launch_request_s * work.requests

    def kv_blocks(
        self, block_size: int, max_num_seqs: int, max_num_batched_tokens: int, gpu_memory_utilization: float = 0.9
    ) -> int:
        limits = (block_size, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization)
        return kv_blocks(self.shape, self.gpu, self.tp, *limits, self.expert_ranks)


def gpu_model(
    gpu: str,
    shape: ModelShape,
    tp: int = 1,
    *,
    host: HostTimes | None = None,
    link: Link | str | None = None,
    expert_ranks: int = 1,
) -> GpuModel:
    """A model on a GPU, its tables cached or made now; ConfigError for an unknown GPU or no measurements.

    ``link``: between GPUs, stated or by name (:func:`find_link`); by default the GPU's.
    """
    found = find_gpu(gpu)
    link = link if isinstance(link, Link) else find_link(found, link)
    tables = load_tables(shape, found, tp, expert_ranks)
    return GpuModel(shape, found, tp, tables, host=host, link=link, expert_ranks=expert_ranks)
