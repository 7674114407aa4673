"""Two schedulers of ours under the same calls, one with the decode-only fast path: nothing may ever differ.

:func:`difference` walks two graphs of objects side by side, whatever they are made of: every attribute, the order of
every dictionary and list, and who refers to whom. :class:`Twins` does every call on both and then compares all that the
schedulers hold (vLLM's and our state, requests, block tables, the pool's queue) and the outputs that are under way.
"""

from __future__ import annotations

import enum
import logging
import types
from collections import deque
from functools import cache
from typing import Any, Final

import numpy as np
from stateful_rig import Driven
from virtual_rig import Case, Spec, same

#: Compared by value.
PLAIN: Final = (int, float, str, bytes, bool, type(None), enum.Enum)

#: Not part of the state: code, and what is the same for all schedulers of a process.
CODE: Final = (type, types.ModuleType, logging.Logger, types.FunctionType, types.BuiltinFunctionType, types.MethodType)

#: What is allowed to differ: the fast path itself, its setting and its counter; vLLM's own clock; a random name.
FREE: Final = frozenset({"fast_path", "allocate_slots", "decode_fast_path", "fast_steps", "timestamp", "instance_id"})


#: Configurations are made once and say the same to both.
CONFIG: Final = ("vllm.config", "transformers", "torch")


@cache
def _slots(kind: type) -> tuple[str, ...]:
    return tuple(n for c in kind.__mro__ for n in getattr(c, "__slots__", ()))


@cache
def _skipped(kind: type) -> bool:
    return issubclass(kind, CODE) or kind.__module__.startswith(CONFIG)


def _attributes(thing: Any) -> dict[str, Any]:
    kind: Any = type(thing)
    slots = _slots(kind)
    own: dict[str, Any] = getattr(thing, "__dict__", {})
    return {n: getattr(thing, n) for n in slots if hasattr(thing, n)} | own if slots else own


def _same(a: Any, b: Any) -> bool:
    """Plain values of one kind that are equal; False if that has to be looked at."""
    return type(a) is type(b) and type(a) in (int, str, bool, bytes) and a == b


def difference(one: Any, other: Any) -> str | None:
    """Where two graphs of objects differ first, as a path and what is there; None if they do not."""
    partner: dict[int, int] = {}
    keep = []
    todo: deque[tuple[str, Any, Any]] = deque([("", one, other)])
    while todo:
        path, a, b = todo.popleft()
        if a is b:
            continue
        kind: Any = type(a)
        if kind is not type(b):
            return f"{path}: {kind.__name__} and {type(b).__name__}"
        if _skipped(kind):
            continue
        if isinstance(a, PLAIN):
            if a != b and not (a != a and b != b):
                return f"{path}: {a!r} and {b!r}"
            continue
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                return f"{path}: {a} and {b}"
            continue
        if not isinstance(a, tuple):
            if id(a) in partner:
                if partner[id(a)] != id(b):
                    return f"{path}: another {type(a).__name__} is referred to"
                continue
            partner[id(a)] = id(b)
            keep.append((a, b))
        if isinstance(a, (set, frozenset)):
            mine, others = (sorted((getattr(x, "request_id", x) for x in s), key=repr) for s in (a, b))
            todo.append((path, mine, others))
        elif isinstance(a, dict):
            if len(a) != len(b):
                return f"{path}: keys {list(a)} and {list(b)}"
            for i, (key, twin) in enumerate(zip(a, b, strict=True)):
                if isinstance(key, str) and key in FREE and key == twin:
                    continue
                todo.append((f"{path} key {i}", key, twin))
                todo.append((f"{path}[{getattr(key, 'request_id', key)}]", a[key], b[twin]))
        elif isinstance(a, (list, tuple, deque)):
            if len(a) != len(b):
                return f"{path}: {len(a)} and {len(b)} items"
            if isinstance(a, list) and type(a[0] if a else 0) in (int, str, float) and a == b:
                continue
            todo.extend((f"{path}[{i}]", x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)))
        else:
            here, there = _attributes(a), _attributes(b)
            if here.keys() - FREE != there.keys() - FREE:
                return f"{path}: attributes {sorted(here.keys() ^ there.keys())}"
            todo.extend(
                (f"{path}.{n}", x, there[n])
                for n, x in here.items()
                if n not in FREE and not (x is there[n] or _same(x, there[n]))
            )
    return None


class Twins(Driven):
    """The scheduler with the fast path, and beside it one without, to which everything is done as well."""

    def __init__(self, case: Case, long_prefill: int = 0) -> None:
        self.other: Driven | None = None
        super().__init__(same(case, knobs=(*case.knobs, ("decode_fast_path", True))), long_prefill)
        assert self.scheduler.fast_path.off is None
        self.other = Driven(same(case, knobs=(*case.knobs, ("decode_fast_path", False))), long_prefill)
        self.scheduler.now = self.other.scheduler.now = 0.0
        self.compare()

    def compare(self) -> None:
        """Both hold the same."""
        assert self.other is not None
        mine, others = ((d.scheduler, d.flights, getattr(d, "last", None)) for d in (self, self.other))
        found = difference(mine, others)
        assert found is None, f"the fast path makes a difference: {found}"

    def _also(self, call: str, *args: Any) -> None:
        if self.other is not None:
            self.other.clock.at_s = self.clock.at_s
            getattr(self.other, call)(*args)

    def add(self, spec: Spec, siblings: int = 1) -> None:
        self._also("add", spec, siblings)
        super().add(spec, siblings)

    def schedule(self) -> dict[str, int]:
        scheduled = super().schedule()
        assert self.other is not None
        found = difference(self.last, self.other.last)
        assert found is None, f"the fast path makes a difference: output{found}"
        return scheduled

    def start(self) -> None:
        self._also("start")
        super().start()
        self.compare()

    def take(self) -> None:
        self._also("take")
        super().take()
        self.compare()

    def abort(self, name: str) -> None:
        self._also("abort", name)
        super().abort(name)
        self.compare()

    def end_soon(self, name: str) -> None:
        self._also("end_soon", name)
        super().end_soon(name)

    def reset(self) -> None:
        self._also("reset")
        super().reset()
        self.compare()

    def drain_only(self, on: bool) -> None:
        self._also("drain_only", on)
        super().drain_only(on)
