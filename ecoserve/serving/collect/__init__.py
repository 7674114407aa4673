"""Collecting a model's own response lengths: prompts go to a server, k samples each, and come back as a trace."""

from ecoserve.serving.collect.run import collect
from ecoserve.serving.collect.settings import CollectSettings
from ecoserve.serving.collect.tally import CollectInterrupted, CollectProgress, CollectResult, Progress

__all__ = ["CollectInterrupted", "CollectProgress", "CollectResult", "CollectSettings", "Progress", "collect"]
