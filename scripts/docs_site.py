"""The documentation site's hook: pages of the reference that are made from the code, and links out of docs/.

``make docs`` builds the site; nothing here is written into the repository.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
#: Pages of the site that lie beside docs/.
BESIDE = {"changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {f"reference/{name}.md": make() for name, make in REFERENCE.items()}
    pages |= {name: (ROOT / source).read_text(encoding="utf-8") for name, source in BESIDE.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files beside docs/: to their page where there is one, else the file's name alone."""

    def target(match: re.Match[str]) -> str:
        text, link = match[1], match[2]
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link))
        if path.startswith("docs/"):
            return match[0]
        for name, source in BESIDE.items():
            if source == path:
                return f"[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')})"
        return f"{text} (`{path}`)" if path not in text else text

    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)\)", target, markdown)


def cell(text: object) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: str, rows: Iterator[tuple[object, ...]]) -> str:
    columns = head.split(",")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(c) for c in row)} |" for row in rows)]) + "\n"


# -- the command line -------------------------------------------------------------------------------------------------


def cli_page() -> str:
    from ecoserve.cli.main import COMMANDS

    parts = [
        "# Command line",
        "What `ecoserve COMMAND --help` says. `ECOSERVE_DEBUG=1` shows the traceback of an error.",
        "Exit codes: 0 done, 1 failed while running, 2 bad input, 3 done but a stated bound was missed.",
    ]
    for entry in COMMANDS:
        app = typer.Typer(add_completion=False)
        app.command(context_settings=entry.context_settings)(entry.load())
        command: Any = typer.main.get_command(app)
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["ecoserve", entry.name, *(p.metavar or p.name.upper() for p in arguments), "[OPTIONS]"])
        text = "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(entry.load()) or "").split("\n\n"))
        parts += [f"## {entry.name}", f"    {usage}", text.replace("<", "&lt;")]
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            if parameter not in arguments and not getattr(parameter, "hidden", False):
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(parameter)
        for name, options in panels.items():
            parts += [f"**{name}**", table("option,meaning,default", (option_row(o) for o in options))]
    return "\n\n".join(parts)


def option_row(option: Any) -> tuple[str, str, str]:
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    default = "" if callable(shown) or shown in (None, False, (), []) else f"{shown}"
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts) if name != "--help")
    return names, re.sub(r"\\?\[(?=[^\]]*default)[^\]]*\]", "", option.help or ""), default


# -- settings ---------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    from ecoserve.options import variable
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
    from ecoserve.serving.client_run import ClientRunSettings
    from ecoserve.serving.core.settings import SchedulerSettings
    from ecoserve.serving.simulate.settings import SimulateSettings
    from ecoserve.sweep.plan import Condition, SearchPlan, SweepPlan

    flags = "as `--name` of `ecoserve serve`"
    models: list[tuple[str, str, type[BaseModel]]] = [
        ("Scheduler", f"Given {flags}, as `--scheduler name=value` of `ecoserve simulate`, under `settings: "
         "{scheduler: ...}` of a sweep, or to vLLM's own server by `--additional-config '{\"ecoserve\": {...}}'`.",
         SchedulerSettings),
        ("Prediction in the API server", f"Given {flags}, or as a variable: `{variable('predictor')}` and so on.",
         MiddlewareSettings),
        ("Simulated runs", "Options of `ecoserve simulate`, keyword arguments of `ecoserve.simulate`, and "
         "`settings` of a sweep.", SimulateSettings),
        ("Replay at a server", "Options of `ecoserve replay --url`, and `settings` of a sweep with `engine: url`.",
         ClientRunSettings),
        ("A sweep's plan", "Keys of the YAML file; see [sweeps](../guides/sweep.md).", SweepPlan),
        ("A condition of a plan", "What a condition may replace.", Condition),
        ("A search in a plan", "The highest rate that meets a bound.", SearchPlan),
    ]  # fmt: skip
    parts = ["# Settings", "Every setting is defined once, as a field with its default, bounds and meaning."]
    for title, text, model in models:
        parts += [f"## {title}", text, table("name,meaning,default,allowed", setting_rows(model))]
    return "\n\n".join(parts)


def setting_rows(model: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
        text = "required" if default is PydanticUndefined else "" if default in (None, {}, []) else f"`{default}`"
        if isinstance(default, BaseModel):
            text = ", ".join(f"{k} {v}" for k, v in default.model_dump().items())
        yield f"`{name}`", field.description or "", text, bounds(field)


def bounds(field: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}
    found = [(sign, getattr(m, name, None)) for m in field.metadata for name, sign in signs.items()]
    return ", ".join(f"{sign} {value}" for sign, value in found if value is not None)


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    from prometheus_client import REGISTRY

    from ecoserve import deprecations
    from ecoserve.serving.adapter import metrics
    from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

    metrics.middleware_metrics().serve("", MiddlewareSettings())
    metrics.MetricsPublisher()
    metrics.normalized_latency("", 0)
    metrics.publish_level("full", "")
    metrics.publish_run_level("full")
    families = [f for f in REGISTRY.collect() if f.name.startswith("ecoserve_")]
    old = {name.partition("{")[0].removesuffix("_total") for name in deprecations.METRICS}

    def rows() -> Iterator[tuple[str, ...]]:
        for family in sorted(families, key=lambda f: f.name):
            if family.name in old and not any("model_name" in s.labels for s in family.samples):
                continue
            labels = sorted({label for s in family.samples for label in s.labels} - {"model_name", "engine", "le"})
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield f"`{name}`", family.type, ", ".join(labels), family.documentation

    renamed = table("old name,name", ((f"`{a}`", f"`{b}`" if b else "gone") for a, b in deprecations.METRICS.items()))
    return "\n\n".join(
        [
            "# Metrics",
            "On `/metrics` of `ecoserve serve`, beside vLLM's own. All have the label `model_name`; those of the "
            "engine's process also `engine`.",
            table("metric,type,further labels,meaning", rows()),
            "## Old names",
            "Published for one more release.",
            renamed,
        ]
    )


# -- formats ----------------------------------------------------------------------------------------------------------


def formats_page() -> str:
    from ecoserve.data.formats import FORMATS

    rows = ((f"`{form.name}`", form.looks_like, form.about) for form in FORMATS)
    return "\n\n".join(
        [
            "# Trace formats",
            "A file's format is recognised by its fields; `--format NAME` states it. A row has the first format of "
            "this table that knows it. [Traces](../guides/data.md) has examples, units and what is dropped.",
            table("format,fields,what it is", rows),
        ]
    )


# -- the Python API ---------------------------------------------------------------------------------------------------

#: Beside the names of the package: what they return.
MEMBERS = {"LengthDistribution": None, "Sweep": None}


def python_page() -> str:
    import ecoserve
    from ecoserve.predictor import LengthPredictor

    parts = ["# Python", docstring(ecoserve.__doc__ or "").partition("====")[0]]
    parts += ["`examples/tour.ipynb` uses all of it. Names are imported when they are first used."]
    for name in sorted(ecoserve.__all__, key=str.lower):
        item = getattr(ecoserve, name)
        parts += [f"## {name}", signature(f"ecoserve.{name}", item), docstring(inspect.getdoc(item) or "")]
        if inspect.isclass(item):
            parts += members(item)
        if name == "load_predictor":
            parts += ["It returns a predictor:", *members(LengthPredictor, ("predict", "save_pretrained"))]
    return "\n\n".join(parts)


def members(item: type, names: tuple[str, ...] = ()) -> list[str]:
    """The public members that have a text."""
    parts = []
    for name in names or (name for name in vars(item) if not name.startswith("_")):
        member = inspect.getattr_static(item, name)
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if text := inspect.getdoc(function) if callable(function) else None:
            shown = f"`{name}`" if isinstance(member, property) else signature(name, function)
            parts += [f"### {item.__name__}.{name}", shown, docstring(text)]
    return parts


def signature(name: str, item: Any) -> str:
    found = inspect.signature(item)
    kept = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    text = str(found.replace(parameters=kept)).replace("ecoserve.lengths.", "").replace("typing.", "")
    text = re.sub(r"Unpack\['?ReadOptions'?\]", "ReadOptions", text.replace("'", "") if "->" in text else text)
    return f"```python\n{name}{text}\n```" if len(name + text) < 100 else f"```python\n{name}{broken(text)}\n```"


def broken(text: str) -> str:
    """A signature with a parameter a line."""
    inner, _, result = text[1:].rpartition(")")
    depth, parts, begun = 0, [], 0
    for at, sign in enumerate(inner):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and not depth:
            parts.append(inner[begun:at].strip())
            begun = at + 1
    return "(\n" + "".join(f"    {part},\n" for part in [*parts, inner[begun:].strip()]) + f"){result}"


def docstring(text: str) -> str:
    """A docstring as Markdown: sections in bold, their entries as a list, roles as code."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    out: list[str] = []
    section = False
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Returns|Attributes|Raises):", line):
            out += ["", f"**{line[:-1]}**", ""]
            section = True
        elif section and line.startswith("    ") and not line.startswith("     "):
            name, colon, rest = line.strip().partition(": ")
            out.append(f"- `{name}`: {rest}" if colon and re.fullmatch(r"[\w, *]+", name) else f"- {line.strip()}")
        else:
            section = section and (not line or line.startswith(" "))
            out.append(line.strip() if section else line)
    return "\n".join(out)


REFERENCE = {
    "cli": cli_page,
    "settings": settings_page,
    "metrics": metrics_page,
    "formats": formats_page,
    "python": python_page,
}
