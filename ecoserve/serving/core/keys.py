"""Names under which our values travel in a request's ``extra_args`` (HTTP: ``vllm_xargs``)."""

from __future__ import annotations

from typing import Final

#: What every key of ours begins with.
PREFIX: Final = "ecoserve_"
#: The request's length distribution, as :meth:`ecoserve.lengths.LengthDistribution.to_wire` writes it.
LENGTHS: Final = "ecoserve_lengths"
#: The distributions of a batch of prompts: ``[count, n_0, *wire_0, n_1, *wire_1, ...]``.
LENGTHS_BATCH: Final = "ecoserve_lengths_batch"
#: The deadline of the last token, in seconds after arrival.
DEADLINE: Final = "ecoserve_deadline_s"
#: The time to the first token that is asked for, and the time per further token: seconds.
SLO_TTFT: Final = "ecoserve_slo_ttft_s"
SLO_TPOT: Final = "ecoserve_slo_tpot_s"
#: The recorded length that replay forces. The scheduler never reads it.
REPLAY_TOKENS: Final = "ecoserve_replay_tokens"
#: Every key of ours; clients may not send them unless the operator allows it.
ALL: Final = (LENGTHS, LENGTHS_BATCH, DEADLINE, SLO_TTFT, SLO_TPOT, REPLAY_TOKENS)
