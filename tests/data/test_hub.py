"""The hub: what counts as an id, what happens without one, and what its rows become."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import hub, load_trace
from ecoserve.data.hub import is_hub_id, require_hub
from ecoserve.errors import TraceError


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing forbade asking the hub."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, online: None) -> Iterator[list[int]]:
    """A hub on this machine that answers with the status in the list."""
    status = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield status
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("source", ["tatsu-lab/alpaca", "anon8231489123/ShareGPT_Vicuna_unfiltered", "a/b.c"])
def test_owner_and_name_mean_the_hub(source: str) -> None:
    assert is_hub_id(source)
    assert not is_hub_id(Path(source))


@pytest.mark.parametrize(
    "source", ["alpaca", "data/x.json", "a/b/c", "/a/b", "./a", "../a/b", "a/b.JSONL", "a/b.gz", "a/", "a b/c"]
)
def test_other_names_mean_files(source: str) -> None:
    assert not is_hub_id(source)


def test_a_path_that_is_there_means_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_text('[{"instruction": "a", "output": "b"}]')
    assert len(load_trace("data/rows")) == 1


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_is_obeyed(online: None, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(hub, "_unreachable", lambda endpoint: pytest.fail("asked the hub"))
    with pytest.raises(TraceError, match="HF_HUB_OFFLINE is set"):
        require_hub("x/y", fix="do something")
    with pytest.raises(TraceError, match=r"owner/none: is not in the cache.*give the path of a file"):
        load_trace("owner/none")


def test_a_refused_connection_says_what_to_do(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TraceError) as caught:
        load_trace("owner/name")
    line = str(caught.value)
    assert line.startswith("owner/name: the hub at http://127.0.0.1:9 cannot be reached (")
    assert "no such file either: give the path of a file" in line


def test_a_hub_that_never_answers_is_given_up(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE_S", 0.05)
    released = threading.Event()
    monkeypatch.setattr(hub, "_unreachable", lambda endpoint: str(released.wait(30)))
    with pytest.raises(TraceError, match=r"no answer within 0\.05 s"):
        require_hub("x/y", fix="")
    released.set()


def test_a_silent_server_is_given_up(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub, "PATIENCE_S", 1.1)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        problem = hub._unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert problem is not None
    assert "timed out" in problem


def test_patience_ends_within_five_seconds() -> None:
    assert hub.PATIENCE_S < 5


@pytest.mark.parametrize("status", [200, 302, 404])
def test_a_hub_that_answers_is_there(endpoint: list[int], status: int) -> None:
    endpoint[0] = status
    require_hub("x/y", fix="")


def test_a_hub_that_is_broken_is_not(endpoint: list[int]) -> None:
    endpoint[0] = 503
    with pytest.raises(TraceError, match="status 503"):
        require_hub("x/y", fix="")


@pytest.mark.parametrize("endpoint_name", ["not a url", "http://[", "ftp://x"])
def test_an_endpoint_that_is_none_cannot_be_reached(
    online: None, monkeypatch: pytest.MonkeyPatch, endpoint_name: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint_name)
    with pytest.raises(TraceError, match="cannot be reached"):
        require_hub("x/y", fix="")


# -- rows, from a folder that stands for the hub's repository -------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder which ``datasets`` reads as the repository ``owner/name``."""
    import datasets

    real = datasets.load_dataset

    def from_folder(name: str, **kwargs: Any) -> Any:
        assert name == "owner/name"
        return real(str(tmp_path / "repository"), cache_dir=str(tmp_path / "cache"), **kwargs)

    monkeypatch.setattr(hub, "require_hub", lambda *a, **k: None)
    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    (tmp_path / "repository").mkdir()
    return tmp_path / "repository"


def alpaca(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"instruction": f"p{i}", "input": "", "output": f"answer {i}"} for i in range(start, start + n)]


def test_a_data_set_of_one_split_is_read_row_by_row(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (repository / "train.json").write_text(json.dumps(alpaca(5)))
    trace = load_trace("owner/name")
    assert (trace.source, trace.format, len(trace)) == ("owner/name", "alpaca", 5)
    assert {r.split for r in trace.records} == {None}
    assert capfd.readouterr() == ("", "")
    assert not list(repository.parent.glob("cache/**/*.arrow"))


def test_splits_of_the_hub_are_splits_of_the_trace(repository: Path) -> None:
    (repository / "train.jsonl").write_text("\n".join(map(json.dumps, alpaca(4))))
    (repository / "test.jsonl").write_text("\n".join(map(json.dumps, alpaca(2, start=4))))
    assert sorted(r.split or "" for r in load_trace("owner/name").records) == ["test"] * 2 + ["train"] * 4


@pytest.mark.parametrize("lines", [False, True])
def test_ragged_rows_come_through(repository: Path, lines: bool) -> None:
    rows = [
        {"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "extra": 1}]},
        {"id": 3, "conversations": [{"from": "human", "value": 7}]},
        {"id": "c", "conversations": "oops"},
    ]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    (repository / f"train.json{'l' if lines else ''}").write_text(text)
    trace = load_trace("owner/name")
    assert [(r.conversation, r.prompt, r.response) for r in trace.records] == [("a", "q", "a")]
    assert trace.report.dropped == {"no question with an answer": 1, "conversation is not a list": 1}


def test_a_data_set_that_cannot_be_read_is_refused(repository: Path) -> None:
    with pytest.raises(TraceError, match="the hub's data set cannot be read"):
        load_trace("owner/name")
    (repository / "train.json").write_text("[{")
    with pytest.raises(TraceError, match="the hub's data set cannot be read"):
        load_trace("owner/name")


def test_the_cache_of_datasets_serves_offline(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "train.json").write_text(json.dumps(alpaca(3)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "require_hub", lambda *a, **k: pytest.fail("asked the hub"))
    assert len(load_trace("owner/name")) == 3
