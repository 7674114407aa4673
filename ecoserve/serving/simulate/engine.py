"""vLLM's scheduler classes without a model, made from a config.json alone, and requests for them.

There is no worker, no weights and no GPU; the scheduler is the very class that serves.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ecoserve.errors import ConfigError
from ecoserve.serving.workload import LoadRequest

#: A small Llama; the scheduler reads only its length limit.
_CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 2**24,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

#: The token that ends a response, and the one that stands for all others.
EOS: Final = 2
WORD: Final = 7


class EngineLimits(BaseModel):
    """An engine's settings that a run can state."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_size: int = Field(16, ge=1, description="tokens per KV block")
    max_num_seqs: int = Field(256, ge=1, description="requests in a batch")
    max_num_batched_tokens: int = Field(2048, ge=1, description="tokens per step")
    max_model_len: int = Field(4096, ge=2, description="tokens of prompt and response")
    prefix_caching: bool = Field(False, description="share the KV of equal prefixes")
    kv_groups: str = Field(
        "full",
        pattern=r"^(\d+ )?(full|mla|state|(window|chunk) \d+)( \+ (\d+ )?(full|mla|state|(window|chunk) \d+))*$",
        description="groups of layers by how they keep KV, as: full + 5 window 1024, mla, 2 chunk 8192, full + 3 state",
        json_schema_extra={"metavar": "GROUPS"},
    )


class EngineShape(EngineLimits):
    """What the scheduler knows of its engine."""

    kv_blocks: int = Field(1800, ge=2, description="usable KV blocks")
    chunked_prefill: bool = True
    watermark: float = Field(0.0, ge=0, lt=1)
    scheduling_policy: str = Field("fcfs", pattern="fcfs|priority")
    runner: int = Field(1, ge=1, le=2, description="vLLM's model runner, V1 or V2")
    depth: int = Field(1, ge=1, description="steps in flight at a time; more than one: asynchronous scheduling")
    stages: int = Field(1, ge=1, description="stages of the pipeline")
    speculative_tokens: int = Field(0, ge=0, description="draft tokens of a decode's step")
    kv_connector: str | None = Field(None, description="vLLM's KV connector, as module:class")


def layers_of(limits: EngineLimits) -> dict[str, Any]:
    """vLLM's KV cache spec of one layer for each of ``limits.kv_groups``, all with blocks of one size in bytes.

    A state is one block a request; with prefix caching it is one a block of tokens, of which the last are kept.
    """
    import torch
    from vllm.v1 import kv_cache_interface as kv

    size = limits.block_size
    attention: dict[str, Any] = {"block_size": size, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    layers: dict[str, Any] = {}
    for term in limits.kv_groups.split(" + "):
        words = term.split()
        count = int(words.pop(0)) if words[0].isdigit() else 1
        match words:
            case ["window", tokens]:
                spec: Any = kv.SlidingWindowSpec(**attention, sliding_window=int(tokens))
            case ["chunk", tokens]:
                spec = kv.ChunkedLocalAttentionSpec(**attention, attention_chunk_size=int(tokens))
            case ["state"]:
                mode = "align" if limits.prefix_caching else "none"
                block = size if limits.prefix_caching else limits.max_model_len
                spec = kv.MambaSpec(block, shapes=((2, size),), dtypes=(torch.float32,), mamba_cache_mode=mode)
            case ["mla"]:
                spec = kv.MLAAttentionSpec(**attention | {"head_size": 2})
            case _:
                spec = kv.FullAttentionSpec(**attention)
        layers |= {f"{term} {i}": spec for i in range(count)}
    return layers


@lru_cache(maxsize=1)
def _model_folder() -> str:
    folder = Path(tempfile.mkdtemp(prefix="ecoserve-shape-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    return str(folder)


@lru_cache(maxsize=1)
def quiet_vllm() -> None:
    """Settings that vLLM must see before it is imported: no hub, errors only, no usage report.

    Once: setting a logger's level empties the caches of all loggers, which costs half a millisecond.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for results
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    logging.getLogger("vllm").setLevel(logging.ERROR)


def make_scheduler(
    cls: type[Any],
    shape: EngineShape,
    additional_config: dict[str, Any] | None = None,
    layers: Mapping[str, Any] | None = None,
) -> Any:
    """An instance of a vLLM scheduler class with a KV cache of ``shape.kv_blocks`` usable blocks.

    ``layers``: layer name -> vLLM's KV cache spec, grouped as vLLM does; by default those of the shape.

    Raises ConfigError if a sequence of ``max_model_len`` does not fit the KV cache, or vLLM refuses the shape.
    """
    quiet_vllm()
    from vllm.config import (
        CacheConfig,
        DeviceConfig,
        KVTransferConfig,
        ModelConfig,
        ParallelConfig,
        SchedulerConfig,
        SpeculativeConfig,
        VllmConfig,
    )
    from vllm.v1.core.kv_cache_utils import (
        generate_scheduler_kv_cache_config,
        get_max_concurrency_for_kv_cache_config,
        resolve_kv_cache_block_sizes,
    )
    from vllm.v1.kv_cache_interface import KVCacheConfig, MambaSpec
    from vllm.v1.structured_output import StructuredOutputManager

    try:
        from vllm.v1.core.kv_cache_planning import get_kv_cache_groups
    except ImportError:  # before 0.33
        from vllm.v1.core.kv_cache_utils import get_kv_cache_groups

    module, _, connector = (shape.kv_connector or "").partition(":")
    folder = _model_folder()
    tokens = shape.speculative_tokens
    try:
        drafts = SpeculativeConfig(method="ngram", num_speculative_tokens=tokens) if tokens else None
        config = VllmConfig(
            model_config=ModelConfig(
                model=folder,
                tokenizer=folder,
                skip_tokenizer_init=True,
                dtype="float32",
                max_model_len=shape.max_model_len,
                seed=0,
            ),
            scheduler_config=SchedulerConfig(
                max_num_seqs=shape.max_num_seqs,
                max_num_batched_tokens=shape.max_num_batched_tokens,
                max_model_len=shape.max_model_len,
                enable_chunked_prefill=shape.chunked_prefill,
                async_scheduling=False,
                policy=shape.scheduling_policy,
                is_encoder_decoder=False,
                watermark=shape.watermark,
            ),
            cache_config=CacheConfig(
                block_size=shape.block_size,
                gpu_memory_utilization=0.9,
                cache_dtype="auto",
                enable_prefix_caching=shape.prefix_caching,
            ),
            parallel_config=ParallelConfig(pipeline_parallel_size=shape.stages),
            speculative_config=drafts,
            kv_transfer_config=KVTransferConfig(
                kv_connector=connector, kv_connector_module_path=module, kv_role="kv_both"
            )
            if connector
            else None,
            device_config=DeviceConfig("cpu"),
            additional_config=additional_config or {},
        )
    except ValidationError as error:
        raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, "), where="vLLM's engine") from None
    blocks = shape.kv_blocks + 1
    config.cache_config.num_gpu_blocks = blocks
    layers = layers or layers_of(shape)
    config.scheduler_config.async_scheduling = shape.depth > shape.stages
    config.cache_config.kv_cache_layout = "LBNHC"  # vLLM's most common; a worker would say which
    for mamba in (s for s in layers.values() if isinstance(s, MambaSpec)):
        config.cache_config.mamba_cache_mode = mamba.mamba_cache_mode
    groups = get_kv_cache_groups(config, dict(layers))
    if len(groups) == 1:
        config.cache_config.block_size = groups[0].kv_cache_spec.block_size
    kv_config = generate_scheduler_kv_cache_config(
        [KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)]
    )
    # One block is vLLM's null block.
    if get_max_concurrency_for_kv_cache_config(config, replace(kv_config, num_blocks=shape.kv_blocks)) < 1:
        raise ConfigError(
            f"{shape.kv_blocks} KV blocks of {shape.block_size} tokens cannot hold one request of max_model_len "
            f"{shape.max_model_len}",
            where="engine",
            fix="raise kv_blocks or lower max_model_len",
        )
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv_config, config)
    scheduler = cls(
        vllm_config=config,
        kv_cache_config=kv_config,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        hash_block_size=hash_block_size,
        log_stats=False,
    )
    scheduler.use_v2_model_runner = shape.runner == 2
    return scheduler


@dataclass(frozen=True, slots=True)
class LazyRequest:
    """A request that is made when it arrives: a long load of vLLM requests would not fit memory."""

    request_id: str
    num_prompt_tokens: int
    make: Callable[[float], Any]


def make_request(
    request_id: str,
    prompt_token_ids: list[int],
    max_tokens: int,
    arrival_s: float,
    extra_args: dict[str, Any] | None = None,
    priority: int = 0,
    block_size: int | None = None,
) -> Any:
    """A vLLM request. With ``block_size`` its blocks are hashed for the prefix cache."""
    quiet_vllm()
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=max_tokens, extra_args=extra_args)
    params.update_from_generation_config({}, EOS)
    hasher = None
    if block_size is not None:
        init_none_hash(sha256)
        hasher = get_request_block_hasher(block_size, sha256)
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt_token_ids,
        sampling_params=params,
        pooling_params=None,
        arrival_time=arrival_s,
        priority=priority,
        block_hasher=hasher,
    )


#: First token of a stream of its own, and of a piece: two ranges that do not meet.
_STREAM: Final = 10_000
_PIECE: Final = 1_000_000_000


class PromptIds:
    """Token ids that stand for a load's prompts: the prefix cache finds what real prompts would share, and no more.

    A block is known by its tokens and all before them, so one token of its own at the start of a stretch tells it from
    others. Blocks of a record with ``prefix_hashes`` begin with a token made from the block's hash. Turns of one
    conversation are beginnings of one stream of tokens. Anything else shares nothing; a row that was drawn twice is a
    conversation of its own each time.
    """

    def __init__(self, load: Sequence[LoadRequest]) -> None:
        streams: dict[tuple[str, int], int] = {}
        copies: dict[tuple[str, int], int] = {}
        turns: dict[int, int] = {}
        self._stream: dict[str, int] = {}
        for request in load:
            record = request.record
            turn = (record.conversation, record.turn)
            copies[turn] = copy = copies.get(turn, -1) + 1
            stream = streams.setdefault((record.conversation, copy), len(streams))
            self._stream[request.name] = stream
            turns[stream] = turns.get(stream, 0) + 1
        pieces = [h for request in load for h in request.record.prefix_hashes]
        self._pieces = {h: i for i, h in enumerate(dict.fromkeys(pieces))}
        #: whether any two prompts share something
        self.shared = any(n > 1 for n in turns.values()) or len(self._pieces) < len(pieces)

    def of(self, request: LoadRequest) -> list[int]:
        ids = [WORD] * request.prompt_tokens
        hashes = request.record.prefix_hashes
        block = request.record.prefix_block_tokens
        for start, piece in zip(range(0, len(ids), block), hashes, strict=False):
            ids[start] = _PIECE + self._pieces[piece]
        own = block * len(hashes)
        if own < len(ids):
            ids[own] = _STREAM + self._stream[request.name]
        return ids
