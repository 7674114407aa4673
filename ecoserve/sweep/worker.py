"""Run functions: those of each engine, and one run in any process, with what it raises as an outcome.

A run function takes its settings (checked if annotated with a pydantic model) and returns a
:class:`~ecoserve.serving.runs.RunResult`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import time
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel

from ecoserve.errors import ConfigError, EcoServeError
from ecoserve.options import checked
from ecoserve.serving.client_run import ClientRunSettings, run_client
from ecoserve.serving.engine_run import EngineRunSettings
from ecoserve.serving.runs import RunResult
from ecoserve.serving.simulate.settings import SimulateSettings
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.summary import Engine

FUNCTIONS: Final[dict[Engine, str]] = {
    "virtual": "ecoserve.serving.simulate.run:simulate",
    "in-process": "ecoserve.serving.engine_run:run_engine",
    "url": "ecoserve.sweep.worker:at_url",
}
_MODELS: Final[dict[str, type[BaseModel]]] = {
    FUNCTIONS["virtual"]: SimulateSettings,
    FUNCTIONS["in-process"]: EngineRunSettings,
    FUNCTIONS["url"]: ClientRunSettings,
}
#: Environment variable with the servers' key; a plan, and so a result folder, never holds it.
API_KEY: Final = "VLLM_API_KEY"


def settings_model(function: str) -> type[BaseModel] | None:
    return _MODELS.get(function)


def takes(function: str, setting: str) -> bool:
    model = settings_model(function)
    return model is None or setting in model.model_fields


def at_url(settings: ClientRunSettings) -> RunResult:
    key: dict[str, Any] = {"api_key": os.environ.get(API_KEY)}
    return run_client(settings.model_copy(update=key))


#: The error of a run whose process is gone.
DIED: Final = "its process died (killed, or out of memory)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's result, or one line of error with the traceback behind it (empty for user errors)."""

    result: RunResult | None
    error: str = ""
    details: str = ""
    wall_s: float = 0.0


#: Called with a run and its outcome; it may add further runs to the queue.
Record = Callable[[PlannedRun, Outcome], None]


def perform(function: str, settings: Mapping[str, Any]) -> Outcome:
    """Call a run function by its dotted name; whatever it raises becomes an outcome, except Ctrl-C."""
    start = time.perf_counter()
    try:
        call, model = find_function(function)
        result = call(settings if model is None else checked(model, settings, "settings"))
        if not isinstance(result, RunResult):
            raise TypeError(f"{function} returned {type(result).__name__}, not a RunResult")
    except EcoServeError as error:
        return Outcome(None, str(error), wall_s=time.perf_counter() - start)
    except Exception as error:  # noqa: BLE001 - one run's failure, of whatever kind, must not end the others
        return Outcome(None, in_a_line(error), traceback.format_exc(), wall_s=time.perf_counter() - start)
    return Outcome(result, wall_s=time.perf_counter() - start)


def in_a_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@lru_cache(maxsize=8)
def find_function(name: str) -> tuple[Callable[[Any], RunResult], type[BaseModel] | None]:
    """The function behind ``module:name`` and its argument's pydantic model, if any; raises ConfigError without one."""
    module_name, _, attribute = name.partition(":")
    try:
        call = getattr(importlib.import_module(module_name), attribute)
        first = next(iter(inspect.signature(call).parameters))
        model = typing.get_type_hints(call).get(first)
    except (ImportError, AttributeError, TypeError, ValueError, StopIteration) as error:
        fix = "name it as module:function with one argument"
        raise ConfigError(f"no run function {name} ({error})", where="run", fix=fix) from error
    return call, model if isinstance(model, type) and issubclass(model, BaseModel) else None
