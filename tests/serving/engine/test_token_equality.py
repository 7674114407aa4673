"""The same tokens as vLLM's own scheduler, while requests are paused, resumed and computed again.

Greedy decoding of a tiny real model on vLLM's CPU engine; a cache so small that neither scheduler gets through without
trouble. A wrong block table, a lost token or a resumed request that starts one position off shows up as other tokens.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.policies import POLICIES

pytestmark = pytest.mark.engine

REQUESTS = 100
STOCK = "ecoserve.serving.adapter.counting.CountingScheduler"
OURS = "ecoserve.serving.adapter.scheduler.EcoServeScheduler"


@dataclass
class Outcome:
    """Tokens of every request, what the scheduler counted, whether all KV came back, and tokens of a decode's step."""

    tokens: list[tuple[int, ...]]
    counters: Counters
    blocks_missing: int
    tokens_per_step: float


def generate(
    model: Path, scheduler: str, blocks: int, settings: dict[str, Any], source: str, **features: Any
) -> Outcome:
    """Run the prompts through one engine; ``features``: vLLM's arguments besides."""
    from vllm import LLM, SamplingParams

    rng = random.Random(7)
    lengths = [rng.randint(4, 96) for _ in range(REQUESTS)]
    noise = random.Random(8)

    def extra(length: int) -> dict[str, Any] | None:
        if source == "none":
            return None
        if source == "far too short":
            return {keys.LENGTHS: LengthDistribution.lognormal(4, 0.1, 512).to_wire()}
        median = max(1.0, length * noise.lognormvariate(0.0, 0.6))
        return {keys.LENGTHS: LengthDistribution.lognormal(median, 0.6, 512).to_wire()}

    engine = LLM(
        model=str(model),
        enforce_eager=True,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=64,
        distributed_executor_backend="uni",
        num_gpu_blocks_override=blocks,
        block_size=32,
        enable_prefix_caching=False,
        scheduler_cls=scheduler,
        additional_config={"ecoserve": settings} if settings else {},
        **features,
    )
    prompts = [f"def f{i}(x): return x * {i}" + " # again" * (i % 19) for i in range(REQUESTS)]
    params = [SamplingParams(max_tokens=n, ignore_eos=True, temperature=0.0, extra_args=extra(n)) for n in lengths]
    outputs = engine.generate(prompts, params, use_tqdm=False)
    core = engine.llm_engine.engine_core.engine_core.scheduler
    outcome = Outcome(
        [tuple(o.outputs[0].token_ids) for o in outputs],
        core.counters,
        core.usable_blocks - core.free_blocks,
        core.planner.pace.tokens_per_step if scheduler == OURS else 1.0,
    )
    assert [len(t) for t in outcome.tokens] == lengths
    engine.llm_engine.engine_core.shutdown()
    del engine, core
    gc.collect()
    return outcome


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Outcome:
    """vLLM's own scheduler, with room for all."""
    outcome = generate(tiny_model, STOCK, blocks=1200, settings={}, source="none")
    assert outcome.counters.preemptions == 0
    return outcome


#: What happens in so small a cache; where the whole response is promised, nothing is paused or preempted.
TROUBLE = {"ecoserve": "preemptions", "orca": None}


@pytest.mark.parametrize(
    ("settings", "source", "must_happen"),
    [
        *(
            pytest.param(
                {"policy": policy, "check_every_step": True, "epsilon": 0.5},
                "noisy",
                [TROUBLE.get(policy, "pauses")],
                id=policy,
            )
            for policy, row in POLICIES.items()
            if not row.fixed_forward
        ),
        pytest.param({"epsilon": 0.5}, "far too short", ["preemptions"], id="ecoserve, misled"),
        pytest.param(
            {"epsilon": 0.5, "paused_share": 0.3},
            "far too short",
            ["pauses", "preemptions"],
            id="ecoserve, that pauses",
        ),
    ],
)
def test_same_tokens_while_requests_are_paused(
    tiny_model: Path, reference: Outcome, settings: dict[str, Any], source: str, must_happen: list[str | None]
) -> None:
    ours = generate(tiny_model, OURS, blocks=40, settings=settings, source=source)
    equal = sum(a == b for a, b in zip(ours.tokens, reference.tokens, strict=True))
    print(f"{equal} of {REQUESTS} equal, {ours.counters}")
    assert equal == REQUESTS
    assert ours.blocks_missing == 0
    for name in must_happen:
        assert name is None or getattr(ours.counters, name) > 0, name
    assert ours.counters.resumes > 0 or "pauses" not in must_happen


#: Drafts that the prompt holds, as the model's answers repeat themselves.
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


@pytest.fixture
def drafting() -> Iterator[None]:
    """vLLM registers its kernels anew for every engine, and trips over llvmlite once drafts have loaded that."""
    from vllm.platforms import current_platform

    yield
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda _: None)  # they are registered


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # numba, of what vLLM's drafter gives it
@pytest.mark.usefixtures("drafting")
def test_same_tokens_with_drafts_while_requests_are_paused(tiny_model: Path, reference: Outcome) -> None:
    """A paused request's drafts are dropped, and those under way are accepted or refused before it goes on."""
    settings = {"epsilon": 0.5, "paused_share": 0.3, "check_every_step": True}
    ours = generate(tiny_model, OURS, 40, settings, "far too short", speculative_config=NGRAM)
    assert ours.tokens == reference.tokens
    assert ours.blocks_missing == 0
    assert min(ours.counters.pauses, ours.counters.resumes, ours.counters.preemptions) > 0
    assert ours.counters.preemptions == ours.counters.shortage_preemptions, "drafts were not counted"
    assert ours.tokens_per_step > 1.1, "hardly any draft was accepted"
