"""The settings of a simulated run: one definition for ``ecoserve simulate`` and for sweeps."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.engine import EngineLimits
from ecoserve.serving.simulate.replica import Charge
from ecoserve.serving.simulate.router import RouterName
from ecoserve.serving.workload import LoadSettings

#: The GPU that is none: :class:`~ecoserve.serving.simulate.cost.LinearCost`, with this many usable KV blocks.
LINEAR: Final = "linear"
LINEAR_BLOCKS: Final = 1800


class SimulateSettings(EngineLimits, LoadSettings):
    """What to run in virtual time."""

    policy: str = Field("ecoserve", description="scheduling policy")
    requests: int = Field(400, ge=1, description="requests of a run")
    depth: int = Field(1, ge=1, le=2, description="steps in flight; 2 is vLLM's asynchronous scheduling")
    gpu: str = Field(LINEAR, description="a GPU, as h100_sxm; or linear: a step cost that is linear in its work")
    model: str | None = Field(
        None,
        description="served model on a GPU: a name or a folder with config.json",
        json_schema_extra={"metavar": "NAME|DIR"},
    )
    tp: int = Field(1, ge=1, description="GPUs of one replica (tensor parallel)")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="vLLM's share of the GPU's memory")
    blocks: int | None = Field(
        None,
        ge=2,
        description="usable KV blocks; by default as many as the GPU holds",
        json_schema_extra={"flag": "kv-blocks"},
    )
    max_tokens: int = Field(2000, ge=1, description="max_tokens of every request")
    runner: int | None = Field(None, ge=1, le=2, description="model runner whose rules hold; by default V2 at depth 2")
    charge_scheduler: Charge = Field(
        "model", description="time of scheduling: by the GPU's model, measured on this machine, or none"
    )
    replicas: int = Field(1, ge=1, description="engines behind a router")
    router: RouterName = Field("least-tokens", description="how the router chooses a replica")
    slo_scale: float | None = Field(
        None, gt=0, description="SLO: a multiple of what an idle engine needs for the request"
    )
    slo_ttft_ms: float | None = Field(None, gt=0, description="SLO: time to first token")
    slo_tpot_ms: float | None = Field(None, gt=0, description="SLO: time per output token after the first")
    tell_slo: bool = Field(True, description="requests carry their SLO; otherwise it is only used for attainment")
    scheduler: dict[str, Any] = Field(default_factory=dict, description="scheduler settings of ecoserve's policies")
    cost: LinearCost = Field(LinearCost(), description="cost of the linear GPU")

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is modelled."""
        return self.gpu != LINEAR
