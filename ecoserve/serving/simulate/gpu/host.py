"""What the host does for a step, and what of it the GPU waits for.

With asynchronous scheduling (depth 2, vLLM's default since 0.14) the host schedules and launches a step while the GPU
works on the one before, so its time is hidden unless it is longer than the GPU's. What cannot be hidden lies between
two steps on the GPU itself: block tables and tokens copied into the next step's inputs, sampling, the small kernels
before and after the model. That is the *gap*, and a part of the step's time; what the host does is ``host_s``.

One constant is calibrated, the gap of each request in the batch: once, on the log of Llama-3.1-8B on an RTX PRO 6000
(vLLM 0.19; docs/fidelity.md). A captured graph is one launch, so the gap does not
grow with the model's layers. In that log the host never shows, so its own times are estimates: of the scheduler, about
half of what vLLM 0.32's takes on a machine of two slow cores.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

#: Bytes that sampling moves for one logit: read in 16 bits, written and read again in 32.
_LOGIT_BYTES = 10
#: Of the memory's peak, what such simple kernels reach.
_SIMPLE_KERNELS = 0.8


class HostTimes(BaseModel):
    """Seconds around the model's kernels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gap_s: float = Field(5e-5, ge=0, description="between any two steps on the GPU: a dozen small kernels")
    gap_request_s: float = Field(2.3e-6, ge=0, description="more of it for each request; calibrated")
    schedule_s: float = Field(0.3e-3, ge=0, description="scheduling a step and taking its output")
    schedule_request_s: float = Field(25e-6, ge=0, description="more of it for each request")
    launch_s: float = Field(1.0e-3, ge=0, description="preparing inputs and launching")
    launch_request_s: float = Field(5e-6, ge=0, description="more of it for each request")


def sampling_s(samples: int, vocab: int, bandwidth: float) -> float:
    """Seconds of sampling ``samples`` tokens, from what it reads and writes."""
    return samples * vocab * _LOGIT_BYTES / (_SIMPLE_KERNELS * bandwidth)
