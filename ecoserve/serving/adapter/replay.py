"""ReplayLogitsProcessor: gives responses the lengths that a trace recorded.

Given to vLLM by ``--logits-processors ecoserve.serving.adapter.replay:ReplayLogitsProcessor``. A request with
``ecoserve_replay_tokens: n`` in its ``extra_args`` generates exactly n tokens, the last of them EOS (it counts): EOS
and stop tokens are impossible before, and nothing else is possible then. vLLM's own ``--enable-trace-replay`` sets
``max_tokens`` to the recorded length, which gives the truth away to the scheduler; that is why it is not used.

One class for both of vLLM's model runners: V1 reports requests that join, leave and move within the batch, V2 keeps a
slot per request and maps rows to slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from ecoserve.serving.core import keys


@dataclass(frozen=True, slots=True)
class Recorded:
    """The length forced on a response: ``tokens`` in all, the last of them ``end``; ``stops`` would end it too."""

    tokens: int
    end: int
    stops: tuple[int, ...]

    @classmethod
    def of(cls, params: SamplingParams) -> Recorded | None:
        """The length that a request asks for; None if none, or if no token could end the response."""
        tokens = recorded_tokens(params.extra_args)
        if tokens is None:
            return None
        stops = sorted(params.all_stop_token_ids)
        own = params.stop_token_ids or ()
        end = params.eos_token_id if params.eos_token_id is not None else next(iter(own), None)
        return None if end is None else cls(tokens, end, tuple(stops))


def recorded_tokens(extra_args: Mapping[str, Any] | None) -> int | None:
    """The recorded length in a request's arguments, in tokens, or None.

    Raises:
        ValueError: if it is not an integer of at least 1.
    """
    value = (extra_args or {}).get(keys.REPLAY_TOKENS)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise ValueError(f"{keys.REPLAY_TOKENS} must be an integer of at least 1, got {value!r}")
    return int(value)


class ReplayLogitsProcessor(LogitsProcessorV1, LogitsProcessorV2):
    """Forces recorded lengths; ``where``: under V1 the logits' device, under V2 the runner's request slots."""

    def __init__(
        self, vllm_config: Any, where: torch.device | LogitsProcRequestState, is_pin_memory: bool | None = None
    ) -> None:
        self._slots = where if isinstance(where, LogitsProcRequestState) else None
        self._device = where.device if isinstance(where, LogitsProcRequestState) else where
        # V1: row -> (recorded, the runner's own growing list of output tokens). V2: slot -> recorded.
        self._rows: dict[int, tuple[Recorded, Sequence[int]]] = {}
        self._held: dict[int, Recorded] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse parameters that could end a response early or keep it from ending (vLLM answers HTTP 400).

        Raises:
            ValueError: naming the parameter.
        """
        if recorded_tokens(sampling_params.extra_args) is None:
            return
        for unfit, name in (
            (sampling_params.ignore_eos, "ignore_eos"),
            (sampling_params.stop, "stop strings"),
            (sampling_params.structured_outputs is not None, "structured outputs"),
            (sampling_params.thinking_token_budget is not None, "thinking_token_budget"),
            (sampling_params.repetition_detection is not None, "repetition_detection"),
        ):
            if unfit:
                raise ValueError(f"{keys.REPLAY_TOKENS} does not go together with {name}")

    def is_argmax_invariant(self) -> bool:
        """V1: no; it changes what greedy sampling finds."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """V1: follow the batch. A request that comes back after a preemption brings what it has generated."""
        process_dict_updates(self._rows, batch_update, _join)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request takes a slot."""
        recorded = Recorded.of(sampling_params)
        if recorded is None:
            self._held.pop(req_idx, None)
            return False
        self._held[req_idx] = recorded
        return True

    def apply(self, logits: torch.Tensor, ctx: LogitsContext | None = None) -> torch.Tensor:
        """Forbid or force the end of each response; logits ``[rows, vocabulary]``, changed in place."""
        rows: list[int] = []
        tokens: list[int] = []
        ends: list[int] = []
        for row, recorded, generated in self._due(ctx):
            if generated + 1 >= recorded.tokens:
                ends.append(row)
                rows.append(row)
                tokens.append(recorded.end)
            else:
                rows += [row] * len(recorded.stops)
                tokens += recorded.stops
        if ends:
            # Everything is forbidden in these rows; the one token that ends them is allowed again below.
            logits.index_fill_(0, self._tensor(ends), -torch.inf)
        if rows:
            ending = set(ends)
            values = torch.tensor([0.0 if row in ending else -torch.inf for row in rows], dtype=logits.dtype)
            index = (self._tensor(rows), self._tensor(tokens))
            logits.index_put_(index, values.to(logits.device, non_blocking=True))
        return logits

    def _due(self, ctx: LogitsContext | None) -> list[tuple[int, Recorded, int]]:
        """(row of the logits, its recorded length, tokens generated before this step) of every row that has one."""
        if ctx is None:
            return [(row, recorded, len(output)) for row, (recorded, output) in self._rows.items()]
        if not self._held:
            return []
        assert self._slots is not None
        prompts = self._slots.prompt_len.np
        # Without speculative decoding, which is refused beside it, every request has one row, and the bounds are exact.
        return [
            (row, recorded, int(ctx.seq_lens_upper_bound_np[row]) - int(prompts[slot]))
            for row, slot in enumerate(ctx.idx_mapping_np.tolist())
            if (recorded := self._held.get(slot)) is not None
        ]

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)


def _join(
    params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
) -> tuple[Recorded, list[int]] | None:
    recorded = Recorded.of(params)
    return None if recorded is None else (recorded, output_ids)
