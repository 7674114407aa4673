"""What level ``full`` does not know is refused by our scheduler, in one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from virtual_rig import Case, scheduler_for
from vllm.v1.kv_cache_interface import CrossAttentionSpec, FullAttentionSpec, RSWASpec

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.policies import UnknownToFullError, refuse_unsupported


@pytest.fixture
def config() -> tuple[Any, Any]:
    """The configuration of a scheduler that was accepted, as plain namespaces that can be changed."""
    s = scheduler_for(Case(()))
    vllm_config = SimpleNamespace(
        speculative_config=s.vllm_config.speculative_config,
        kv_transfer_config=s.vllm_config.kv_transfer_config,
        ec_transfer_config=s.vllm_config.ec_transfer_config,
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=s.parallel_config.pipeline_parallel_size,
            decode_context_parallel_size=s.parallel_config.decode_context_parallel_size,
        ),
        model_config=SimpleNamespace(
            runner_type=s.vllm_config.model_config.runner_type,
            is_hybrid=s.vllm_config.model_config.is_hybrid,
            is_attention_free=s.vllm_config.model_config.is_attention_free,
            is_encoder_decoder=s.vllm_config.model_config.is_encoder_decoder,
            architectures=s.vllm_config.model_config.architectures,
            rswa_window=s.vllm_config.model_config.rswa_window,
        ),
        attention_config=SimpleNamespace(hisparse_config=s.vllm_config.attention_config.hisparse_config),
        cache_config=SimpleNamespace(prefix_match_unit=s.cache_config.prefix_match_unit),
    )
    groups = [group(g.kv_cache_spec) for g in s.kv_cache_config.kv_cache_groups]
    return vllm_config, SimpleNamespace(kv_cache_groups=groups)


def group(spec: Any) -> Any:
    return SimpleNamespace(kv_cache_spec=spec, host_resident=False)


class Tweaked(FullAttentionSpec):
    """A kind of full attention that we do not know."""


SHAPE = {"block_size": 16, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}


def with_group(c: Any, spec: Any) -> None:
    c[1].kv_cache_groups[0].kv_cache_spec = spec


CHANGES: dict[str, Callable[[Any], None]] = {
    "an encoder-cache connector": lambda c: setattr(c[0], "ec_transfer_config", object()),
    "a KV cache of RSWASpec": lambda c: with_group(c, RSWASpec(**SHAPE, rswa_window=64)),
    "a KV cache of CrossAttentionSpec": lambda c: c[1].kv_cache_groups.append(group(CrossAttentionSpec(**SHAPE))),
    "a KV cache of no group": lambda c: c[1].kv_cache_groups.clear(),
    "a KV cache of Tweaked": lambda c: with_group(c, Tweaked(**SHAPE)),
    "a KV cache of FullAttentionSpec": lambda c: setattr(c[1].kv_cache_groups[0], "host_resident", True),
    "--prefix-match-unit with Mamba or linear attention": lambda c: (
        setattr(c[0].model_config, "is_hybrid", True),
        setattr(c[0].cache_config, "prefix_match_unit", 16),
    ),
    "speculative decoding with Mamba or linear attention": lambda c: (
        setattr(c[0].model_config, "is_hybrid", True),
        setattr(c[0], "speculative_config", SimpleNamespace(method="ngram")),
    ),
    "HiSparse": lambda c: setattr(c[0].attention_config, "hisparse_config", object()),
    "a model that does not generate": lambda c: setattr(c[0].model_config, "runner_type", "pooling"),
    "an encoder-decoder model": lambda c: setattr(c[0].model_config, "is_encoder_decoder", True),
}


def test_what_is_supported_passes(config: tuple[Any, Any]) -> None:
    refuse_unsupported(*config)


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_not_is_refused_by_name(config: tuple[Any, Any], what: str) -> None:
    CHANGES[what](config)
    with pytest.raises(UnknownToFullError) as caught:
        refuse_unsupported(*config)
    line = f"vLLM configuration: {what.strip()} is not known to level full"
    assert str(caught.value) == f"{line}; --level order with the default policy serves it"


def test_every_feature_that_is_documented_has_its_test() -> None:
    root = Path(__file__).resolve().parents[3]
    rows = re.findall(
        r"^\| .* \| `(tests/[^`:]+)(?:::(\w+))?`", (root / "docs/guides/serving.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 10
    for path, name in rows:
        text = (root / path).read_text()
        assert f"def {name or 'test_'}" in text, f"{path}::{name}"


def test_an_older_vllm_without_encoder_connectors_passes(config: tuple[Any, Any]) -> None:
    del config[0].ec_transfer_config
    refuse_unsupported(*config)


def test_the_scheduler_refuses_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError("no")

    monkeypatch.setattr("ecoserve.serving.adapter.scheduler.refuse_unsupported", refuse)
    with pytest.raises(ConfigError, match="no"):
        scheduler_for(Case(()))
