"""The replay logits processor, driven as vLLM's two model runners drive it; sampling takes the largest logit."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ecoserve.serving.core import keys

pytestmark = pytest.mark.filterwarnings("ignore")  # of importing vLLM and torch

VOCABULARY, EOS, STOP, OTHER_EOS = 12, 2, 5, 7


@pytest.fixture(scope="module")
def replay() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ecoserve.serving.adapter import replay as module
    return module


def params(tokens: int | None, **more: Any) -> Any:
    from vllm import SamplingParams

    extra = {} if tokens is None else {keys.REPLAY_TOKENS: tokens}
    out = SamplingParams(extra_args=extra or None, max_tokens=100, stop_token_ids=[STOP], **more)
    out.update_from_generation_config({"eos_token_id": [EOS, OTHER_EOS]}, EOS)
    return out


def logits(rng: random.Random, rows: int) -> Any:
    """Logits whose largest is, often, a token that would end the response."""
    import torch

    values = torch.tensor([[rng.gauss(0, 1) for _ in range(VOCABULARY)] for _ in range(rows)])
    for row in range(rows):
        if rng.random() < 0.5:
            values[row, rng.choice([EOS, STOP, OTHER_EOS])] = 9.0
    return values


def ended(output: list[int]) -> bool:
    return bool(output) and output[-1] in (EOS, STOP, OTHER_EOS)


@pytest.mark.parametrize("seed", range(5))
def test_v1_exact_lengths_while_requests_join_leave_and_move(replay: Any, seed: int) -> None:
    import torch
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.sample.logits_processor.interface import MoveDirectionality

    rng = random.Random(seed)
    processor = replay.ReplayLogitsProcessor(None, torch.device("cpu"), False)
    assert processor.is_argmax_invariant() is False
    todo = [(i, rng.choice([1, 2, 3, 7, 20, None])) for i in range(60)]
    wanted = dict(todo)
    outputs: dict[int, list[int]] = {i: [] for i, _ in todo}
    finished: dict[int, list[int]] = {}
    batch: list[int] = []
    while todo or batch:
        removed, added, moved = [], [], []
        before = len(batch)
        for row in sorted((r for r, name in enumerate(batch) if ended(outputs[name])), reverse=True):
            finished[batch[row]] = outputs[batch[row]]
            removed.append(row)
        # Now and then one is preempted: it leaves, and comes back later with what it has generated.
        if batch and rng.random() < 0.3:
            row = rng.randrange(len(batch))
            if row not in removed:
                removed.append(row)
                todo.append((batch[row], wanted[batch[row]]))
        keep: list[int | None] = [None if r in removed else name for r, name in enumerate(batch)]
        free = sorted(removed)
        while todo and (free or len(keep) < 8):
            name, tokens = todo.pop(0)
            row = free.pop(0) if free else len(keep)
            keep[row : row + 1] = [name]
            added.append((row, params(tokens), [1, 1], outputs[name]))
        removed = free  # a row that is taken again at once is not reported as removed
        while None in keep:  # condense: the last one fills the first hole
            last = keep.pop()
            if last is not None:
                hole = keep.index(None)
                keep[hole] = last
                moved.append((len(keep), hole, MoveDirectionality.UNIDIRECTIONAL))
        batch = [name for name in keep if name is not None]
        if len(batch) > 1 and rng.random() < 0.5:
            a, b = rng.sample(range(len(batch)), 2)
            batch[a], batch[b] = batch[b], batch[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        changed = bool(removed or added or moved) or before != len(batch)
        update = BatchUpdate(batch_size=len(batch), removed=removed, added=added, moved=moved) if changed else None
        processor.update_state(update)
        if not batch:
            continue
        picked = processor.apply(logits(rng, len(batch))).argmax(dim=-1).tolist()
        for name, token in zip(batch, picked, strict=True):
            outputs[name].append(token)
    assert len(finished) == 60
    for name, output in finished.items():
        if wanted[name] is not None:
            assert len(output) == wanted[name]
            assert output[-1] == EOS
        assert not any(ended([t]) for t in output[:-1])


@pytest.mark.parametrize("seed", range(5))
def test_v2_exact_lengths_while_slots_are_used_again(replay: Any, seed: int) -> None:
    import torch
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState

    rng = random.Random(seed)
    prompts = np.zeros(6, dtype=np.int32)
    unused: Any = None
    slots = LogitsProcRequestState(
        device=torch.device("cpu"),
        max_num_reqs=6,
        vocab_size=VOCABULARY,
        all_token_ids=unused,
        prompt_len=SimpleNamespace(np=prompts),  # type: ignore[arg-type]
        prefill_len=unused,
        total_len=unused,
    )
    processor = replay.ReplayLogitsProcessor(None, slots)
    todo = [(i, rng.choice([1, 2, 3, 7, 20, None])) for i in range(40)]
    wanted, outputs = dict(todo), {i: [] for i, _ in todo}  # type: ignore[var-annotated]
    holders: dict[int, int] = {}
    count = 0
    while todo or holders:
        for slot in [s for s, name in holders.items() if ended(outputs[name])]:
            del holders[slot]
        if holders and rng.random() < 0.2:  # a preemption gives the slot back
            slot = rng.choice(list(holders))
            name = holders.pop(slot)
            todo.append((name, wanted[name]))
        for slot in range(6):
            if slot not in holders and todo:
                name, tokens = todo.pop(0)
                holders[slot] = name
                prompts[slot] = 3 + name % 4
                assert processor.add_request(slot, params(tokens)) is (tokens is not None)
        processor.apply_staged_writes()
        rows = rng.sample(sorted(holders), len(holders))
        if not rows:
            continue
        seen = np.array([prompts[s] + len(outputs[holders[s]]) for s in rows], dtype=np.int32)
        ctx = LogitsContext(
            expanded_idx_mapping=torch.tensor(rows),
            idx_mapping=torch.tensor(rows),
            idx_mapping_np=np.array(rows, dtype=np.intp),
            expanded_local_pos=torch.zeros(len(rows), dtype=torch.int64),
            input_ids=torch.zeros(len(rows), dtype=torch.int64),
            pos=torch.tensor(seen - 1),
            seq_lens_upper_bound_np=seen,
        )
        picked = processor.apply(logits(rng, len(rows)), ctx).argmax(dim=-1).tolist()
        for slot, token in zip(rows, picked, strict=True):
            outputs[holders[slot]].append(token)
        count += 1
    assert count > 20
    for name, tokens in wanted.items():
        if tokens is not None:
            assert len(outputs[name]) == tokens
            assert outputs[name][-1] == EOS


def test_recorded_lengths_win_over_min_tokens(replay: Any) -> None:
    """vLLM forbids EOS before ``min_tokens`` ahead of us; the forced row allows it again."""
    import torch
    from vllm.v1.sample.logits_processor import BatchUpdate

    processor = replay.ReplayLogitsProcessor(None, torch.device("cpu"), False)
    added = [(0, params(1, min_tokens=50), [1], [])]
    processor.update_state(BatchUpdate(batch_size=1, removed=[], added=added, moved=[]))
    values = torch.zeros(1, VOCABULARY)
    values[0, EOS] = -torch.inf
    out = processor.apply(values)
    assert out.argmax().item() == EOS
    assert torch.isneginf(out).sum().item() == VOCABULARY - 1


def test_a_model_without_eos_is_ended_by_a_stop_token_or_left_alone(replay: Any) -> None:
    from vllm import SamplingParams

    extra = {keys.REPLAY_TOKENS: 4}
    with_stop = SamplingParams(extra_args=extra, stop_token_ids=[STOP])
    assert replay.Recorded.of(with_stop) == replay.Recorded(4, STOP, (STOP,))
    assert replay.Recorded.of(SamplingParams(extra_args=extra)) is None
    assert replay.Recorded.of(SamplingParams()) is None


@pytest.mark.parametrize("value", [0, -1, 2.5, "7", True, [3]])
def test_a_length_that_is_none_is_refused(replay: Any, value: Any) -> None:
    from vllm import SamplingParams

    with pytest.raises(ValueError, match=keys.REPLAY_TOKENS):
        replay.ReplayLogitsProcessor.validate_params(SamplingParams(extra_args={keys.REPLAY_TOKENS: value}))


@pytest.mark.parametrize("more", [{"ignore_eos": True}, {"stop": ["x"]}])
def test_what_would_break_the_promise_is_refused(replay: Any, more: dict[str, Any]) -> None:
    from vllm import SamplingParams

    check = replay.ReplayLogitsProcessor.validate_params
    check(SamplingParams(**more))
    check(SamplingParams(extra_args={keys.REPLAY_TOKENS: 5}))
    with pytest.raises(ValueError, match="does not go together"):
        check(SamplingParams(extra_args={keys.REPLAY_TOKENS: 5}, **more))
