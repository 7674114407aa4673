"""One run in whatever process it happens: find the run function, check its settings, call it, catch what goes wrong.

A run function takes one argument, its settings, and returns a :class:`~ecoserve.serving.runs.RunResult`. If the
argument is annotated with a pydantic model, settings are checked against it, so a mistyped setting is named.
"""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import os
import signal
import threading
import time
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.process import BaseProcess
from typing import Any, Final

from pydantic import BaseModel

from ecoserve.errors import ConfigError, EcoServeError
from ecoserve.options import checked
from ecoserve.serving.runs import RunResult

#: What is said of a run whose process is gone.
DIED: Final = "its process died (killed, or out of memory)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: a result, or one line of error with the traceback behind it (empty for user errors)."""

    result: RunResult | None
    error: str = ""
    details: str = ""
    wall_s: float = 0.0


def perform(function: str, settings: Mapping[str, Any]) -> Outcome:
    """Call a run function by its dotted name; whatever it raises becomes an outcome, except Ctrl-C."""
    start = time.perf_counter()
    try:
        call, model = find_function(function)
        result = call(settings if model is None else check_settings(model, settings))
        if not isinstance(result, RunResult):
            raise TypeError(f"{function} returned {type(result).__name__}, not a RunResult")
    except EcoServeError as error:
        return Outcome(None, str(error), wall_s=time.perf_counter() - start)
    except Exception as error:  # noqa: BLE001 - one run's failure, of whatever kind, must not end the others
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(None, line, traceback.format_exc(), wall_s=time.perf_counter() - start)
    return Outcome(result, wall_s=time.perf_counter() - start)


@lru_cache(maxsize=8)
def find_function(name: str) -> tuple[Callable[[Any], RunResult], type[BaseModel] | None]:
    """The function behind ``module:name`` and the pydantic model its first argument wants, if it wants one.

    Raises:
        ConfigError: if there is no such function.
    """
    module_name, _, attribute = name.partition(":")
    try:
        call = getattr(importlib.import_module(module_name), attribute)
        first = next(iter(inspect.signature(call).parameters))
        model = typing.get_type_hints(call).get(first)
    except (ImportError, AttributeError, TypeError, ValueError, StopIteration) as error:
        raise ConfigError(
            f"no run function {name} ({error})", where="run", fix="name it as module:function with one argument"
        ) from error
    is_model = isinstance(model, type) and issubclass(model, BaseModel)
    return call, model if is_model else None


def check_settings(model: type[BaseModel], settings: Mapping[str, Any]) -> BaseModel:
    """Settings as the run function's own model.

    Raises:
        ConfigError: naming the setting that is wrong.
    """
    return checked(model, settings, "settings")


def start_worker() -> None:
    """Prepare a worker process: leave Ctrl-C to the parent, and end when the parent does, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
