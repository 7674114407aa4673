"""Settings by whatever way a user gives them: one definition, errors in the user's words."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from ecoserve import deprecations
from ecoserve.cli.main import main
from ecoserve.cli.options import taken, takes
from ecoserve.errors import ConfigError
from ecoserve.options import checked, from_environment, to_environment, variable


class Inner(BaseModel):
    depth: int = Field(1, ge=1)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    batch_size: int = Field(4, ge=1, le=64, description="rows per call")
    wait_s: float | None = Field(None, gt=0, description="longest wait", json_schema_extra={"flag": "wait"})
    mode: Literal["fast", "safe"] = Field("fast", description="how")
    cache: bool = Field(True, description="keep results")
    names: list[str] = Field([], description="a name; repeatable")
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"batch_size": 0}, "--batch-size: must be greater than or equal to 1, not '0'"),
        ({"batch_size": "many"}, "--batch-size: must be a valid integer, not 'many'"),
        ({"wait_s": -1}, "--wait: must be greater than 0, not '-1'"),
        ({"mode": "slow"}, "--mode: must be 'fast' or 'safe', not 'slow'"),
        ({"inner": {"depth": 0}}, "--inner: depth: must be greater than or equal to 1, not '0'"),
        ({"size": 1}, "--size: there is no such setting; one of batch_size, wait_s, mode, cache, names, inner"),
        (7, "Settings: is no object of settings: '7'"),
    ],
)
def test_a_wrong_value_is_named_as_an_option(values: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(Settings, values)
    assert str(caught.value) == line


def test_it_is_named_as_a_variable_or_within_a_file() -> None:
    found = from_environment(Settings, {"ECOSERVE_MODE": "slow", "ECOSERVE_CACHE": "", "ECOSERVE_OTHER": "1"})
    assert found == {"mode": "slow"}
    with pytest.raises(ConfigError, match=r"^ECOSERVE_MODE: must be 'fast' or 'safe'"):
        checked(Settings, found, variable)
    with pytest.raises(ConfigError, match=r"^plan.yaml: inner.depth: must be"):
        checked(Settings, {"inner": {"depth": 0}}, "plan.yaml")


def test_settings_survive_the_environment() -> None:
    made = Settings(batch_size=8, cache=False, mode="safe")
    assert checked(Settings, from_environment(Settings, to_environment(made))) == made


def invoke(*arguments: str) -> Any:
    seen = {}

    @takes(Settings, "batch_size wait_s mode cache names")
    def command(*, quiet: bool = False, **given: Any) -> None:
        seen.update(given)
        seen["settings"] = taken(Settings, given)
        assert given == {}

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments))
    return seen if arguments != ("--help",) else result.output


def test_fields_become_options_and_only_what_is_typed_arrives() -> None:
    seen = invoke("--batch-size", "8", "--wait", "2.5", "--no-cache", "--names", "a", "--names", "b")
    settings = seen.pop("settings")
    assert seen == {"batch_size": "8", "wait_s": "2.5", "cache": False, "names": ["a", "b"]}
    assert settings == Settings(batch_size=8, wait_s=2.5, cache=False, names=["a", "b"])
    assert invoke() == {"settings": Settings()}


def test_the_help_has_the_description_the_bound_and_the_default() -> None:
    shown = " ".join(invoke("--help").split())
    assert "Rows per call (at most 64)." in shown
    assert "[default: 4]" in shown
    assert "fast|safe" in shown
    assert "SECONDS" in shown


def test_an_old_option_still_works(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    deprecations._warn.cache_clear()
    assert main(["serve", "m", "--prediction-timeout-ms=x"]) == 2
    assert "--predict-timeout-ms: must be a valid number, not 'x'" in capsys.readouterr().err
    [line] = [record.getMessage() for record in caplog.records]
    assert "option --prediction-timeout-ms is now called --predict-timeout-ms" in line
