"""Settings of the scheduler: what is good is taken, what is not is named."""

from __future__ import annotations

from typing import Any

import pytest
from virtual_rig import Case, scheduler_for

from ecoserve.errors import ConfigError
from ecoserve.serving.core.policies import POLICIES
from ecoserve.serving.core.settings import SchedulerSettings


def test_nothing_given_is_the_policy_we_recommend() -> None:
    for given in ({}, {"ecoserve": {}}, {"other": {"policy": "x"}}, None, "text", 7):
        settings = SchedulerSettings.from_config(given)
        assert settings == SchedulerSettings()
        assert settings.policy == "ecoserve"
        assert settings.parts.kv_policy == "ranked"
        assert settings.parts.ordering == "slo"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_is_its_row_of_the_table(policy: str) -> None:
    settings = SchedulerSettings.parse({"policy": policy})
    assert settings.parts == POLICIES[policy]


def test_a_knob_beside_a_policy_replaces_that_part() -> None:
    settings = SchedulerSettings.parse(
        {"policy": "ecoserve-d", "kv_policy": "pooled", "ordering": "sjf", "epsilon": 0.1}
    )
    assert settings.parts.kv_policy == "pooled"
    assert settings.epsilon == 0.1
    assert settings.parts.ordering == "sjf"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "vllm"),
        ("policy", "ecosurf"),
        ("policy", 3),
        ("kv_policy", "exakt"),
        ("ordering", "lifo"),
        ("epsilon", -0.1),
        ("epsilon", 0.6),
        ("epsilon", "two"),
        ("epsilon", float("nan")),
        ("epsilon", None),
        ("resume_steps", 0),
        ("rho", 1.1),
        ("padding", -1),
        ("quantile", 1.0),
        ("quantile", 0.0),
        ("reserve", 0.5),
        ("waiting_share", 0),
        ("waiting_share", 1.01),
        ("ageing_tokens_per_s", -5),
        ("ageing_tokens_per_s", float("inf")),
        ("resume_steps", 2.5),
        ("history_window", 7),
        ("history_window", 10**6),
        ("check_every_step", "perhaps"),
        ("zz", 1),
    ],
)
def test_a_bad_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SchedulerSettings.parse({name: value})
    line = str(caught.value)
    assert "\n" not in line
    assert name in line
    assert caught.value.exit_code == 2


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="policy 'sjf' is none of ecoserve, ecoserve-exact, ecoserve-d"):
        SchedulerSettings.parse({"policy": "sjf"})


@pytest.mark.parametrize("given", ["ecoserve", 3, None, ["policy"]])
def test_settings_that_are_no_settings(given: Any) -> None:
    with pytest.raises(ConfigError, match="ecoserve scheduler setting"):
        SchedulerSettings.from_config({"ecoserve": given})


def test_settings_do_not_change_under_way() -> None:
    with pytest.raises(Exception, match="frozen"):
        SchedulerSettings().z = 3.0  # type: ignore[misc]


def test_they_reach_the_scheduler() -> None:
    s = scheduler_for(Case((), policy="ecoserve-exact", knobs=(("reserve", 0.2), ("history_window", 50))))
    assert s.settings.policy == "ecoserve-exact"
    assert s.planner.kv_policy.reserve_blocks == 5
    assert s.planner.history._lengths.maxlen == 50
    with pytest.raises(ConfigError, match="ecoserve scheduler setting epsilon: must be less"):
        scheduler_for(Case((), knobs=(("epsilon", 60),)))


def test_auto_is_for_simulations() -> None:
    with pytest.raises(
        ConfigError, match="target_forward_tokens: auto is for simulated GPUs; ecoserve calibrate-forward"
    ):
        SchedulerSettings.parse({"target_forward_tokens": "auto"})
