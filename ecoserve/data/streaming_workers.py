"""Worker processes that turn blocks of a file into drafts.

Rule: a worker is a function: block in, drafts out, nothing kept. It is a plain Python process at the end of a pipe,
started from nothing: it does not import the program that uses it (so that a script needs no guard around its main
part, nor a notebook a file), it leaves Ctrl-C to its parent, and it ends with its pipe, whatever ended the parent.
What goes through the pipe are plain values (``marshal``), which cannot carry code.
"""

from __future__ import annotations

import gc
import marshal
import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO, Final

import ecoserve
from ecoserve.data.cleaning import Draft, Dropped, Items, Wanted, measured
from ecoserve.data.fields import FieldPath
from ecoserve.data.formats import get_format
from ecoserve.data.measuring import Sources
from ecoserve.data.records import Fingerprint, Message, Record
from ecoserve.data.streaming_blocks import Block, Layout, layout_of, parse_block
from ecoserve.errors import EcoServeError, RunError

_COMMAND: Final = (sys.executable, "-P", "-c", "from ecoserve.data.streaming_workers import serve; serve()")
_PIPE_BYTES: Final = 1 << 20
_VALUES: Final = attrgetter(*Record.__slots__)
_MESSAGES: Final = Record.__slots__.index("messages")


class WorkerPool:
    """Worker processes and the threads that talk to them; a context manager.

    Args:
        count: how many.
        layout: how the file's rows follow each other.
        wanted: what is read from each row.
        hashed: whether drafts that are final come with what is hashed of them.
    """

    def __init__(self, count: int, layout: Layout, wanted: Wanted, *, hashed: bool) -> None:
        path = os.pathsep.join(filter(None, (str(Path(ecoserve.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        paths = tuple(None if p is None else p.text for p in (wanted.length, wanted.samples))
        setup = marshal.dumps((layout.plain(), wanted.form.name, *paths, wanted.model, hashed))
        self._threads = ThreadPoolExecutor(count + 1, thread_name_prefix="ecoserve-read")
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        #: The processes, for who wants to see them.
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                process = subprocess.Popen(
                    _COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pipesize=_PIPE_BYTES,
                    env={**os.environ, "PYTHONPATH": path},
                )
                self.processes.append(process)
                self._idle.put(process)
                self._tell(process, setup)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def submit(self, block: Block, sources: Sources | None) -> Future[bytes]:
        """Have a worker turn ``block`` into drafts, whose lengths come from ``sources`` if that is decided.

        The result is for :func:`unpack`; empty if the block is not what it seemed to be. It raises
        :class:`~ecoserve.errors.RunError` if the worker ended.
        """
        return self._threads.submit(self._ask, marshal.dumps((tuple(block), sources and tuple(sources))))

    def in_thread(self, work: Any) -> Future[Any]:
        """Have a thread call ``work``."""
        return self._threads.submit(work)

    def _ask(self, job: bytes) -> bytes:
        process = self._idle.get()
        try:
            self._tell(process, job)
            assert process.stdout is not None
            answer = _read(process.stdout)
            if answer is None:
                raise _ended(process)
        finally:
            # A dead one too: who asks it next must not wait for ever.
            self._idle.put(process)
        return answer

    @staticmethod
    def _tell(process: subprocess.Popen[bytes], data: bytes) -> None:
        assert process.stdin is not None
        try:
            _write(process.stdin, data)
        except (OSError, ValueError) as e:
            raise _ended(process) from e

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for process in self.processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    # Something may be left that cannot be written to it any more.
                    with suppress(OSError):
                        pipe.close()


def _ended(process: subprocess.Popen[bytes]) -> EcoServeError:
    code = process.wait()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    fix = "if memory is short, free some, or read it in one process (workers=0)"
    return RunError(f"a process that reads the trace {how}", fix=fix)


def _write(pipe: Any, data: bytes) -> None:
    pipe.write(len(data).to_bytes(8, "little"))
    pipe.write(data)
    pipe.flush()


def _read(pipe: Any) -> bytes | None:
    size = pipe.read(8)
    if len(size) < 8:
        return None
    length = int.from_bytes(size, "little")
    data: bytes = pipe.read(length)
    return data if len(data) == length else None


def serve() -> None:
    """What a worker does until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocks come and go as a whole; looking for cycles in them finds none.
    gc.freeze()
    gc.set_threshold(100_000)
    jobs = sys.stdin.buffer
    answers: BinaryIO
    # Whatever prints must not print into the pipe.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        setup = _read(jobs)
        if setup is None:
            return
        plain, form, length, samples, model, hashed = marshal.loads(setup)
        lengths, others = (None if p is None else FieldPath.parse(p) for p in (length, samples))
        wanted, layout = Wanted(get_format(form), lengths, others, model), layout_of(plain)
        while (job := _read(jobs)) is not None:
            block, sources = marshal.loads(job)
            _write(answers, _work(Block(*block), layout, wanted, sources and Sources(*sources), hashed))


def _work(block: Block, layout: Layout, wanted: Wanted, sources: Sources | None, hashed: bool) -> bytes:
    rows = parse_block(block, layout, "")
    if rows is None:
        return b""
    try:
        items = [wanted.read(row, block.first + i) for i, row in enumerate(rows)]
    except EcoServeError:
        return b""
    if sources is not None:
        items = [measured(row, sources) for row in items]
        if hashed and not sources.tokenizer():
            items = [[_hashed(item) for item in row] for row in items]
    return pack(items)


def _hashed(item: Draft | Dropped) -> Draft | Dropped:
    if not isinstance(item, Draft) or item.counts_turn or item.problem is not None:
        return item
    return item._replace(line=Fingerprint.line(item.record))


def pack(rows: list[Items]) -> bytes:
    """What rows gave, as bytes; a message that several records share is written once."""
    numbers: dict[int, int] = {}
    messages: list[tuple[str, str]] = []

    def number(message: Message) -> int:
        found = numbers.get(id(message))
        if found is None:
            found = numbers[id(message)] = len(messages)
            messages.append((message.role, message.content))
        return found

    plain: list[list[tuple[Any, ...]]] = []
    for items in rows:
        row: list[tuple[Any, ...]] = []
        for item in items:
            if isinstance(item, Draft):
                values = list(_VALUES(item.record))
                values[_MESSAGES] = tuple(map(number, item.record.messages))
                row.append((values, *item[1:]))
            else:
                row.append(tuple(item))
        plain.append(row)
    return marshal.dumps((messages, plain))


def unpack(data: bytes) -> list[Items]:
    """The items that :func:`pack` packed."""
    pairs, plain = marshal.loads(data)
    message = [Message(*pair) for pair in pairs].__getitem__
    rows: list[Items] = []
    for row in plain:
        items: Items = []
        for first, *more in row:
            if isinstance(first, str):
                items.append(Dropped(first, *more))
            else:
                first[_MESSAGES] = tuple(map(message, first[_MESSAGES]))
                items.append(Draft(Record(*first), *more))
        rows.append(items)
    return rows
