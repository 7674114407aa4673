"""A reasoning parser for the tiny model, as a plugin of vLLM's: what comes before the first full stop is thinking."""

from __future__ import annotations

from vllm.reasoning import ReasoningParserManager
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser


@ReasoningParserManager.register_module("until_a_full_stop")
class UntilAFullStop(DeepSeekR1ReasoningParser):
    """Both marks are in the tiny model's vocabulary."""

    @property
    def start_token(self) -> str:
        """Never generated."""
        return "<|system|>"

    @property
    def end_token(self) -> str:
        """The end of thinking."""
        return "."
