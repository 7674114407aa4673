"""The error that ends an engine's process, brought to the process that started it.

vLLM's server says "Engine core initialization failed" and points at its log. Here the engine's process writes its error
to a file beside that, and the server's process makes it its last line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from ecoserve.errors import ConfigError, EcoServeError, RunError
from ecoserve.serving.adapter.policies import UnknownToFullError

#: vLLM's entry of an engine's process; a process that was forked finds ours in its place.
_vllms: Callable[..., None] | None = None
_OURS: Final = {c.__name__: c for c in (ConfigError, UnknownToFullError)}


def report_errors(report: Path) -> None:
    """From now on, engines that this process starts write what ends them to ``report``."""
    global _vllms
    from vllm.v1.engine.core import EngineCoreProc

    _vllms = _vllms or EngineCoreProc.run_engine_core
    EngineCoreProc.run_engine_core = staticmethod(partial(run_engine, report))


def run_engine(report: Path, *args: Any, **kwargs: Any) -> None:
    """The entry of an engine's process."""
    from vllm.v1.engine.core import EngineCoreProc

    try:
        (_vllms or EngineCoreProc.run_engine_core)(*args, **kwargs)
    except Exception as error:
        said = {"kind": type(error).__name__, "what": one_line(error), "input": isinstance(error, ValueError)}
        if isinstance(error, EcoServeError):
            said |= {"what": error.what, "where": error.where, "fix": error.fix}
        try:
            with report.open("x") as out:  # of several engines, the first one's
                json.dump(said, out)
        except OSError:
            pass
        raise


def engine_error(report: Path) -> EcoServeError | None:
    """The error that an engine has reported, as ours."""
    try:
        said = json.loads(report.read_text())
    except (OSError, ValueError):
        return None
    if said["kind"] in _OURS:
        return _OURS[said["kind"]](said["what"], where=said["where"], fix=said["fix"])
    what = said["what"] if said["input"] else f"{said['kind']}: {said['what']}"
    return (ConfigError if said["input"] else RunError)(what, where="vLLM's engine", fix="its log above says more")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
