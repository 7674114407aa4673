"""``ecoserve deploy``: what is refused in one line, before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ecoserve.cli.main import main

READY = Path(__file__).resolve().parents[3] / "deploy" / "ray-serve.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is no model: it has no config.json"),
        ("args: {}", "args.model: is missing"),
        ("args: {model: MODEL, policy: best}", "policy 'best' is not known"),
        ("args: {model: MODEL, report_period_s: 0}", "args.report_period_s: must be greater than 0"),
        ("import_path: other:app", "needs one application, with import_path: ecoserve.serving.cluster.engine:build"),
        ("[", "is not YAML"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(
    change: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(READY.read_text())
    content["applications"][0]["args"]["model"] = str(tmp_path)
    text = yaml.safe_dump(content)
    if change == "[":
        text = change
    elif change is not None:
        content["applications"][0] |= yaml.safe_load(change.replace("MODEL", str(tmp_path)))
        text = yaml.safe_dump(content)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["deploy", "ray", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_no_file_no_cluster_and_another_kind_of_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "ray", str(tmp_path / "none.yaml")]) == 2
    assert "deploy/ray-serve.yaml" in capsys.readouterr().err
    assert main(["deploy", "slurm", str(READY)]) == 2
    assert "'ray'" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    content = yaml.safe_load(READY.read_text())
    content["applications"][0]["args"]["model"] = str(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main(["deploy", "ray", str(file), "--address", "127.0.0.1:1"]) == 2
    assert "no Ray cluster answers" in capsys.readouterr().err


def test_the_ready_config_names_settings_that_there_are() -> None:
    from ecoserve.serving.cluster.settings import RaySettings

    content = yaml.safe_load(READY.read_text())
    assert RaySettings(**content["applications"][0]["args"]).router == "least-work"
