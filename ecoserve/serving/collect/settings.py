"""The settings of a collection, its state while it runs, and its result.

Those settings that an answer depends on are its :meth:`~CollectSettings.identity`, which is kept in the journal: a run
resumes only with the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ecoserve.data import Record
from ecoserve.serving.collect.prompts import context_digest

#: Fields of a body that define one sample; ``body`` may not contain them.
_OURS: Final = ("model", "messages", "prompt", "n", "best_of", "stream", "stream_options", "use_beam_search")
#: Fields that have a setting; ``body`` may only remove them (null).
_SETTINGS: Final = ("seed", "temperature", "top_p", "max_tokens")


class CollectSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompts: str = Field(description="Where the prompts come from: a trace of any format, a text file, synthetic[:N].")
    output: Path = Field(
        description="Send the prompts to --url or --model, write the answers' lengths to FILE (.jsonl[.gz]), "
        "profile those.",
        json_schema_extra={"flag": "collect", "metavar": "FILE"},
    )
    format: str = Field("auto", description="Format of the prompts' file.")
    limit: int | None = Field(None, ge=1, description="Only the first N different prompts.")
    sample: int | None = Field(None, ge=1, description="Only N different prompts, drawn by the seed.")
    seed: int = Field(0, ge=0, description="Seed of the draw, and of every sample's own seed.")

    url: str | None = Field(None, description="Base URL of an OpenAI-compatible server.")
    model: str | None = Field(None, description="Instead of --url: a model to serve with a vLLM server of our own.")
    served_model: str | None = Field(
        None, description="Name of the served model (default: the first that the server lists)."
    )
    server_flags: tuple[str, ...] = Field(
        (), description="vLLM's flags for --model, in one argument.", json_schema_extra={"flag": "serve-flags"}
    )
    api: Literal["chat", "completions"] = Field("chat", description="completions sends bare text, no chat template.")
    api_key: SecretStr | None = Field(
        None, description="Bearer token (default: VLLM_API_KEY of the environment); written nowhere."
    )

    samples: int = Field(1, ge=1, le=10_000, description="Answers to each prompt.", json_schema_extra={"short": "-k"})
    temperature: float | None = Field(None, ge=0, description="Sampling temperature (default: the server's).")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling (default: the server's).")
    max_tokens: int | None = Field(
        None, ge=1, description="Most tokens of an answer (default: the prompt row's, else the server's)."
    )
    body: dict[str, Any] = Field(
        default_factory=dict, description="More fields of each request's body; null removes one."
    )
    keep_text: bool = Field(
        True, description="Keep the answers' texts, not only their lengths.", json_schema_extra={"flag": "text"}
    )

    concurrency: int = Field(16, ge=1, le=4096, description="Requests open at once.")
    rate: float | None = Field(None, gt=0, description="Requests a second at most, evenly spaced.")
    retries: int = Field(8, ge=0, description="Repetitions of a request that fails.")
    backoff_s: float = Field(1.0, gt=0, description="Seconds before the first repetition; doubles, up to a minute.")
    timeout_s: float = Field(
        600.0, gt=0, description="Seconds to wait for one answer.", json_schema_extra={"flag": "timeout"}
    )
    patience_s: float = Field(
        600.0,
        gt=0,
        description="Seconds to keep retrying while the server is unreachable.",
        json_schema_extra={"flag": "patience"},
    )
    allow_missing: bool = Field(False, description="Write the trace without the answers that failed.")

    @field_validator("output")
    @classmethod
    def _check_output(cls, value: Path) -> Path:
        if not value.name.endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(f"{value}: a trace is written as .jsonl or .jsonl.gz")
        return value

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        # The URL is not repeated in messages: it may hold a password.
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("is no URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("a URL starts with http:// or https:// and names a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("holds a user or password, which would be written down; give an API key instead")
        if parts.query or parts.fragment:
            raise ValueError("a base URL ends with its path, as in http://localhost:8000/v1")
        return value

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value() if value is not None else ""
        if not (key.isascii() and key.isprintable()):
            raise ValueError("an API key is printable ASCII")
        return value if key else None

    @field_validator("body")
    @classmethod
    def _check_body(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _OURS:
            if name in value:
                raise ValueError(f"{name} cannot be set: one request is one sample")
        for name in _SETTINGS:
            if value.get(name) is not None:
                raise ValueError(f"{name} has an option of its own; here it can only be removed, with null")
        json.dumps(value, allow_nan=False)
        return value

    @model_validator(mode="after")
    def _check_server(self) -> CollectSettings:
        if self.url is not None and self.model is not None:
            raise ValueError("give url or model, not both")
        if self.server_flags and self.model is None:
            raise ValueError("flags for vLLM's server need model: a server at a URL has its own")
        return self

    def limit_of(self, record: Record) -> int | None:
        """The most tokens of the answer to ``record``, as its request states it."""
        return self.max_tokens if self.max_tokens is not None else record.max_tokens

    def identity(self) -> dict[str, Any]:
        """What an answer depends on, except the model's name and the prompts; plain JSON values."""
        body = json.dumps(self.body, sort_keys=True, separators=(",", ":"))
        names = ("api", "samples", "temperature", "top_p", "max_tokens", "seed", "keep_text")
        # Only the body's hash: it may hold secrets.
        digest = hashlib.sha256(body.encode()).hexdigest()[:16] if self.body else None
        return {name: getattr(self, name) for name in names} | {"body": digest}


def sample_seed(seed: int, prompt: str, sample: int) -> int:
    """The seed of one sample of ``prompt`` (digest of its context), always the same: 0 <= seed < 2**31."""
    digest = hashlib.sha256(f"{seed}:{prompt}:{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def request_body(settings: CollectSettings, model: str, record: Record, sample: int) -> dict[str, Any]:
    """The JSON body that asks for one sample (0-based) of the answer to ``record``."""
    chat = record.chat()
    body: dict[str, Any] = {"model": model}
    if settings.api == "chat":
        body["messages"] = [{"role": m.role, "content": m.content} for m in chat]
    else:
        body["prompt"] = "\n".join(m.content for m in chat)
    body |= {
        "max_tokens": settings.limit_of(record),
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": sample_seed(settings.seed, context_digest(record), sample),
    }
    return {name: value for name, value in (body | settings.body).items() if value is not None}


def body_limit(body: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(value := body.get(name), int) and not isinstance(value, bool):
            return value
    return None


@dataclass(slots=True)
class CollectProgress:
    """The state of a running collection; counts are of (prompt, sample) pairs.

    ``total``: all, of which ``earlier`` were settled in earlier runs; ``answered``, ``refused``, ``failed``: by this
    run. ``sent``, ``retries``, ``open``: requests, repetitions included; repetitions; under way. ``elapsed_s``: seconds
    since this run's first request. ``note``: what all requests wait for. ``ending``: a signal has come.
    """

    total: int
    earlier: int
    answered: int = 0
    refused: int = 0
    failed: int = 0
    tokens: int = 0
    sent: int = 0
    retries: int = 0
    open: int = 0
    elapsed_s: float = 0.0
    note: str = ""
    ending: bool = False

    @property
    def settled(self) -> int:
        """Pairs that this run need not ask any more: earlier ones, and those of this run, failures included."""
        return self.earlier + self.answered + self.refused + self.failed

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left at this run's pace; None before the first outcome."""
        now = self.settled - self.earlier
        return self.elapsed_s / now * (self.total - self.settled) if now else None


Progress: TypeAlias = Callable[[CollectProgress], None]


@dataclass(frozen=True, slots=True)
class CollectResult:
    """The result of a collection: the trace that was written, with ``rows`` answers to ``prompts`` different prompts.

    ``rows_earlier``: collected by earlier runs; ``refused``, ``missing``: samples that the server refused, that failed;
    ``censored``: rows cut off; ``tokens``: sum of all rows' lengths; ``requests_sent``, ``retries``: of this run.
    """

    output: Path
    model: str
    prompts: int
    rows: int
    rows_earlier: int
    refused: int
    missing: int
    censored: int
    tokens: int
    requests_sent: int
    retries: int
    finish_reasons: dict[str, int] = field(default_factory=dict)


class CollectInterrupted(KeyboardInterrupt):
    """The run was stopped by ``signal`` (its number); what was answered is in the journal."""

    def __init__(self, signal: int, kept: int, total: int, journal: Path) -> None:
        self.signal = signal
        super().__init__(f"{kept:,} of {total:,} answers are kept in {journal}")
