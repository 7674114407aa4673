"""Each supported feature of vLLM on a real engine, in one load that does not fit (docs/guides/serving.md).

A tiny model on vLLM's CPU engine. First vLLM's own scheduler with room for all, then ours with a KV so small
that it must pause; whatever a request asks for, it gets the same tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.engine_run import EngineRunSettings, engine_arguments, start_engine, stop_engine

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

#: Tokens of a step: prompts longer than this are prefilled in pieces.
STEP = 64
CITY = r"(Rome|Oslo|Lima) has [1-9][0-9]{2} towers"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass
class Seen:
    """What one engine did: by request, the token ids of each sibling, the first one's text, and when it happened."""

    tokens: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    #: request -> tokens computed in each step it was in; names without vLLM's random suffix
    steps: dict[str, list[int]] = field(default_factory=dict)
    ended_at: dict[str, int] = field(default_factory=dict)
    deltas: list[tuple[int, ...]] = field(default_factory=list)
    counters: Any = None
    blocks_missing: int = -1


class Load:
    """Hands requests to one engine and writes down what comes."""

    def __init__(self, engine: Any, adapter: Path) -> None:
        self.engine = engine
        self.adapter = adapter
        self.seen = Seen()
        self.scheduler = engine.engine_core.engine_core.scheduler
        self.tokenizer = engine.get_tokenizer()
        self.done = 0
        schedule = self.scheduler.schedule

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            for name, count in output.num_scheduled_tokens.items():
                self.seen.steps.setdefault(name[:-9], []).append(count)
            return output

        self.scheduler.schedule = noted

    def add(self, name: str, prompt: list[int], tokens: int, predicted: int, priority: int = 0, **params: Any) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.lora.request import LoRARequest

        lora = LoRARequest("own", 1, str(self.adapter)) if params.pop("lora", False) else None
        wire = LengthDistribution.lognormal(predicted, 0.2, 512).to_wire()
        known = {"temperature": 0.0, "max_tokens": tokens, "extra_args": {keys.LENGTHS: wire}, "ignore_eos": True}
        self.engine.add_request(
            name,
            TokensPrompt(prompt_token_ids=prompt),
            SamplingParams(**{**known, **params}),
            lora_request=lora,
            priority=priority,
        )

    def run(self, leaving: Mapping[int, str] | None = None) -> None:
        """Until all are done; those of ``leaving`` are aborted before the step that is their key."""
        for step in range(4000):
            if not self.engine.has_unfinished_requests():
                return
            if leaving and step in leaving:
                self.engine.abort_request([leaving[step]])
            self._step()
        raise AssertionError("no end")

    def _step(self) -> None:
        for output in self.engine.step():
            name = output.request_id
            if name == "streamed":
                self.seen.deltas.append(tuple(output.outputs[0].token_ids))
            if output.finished:
                self.done += 1
                self.seen.tokens[name] = [tuple(o.token_ids) for o in sorted(output.outputs, key=lambda o: o.index)]
                self.seen.text[name] = self.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)
                self.seen.cached[name] = output.num_cached_tokens or 0
                self.seen.ended_at[name] = self.done


def words(seed: int, count: int) -> list[int]:
    return [10 + (seed * 977 + i * i * 31 + i * 7) % 4000 for i in range(count)]


def play(engine: Any, adapter: Path, predicted: int) -> Seen:
    """All features, over 24 plain requests; ``predicted`` is the predicted length of all."""
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    load = Load(engine, adapter)
    shared = words(99, 96)
    for turn, length in (("first", 8), ("second", 40)):
        load.add(f"{turn} of a prefix", [*shared, *words(len(turn), 8)], length, predicted)
        load.run()
    leaving = {0: "aborted 0", 3: "aborted 1", 10: "aborted 2", 20: "aborted 3", 30: "aborted 4"}
    for i in range(5):
        load.add(f"aborted {i}", words(300 + i, 30), 100, 4)
    for i in range(24):
        load.add(f"plain {i}", words(200 + i, 12 + i), 70, predicted)
    load.add("long prompt", words(3, 5 * STEP), 30, predicted)
    # The most likely token each time, by the way of sampling: n > 1 is refused for greedy decoding, and vLLM's CPU
    # engine cannot run seeds together with prompts in pieces.
    whole = RequestOutputKind.FINAL_ONLY
    load.add("siblings", words(4, 20), 50, predicted, n=3, temperature=1.0, top_k=1, output_kind=whole)
    load.add("streamed", words(5, 20), 60, predicted, output_kind=RequestOutputKind.DELTA)
    load.add("urgent", words(6, 20), 10, predicted, priority=-1)
    regex = StructuredOutputsParams(regex=CITY)
    schema = StructuredOutputsParams(json=SCHEMA)
    load.add("regex", words(8, 20), 60, predicted, structured_outputs=regex, ignore_eos=False)
    load.add("schema", words(9, 20), 200, predicted, structured_outputs=schema, ignore_eos=False)
    load.run(leaving)
    # By themselves: on vLLM's CPU engine adapters change what requests without one beside them say.
    load.add("not adapted", words(700, 20), 60, predicted)
    load.run()
    for i in range(16):
        load.add(f"adapted {i}", words(700 + i, 20), 60, predicted, lora=True)
    load.run()
    engine.step()
    load.seen.counters = load.scheduler.counters
    load.seen.blocks_missing = load.scheduler.usable_blocks - load.scheduler.free_blocks
    return load.seen


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of random weights, large enough to change what the model says."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(2):
        for part in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            weights[f"{name}.lora_A.weight"] = torch.randn(8, 128, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(128, 8, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    return folder


def engine_for(model: Path, policy: str, blocks: int) -> Any:
    settings = EngineRunSettings(
        model=str(model),
        trace="-",
        policy=policy,
        blocks=blocks,
        block_size=32,
        max_num_seqs=32,
        max_num_batched_tokens=STEP,
        max_model_len=512,
        threads=1,
        scheduler={"check_every_step": True, "paused_share": 0.3} if policy != "vllm" else {},
        engine={
            "enable_lora": True,
            "max_lora_rank": 8,
            "scheduling_policy": "priority",
            "logits_processors": None,
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
    )
    return start_engine(engine_arguments(settings), settings.threads)


@pytest.fixture(scope="module")
def stock(tiny_model: Path, adapter: Path) -> Seen:
    """vLLM's own scheduler, with room for all."""
    engine = engine_for(tiny_model, "vllm", 400)
    try:
        return play(engine, adapter, 60)
    finally:
        stop_engine(engine)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Any]:
    """Ours, in a process that has only this one at the time, with a KV that a few requests fill."""
    made = engine_for(tiny_model, "ecoserve", 24)
    yield made
    stop_engine(made)


@pytest.fixture(scope="module")
def ours(stock: Seen, engine: Any, adapter: Path) -> Seen:
    return play(engine, adapter, 12)


def test_the_load_presses(ours: Seen, stock: Seen) -> None:
    assert stock.counters.preemptions == 0
    assert ours.counters.pauses > 0
    assert ours.counters.resumes > 0
    assert ours.counters.recomputed_tokens > 0
    assert set(ours.tokens) == set(stock.tokens)
    assert len(ours.tokens) == 49


def test_plain_requests_and_the_one_kv_group(ours: Seen, stock: Seen) -> None:
    for i in range(24):
        assert len(ours.tokens[f"plain {i}"][0]) == 70
        assert ours.tokens[f"plain {i}"] == stock.tokens[f"plain {i}"]


def test_prefix_caching(ours: Seen, stock: Seen) -> None:
    assert stock.cached["second of a prefix"] == ours.cached["second of a prefix"] == 96
    assert ours.tokens["second of a prefix"] == stock.tokens["second of a prefix"]
    assert ours.tokens["first of a prefix"] == stock.tokens["first of a prefix"]


def test_chunked_prefill(ours: Seen, stock: Seen) -> None:
    prefills = [n for n in ours.steps["long prompt"] if n > 1]
    assert len(prefills) >= 5
    assert max(prefills) <= STEP
    assert ours.tokens["long prompt"] == stock.tokens["long prompt"]


def test_several_answers_of_one_prompt(ours: Seen, stock: Seen) -> None:
    assert len(ours.tokens["siblings"]) == 3
    assert ours.tokens["siblings"] == stock.tokens["siblings"]


def test_streamed_tokens_come_once_and_in_order(ours: Seen, stock: Seen) -> None:
    for seen in (ours, stock):
        assert len(seen.deltas) > 10
    assert sum(ours.deltas, ()) == sum(stock.deltas, ())
    assert len(sum(ours.deltas, ())) == 60


def test_priorities(ours: Seen, stock: Seen) -> None:
    """Handed over after 24 others, it is done before all of them."""
    assert ours.ended_at["urgent"] < min(ours.ended_at[f"plain {i}"] for i in range(24))
    assert ours.tokens["urgent"] == stock.tokens["urgent"]


def test_lora(ours: Seen, stock: Seen) -> None:
    for i in range(16):
        assert ours.tokens[f"adapted {i}"] == stock.tokens[f"adapted {i}"]
    assert ours.tokens["not adapted"] == stock.tokens["not adapted"]
    assert ours.tokens["adapted 0"] != ours.tokens["not adapted"], "the same prompt"


def test_structured_output(ours: Seen, stock: Seen) -> None:
    assert re.fullmatch(CITY, ours.text["regex"])
    assert set(json.loads(ours.text["schema"])) == {"name", "age"}
    assert (ours.text["regex"], ours.text["schema"]) == (stock.text["regex"], stock.text["schema"])


def test_aborts_give_everything_back(ours: Seen) -> None:
    assert not any(name.startswith("aborted") for name in ours.tokens)
    assert ours.blocks_missing == 0
    begun = [name for name, steps in ours.steps.items() if name.startswith("aborted") and len(steps) > 1]
    assert 2 <= len(begun) < 5, "some were decoding, some had not begun"


def test_forwards_are_timed_on_a_live_engine(ours: Seen, engine: Any) -> None:
    from ecoserve.serving.forward_run import profile_sizes, target_forward_size, time_forwards

    before = engine.engine_core.engine_core.scheduler.counters.finished
    done: list[tuple[int, int]] = []
    run = time_forwards(engine, STEP, 32, lambda *at: done.append(at))
    assert [n for n, _ in run.times] == profile_sizes(STEP) == [16, 24, 32, 48, 64]
    assert all(s > 0 for _, s in run.times)
    assert done == [(i + 1, 5) for i in range(5)]
    assert run.ttft_s > 0
    assert run.tpot_s > 0
    assert 16 <= target_forward_size(run.times).tokens <= STEP
    # Each size is one forward: 1, 1, 1, 2, 2 prompts, each timed one to five times after one that does not count.
    assert 2 * 7 + 4 <= engine.engine_core.engine_core.scheduler.counters.finished - before <= 6 * 7 + 4
