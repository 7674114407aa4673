"""A vLLM server of the collection's own, for a model on this machine, on a Unix socket that only this user can reach.

A process of its own: requests go through the chat template as clients' do, and an engine that runs out of memory takes
no answers with it.
"""

from __future__ import annotations

import asyncio
import ctypes
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

from ecoserve.errors import ConfigError, EcoServeError, RunError
from ecoserve.serving.collect.settings import CollectProgress, Progress

_PR_SET_PDEATHSIG: Final = 1
_CHILD: Final = (
    "import sys; from ecoserve.serving.collect.local import serve_child; sys.exit(serve_child(sys.argv[1:]))"
)
_POLL_S: Final = 0.5
#: Longest path of a Unix socket, in bytes.
_LONGEST_SOCKET: Final = 100
#: It stops within this time, else it is killed.
_STOP_S: Final = 30.0
#: Variables that would make our own server ask for a key, or predict.
_NOT_PASSED_ON: Final = ("VLLM_API_KEY", "ECOSERVE_API_KEY", "ECOSERVE_PREDICTOR", "PROMETHEUS_MULTIPROC_DIR")
#: Flags for where a server listens and which clients it accepts: ours to set.
_OURS: Final = ("--uds", "--host", "--port", "--api-key", "--served-model-name")


def name_of(model: str) -> str:
    """The served name of a model: the folder's name, or the hub id."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


class LocalServer:
    """vLLM's server in a child process, all its output in ``log``; inside the asynchronous context, it answers."""

    url: Final = "http://localhost/v1"

    def __init__(self, model: str, flags: Sequence[str], name: str, log: Path, progress: Progress) -> None:
        for flag in flags:
            if flag.partition("=")[0] in _OURS:
                raise ConfigError("is set by the collection itself", where=flag, fix="leave it out")
        self._model = model
        self._flags = tuple(flags)
        self._name = name
        self._log = log
        self._progress = progress
        self._folder = ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        return os.path.join(self._folder, "s")

    async def __aenter__(self) -> LocalServer:
        self._folder = tempfile.mkdtemp(prefix="ecoserve-")
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET:
            os.rmdir(self._folder)
            self._folder = tempfile.mkdtemp(prefix="ecoserve-", dir="/tmp")
        try:
            self._start()
            await self._wait_until_ready()
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
        return f"vLLM's server ended (exit code {code}; its whole log is in {self._log}): {self._last_words()}"

    def _start(self) -> None:
        command = [sys.executable, "-c", _CHILD, str(os.getpid()), self.socket]
        command += [self._model, *self._flags, "--served-model-name", self._name]
        env = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        with self._log.open("wb") as out:
            # A session of its own: Ctrl-C is for us, the server still has open requests to answer.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )

    async def _wait_until_ready(self) -> None:
        state = CollectProgress(total=0, earlier=0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=self.socket), timeout=5.0) as client:
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
                self._progress(state)
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
            lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        except OSError:
            return "its log cannot be read"
        spoken = [line for line in lines if line]
        ours = [line.removeprefix("error: ") for line in spoken if line.startswith("error: ")]
        return " ".join((ours or spoken or ["its log is empty"])[-1].split())[:300]


def end_with(parent: int) -> None:
    """Get SIGTERM when process ``parent``, which has started this one, ends, however it does; exit if it has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def serve_child(arguments: Sequence[str]) -> int:
    """The child process: serve until stopped, then delete the socket's folder.

    Arguments: parent's id, socket, model, flags of vLLM. Its own scheduler runs, as lengths do not depend on the order.
    """
    parent, socket, model, *flags = arguments
    try:
        end_with(int(parent))
        from ecoserve.serving.adapter.server import STOCK, serve

        serve(model, vllm_flags=[*flags, "--uds", socket], policy=STOCK)
    except EcoServeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        shutil.rmtree(os.path.dirname(socket), ignore_errors=True)
    return 0
