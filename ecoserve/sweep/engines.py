"""What executes a sweep's runs: virtual time, a vLLM engine in the worker's process, or servers at URLs.

Each has a run function and a model of its settings, against which a plan is checked before anything is run.
"""

from __future__ import annotations

import os
from typing import Any, Final

from pydantic import BaseModel

from ecoserve.serving.client_run import ClientRunSettings, run_client
from ecoserve.serving.engine_run import EngineRunSettings
from ecoserve.serving.runs import RunResult
from ecoserve.serving.simulate.settings import SimulateSettings
from ecoserve.sweep.summary import Engine

#: The run function of each engine.
FUNCTIONS: Final[dict[Engine, str]] = {
    "virtual": "ecoserve.serving.simulate.run:simulate",
    "in-process": "ecoserve.serving.engine_run:run_engine",
    "url": "ecoserve.sweep.engines:at_url",
}
_MODELS: Final[dict[str, type[BaseModel]]] = {
    FUNCTIONS["virtual"]: SimulateSettings,
    FUNCTIONS["in-process"]: EngineRunSettings,
    FUNCTIONS["url"]: ClientRunSettings,
}
#: Environment variable with the servers' key; a plan, and so a result folder, never holds it.
API_KEY: Final = "VLLM_API_KEY"


def settings_model(function: str) -> type[BaseModel] | None:
    """The settings of a run function of ours; None for others, which are not imported for that."""
    return _MODELS.get(function)


def takes(function: str, setting: str) -> bool:
    """Whether a run function has a setting; others than ours are given everything."""
    model = settings_model(function)
    return model is None or setting in model.model_fields


def at_url(settings: ClientRunSettings) -> RunResult:
    """One run at a server, with the key of the environment."""
    key: dict[str, Any] = {"api_key": os.environ.get(API_KEY)}
    return run_client(settings.model_copy(update=key))
