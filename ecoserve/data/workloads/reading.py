"""Reading a workload file, and saying in one line what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from ecoserve.data.formats.records import header
from ecoserve.data.records import LoadReport, Record, Trace
from ecoserve.data.workloads.making import FORMAT, make_workload, making
from ecoserve.data.workloads.spec import Workload
from ecoserve.errors import TraceError

_FIX: Final = "see docs/workloads.md"
#: From so many requests on, a bar shows how far it is.
_MANY: Final = 20_000


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML's own loader silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def load_workload(path: str | Path, *, limit: int | None = None) -> Trace:
    """Read a workload file and make its trace; ``limit``: only its first requests.

    Raises:
        TraceError: naming the key that is wrong, or what cannot be made.
    """
    return make_workload(read_workload(path), base=Path(path).resolve().parent, where=str(path), limit=limit)


def workload_rows(path: str | Path, limit: int | None = None, *, shown: bool = False) -> Iterator[dict[str, Any]]:
    """The requests of a workload file (its first ``limit``) as rows of our own trace format, made when asked for.

    ``shown``: show a bar on stderr, if that is a terminal and there are many.

    Raises:
        TraceError: naming the key that is wrong, or what cannot be made.
    """
    made = making(read_workload(path), base=Path(path).resolve().parent, where=str(path), limit=limit)
    # The first line of such a trace; what the records hash to is known only after the last one.
    yield header(Trace((), str(path), FORMAT, "", made.length_source, LoadReport(), made.prompt_length_source))
    for record in _shown(made.records, made.n) if shown and made.n >= _MANY else made.records:
        yield record.as_row()


def _shown(records: Iterator[Record], n: int) -> Iterable[Record]:
    """``records``, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(records, "making requests", total=n, console=console, transient=True, disable=not console.is_terminal)


def read_workload(path: str | Path) -> Workload:
    """Read and check a workload file.

    Raises:
        TraceError: naming the key that is wrong.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise TraceError("there is no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read ({error})", where=str(path)) from error
    except yaml.YAMLError as error:
        raise TraceError(f"is not YAML ({_problem(error)})", where=str(path)) from error
    if not isinstance(content, Mapping):
        raise TraceError("is not a workload: it has no keys", where=str(path), fix=_FIX)
    try:
        return Workload.model_validate(content)
    except ValidationError as error:
        raise TraceError(_first(error, content), where=str(path)) from None


def _problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "cannot be read"
    return f"line {mark.line + 1}: {problem}" if mark is not None else str(problem)


def _first(error: ValidationError, content: Mapping[Any, Any]) -> str:
    """The first mistake: the key as the file has it, and what is wrong with it."""
    first = error.errors()[0]
    key = _key(first["loc"], content)
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    if first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "union_tag_invalid":
        expected = first["ctx"]["expected_tags"].replace("'", "")
        message = f"process {first['ctx']['tag']!r} is none of {expected}"
    elif first["type"] == "union_tag_not_found":
        message = "process is missing: poisson, gamma, diurnal, bursts, recorded, fitted or at-once"
    elif first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = f"is {given!r}, but must have keys of its own"
    elif first["type"] != "value_error" and not isinstance(given, Mapping | list):
        message = f"{message[0].lower()}{message[1:]}, not {given!r}"
    return f"{key}: {message}" if key else message


def _key(location: Sequence[int | str], content: Any) -> str:
    """``location`` without what is not in the file: names of alternatives, and classes for what they inherit."""
    if len(location) > 2 and location[0] == "classes":
        own = content["classes"].get(location[1])
        if not (isinstance(own, Mapping) and location[2] in own) and location[2] in content:
            location = location[2:]
    names: list[str] = []
    for i, part in enumerate(location):
        if part in content if isinstance(content, Mapping) else isinstance(content, list) and isinstance(part, int):
            content = content[part]
        elif not isinstance(content, Mapping) or i < len(location) - 1:
            continue  # the name of an alternative
        elif ":" in str(part) or part == content.get("process"):
            continue  # the same, where the mistake is in the alternative as a whole
        names.append(str(part + 1) if isinstance(part, int) else str(part))
    return ".".join(names)
