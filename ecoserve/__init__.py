"""Length-aware LLM serving: profile a trace, predict response lengths, simulate schedulers that use them.

======================  ===============================================================
``load_trace``          a file or hub data set as a :class:`~ecoserve.data.Trace`
``profile``             its response lengths, and whether predicting them pays
``load_predictor``      a checkpoint; ``predict(requests)`` gives a distribution each
``LengthDistribution``  quantiles, mean, survival, the rest after n tokens
``simulate``            a trace on modelled GPUs, in virtual time (needs vLLM installed)
``Sweep``               a plan of many runs, into a result folder with a report
======================  ===============================================================

Each name is imported when it is first used; ``import ecoserve`` alone imports neither NumPy, torch nor vLLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ecoserve.data.profiling.profile import profile_trace as profile
    from ecoserve.data.traces import load_trace
    from ecoserve.lengths import LengthDistribution
    from ecoserve.predictor.base import load_predictor
    from ecoserve.sweep.simulations import simulate_trace as simulate
    from ecoserve.sweep.sweep import Sweep

__all__ = ["LengthDistribution", "Sweep", "load_predictor", "load_trace", "profile", "simulate"]

#: Name -> "module:name".
_FROM: Final = {
    "LengthDistribution": "ecoserve.lengths:LengthDistribution",
    "Sweep": "ecoserve.sweep.sweep:Sweep",
    "load_predictor": "ecoserve.predictor.base:load_predictor",
    "load_trace": "ecoserve.data.traces:load_trace",
    "profile": "ecoserve.data.profiling.profile:profile_trace",
    "simulate": "ecoserve.sweep.simulations:simulate_trace",
}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'ecoserve' has no attribute {name!r}")
    module, _, attribute = _FROM[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
