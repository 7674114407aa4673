"""One run, in any process: find the run function, check its settings, call it, turn what it raises into an outcome.

A run function takes one argument, its settings, and returns a :class:`~ecoserve.serving.runs.RunResult`. If the
argument is annotated with a pydantic model, the settings are checked against it.
"""

from __future__ import annotations

import importlib
import inspect
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
from ecoserve.serving.runs import RunResult

#: The error of a run whose process is gone.
DIED: Final = "its process died (killed, or out of memory)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's result, or one line of error with the traceback behind it (empty for user errors)."""

    result: RunResult | None
    error: str = ""
    details: str = ""
    wall_s: float = 0.0


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
    """An exception's class and message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@lru_cache(maxsize=8)
def find_function(name: str) -> tuple[Callable[[Any], RunResult], type[BaseModel] | None]:
    """The function behind ``module:name`` and the pydantic model of its first argument, if it has one.

    Raises:
        ConfigError: if there is no such function.
    """
    module_name, _, attribute = name.partition(":")
    try:
        call = getattr(importlib.import_module(module_name), attribute)
        first = next(iter(inspect.signature(call).parameters))
        model = typing.get_type_hints(call).get(first)
    except (ImportError, AttributeError, TypeError, ValueError, StopIteration) as error:
        fix = "name it as module:function with one argument"
        raise ConfigError(f"no run function {name} ({error})", where="run", fix=fix) from error
    return call, model if isinstance(model, type) and issubclass(model, BaseModel) else None
