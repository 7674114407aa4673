"""Publishing a checkpoint: what reaches a hub on this machine, and what is said when nothing does."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ecoserve.cli.main import main
from ecoserve.data import Trace
from ecoserve.errors import CheckpointError
from ecoserve.predictor import LengthPredictor, combine_predictors, load_predictor
from ecoserve.predictor.hub import push


@dataclass
class Hub:
    """What a hub received."""

    status: int = 200
    token: str = "hf_right"
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[dict[str, bytes]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that takes a model repository and one commit, by the client's own protocol."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer({}, status=200)

        def do_GET(self) -> None:
            self._answer({"id": "o/n", "sha": "0" * 40})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if state.status == 200 and self.headers.get("authorization") != f"Bearer {state.token}":
                self._answer({"error": "Invalid username or password."}, status=401)
            elif state.status != 200:
                self._answer({"error": "it went wrong"}, status=state.status)
            elif self.path == "/api/repos/create":
                state.created.append(json.loads(body))
                self._answer({"url": f"http://127.0.0.1:{self.server.server_address[1]}/o/n"})
            elif self.path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                self._answer({"files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                state.messages += [v["value"]["summary"] for v in lines if v["key"] == "header"]
                files = [v["value"] for v in lines if v["key"] == "file"]
                state.commits.append({f["path"]: base64.b64decode(f["content"]) for f in files})
                url = f"http://127.0.0.1:{self.server.server_address[1]}/o/n/commit/{'1' * 40}"
                self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": url})
            else:
                self._answer({"error": self.path}, status=404)

        def _answer(self, content: Any, status: int | None = None) -> None:
            data = json.dumps(content).encode()
            self.send_response(status or state.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # The client reads its environment once, when it is first imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_URL_HOSTS", frozenset(("127.0.0.1",)))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", state.token)
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(boosted_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint with things beside it that are not part of it."""
    copy = Path(shutil.copytree(boosted_dir, tmp_path / "ckpt"))
    (copy / ".training").mkdir()
    (copy / ".training" / "optimizer.pt").write_bytes(b"state")
    (copy / "notes.pkl").write_bytes(b"pickled")
    return copy


def test_a_checkpoint_arrives_and_nothing_else(hub: Hub, folder: Path, tmp_path: Path) -> None:
    summary = tmp_path / "pushed.json"
    assert main(["push-predictor", str(folder), "o/n", "--private", "--message", "m", "--json", str(summary)]) == 0
    [files] = hub.commits
    stated = json.loads((folder / "config.json").read_text())["files"]
    assert set(files) == {*stated, "config.json", "README.md"}
    for name in files.keys() - {"README.md"}:
        assert files[name] == (folder / name).read_bytes()
    card = files["README.md"].decode()
    assert 'load_predictor("o/n")' in card
    assert "THIS_FOLDER" not in card
    assert hub.messages == ["m"]
    assert hub.created[0]["name"] == "n"
    assert hub.created[0]["organization"] == "o"
    assert json.loads(summary.read_text())["files"] == sorted(files)


def test_an_ensemble_arrives_with_its_members(hub: Hub, boosted_dir: Path, trace: Trace, tmp_path: Path) -> None:
    combine_predictors(trace, [boosted_dir, boosted_dir], output_dir=tmp_path / "both").push_to_hub("o/n")
    [files] = hub.commits
    assert {"config.json", "member-1/config.json", "member-2/model.txt"} <= files.keys()
    for name, content in files.items():
        place = tmp_path / "arrived" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    arrived = load_predictor(tmp_path / "arrived")
    assert arrived.predict(["hello"]) == load_predictor(tmp_path / "both").predict(["hello"])


def test_a_predictor_in_memory_can_be_published(hub: Hub, boosted: LengthPredictor) -> None:
    boosted.push_to_hub("o/n")
    assert {"config.json", "model.txt", "README.md"} <= hub.commits[0].keys()


def test_what_goes_wrong_is_one_line(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def says(code: int, *words: str, where: str = "o/n") -> None:
        capsys.readouterr()
        assert main(["push-predictor", str(folder), where, "--quiet"]) == code
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert "Traceback" not in said
        for word in words:
            assert word in said, said

    says(2, "no id on the hub", where="nowhere")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    says(2, "does not let you write", "hf auth login")
    hub.status = 500
    says(1, "the hub failed")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    says(1, "cannot be reached")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    says(1, "HF_HUB_OFFLINE is set")
    assert hub.commits == []


def test_only_whole_checkpoints_are_published(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        push(tmp_path / "nothing", "o/n")
    (folder / "model.txt").write_text("changed")
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        push(folder, "o/n")
    assert not hub.created
