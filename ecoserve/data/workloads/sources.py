"""Where the lengths and arrivals of a workload come from: laws, or traces that it names.

A length source turns uniform numbers into lengths by its quantile function, so that prompt and response can be
drawn together and the same seed gives the same ranks under another law.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data import arrivals
from ecoserve.data.laws import LAWS, Histogram, KaplanMeier, Law, fit_laws
from ecoserve.data.loading import collect, open_trace
from ecoserve.data.reading import is_workload
from ecoserve.data.records import Trace
from ecoserve.data.workloads import parts
from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Side = Literal["prompt", "response"]

#: Uniform numbers (shape ``[n]``) -> lengths in tokens, and whether the answer was cut off there (both ``[n]``).
Quantiles = Callable[[Floats], tuple[Ints, Bools]]


@dataclass
class Sources:
    """The traces that the workload file ``where`` names, relative to the folder ``base``, each loaded once."""

    base: Path
    where: str
    _loaded: dict[str, Trace] = field(default_factory=dict)

    def trace(self, source: parts.TraceSource) -> Trace:
        """The trace that ``source`` names; a :class:`TraceError` where there is none that can be used."""
        path = self.located(source.trace)
        name = str(path) if path.exists() else os.path.expanduser(os.path.expandvars(source.trace))
        if is_workload(name):
            raise TraceError(f"a workload cannot be made of the workload {name}", where=self.where, fix="name a trace")
        key = source.model_copy(update={"trace": name}).model_dump_json(include=set(parts.TraceSource.model_fields))
        if key not in self._loaded:
            try:
                options = source.model_dump(include={"format", "length_field", "tokenizer"})
                self._loaded[key] = collect(open_trace(name, **options))
            except TraceError as error:
                where = f"{self.where}: trace {error.where or name}"
                raise TraceError(error.what, where=where, fix=error.fix) from error
        return self._loaded[key]

    def located(self, named: str) -> Path:
        """The path that the file names; a :class:`TraceError` if it uses a variable that is not set."""
        name = os.path.expanduser(os.path.expandvars(named))
        if unset := re.search(r"\$\{?(\w+)\}?", name):
            what = f"the environment variable {unset[1]} is not set"
            raise TraceError(what, where=self.where, fix=f"export {unset[1]}=...")
        # What a variable holds was typed in the current folder, not in the file's.
        return (Path.cwd() if "$" in named else self.base) / name

    def lengths(self, source: parts.TraceSource, side: Side) -> tuple[Ints, Bools]:
        """Lengths of the trace's prompts or responses, and which of them were cut off (shape ``[n]`` each)."""
        trace = self.trace(source)
        if side == "response":
            found = [(r.response_tokens, r.censored) for r in trace.records]
        else:
            found = [(r.prompt_tokens, False) for r in trace.records]
        known = [(n, cut) for n, cut in found if n is not None and n >= 1]
        if not known:
            raise TraceError(f"the trace has no {side} lengths", where=trace.source, fix="name a tokenizer")
        lengths, cut = zip(*known, strict=True)
        return np.array(lengths, dtype=np.int64), np.array(cut, dtype=np.bool_)

    def correlation(self, source: parts.TraceSource) -> float:
        """Correlation of the normals behind prompt and response length that gives their rank correlation.

        For a Gaussian copula it is 2 sin(pi / 6 * Spearman's rho) (Kruskal 1958).
        """
        from scipy import stats

        pairs = [(r.prompt_tokens, r.response_tokens) for r in self.trace(source).records]
        known = np.array([p for p in pairs if None not in p], dtype=np.float64).reshape(-1, 2)
        if len(known) < 3 or (known == known[0]).all(axis=0).any():
            raise TraceError("the trace's prompt and response lengths have no correlation", where=self.where)
        return float(2 * np.sin(np.pi / 6 * stats.spearmanr(known).statistic))

    def quantiles(self, spec: parts.LengthSpec, side: Side) -> Quantiles:
        if isinstance(spec, parts.EmpiricalLength):
            return _empirical(Histogram.of(*self.lengths(spec.empirical, side)))
        law = spec.as_law() if isinstance(spec, parts.GivenLength) else self.fitted_law(spec.fitted, side)
        return lambda u: (law.quantile_at(u), np.zeros(u.shape, dtype=np.bool_))

    def fitted_law(self, spec: parts.FittedTo, side: Side) -> Law:
        lengths, cut = self.lengths(spec, side)
        if spec.longest is not None:
            lengths, cut = lengths[lengths <= spec.longest], cut[lengths <= spec.longest]
        try:
            names = LAWS if spec.law == "best" else (spec.law,)
            return fit_laws(Histogram.of(lengths, cut), names, longest=spec.longest)[0].law
        except TraceError as error:
            raise TraceError(error.what, where=f"{self.where}: {side} lengths of {spec.trace}", fix=error.fix) from None

    def arrivals(self, spec: parts.ArrivalSpec, n: int, seed: int, share: float) -> Floats:
        """``n`` arrivals (seconds, ascending) at ``share`` times the rate of ``spec``."""
        match spec:
            case parts.AtOnce():
                return np.zeros(n)
            case parts.PoissonArrivals():
                return arrivals.poisson_arrivals(n, spec.rate * share, seed)
            case parts.GammaArrivals():
                return arrivals.gamma_arrivals(n, spec.rate * share, spec.cv, seed)
            case parts.BurstArrivals():
                shape = spec.model_dump(include={"factor", "burst_s", "calm_s", "cv"})
                return arrivals.burst_arrivals(n, spec.rate * share, seed=seed, **shape)
            case parts.DiurnalArrivals():
                start, rate = spec.start_hour / 24.0 * spec.day_s, spec.rate * share
                return arrivals.varying_arrivals(n, rate, spec.profile(), seed, cv=spec.cv, start_s=start)
        trace = self.trace(spec)
        times = np.sort(np.array([r.arrival_s for r in trace.records if r.arrival_s is not None], dtype=np.float64))
        if len(np.unique(times)) < 3:
            raise TraceError("the trace has no recorded arrivals to go by", where=trace.source)
        times = np.asarray(times - times[0])
        own_rate = (len(times) - 1) / float(times[-1])
        stretch = own_rate / (spec.rate or own_rate)
        if isinstance(spec, parts.FittedArrivals):
            return arrivals.resampled_arrivals(n, times, seed, windows=spec.windows, share=share) * stretch
        if n > len(times):
            what = f"{n:,} arrivals are wanted, {spec.trace} has {len(times):,}"
            raise TraceError(what, where=self.where, fix="lower requests, or take process: fitted")
        return times[:n] * (stretch / share)


def _empirical(counts: Histogram) -> Quantiles:
    """The Kaplan-Meier quantiles; beyond what is known, the longest length seen, cut off."""
    seen = KaplanMeier.of(counts)
    reached = 1.0 - seen.survival
    if len(reached) and seen.survival[-1] < 1e-9:
        reached[-1] = 1.0
    lengths = np.append(seen.lengths, counts.lengths[-1])

    def quantiles(u: Floats) -> tuple[Ints, Bools]:
        index = np.searchsorted(reached, u, side="left")
        return lengths[index], index == len(reached)

    return quantiles
