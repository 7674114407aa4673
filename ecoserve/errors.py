"""The errors that ecoserve raises on purpose.

::

    EcoServeError
    ├── InputError        what was given cannot be used       exit code 2, HTTP 400
    │   ├── TraceError        a trace file or row
    │   ├── CheckpointError   a predictor checkpoint
    │   ├── PredictionError   a length distribution that is not one
    │   └── ConfigError       a setting, or a combination that is not supported
    ├── RunError          it failed while running             exit code 1
    └── ThresholdError    it ran, but a stated bound was missed   exit code 3

Each message is one line: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from functools import partial


class EcoServeError(Exception):
    """Base of every error ecoserve raises on purpose: what is wrong, in a few words.

    ``where``: the file, row, option or field, if there is one; ``fix``: what the user can do about it, if anything.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        line = f"{line}; {self.fix}" if self.fix else line
        return " ".join(line.split())

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), self.what, where=self.where, fix=self.fix), ()


class InputError(EcoServeError):
    exit_code = 2


class TraceError(InputError): ...


class CheckpointError(InputError): ...


class PredictionError(InputError): ...


class ConfigError(InputError): ...


class RunError(EcoServeError):
    exit_code = 1


class ThresholdError(EcoServeError):
    exit_code = 3
