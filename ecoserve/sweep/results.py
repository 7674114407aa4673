"""The result folder: what was planned, what came out, run by run, so that nothing finished is ever lost or run twice.

Layout (``docs/results-schema.md``): ``sweep.yaml`` (as resolved), ``runs/RUN.json``, ``requests/RUN.parquet``,
``predictor.json``, ``summary.json``, ``report.html``. Every file is written to a temporary sibling and renamed; a
run's rows are written before its record, so a record that exists is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from ecoserve.errors import ConfigError, InputError
from ecoserve.files import write_atomically
from ecoserve.serving.kv_series import KVPoint
from ecoserve.serving.runs import RunResult
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.kv import read_kv, write_kv
from ecoserve.sweep.requests import read_requests, request_table, table_sha256, write_requests
from ecoserve.sweep.rows import hashes, run_row
from ecoserve.sweep.summary import FailureRow, Meta, PredictorRow, RunRow, SearchRow, Summary

#: Names that :func:`~ecoserve.files.replacing` gives to files until they are whole.
_HALF_WRITTEN: Final = ".*.????????"
_AGAIN: Final = "delete it and run again with --resume"
#: libyaml's where it is there: plans of a thousand runs are written again and again.
_Dumper: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ResultFolder:
    """A folder of results, open for adding and for reading.

    Use :meth:`create` before running and :meth:`open` to read what is there.

    Attributes:
        path: the folder.
        meta: what ran, where; assign a changed copy through :meth:`describe`.
    """

    def __init__(self, path: Path, meta: Meta, expected: Iterable[PlannedRun] = ()) -> None:
        self.path = path
        self.meta = meta
        self._expected: dict[str, PlannedRun] = {run.key: run for run in expected}

    # -- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | Path, meta: Meta, *, resume: bool = False) -> ResultFolder:
        """Make the folder, or go on with it.

        With ``resume``, finished runs are kept, and count as soon as :meth:`expect` names them again.

        Raises:
            ConfigError: if the folder already holds something and ``resume`` is off, or cannot be made.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ConfigError("is not a folder", where=str(path), fix="name a folder for the results")
        if not resume and path.is_dir() and any(path.iterdir()):
            raise ConfigError(
                "the folder is not empty",
                where=str(path),
                fix="go on with its runs by --resume, or name another folder",
            )
        try:
            for part in (path, path / "runs", path / "requests"):
                part.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot be made ({error.strerror})", where=str(path)) from error
        folder = cls(path, meta)
        folder._write_plan()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> ResultFolder:
        """Read a folder that :meth:`create` made.

        Raises:
            InputError: if it is not one, or is damaged.
        """
        path = Path(path)
        plan = path / "sweep.yaml"
        if not plan.is_file():
            raise InputError(
                "is not a result folder (no sweep.yaml)", where=str(path), fix="name the -o folder of a run"
            )
        try:
            content = yaml.load(plan.read_text(encoding="utf-8"), Loader=_Loader)
            expected = [PlannedRun(r["run"], r["settings"], r["labels"]) for r in content["runs"]]
            return cls(path, Meta.model_validate(content["meta"]), expected)
        except (yaml.YAMLError, ValidationError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"is damaged ({_first_words(error)})", where=str(plan)) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other sweeps out of the folder while the block runs, and clear away what a killed one left half-written.

        Raises:
            ConfigError: if another process is at it.
        """
        # The lock is the folder's own: nothing to leave behind, and the kernel lets go of it however the holder ends.
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(
                    "another sweep is running in this folder", where=str(self.path), fix="wait for it, or name another"
                ) from error
            for part in (self.path, self.path / "runs", self.path / "requests", self.path / "kv"):
                for file in part.glob(_HALF_WRITTEN):
                    file.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    # -- adding -------------------------------------------------------------------------------------------------------

    def describe(self, **changes: Any) -> None:
        """Change fields of :attr:`meta` (``trace=...``, ``synthetic=...``, ...) and write them down."""
        self.meta = Meta.model_validate({**self.meta.model_dump(), **changes})
        self._write_plan()

    def expect(self, runs: Iterable[PlannedRun]) -> None:
        """Say which runs belong to these results; the summary holds these and no others, in this order."""
        self._expected |= {run.key: run for run in runs}
        self._write_plan()

    def only(self, runs: Iterable[PlannedRun]) -> ResultFolder:
        """A view of the same folder in which only these runs count; nothing is written."""
        return ResultFolder(self.path, self.meta, runs)

    def add(self, run: PlannedRun, result: RunResult, *, wall_s: float | None = None) -> dict[str, Any]:
        """Write down a finished run: its request rows, then its record. Returns the run's row of the summary."""
        if run.key not in self._expected:
            self.expect([run])
        row = run_row(run, result, wall_s)
        write_requests(self._requests_file(run.key), request_table(run.key, result.rows))
        write_kv(self._kv_file(run.key), result.kv)
        self._write_record(run, {"status": "finished", "row": row})
        return row

    def add_failure(self, run: PlannedRun, error: str, details: str = "") -> None:
        """Write down that a run failed: one line for people, and the traceback if there is one."""
        if run.key not in self._expected:
            self.expect([run])
        self._write_record(run, {"status": "failed", "error": error, "details": details})

    def set_predictor(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Write down the quality of a predictor (the keys of :class:`PredictorRow`; others are kept)."""
        known = self._predictors()
        known[name] = PredictorRow.model_validate(metrics)
        write_json(self.path / "predictor.json", {n: row.model_dump(mode="json") for n, row in known.items()})

    def set_searches(self, rows: Iterable[SearchRow]) -> None:
        """Write down what the searches came to."""
        write_json(self.path / "searches.json", {"searches": [row.model_dump(mode="json") for row in rows]})

    def put_in_order(self, runs: Iterable[PlannedRun]) -> None:
        """Say that the runs belong to these results in this order."""
        self._expected = {run.key: run for run in runs}
        self._write_plan()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def expected(self) -> list[PlannedRun]:
        """The runs that belong to these results."""
        return list(self._expected.values())

    def finished(self) -> set[str]:
        """Keys of the runs that are done: not those that failed, nor those whose request rows have gone."""
        done = (key for key, record in self._records() if record["status"] == "finished")
        return {key for key in done if self._requests_file(key).is_file()}

    def finished_row(self, key: str) -> dict[str, Any] | None:
        """The row of a run if it is done, whether or not anybody expects it."""
        file = self.path / "runs" / f"{key}.json"
        if not file.is_file() or not self._requests_file(key).is_file():
            return None
        record = _read_json(file, _AGAIN)
        row: dict[str, Any] | None = record["row"] if record["status"] == "finished" else None
        return row

    def requests(self, key: str) -> Any:
        """The request rows of a finished run, as a ``pyarrow.Table``.

        Raises:
            InputError: if they are missing or damaged.
        """
        return read_requests(self._requests_file(key))

    def kv(self, key: str) -> list[KVPoint]:
        """KV over time of a finished run; empty where it was not written down.

        Raises:
            InputError: if it is damaged.
        """
        return read_kv(self._kv_file(key))

    def check_requests(self) -> None:
        """Compare the request rows of every finished run with what was hashed when they were written.

        Raises:
            InputError: naming the first file that holds something else.
        """
        for run in self.summary().runs:
            file = self._requests_file(run.run)
            if run.requests_sha256 is not None and table_sha256(read_requests(file)) != run.requests_sha256:
                raise InputError(
                    "holds other rows than were written",
                    where=str(file),
                    fix="delete it and run again with --resume",
                )

    def summary(self) -> Summary:
        """Everything that is there now, in the order of the plan."""
        records = dict(self._records())
        known = [(run, records[run.key]) for run in self._expected.values() if run.key in records]
        rows = [record["row"] for _, record in known if record["status"] == "finished"]
        failures = [
            FailureRow(
                **{name: run.settings.get(name) for name in ("policy", "lengths", "rate_rps", "seed")},
                run=run.key,
                error=record["error"],
            )
            for run, record in known
            if record["status"] == "failed"
        ]
        try:
            return Summary(
                runs=[RunRow.model_validate(row) for row in rows],
                failures=failures,
                searches=self._searches(),
                predictor=self._predictors(),
                meta=self.meta.model_copy(update=hashes(rows)),
            )
        except ValidationError as error:
            raise InputError(f"a run's record is damaged ({_first_words(error)})", where=str(self.path)) from error

    def write_summary(self) -> Path:
        """Write ``summary.json`` and return its path."""
        return write_json(self.path / "summary.json", self.summary().model_dump(mode="json"))

    # -- files --------------------------------------------------------------------------------------------------------

    def _write_plan(self) -> None:
        content = {
            "meta": self.meta.model_dump(mode="json"),
            "runs": [
                {"run": run.key, "labels": dict(run.labels), "settings": dict(run.settings)}
                for run in self._expected.values()
            ],
        }
        text = "# Written by ecoserve: the sweep as resolved.\n" + yaml.dump(
            content, Dumper=_Dumper, sort_keys=False, allow_unicode=True
        )
        write_atomically(self.path / "sweep.yaml", text.encode())

    def _requests_file(self, key: str) -> Path:
        return self.path / "requests" / f"{key}.parquet"

    def _kv_file(self, key: str) -> Path:
        return self.path / "kv" / f"{key}.parquet"

    def _write_record(self, run: PlannedRun, outcome: Mapping[str, Any]) -> None:
        record = {"run": run.key, "labels": dict(run.labels), "settings": dict(run.settings), **outcome}
        write_json(self.path / "runs" / f"{run.key}.json", record)

    def _records(self) -> Iterable[tuple[str, dict[str, Any]]]:
        for file in sorted((self.path / "runs").glob("*.json")):
            if file.stem in self._expected:
                yield file.stem, _read_json(file, _AGAIN)

    def _searches(self) -> list[SearchRow]:
        file = self.path / "searches.json"
        if not file.exists():
            return []
        try:
            return [SearchRow.model_validate(row) for row in _read_json(file, _AGAIN)["searches"]]
        except (ValidationError, KeyError, TypeError) as error:
            raise InputError(f"is damaged ({_first_words(error)})", where=str(file), fix=_AGAIN) from error

    def _predictors(self) -> dict[str, PredictorRow]:
        file = self.path / "predictor.json"
        if not file.exists():
            return {}
        try:
            return {n: PredictorRow.model_validate(row) for n, row in _read_json(file, "evaluate again").items()}
        except ValidationError as error:
            raise InputError(f"is damaged ({_first_words(error)})", where=str(file)) from error


def load_summary(path: str | Path) -> Summary:
    """Read a ``summary.json``.

    Raises:
        InputError: if it is missing or is not one of this version.
    """
    path = Path(path)
    try:
        return Summary.model_validate(_read_json(path, "run `ecoserve report` on its folder"))
    except ValidationError as error:
        raise InputError(f"is not a summary of this version ({_first_words(error)})", where=str(path)) from error


def write_json(path: Path, content: Any) -> Path:
    """Write JSON atomically; NaN is refused."""
    return write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise InputError(f"is damaged ({_first_words(error)})", where=str(path), fix=fix) from error
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", where=str(path), fix=fix)
    return content


def _first_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]
