"""The package's modules import one way: no circle, not even for type checking."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp


def circle(imports: dict[str, set[str]]) -> list[str]:
    """A circle of modules, each imported by the one before it; empty if there is none."""
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def test_no_modules_import_each_other() -> None:
    graph = grimp.build_graph("ecoserve", cache_dir=None)
    found = circle({name: graph.find_modules_directly_imported_by(name) for name in graph.modules})
    assert not found, " -> ".join(found)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
