"""The result folder: what was planned and what came out, run by run; nothing finished is lost or run twice.

Layout: ``docs/reference/results-schema.md``. Every file is written to a temporary sibling and renamed; a run's tables
are written before its record, so a record that exists is complete.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from ecoserve.errors import ConfigError, InputError
from ecoserve.files import write_atomically
from ecoserve.options import problem
from ecoserve.serving.runs import KVPoint, RunResult
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.summary import (
    FailureRow,
    Meta,
    PredictorRow,
    RunRow,
    SearchRow,
    Summary,
    TrialRow,
    with_current_names,
)
from ecoserve.sweep.tables import (
    hashes,
    read_kv,
    read_requests,
    request_table,
    run_row,
    table_sha256,
    write_kv,
    write_table,
)

#: Names that :func:`~ecoserve.files.replacing` gives to files until they are whole.
_HALF_WRITTEN: Final = ".*.????????"
_AGAIN: Final = "delete it and run again with --resume"
#: libyaml's if installed: plans of a thousand runs are written again and again.
_Dumper: Final = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_full(path: Path, fix: str = "name another folder") -> None:
    """Raise ConfigError if ``path`` is a folder that holds something."""
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError("the folder is not empty", where=str(path), fix=fix)


class ResultFolder:
    """A folder of results: :meth:`create` it before running, :meth:`open` it to read; :meth:`describe` changes
    ``meta``.
    """

    def __init__(self, path: Path, meta: Meta, expected: Iterable[PlannedRun] = ()) -> None:
        self.path = path
        self.meta = meta
        self._expected: dict[str, PlannedRun] = {run.key: run for run in expected}

    @classmethod
    def create(cls, path: str | Path, meta: Meta, *, resume: bool = False) -> ResultFolder:
        """Make the folder, or with ``resume`` continue: finished runs count once :meth:`expect` names them again.

        Raises ConfigError if the folder cannot be made, or holds something and ``resume`` is off.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ConfigError("is not a folder", where=str(path), fix="name a folder for the results")
        if not resume:
            refuse_full(path, "continue its runs with --resume, or name another folder")
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
        """Read a folder that :meth:`create` made; raises InputError if it is not one, or is damaged."""
        path = Path(path)
        plan = path / "sweep.yaml"
        if not plan.is_file():
            what = "is not a result folder (no sweep.yaml)"
            raise InputError(what, where=str(path), fix="name the -o folder of a run")
        try:
            content = yaml.load(plan.read_text(encoding="utf-8"), Loader=_Loader)
            expected = [PlannedRun(r["run"], r["settings"], r["labels"]) for r in content["runs"]]
            return cls(path, Meta.model_validate(content["meta"]), expected)
        except (yaml.YAMLError, ValidationError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise _damaged(plan, error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other sweeps out (ConfigError) while the block runs; half-written files are removed first."""
        # A lock on the folder itself leaves no file behind, and the kernel releases it however the holder ends.
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                what, fix = "another sweep is running in this folder", "wait for it, or name another"
                raise ConfigError(what, where=str(self.path), fix=fix) from error
            for part in (self.path, self.path / "runs", self.path / "requests", self.path / "kv"):
                for file in part.glob(_HALF_WRITTEN):
                    file.unlink(missing_ok=True)
            yield
        finally:
            os.close(handle)

    def describe(self, **changes: Any) -> None:
        """Change fields of :attr:`meta` (``trace=...``, ``synthetic=...``, ...) and write them."""
        self.meta = Meta.model_validate({**self.meta.model_dump(), **changes})
        self._write_plan()

    def expect(self, runs: Iterable[PlannedRun], *, only: bool = False) -> None:
        """Name runs that belong to these results; the summary holds these, in this order. ``only``: and no others."""
        self._expected = ({} if only else self._expected) | {run.key: run for run in runs}
        self._write_plan()

    def only(self, runs: Iterable[PlannedRun]) -> ResultFolder:
        """A view of the same folder in which only these runs count; nothing is written."""
        return ResultFolder(self.path, self.meta, runs)

    def add(self, run: PlannedRun, result: RunResult, *, wall_s: float | None = None) -> dict[str, Any]:
        """Write a finished run: its tables, then its record. Returns its row of the summary."""
        row = run_row(run, result, wall_s)
        write_table(self._file("requests", run.key), request_table(run.key, result.rows))
        write_kv(self._file("kv", run.key), result.kv)
        self._write_record(run, {"status": "finished", "row": row})
        return row

    def add_failure(self, run: PlannedRun, error: str, details: str = "") -> None:
        """Write that a run failed: one line for people, and the traceback if there is one."""
        self._write_record(run, {"status": "failed", "error": error, "details": details})

    def set_predictor(self, name: str, metrics: Mapping[str, Any]) -> None:
        """Write the quality of a predictor (the keys of :class:`PredictorRow`; others are kept)."""
        known = self._predictors() | {name: PredictorRow.model_validate(metrics)}
        write_json(self.path / "predictor.json", {n: row.model_dump(mode="json") for n, row in known.items()})

    def set_trial(self, row: TrialRow) -> None:
        """Write what a trial found beside its runs."""
        write_json(self.path / "trial.json", row.model_dump(mode="json"))

    def set_searches(self, rows: Iterable[SearchRow]) -> None:
        write_json(self.path / "searches.json", {"searches": [row.model_dump(mode="json") for row in rows]})

    @property
    def expected(self) -> list[PlannedRun]:
        return list(self._expected.values())

    def finished(self) -> set[str]:
        """Keys of the runs that are done: not those that failed, nor those whose request rows are gone."""
        done = (key for key, record in self._records().items() if record["status"] == "finished")
        return {key for key in done if self._file("requests", key).is_file()}

    def finished_row(self, key: str) -> dict[str, Any] | None:
        file = self._file("runs", key)
        if not file.is_file() or not self._file("requests", key).is_file():
            return None
        record = _read_json(file, _AGAIN)
        return with_current_names(record["row"]) if record["status"] == "finished" else None

    def requests(self, key: str) -> Any:
        """The request rows of a finished run (``pyarrow.Table``); raises InputError if they are missing or damaged."""
        return read_requests(self._file("requests", key))

    def kv(self, key: str) -> list[KVPoint]:
        """KV over time of a finished run; empty where it was not recorded. Raises InputError if it is damaged."""
        return read_kv(self._file("kv", key))

    def check_requests(self) -> None:
        """Compare the request rows of every finished run with their hash; raises InputError if one differs."""
        for run in self.summary().runs:
            file = self._file("requests", run.run)
            if run.requests_sha256 is not None and table_sha256(read_requests(file)) != run.requests_sha256:
                raise InputError("holds other rows than were written", where=str(file), fix=_AGAIN)

    def summary(self) -> Summary:
        records = self._records()
        known = [(run, records[run.key]) for run in self._expected.values() if run.key in records]
        rows = [with_current_names(record["row"]) for _, record in known if record["status"] == "finished"]
        names = ("policy", "lengths", "rate_rps", "seed")
        failures = [
            FailureRow(run=run.key, error=record["error"], **{name: run.settings.get(name) for name in names})
            for run, record in known
            if record["status"] == "failed"
        ]
        try:
            return Summary(
                runs=[RunRow.model_validate(row) for row in rows],
                failures=failures,
                searches=self._searches(),
                predictor=self._predictors(),
                trial=self._optional("trial.json", TrialRow) or None,
                meta=self.meta.model_copy(update=hashes(rows)),
            )
        except ValidationError as error:
            what = f"a run's record is damaged ({': '.join(problem(error))})"
            raise InputError(what, where=str(self.path)) from error

    def write_summary(self) -> Path:
        return write_json(self.path / "summary.json", self.summary().model_dump(mode="json"))

    def _file(self, kind: Literal["requests", "kv", "runs"], key: str) -> Path:
        return self.path / kind / f"{key}.{'json' if kind == 'runs' else 'parquet'}"

    def _write_plan(self) -> None:
        content = {"meta": self.meta.model_dump(mode="json"), "runs": [_plain(run) for run in self.expected]}
        text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "sweep.yaml", f"# Written by ecoserve: the sweep as resolved.\n{text}")

    def _write_record(self, run: PlannedRun, outcome: Mapping[str, Any]) -> None:
        if run.key not in self._expected:
            self.expect([run])
        write_json(self._file("runs", run.key), {**_plain(run), **outcome})

    def _records(self) -> dict[str, dict[str, Any]]:
        files = sorted((self.path / "runs").glob("*.json"))
        return {file.stem: _read_json(file, _AGAIN) for file in files if file.stem in self._expected}

    def _searches(self) -> list[SearchRow]:
        file = self._optional("searches.json", _SearchFile)
        return file.searches if file else []

    def _predictors(self) -> dict[str, PredictorRow]:
        rows: dict[str, PredictorRow] = self._optional("predictor.json", dict[str, PredictorRow], "evaluate again")
        return rows

    def _optional(self, name: str, kind: Any, fix: str = _AGAIN) -> Any:
        file = self.path / name
        if not file.exists():
            return {}
        try:
            return TypeAdapter(kind).validate_python(_read_json(file, fix))
        except ValidationError as error:
            raise _damaged(file, error, fix) from error


class _SearchFile(BaseModel):
    searches: list[SearchRow]


def write_json(path: Path, content: Any) -> Path:
    return write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(run: PlannedRun) -> dict[str, Any]:
    return {"run": run.key, "labels": dict(run.labels), "settings": dict(run.settings)}


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=str(path)) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, error, fix) from error
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", where=str(path), fix=fix)
    return content


def _damaged(path: Path, error: Exception, fix: str | None = None) -> InputError:
    plain = (str(error).splitlines() or [type(error).__name__])[0]
    what = ": ".join(problem(error)) if isinstance(error, ValidationError) else plain
    return InputError(f"is damaged ({what})", where=str(path), fix=fix)
