"""A vLLM server of the collection's own, for a model on this machine.

A server in a process of its own, not an engine in ours: the requests are then what clients send, chat template
included; one way of asking serves both cases; and an engine that runs out of memory takes no answers with it. It
listens on a Unix socket in a folder only we can enter: no port to find, and nobody else can use it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect.tally import CollectProgress, Progress

_POLL_S: Final = 0.5
#: Longest path of a Unix socket, in bytes.
_LONGEST_SOCKET: Final = 100
#: It stops within this time, else it is killed.
_STOP_S: Final = 30.0
#: Variables that would make our own server ask for a key, or predict.
_NOT_HANDED_ON: Final = ("VLLM_API_KEY", "ECOSERVE_API_KEY", "ECOSERVE_PREDICTOR", "PROMETHEUS_MULTIPROC_DIR")
#: Flags that say where a server listens and whom it lets in: ours to set.
_OURS: Final = ("--uds", "--host", "--port", "--api-key", "--served-model-name")


def name_of(model: str) -> str:
    """What a model is called: the folder's name, or the hub id."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


class LocalServer:
    """vLLM's server in a child process. Use it as an asynchronous context manager; inside, it answers.

    Args:
        model: folder or hub id.
        flags: vLLM's.
        name: the served model's name.
        log: file for all it prints.
        progress: told how long the start takes.
    """

    url: Final = "http://localhost/v1"

    def __init__(self, model: str, flags: Sequence[str], name: str, log: Path, progress: Progress | None) -> None:
        for flag in flags:
            if flag.partition("=")[0] in _OURS:
                raise ConfigError("is set by the collection itself", where=flag, fix="leave it out")
        self._model = model
        self._flags = tuple(flags)
        self._name = name
        self._log = log
        self._show = progress or (lambda state: None)
        self._folder = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        """Path of the socket it listens on."""
        return os.path.join(self._folder, "s")

    async def __aenter__(self) -> LocalServer:
        self._folder = tempfile.mkdtemp(prefix="ecoserve-")
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix="ecoserve-", dir="/tmp")
        try:
            self._start()
            await self._answers()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    def ended(self) -> str | None:
        """Why there is no server any more, None while there is one."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return None
        return f"vLLM's server ended (exit code {code}; all it said is in {self._log}): {self._last_words()}"

    def _start(self) -> None:
        command = [sys.executable, "-m", "ecoserve.serving.collect.child", str(os.getpid()), self.socket]
        command += [self._model, *self._flags, "--served-model-name", self._name]
        env = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
        with self._log.open("wb") as out:
            # A session of its own: Ctrl-C is for us, the server still has open requests to answer.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )

    async def _answers(self) -> None:
        """Until it answers.

        Raises:
            RunError: if it ends instead.
        """
        state = CollectProgress(total=0, earlier=0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        transport = httpx.AsyncHTTPTransport(uds=self.socket)
        async with httpx.AsyncClient(transport=transport, timeout=5.0) as client:
            while True:
                if (why := self.ended()) is not None:
                    raise RunError(why, where=f"--model {self._model}")
                try:
                    if (await client.get("http://localhost/health")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                state.elapsed_s = loop.time() - began
                state.note = f"vLLM loads {self._name}, {state.elapsed_s:.0f} s"
                self._show(state)
                await asyncio.sleep(_POLL_S)

    async def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, _STOP_S)
            except subprocess.TimeoutExpired:
                # Its engine too: the session is the child's own.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        """The line of its log that says most about its end."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except OSError:
            return "its log cannot be read"
        spoken = [line.strip() for line in lines if line.strip()]
        ours = [line.removeprefix("error: ") for line in spoken if line.startswith("error: ")]
        return " ".join((ours or spoken or ["it said nothing"])[-1].split())[:300]
