"""The settings of a simulated run: one definition for ``ecoserve simulate`` and for sweeps."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.replica import Charge
from ecoserve.serving.simulate.router import RouterName

#: The GPU that is none: :class:`~ecoserve.serving.simulate.cost.LinearCost`, with this many usable KV blocks.
LINEAR: Final = "linear"
LINEAR_BLOCKS: Final = 1800


class SimulateSettings(BaseModel):
    """What to run in virtual time."""

    # JSON has no word for a rate of infinity.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    trace: str = Field(description="file, hub id, or synthetic[:N]")
    length_field: str | None = Field(None, description="field of the trace that holds the response length")
    tokenizer: str | None = None
    split: str | None = Field("dev", description="rows of this split only, where the trace has splits")
    policy: str = "ecoserve"
    lengths: str = Field("true", description="what is told: a form of ecoserve.serving.length_source")
    rate_rps: float | None = Field(None, gt=0, description="Poisson arrivals; inf: all at once; None: as recorded")
    seed: int = 0
    requests: int = Field(400, ge=1)
    depth: int = Field(1, ge=1, le=2, description="steps in flight")
    gpu: str = Field(LINEAR, description="a GPU's name, or linear: a step cost that is linear in its work")
    model: str | None = Field(None, description="on a GPU: the served model, a name or a folder with config.json")
    tp: int = Field(1, ge=1, description="on a GPU: GPUs of one replica (tensor parallel)")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="on a GPU: vLLM's share of its memory")
    blocks: int | None = Field(None, ge=2, description="usable KV blocks; None: what the GPU's memory holds")
    block_size: int = Field(16, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(2048, ge=1)
    max_model_len: int = Field(4096, ge=2)
    max_tokens: int = Field(2000, ge=1, description="the same for every request")
    prefix_caching: bool = False
    runner: int | None = Field(None, ge=1, le=2, description="model runner whose rules hold; by default V2 at depth 2")
    charge_scheduler: Charge = Field(
        "model", description="whose time scheduling costs: the GPU's model's, this machine's as measured, or none"
    )
    replicas: int = Field(1, ge=1, description="engines behind a router")
    router: RouterName = "least-tokens"
    slo_scale: float | None = Field(
        None, gt=0, description="deadline: this many times what an idle engine needs for the request"
    )
    slo_ttft_ms: float | None = Field(None, gt=0, description="SLO: time to first token")
    slo_tpot_ms: float | None = Field(None, gt=0, description="SLO: time per output token after the first")
    tell_slo: bool = Field(True, description="requests carry their SLO; else it only judges")
    scheduler: dict[str, Any] = Field(default_factory=dict, description="knobs of our scheduler")
    cost: LinearCost = Field(LinearCost(), description="of the linear GPU")

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is modelled."""
        return self.gpu != LINEAR
