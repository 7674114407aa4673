"""A sweep from its plan to its report: what ``ecoserve sweep`` and ``ecoserve.Sweep`` run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ecoserve.errors import ConfigError
from ecoserve.sweep.execute import execute
from ecoserve.sweep.expansion import expand
from ecoserve.sweep.identity import describe_run, fingerprint
from ecoserve.sweep.plan import SYNTHETIC, SweepPlan
from ecoserve.sweep.report import write_report
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.search import Searches
from ecoserve.sweep.summary import Meta, Summary, TraceInfo


class Sweep:
    """A plan, and the runs that it comes to.

    Args:
        plan: a YAML file, or its keys as a mapping (paths are then relative to the current folder).
        trace, predictor: replace the plan's own.
        command: how the sweep was started, for its report.

    Raises ConfigError, naming the key, if the plan cannot be run.
    """

    def __init__(
        self,
        plan: str | Path | Mapping[str, Any],
        *,
        trace: str | None = None,
        predictor: str | None = None,
        command: str | None = None,
    ) -> None:
        given = {"trace": trace, "predictor": predictor}
        if isinstance(plan, Mapping):
            self.plan = SweepPlan.of(plan, Path.cwd(), where="plan", **given)
        else:
            self.plan = SweepPlan.load(plan, **given)
        self.runs = expand(self.plan)
        self.searches = Searches.of(self.plan) if self.plan.search is not None else None
        self._command = command

    def run(
        self,
        output: str | Path,
        *,
        jobs: int | None = None,
        ray: str | None = None,
        resume: bool = False,
        console: Console | None = None,
    ) -> Summary:
        """Run everything into the folder ``output``, with ``summary.json`` and ``report.html``; returns the summary.

        Args:
            jobs: runs at once, one process each; 0 runs them one by one in this process. Default: 1.
            ray: address of a Ray cluster, ``"auto"`` or ``"local"``.
            resume: continue in a folder; finished runs are not run again.
            console: where progress is shown; None: nowhere.

        A run that fails is in the summary's ``failures``. After an interruption, too, the folder holds the runs that
        have finished and their report. Raises ConfigError if the folder or the way of running does not fit.
        """
        if ray not in (None, "local") and jobs is not None:
            raise ConfigError("the cluster decides how many run at once", where="--jobs", fix="leave out --jobs")
        if self.plan.engine == "url" and (ray is not None or (jobs or 1) > 1):
            raise ConfigError(
                "parallel runs at one server disturb each other", where="engine: url", fix="leave out --jobs and --ray"
            )
        if ray is not None:
            from ecoserve.sweep.ray_cluster import look_for

            look_for(ray)  # before anything is written
        folder = ResultFolder.create(Path(output), self._meta(), resume=resume)
        try:
            execute(
                self.runs,
                folder,
                function=self.plan.run,
                jobs=jobs,
                ray=ray,
                searches=self.searches,
                console=console,
            )
        finally:
            _note_lengths(folder)
            write_report(folder)
        return folder.summary()

    def _meta(self) -> Meta:
        plan = self.plan
        sources = dict.fromkeys([*plan.trace, *(t for c in plan.conditions.values() for t in c.trace or [])])
        files = [Path(source) for source in sources if Path(source).is_file()]
        # Several traces have no hash in common; each run's key holds that of its own.
        sha256 = fingerprint(files[0]) if len(sources) == len(files) == 1 else None
        mode = f"virtual time, pipeline depth {plan.depth}" if plan.engine == "virtual" else plan.engine
        return describe_run(plan.title, [self._command] if self._command else []).model_copy(
            update={
                "synthetic": any(source.partition(":")[0] == SYNTHETIC for source in sources),
                "trace": TraceInfo(source=", ".join(sources), sha256=sha256),
                "scheduler_mode": mode,
                "settings": plan.model_dump(mode="json", exclude_none=True),
            }
        )


def _note_lengths(folder: ResultFolder) -> None:
    """Where response lengths came from is known once the trace has been read, which the runs do."""
    known = {getattr(run, "length_source", None) for run in folder.summary().runs} - {None}
    if folder.meta.trace and known:
        folder.describe(trace={**folder.meta.trace.model_dump(), "length_source": ", ".join(sorted(map(str, known)))})
