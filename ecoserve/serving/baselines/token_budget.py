"""``sarathi`` and ``fastgen``: vLLM's own scheduler, decodes first, then prompts in chunks, by a budget of tokens.

They differ in where the budget of a forward comes from. Sarathi-Serve (OSDI 2024): the most tokens whose forward stays
within the SLO of the time between tokens, by a profile. FastGen's Dynamic SplitFuse (arXiv 2401.08671): every forward
is composed to one count of tokens, at which throughput is saturated. On a
real engine, and for Sarathi without an SLO, the defaults of their code hold (512 and 768 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

from ecoserve.serving.forward_run import target_forward_size


def token_budget(policy: str, times: Sequence[tuple[int, float]], tbt_s: float | None) -> int | None:
    """Tokens of a forward; None: the policy's default, or a policy without a budget of its own.

    Args:
        times: (tokens, seconds) of forwards, ascending. tbt_s: SLO of the time between two tokens, seconds.
    """
    if policy == "fastgen":
        return target_forward_size(times).tokens
    if policy == "sarathi" and tbt_s is not None:
        return max((n for n, s in times if s <= tbt_s), default=times[0][0])
    return None
