"""What is to be collected, from whom, how fast; and which of it makes the answers what they are.

Rule: one definition of a setting, with its bounds. What an answer depends on (:meth:`CollectSettings.identity`) is kept
in the journal, and a run goes on only with the same; how fast it is asked for may change from one run to the next.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ecoserve.data import Record

#: Fields of a body that say what one sample is; ``body`` may not touch them.
_OURS: Final = ("model", "messages", "prompt", "n", "best_of", "stream", "stream_options", "use_beam_search")
#: Fields that have a setting; ``body`` may only take them out (null).
_SETTINGS: Final = ("seed", "temperature", "top_p", "max_tokens")


class CollectSettings(BaseModel):
    """One collection: k samples of the answer to each prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompts: str = Field(description="where the prompts come from: a trace of any format, a text file, synthetic[:N]")
    output: Path = Field(description="the trace to write, .jsonl or .jsonl.gz")
    format: str = Field("auto", description="format of the prompts' file")
    limit: int | None = Field(None, ge=1, description="only the first N different prompts")
    sample: int | None = Field(None, ge=1, description="only N different prompts, drawn by the seed")
    seed: int = Field(0, ge=0, description="of the draw, and of every sample's own seed")

    url: str | None = Field(None, description="base URL of an OpenAI-compatible server")
    model: str | None = Field(None, description="instead of url: a model that a vLLM server of our own serves")
    served_model: str | None = Field(None, description="the model's name there; None: the first that the server names")
    server_flags: tuple[str, ...] = Field((), description="vLLM's flags for the server of our own")
    api: Literal["chat", "completions"] = Field("chat", description="completions sends bare text, no chat template")
    api_key: SecretStr | None = Field(None, description="sent as a bearer token, written nowhere")

    samples: int = Field(1, ge=1, le=10_000, description="answers to each prompt")
    temperature: float | None = Field(None, ge=0, description="None: the server's own")
    top_p: float | None = Field(None, gt=0, le=1, description="None: the server's own")
    max_tokens: int | None = Field(None, ge=1, description="None: as the prompt's row says, else the server's own")
    body: dict[str, Any] = Field(default_factory=dict, description="more fields of each request's body; null takes out")
    keep_text: bool = Field(True, description="keep the answers' texts, not only their lengths")

    concurrency: int = Field(16, ge=1, le=4096, description="requests open at once")
    rate: float | None = Field(None, gt=0, description="requests a second at most, evenly spaced")
    retries: int = Field(8, ge=0, description="further attempts of one request that went wrong")
    backoff_s: float = Field(1.0, gt=0, description="wait before the first of them; doubles, up to a minute")
    timeout_s: float = Field(600.0, gt=0, description="longest wait for one answer")
    patience_s: float = Field(600.0, gt=0, description="longest time the server may be away, or ask us to wait")
    allow_missing: bool = Field(False, description="write the trace without the answers that failed")

    @field_validator("output")
    @classmethod
    def _a_trace(cls, value: Path) -> Path:
        if not value.name.endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(f"{value}: a trace is written as .jsonl or .jsonl.gz")
        return value

    @field_validator("url")
    @classmethod
    def _a_base_url(cls, value: str | None) -> str | None:
        # What is wrong is said without the URL: it may hold a password.
        from urllib.parse import urlsplit

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
    def _a_header(cls, value: SecretStr | None) -> SecretStr | None:
        key = value.get_secret_value() if value is not None else ""
        if not (key.isascii() and key.isprintable()):
            raise ValueError("an API key is printable ASCII")
        return value if key else None

    @field_validator("body")
    @classmethod
    def _an_extra_body(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in _OURS:
            if name in value:
                raise ValueError(f"{name} is not for you to set: one request is one sample")
        for name in _SETTINGS:
            if value.get(name) is not None:
                raise ValueError(f"{name} has an option of its own; here it can only be taken out, with null")
        json.dumps(value, allow_nan=False)
        return value

    @model_validator(mode="after")
    def _one_place(self) -> CollectSettings:
        if self.url is not None and self.model is not None:
            raise ValueError("give url or model, not both")
        if self.server_flags and self.model is None:
            raise ValueError("flags for vLLM's server need model: a server at a URL has its own")
        return self

    def limit_of(self, record: Record) -> int | None:
        """The most tokens the answer to ``record`` may have, as the request says it."""
        return self.max_tokens if self.max_tokens is not None else record.max_tokens

    def identity(self) -> dict[str, Any]:
        """What an answer depends on, except the model's name and the prompts; plain JSON values."""
        body = json.dumps(self.body, sort_keys=True, separators=(",", ":"))
        return {
            "api": self.api,
            "samples": self.samples,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            # Only its hash: people put into a body what should not lie about in files.
            "body": hashlib.sha256(body.encode()).hexdigest()[:16] if self.body else None,
            "keep_text": self.keep_text,
        }


def sample_seed(seed: int, prompt: str, sample: int) -> int:
    """The seed of one sample: the same in every run, another for every (prompt, sample).

    Args:
        seed: the collection's.
        prompt: digest of the prompt's context (hex).
        sample: 0-based.

    Returns:
        0 <= seed < 2**31, which every server takes.
    """
    digest = hashlib.sha256(f"{seed}:{prompt}:{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def request_body(settings: CollectSettings, model: str, record: Record, digest: str, sample: int) -> dict[str, Any]:
    """The JSON body that asks for one sample of the answer to ``record``.

    Args:
        settings: the collection's.
        model: the served model's name.
        record: has a prompt.
        digest: of the record's context (hex).
        sample: 0-based.
    """
    chat = record.chat()
    body: dict[str, Any] = {"model": model}
    if settings.api == "chat":
        body["messages"] = [{"role": m.role, "content": m.content} for m in chat]
    else:
        body["prompt"] = "\n".join(m.content for m in chat)
    fields = {
        "max_tokens": settings.limit_of(record),
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": sample_seed(settings.seed, digest, sample),
    }
    body |= {name: value for name, value in fields.items() if value is not None}
    body |= settings.body
    return {name: value for name, value in body.items() if value is not None}


def body_limit(body: dict[str, Any]) -> int | None:
    """The most tokens that a request's body allows its answer."""
    for name in ("max_completion_tokens", "max_tokens"):
        if isinstance(value := body.get(name), int) and not isinstance(value, bool):
            return value
    return None
