"""The settings of an application on a Ray cluster: ``args`` of a config file of Ray Serve."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.routing import RouterName


class RaySettings(MiddlewareSettings):
    """Those of the ingress, which are the middleware's, and those of the replicas."""

    model: str = Field(description="the model to serve: a folder, or a hub id")
    policy: str = Field("ecoserve", description="scheduling policy; vllm for vLLM's own scheduler")
    vllm: tuple[str, ...] = Field((), description="flags of vllm serve")
    replicas: int = Field(1, ge=1, description="replicas; with max_replicas the fewest")
    max_replicas: int | None = Field(None, ge=1, description="most replicas; without it their number is fixed")
    target_work: float = Field(
        400_000.0, gt=0, description="expected work that autoscaling keeps open on each replica, tokens"
    )
    upscale_delay_s: float = Field(10.0, ge=0, description="autoscaling: wait before replicas are added")
    downscale_delay_s: float = Field(300.0, ge=0, description="autoscaling: wait before replicas are taken away")
    router: RouterName = Field("least-work", description="how the router chooses a replica")
    report_period_s: float = Field(0.1, gt=0, description="time between two reports of a replica to the router")
    max_requests: int = Field(1024, ge=1, description="open requests of a replica")
    drain_s: float = Field(300.0, ge=0, description="time that a replica has for its open requests when it is to end")
    health_period_s: float = Field(5.0, gt=0, description="time between two health checks of a replica")
    cpus: float = Field(1.0, ge=0, description="CPUs of a replica, for Ray's placement")
    gpus: float = Field(1.0, ge=0, description="GPUs of a replica, for Ray's placement")
    ingress_replicas: int = Field(1, ge=1, description="processes that predict and forward")
    ingress_cpus: float = Field(1.0, ge=0, description="CPUs of each of them, for Ray's placement")

    @model_validator(mode="after")
    def _consistent(self) -> RaySettings:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        if self.learn is not None or self.admin_key is not None or self.max_queue_s is not None:
            raise ValueError("learn, admin_key and max_queue_s are settings of one server, not of several replicas")
        return self

    def middleware(self, **changed: Any) -> MiddlewareSettings:
        own = self.model_dump(include=set(MiddlewareSettings.model_fields), exclude_defaults=True)
        return MiddlewareSettings(**{**own, **changed})
