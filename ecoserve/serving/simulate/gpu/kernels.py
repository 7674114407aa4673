"""Measured kernel times from aiconfigurator-core: the only module that imports it.

The model is given to it as a configuration with the same sizes of a kind that it knows: the shape counts, not the name.
Times are milliseconds of one GPU, all layers.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.gpu.hardware import Gpu
from ecoserve.serving.simulate.gpu.shapes import ModelShape, as_config

_ATTENTION: Final = {"context": "context_attention", "generation": "generation_attention"}
_LOGITS: Final = "generation_logits_gemm"
_EXPERTS: Final = "generation_moe"
_DISPATCH: Final = ("generation_moe_pre_dispatch", "generation_moe_post_dispatch")
_REDUCE: Final = ("generation_embedding_ar", "generation_ar_1", "generation_ar_2")
_PIPELINE: Final = "generation_p2p"


def kernels_version() -> str:
    """Version of the measured kernels; raises ConfigError if aiconfigurator-core is not installed."""
    try:
        return metadata.version("aiconfigurator-core")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            "aiconfigurator-core, which has the measured kernels, is not installed",
            where="gpu",
            fix="pip install 'aiconfigurator-core>=0.12,<0.13'",
        ) from None


class KernelTimes:
    """Kernel times of one model on one kind of GPU; ConfigError if there are no measurements for the combination.

    ``tp``: GPUs of one replica (tensor parallel); experts are cut the same way. ``expert_ranks``: replicas that share
    the experts (expert parallel); 1 where every replica has all experts.
    """

    def __init__(self, shape: ModelShape, gpu: Gpu, tp: int = 1, expert_ranks: int = 1) -> None:
        _check(shape, gpu, tp, expert_ranks)
        self.shape = shape
        self.gpu = gpu
        self.tp = tp
        self.expert_ranks = expert_ranks
        with _quietly(shape, gpu), tempfile.TemporaryDirectory(prefix="ecoserve-model-") as folder:
            from aiconfigurator_core.sdk.engine import EngineHandle

            Path(folder, "config.json").write_text(json.dumps(as_config(shape)), encoding="utf-8")
            self._engine: Any = EngineHandle.compile(
                folder,
                gpu.name,
                "vllm",
                tp_size=tp,
                attention_dp_size=expert_ranks,
                moe_tp_size=tp if shape.experts else None,
                moe_ep_size=expert_ranks if shape.experts else None,
                gemm_quant_mode=shape.weights,
                moe_quant_mode=shape.weights,
                kvcache_quant_mode=shape.kv_cache,
                fmha_quant_mode="bfloat16",
            )
            self._places = {phase: self._names(phase) for phase in ("context", "generation")}
        names = list(self._places["generation"])
        apart = {_ATTENTION["generation"], _LOGITS, _EXPERTS, _PIPELINE, *_DISPATCH, *_REDUCE}
        self._tokens = [n for n in names if n not in apart]
        self._reduce = [n for n in _REDUCE if n in names]

    def _names(self, phase: str) -> dict[str, int]:
        ask = self._engine.evaluate_context_ops if phase == "context" else self._engine.evaluate_generation_ops
        names: dict[str, int] = {}
        for i in range(64):
            try:
                (name, *_), *_ = ask([i], batch_size=1, s=16)
            except ValueError as error:
                if "out of range" in str(error):
                    break
                raise
            names[name] = i
        return names

    def asking(self) -> AbstractContextManager[None]:
        """A block in which a missing measurement is a ConfigError of one line."""
        return _quietly(self.shape, self.gpu)

    def _generation_ms(self, names: Sequence[str], batch: int, context: int = 16) -> float:
        if not names:
            return 0.0
        places = [self._places["generation"][n] for n in names]
        answers = self._engine.evaluate_generation_ops(places, batch_size=batch, s=context)
        return float(sum(a[1] for a in answers))

    def tokens_ms(self, tokens: int) -> float:
        """Projections, norms and activations, and the feed-forward of a dense model."""
        return self._generation_ms(self._tokens, tokens)

    def experts_ms(self, tokens: int) -> float:
        """The experts' feed-forward for ``tokens`` of each of the replicas that share them; 0 for a dense model."""
        return self._generation_ms([_EXPERTS], tokens) if self.shape.experts else 0.0

    def logits_ms(self, samples: int) -> float:
        return self._generation_ms([_LOGITS], samples)

    def prefill_attention_ms(self, new: int, context: int) -> float:
        """Attention of ``new`` tokens of one prompt after ``context`` tokens that are there already."""
        place = self._places["context"][_ATTENTION["context"]]
        return float(self._engine.evaluate_context_ops([place], batch_size=1, s=new, prefix=context)[0][1])

    def decode_attention_ms(self, requests: int, context: int) -> float:
        """Attention of decoding requests with ``context`` tokens each."""
        return self._generation_ms([_ATTENTION["generation"]], requests, context)

    def reduce_ms(self, tokens: int) -> float:
        if self.tp == 1:
            return 0.0
        extra = 0.0
        if self.shape.experts:
            # aiconfigurator has the sum after attention only in its dispatch, which for one replica is an all-reduce.
            extra = self._generation_ms(list(_DISPATCH), tokens)
        return self._generation_ms(self._reduce, tokens) + extra

    def dispatch_ms(self, tokens: int) -> float:
        """Dispatch and combine of experts, for ``tokens`` of each replica."""
        return self._generation_ms(list(_DISPATCH), tokens) if self.expert_ranks > 1 else 0.0

    def gather_logits_ms(self, samples: int) -> float:
        """All-gather of the output layer's parts of all GPUs of a replica, before sampling."""
        if self.tp == 1:
            return 0.0
        from aiconfigurator_core.sdk.common import CommQuantMode
        from aiconfigurator_core.sdk.engine import build_ops_json
        from aiconfigurator_core.sdk.operations import NCCL

        gather = NCCL("gather_logits", 1.0, "all_gather", self.shape.vocab, self.tp, CommQuantMode.half)
        answers = self._engine.evaluate_ops_json(build_ops_json([gather]), is_context=False, batch_size=samples, s=1)
        return float(answers[0][1])


def _check(shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int) -> None:
    if tp < 1 or shape.heads % tp or shape.intermediate % tp:
        raise ConfigError(
            f"{shape.name} ({shape.heads} heads) cannot be cut for tp {tp}", where="tp", fix="take a power of two"
        )
    if expert_ranks > 1 and (tp != 1 or not shape.experts or shape.experts % expert_ranks):
        raise ConfigError(
            f"{shape.name} cannot share {shape.experts} experts among {expert_ranks} replicas at tp {tp}",
            where="expert_ranks",
        )
    if shape.weights != "bfloat16" and not gpu.flops_fp8:
        raise ConfigError(f"{gpu.name} has no fp8", where="model", fix="take a model in bfloat16")


@contextmanager
def _quietly(shape: ModelShape, gpu: Gpu) -> Iterator[None]:
    """A block without its warnings, which are about its own tables, in which its failures become one line."""
    kernels_version()
    log = logging.getLogger("aiconfigurator_core")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # it raises plain exceptions of many kinds
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"no kernel times of {shape.name} on {gpu.name}: {line}", where="gpu") from error
    finally:
        log.setLevel(level)
