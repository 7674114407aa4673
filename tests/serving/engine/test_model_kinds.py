"""Kinds of models whose KV is not one group of full attention: the same tokens on vLLM's CPU engine.

benchmarks/studies/model_kinds.py runs all kinds; these are two that are quick.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from model_kinds import compare, has_prefix_caching, make_folder

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("kind", ["gpt-oss", "Nemotron-H (Mamba hybrid)"])
def test_same_tokens_while_requests_are_paused_and_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader
    from vllm.model_executor.models import registry

    monkeypatch.setattr(registry, "_run_in_subprocess", registry._run_in_subprocess)
    monkeypatch.setattr(DummyModelLoader, "load_weights", DummyModelLoader.load_weights)  # put back at the end
    row = compare(kind, has_prefix_caching(kind), make_folder(kind, tmp_path / "model"), count=16)
    print(row)
    assert row["equal"] == 16
    assert row["pairs_that_differ"] >= 7, "tokens must depend on all of the KV"
    assert row["pauses"] > 0
    assert row["preemptions"] > 0
    assert row["preemptions_by_vllm"] == 0
