from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ecoserve.errors import CheckpointError
from ecoserve.predictor import LengthPredictor, load_predictor
from ecoserve.predictor import checkpoint as checkpoints
from ecoserve.predictor.checkpoint import model_card

TEXTS = ["List three pets.", "What is a cache?"]


@pytest.fixture
def saved(predictor: LengthPredictor, tmp_path: Path) -> Path:
    return predictor.save_pretrained(tmp_path / "ckpt")


@pytest.fixture
def broken(boosted_dir: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(boosted_dir, tmp_path / "broken"))


def test_it_comes_back_as_it_was(predictor: LengthPredictor, saved: Path) -> None:
    again = load_predictor(saved)
    assert type(again) is type(predictor)
    assert again.config == predictor.config
    assert again.calibration == predictor.calibration
    assert again.predict(TEXTS) == predictor.predict(TEXTS)
    assert load_predictor(str(saved)).predict(TEXTS) == predictor.predict(TEXTS)


def test_a_checkpoint_holds_no_pickle_and_nothing_private(saved: Path, boosted: LengthPredictor) -> None:
    names = {p.name for p in saved.iterdir()}
    assert {"config.json", "calibration.json", "README.md"} < names
    assert {p.suffix for p in saved.iterdir()} <= {".json", ".txt", ".md", ".safetensors"}
    text = (saved / "config.json").read_text() + (saved / "README.md").read_text()
    assert str(Path.home()) not in text
    assert str(saved.parent.parent.parent) not in text
    assert len({p.stat().st_mode & 0o777 for p in saved.iterdir()}) == 1


def test_the_card_tells_its_figures(saved: Path, predictor: LengthPredictor) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ecoserve\n")
    assert f"| {predictor.config.metrics['dev']['mae_tokens']:.1f} |" in card
    assert predictor.config.trace_sha256 in card
    table = [line for line in card.splitlines() if line.startswith("| ")]
    header, rows = table[0], table[1:]
    assert len(rows) == 15
    assert {row.count("|") for row in rows} == {header.count("|")}


def test_the_card_of_an_older_evaluation_leaves_out_what_it_lacks(boosted: LengthPredictor) -> None:
    known = boosted.config.metrics
    older = {k: v for k, v in known["dev"].items() if k not in ("crps", "ece")}

    def card(**metrics: dict[str, float]) -> str:
        return model_card(boosted.config.model_copy(update={"metrics": metrics}), boosted.calibration)

    assert "| CRPS" not in card(dev=older)
    assert f"| {older['mae_tokens']:.1f} |" in card(dev=older)
    assert f"| CRPS (tokens) | {known['held_out']['crps']:.2f} | - |" in card(held_out=known["held_out"], dev=older)


def test_saving_replaces_an_older_checkpoint_whole(
    boosted: LengthPredictor, encoded: LengthPredictor, tmp_path: Path
) -> None:
    folder = boosted.save_pretrained(tmp_path / "ckpt")
    encoded.save_pretrained(folder)
    assert load_predictor(folder).config.backend == "encoder"
    assert not list(tmp_path.rglob(".*"))


def test_a_failing_save_leaves_nothing_behind(
    boosted: LengthPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(boosted), "_write", full)
    with pytest.raises(Exception, match="No space left on device"):
        boosted.save_pretrained(tmp_path / "ckpt")
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_files_are_left_alone(boosted: LengthPredictor, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        boosted.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        boosted.save_pretrained(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def _edit_config(change: Callable[[dict[str, object]], object], *, sign: bool = False) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        change(content)
        if sign:
            content.pop("sha256", None)
            content["sha256"] = checkpoints._digest(content)
        path.write_text(json.dumps(content))

    return edit


def _truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def _truncate_and_sign(name: str) -> Callable[[Path], None]:
    """As if it had been written that way: the hash agrees, the content is no good."""

    def cut(folder: Path) -> None:
        _truncate(name)(folder)
        digest = checkpoints._sha256(folder / name)
        _edit_config(lambda c: c["files"].update({name: digest}), sign=True)(folder)  # type: ignore[attr-defined]

    return cut


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json: is missing"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "bert"}'), "not the config of a length predictor"),
        (_edit_config(lambda c: c.update(format_version=1)), "format 1, this ecoserve reads 2.*train again"),
        (_edit_config(lambda c: c.update(served_model="other")), "was changed after it was written"),
        (_edit_config(lambda c: c["edges"].reverse(), sign=True), "edges must ascend"),  # type: ignore[attr-defined]
        (_edit_config(lambda c: c["prior"].pop(), sign=True), "bins need .* edges"),  # type: ignore[attr-defined]
        (_edit_config(lambda c: c.update(surprise=1), sign=True), "surprise"),
        (
            _edit_config(lambda c: c.update(backend="mine"), sign=True),
            "backend 'mine', which this ecoserve does not have",
        ),
        (_edit_config(lambda c: c.update(files=[]), sign=True), "names no files"),
        (lambda d: (d / "model.txt").unlink(), r"model\.txt: is missing"),
        (lambda d: (d / "words.safetensors").unlink(), r"words\.safetensors: is missing"),
        (_truncate("model.txt"), r"model\.txt: is damaged"),
        (_truncate("words.safetensors"), r"words\.safetensors: is damaged"),
        (_truncate("calibration.json"), r"calibration\.json: is damaged"),
        (_truncate_and_sign("words.safetensors"), "cannot be loaded"),
        (_truncate_and_sign("terms.json"), "cannot be loaded"),
        (_truncate_and_sign("model.txt"), "no whole LightGBM model"),
        (_truncate_and_sign("calibration.json"), "not valid JSON"),
    ],
)
def test_damage_is_one_clear_error(broken: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(broken)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_predictor(broken)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("damage", [_truncate("model.safetensors"), _truncate_and_sign("model.safetensors")])
def test_damaged_encoder_weights_are_one_clear_error(
    encoded: LengthPredictor, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = encoded.save_pretrained(tmp_path / "ckpt")
    damage(folder)
    with pytest.raises(CheckpointError, match=r"damaged|cannot be loaded"):
        load_predictor(folder)


def test_encoder_weights_of_another_shape_are_one_clear_error(encoded: LengthPredictor, tmp_path: Path) -> None:
    folder = encoded.save_pretrained(tmp_path / "ckpt")
    _edit_config(lambda c: c["model"]["encoder"].update(num_hidden_layers=3), sign=True)(folder)  # type: ignore[index]
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_predictor(folder)


def test_what_is_not_there(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", "./nothing", str(tmp_path / "a" / "b")):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            load_predictor(missing)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_predictor(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        load_predictor(tmp_path / "file")


def test_the_hub_is_asked_only_for_a_hub_id(
    boosted_dir: Path, monkeypatch: pytest.MonkeyPatch, boosted: LengthPredictor
) -> None:
    asked: list[str] = []

    def snapshot(repo_id: str) -> Path:
        asked.append(repo_id)
        return boosted_dir

    monkeypatch.setattr("ecoserve.predictor.hub.snapshot", snapshot)
    assert load_predictor("owner/lengths").predict(TEXTS) == boosted.predict(TEXTS)
    load_predictor(boosted_dir)
    assert asked == ["owner/lengths"]


def test_a_hub_out_of_reach_is_one_clear_error() -> None:
    # tests/conftest.py sets HF_HUB_OFFLINE.
    with pytest.raises(CheckpointError, match="owner/lengths: no such folder here, and"):
        load_predictor("owner/lengths")
