"""Collect a model's own response lengths: send prompts to a server, k samples each, and write a trace."""

from ecoserve.serving.collect.run import collect
from ecoserve.serving.collect.settings import (
    CollectInterrupted,
    CollectProgress,
    CollectResult,
    CollectSettings,
    Progress,
)

__all__ = ["CollectInterrupted", "CollectProgress", "CollectResult", "CollectSettings", "Progress", "collect"]
