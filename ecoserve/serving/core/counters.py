"""What the scheduler counts: one definition, read by the metrics endpoint, by runs and by tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Events since the scheduler was made. Every field only ever grows."""

    steps: int = 0
    #: decoding requests stopped with their KV kept, and started again
    pauses: int = 0
    resumes: int = 0
    #: requests whose KV was dropped, by whoever chose the victim, and the tokens computed again for it
    preemptions: int = 0
    recomputed_tokens: int = 0
    #: preemptions that our ladder chose (a part of ``preemptions``; the rest are vLLM's own choice)
    shortage_preemptions: int = 0
    #: a response outlived its reservation (under) or ended before it (over)
    under_predictions: int = 0
    over_predictions: int = 0
    #: new reservations made for responses that outlived the old one
    re_reservations: int = 0
    #: rungs of the ladder: who paid for an under-prediction
    underprediction_own_space: int = 0
    underprediction_re_reserved: int = 0
    underprediction_global_reserve: int = 0
    underprediction_paused: int = 0
    underprediction_guest_moved: int = 0
    underprediction_recomputed: int = 0
    #: where a request's length came from
    predictions_used: int = 0
    predictions_missing: int = 0
    predictions_refused: int = 0
    #: SLO fields that were no durations
    slos_refused: int = 0
    #: requests with an SLO, and what became of it (:mod:`~ecoserve.serving.core.attainment`)
    slo_requests: int = 0
    ttft_met: int = 0
    ttft_missed: int = 0
    tpot_met: int = 0
    tpot_missed: int = 0
    #: requests admitted although the policy said no, because nothing else was running
    forced_admissions: int = 0
    #: steps in which running requests needed more blocks than were free
    shortage_steps: int = 0
    finished: int = 0

    def as_dict(self) -> dict[str, int]:
        """Every counter by its name."""
        return asdict(self)


@dataclass(slots=True)
class Gauges:
    """The state after the last step: blocks of KV, numbers of requests, and what the correction does."""

    usable_blocks: int = 0
    held_blocks: int = 0
    reserved_blocks: int = 0
    lent_blocks: int = 0
    running: int = 0
    waiting_prompts: int = 0
    waiting_generations: int = 0
    #: the correction's factor on predicted lengths, the share of responses within their 0.9 quantile, whether the
    #: prediction (0), the scaled prediction (1) or history (2) is believed, and the lengths' common error
    length_scale: float = 1.0
    coverage_90: float = 0.9
    length_source: int = 0
    common_error: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Every gauge by its name."""
        return asdict(self)
