"""What the scheduler counts: one definition, with its help text, for the metrics endpoint, runs and tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


def _counted(help_text: str, initial: Any = 0) -> Any:
    return field(default=initial, metadata={"help": help_text})


@dataclass(slots=True)
class Counters:
    """Events since the scheduler was made. Every field only grows."""

    steps: int = _counted("Scheduler steps.")
    pauses: int = _counted("Decoding requests paused: stopped with their KV kept.")
    resumes: int = _counted("Paused requests that were resumed.")
    preemptions: int = _counted("Requests whose KV was dropped, to be computed again.")
    recomputed_tokens: int = _counted("Tokens computed again after preemptions.")
    shortage_preemptions: int = _counted("Preemptions whose victim ecoserve chose in a shortage (the rest are vLLM's).")
    under_predictions: int = _counted("Responses that outlived their reservation.")
    over_predictions: int = _counted("Responses that ended before their reservation.")
    re_reservations: int = _counted("New reservations for responses that outlived the old one.")
    underprediction_own_space: int = _counted("Under-predictions covered by the request's own unlent space.")
    underprediction_re_reserved: int = _counted("Under-predictions covered by a new reservation from the posterior.")
    underprediction_global_reserve: int = _counted("Under-predictions covered by the global reserve.")
    underprediction_paused: int = _counted("Under-predictions resolved by a pause.")
    underprediction_guest_moved: int = _counted("Under-predictions resolved by moving the guest off its host.")
    underprediction_recomputed: int = _counted("Under-predictions resolved by preempting a victim.")
    predictions_used: int = _counted("Requests scheduled by a prediction that came with them.")
    predictions_missing: int = _counted("Requests without a prediction, scheduled by the history of finished lengths.")
    predictions_refused: int = _counted("Predictions that were not a valid length distribution.")
    slos_refused: int = _counted("SLO fields of requests that were not durations.")
    slo_requests: int = _counted("Requests that reached the scheduler with an SLO.")
    ttft_met: int = _counted("Requests whose first token came within their TTFT.")
    ttft_missed: int = _counted("Requests whose first token came later, or not in time before they ended.")
    tpot_met: int = _counted("Completed requests whose further tokens came within their TPOT.")
    tpot_missed: int = _counted("Completed requests whose further tokens came more slowly.")
    forced_admissions: int = _counted("Requests admitted against the policy because nothing else was running.")
    shortage_steps: int = _counted("Steps in which running requests needed more KV blocks than were free.")
    finished: int = _counted("Requests that left the scheduler.")

    def as_dict(self) -> dict[str, int]:
        """Every counter by its name."""
        return asdict(self)


@dataclass(slots=True)
class Gauges:
    """The state after the last step: KV blocks, numbers of requests, and what the correction does."""

    usable_blocks: int = _counted("KV blocks that requests can use.")
    held_blocks: int = _counted("KV blocks that requests hold.")
    reserved_blocks: int = _counted("KV blocks reserved for requests beyond what they hold.")
    lent_blocks: int = _counted("Reserved KV blocks lent to guests.")
    running: int = _counted("Running requests.")
    waiting_prompts: int = _counted("Requests that wait for their prefill.")
    waiting_generations: int = _counted("Requests that wait to decode, holding KV.")
    length_scale: float = _counted("Factor by which the correction scales predicted lengths when it scales them.", 1.0)
    coverage_90: float = _counted("Share of recent responses within their 0.9 quantile.", 0.9)
    length_source: str = _counted("1 for the source of lengths in use.", "predicted")
    common_error: float = _counted("Share of the lengths' uncertainty that requests have in common.", 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Every gauge by its name."""
        return asdict(self)
