"""A workload file: its keys, and reading it with one line about what is wrong with it.

A class of requests takes what it does not set from the file's top level; a file without classes has one. Everything
random follows from the file's seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    Tag,
    ValidationError,
    model_validator,
)

from ecoserve.data.workloads.parts import ArrivalSpec, LengthSpec, Strict, TraceSource
from ecoserve.data.workloads.texts import check_templates
from ecoserve.errors import TraceError

#: The class of a file that names none.
ONLY_CLASS: Final = "request"
_MAX_REQUESTS: Final = 10_000_000


#: Words without factors have the factor 1.
Words = Annotated[
    dict[str, PositiveFloat],
    BeforeValidator(lambda content: dict.fromkeys(content, 1.0) if isinstance(content, list) else content),
    Field(min_length=1),
]
MaxTokens = Annotated[int, Field(ge=1)]


class Prompt(Strict):
    """What is asked."""

    tokens: LengthSpec | None = Field(
        None, description="How long prompts are. With templates, shorter texts are filled up to it."
    )
    templates: list[str] | None = Field(
        None,
        min_length=1,
        description="Jinja templates of the text, drawn alike; without them a trace has lengths only. `{{ filler }}` "
        "is where texts are filled up (else: at the end).",
    )
    words: dict[str, Words] = Field(
        default_factory=dict,
        description="Name -> words that templates use as `{{ name }}`, drawn alike. `word: factor` makes answers that "
        "many times as long, so that the text tells something about the length.",
    )

    @model_validator(mode="after")
    def _is_something(self) -> Prompt:
        if self.tokens is None and self.templates is None:
            raise ValueError("give `tokens`, `templates`, or both")
        if self.words and not self.templates:
            raise ValueError("`words` need `templates` that use them")
        check_templates(self.templates or [], set(self.words), filled=self.tokens is not None)
        return self


class Response(Strict):
    """What is answered."""

    tokens: LengthSpec = Field(description="How long answers would be if nothing cut them off.")
    max_tokens: MaxTokens | None = Field(
        None, description="Answers are cut off here, and marked so; every request carries it as its limit."
    )


class Rows(TraceSource):
    """Requests drawn from a trace as they are: text, lengths, both together."""

    max_tokens: MaxTokens | None = Field(None, description="As in `response`.")


class Conversations(Strict):
    """Several turns, each with all before it as its context."""

    turns: float = Field(ge=1, description="Turns of a conversation on average (geometric, at least 1).")
    think_s: PositiveFloat = Field(description="Median seconds from an answer's end to the next turn (log-normal).")
    think_sigma: NonNegativeFloat = Field(1.0, description="Standard deviation of the logarithm of that.")
    seconds_per_token: NonNegativeFloat = Field(
        0.03, description="How fast answers are taken to come: the load does not wait for the server."
    )
    closed: bool = Field(
        False,
        description="The next turn waits for the answer, then for the person: a closed loop, served as fast as "
        "the server is. `seconds_per_token` is not used.",
    )
    max_context_tokens: MaxTokens = Field(
        32_768, description="A conversation ends before a turn whose context and answer would exceed this."
    )


class FittedCorrelation(Strict):
    """The rank correlation of a trace."""

    fitted: TraceSource = Field(description="The trace.")


def _correlation_kind(content: Any) -> str:
    fitted = isinstance(content, Mapping | FittedCorrelation)
    return "correlation:fitted" if fitted else "correlation:given"


Correlation = Annotated[
    Annotated[float, Field(gt=-1, lt=1), Tag("correlation:given")]
    | Annotated[FittedCorrelation, Tag("correlation:fitted")],
    Discriminator(_correlation_kind),
]


class Traffic(Strict):
    """Requests of one kind."""

    prompt: Prompt | None = Field(None, description="What is asked.")
    response: Response | None = Field(None, description="What is answered.")
    correlation: Correlation = Field(
        0.0,
        description="Between prompt and response length: of the normal variables behind both (Gaussian copula), -1 to "
        "1, or `fitted: {trace: ...}`.",
    )
    rows: Rows | None = Field(None, description="Instead of prompt and response: requests drawn from a trace.")
    conversations: Conversations | None = Field(None, description="Makes requests into conversations.")
    model: str | None = Field(None, description="Name of the model that answers.")

    def problem(self) -> str | None:
        """What is missing or does not go together, if anything."""
        if self.rows is not None:
            others = [k for k in ("prompt", "response", "conversations") if getattr(self, k) is not None]
            others += ["correlation"] if self.correlation != 0.0 else []
            return f"`rows` stand for whole requests: they go without `{others[0]}`" if others else None
        missing = [k for k in ("prompt", "response") if getattr(self, k) is None]
        if missing:
            return f"`{missing[0]}` is missing (or `rows` in place of prompt and response)"
        if self.correlation != 0.0 and self.prompt is not None and self.prompt.tokens is None:
            return "`correlation` needs `prompt.tokens`"
        return None


class ServeGen(Strict):
    """Clients of a served model, as ServeGen publishes them: arrivals, lengths and thinking of each."""

    clients: str = Field(
        min_length=1, description="Folder with `chunk-*-trace.csv` and `chunk-*-dataset.json`, relative to this file."
    )
    rate: PositiveFloat | None = Field(
        None, description="Scale the clients to this many requests a second together, on average over the day."
    )
    start_s: NonNegativeFloat = Field(0.0, description="Second of the day at which the load begins.")
    max_tokens: MaxTokens | None = Field(None, description="As in `response`.")


class TrafficClass(Traffic):
    """One class of several."""

    weight: PositiveFloat | None = Field(None, description="Its share of the requests, relative to the others'; 1.")
    arrivals: ArrivalSpec | None = Field(
        None, description="Its own arrivals, in place of the file's; then all classes have theirs, and no weights."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> TrafficClass:
        if (problem := self.problem()) is not None:
            raise ValueError(problem)
        if self.weight is not None and self.arrivals is not None:
            raise ValueError("a class with its own `arrivals` has no `weight`: its rate says how many it sends")
        return self


ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$")]


class Workload(Traffic):
    """A workload file."""

    requests: int = Field(ge=1, le=_MAX_REQUESTS, description="How many requests.")
    seed: int = Field(0, ge=0, description="Decides everything random.")
    arrivals: ArrivalSpec | None = Field(
        None, description="When they arrive; without it the command must be given a rate."
    )
    servegen: ServeGen | None = Field(None, description="Instead of traffic of its own: ServeGen's clients.")
    classes: dict[ClassName, TrafficClass] | None = Field(
        None,
        min_length=1,
        description="Name -> a class of requests: the keys of the file's own traffic, and what it has of its own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or not isinstance(content.get("classes"), Mapping):
            return content
        shared = {key: content[key] for key in Traffic.model_fields if key in content}
        classes = {}
        for name, own in content["classes"].items():
            own = {} if own is None else own
            if not isinstance(own, Mapping):
                classes[name] = own
                continue
            taken = dict(shared)
            if "rows" in own:  # stand for all the rest
                taken = {key: value for key, value in shared.items() if key == "model"}
            elif "prompt" in own or "response" in own:
                taken.pop("rows", None)
            classes[name] = {**taken, **own}
        return {**content, "classes": classes}

    @model_validator(mode="after")
    def _is_whole(self) -> Workload:
        if self.servegen is not None:
            others = self.model_fields_set - {"requests", "seed", "servegen"}
            if others:
                raise ValueError(f"`servegen` stands for all traffic: it goes without `{min(others)}`")
            return self
        if self.classes is None:
            if (problem := self.problem()) is not None:
                raise ValueError(problem)
            return self
        own = [name for name, each in self.classes.items() if each.arrivals is not None]
        if own and len(own) < len(self.classes):
            other = next(name for name in self.classes if name not in own)
            raise ValueError(f"class {own[0]} has its own `arrivals`, class {other} has none: give all, or none")
        if own and self.arrivals is not None:
            raise ValueError("`arrivals` of the file would not be used: every class has its own")
        return self

    def traffic(self) -> dict[str, TrafficClass]:
        """The classes; of a file that has none, the one it is."""
        if self.classes is not None:
            return dict(self.classes)
        return {ONLY_CLASS: TrafficClass(**{key: getattr(self, key) for key in Traffic.model_fields})}


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


def read_workload(path: str | Path) -> Workload:
    """Read and check a workload file; a :class:`TraceError` names the key that is wrong."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise TraceError("there is no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read ({error})", where=str(path)) from error
    except yaml.YAMLError as error:
        raise TraceError(f"is not YAML ({yaml_problem(error)})", where=str(path)) from error
    if not isinstance(content, Mapping):
        raise TraceError("is not a workload: it has no keys", where=str(path), fix="see docs/guides/workloads.md")
    try:
        return Workload.model_validate(content)
    except ValidationError as error:
        raise TraceError(_first(error, content), where=str(path)) from None


def yaml_problem(error: yaml.YAMLError) -> str:
    """The line of a mistake in YAML and what it is."""
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
