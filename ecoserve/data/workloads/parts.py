"""What the keys of a workload file share: strictness, traces named in it, laws of lengths, arrivals.

Each field's description is the documentation of its YAML key (docs/guides/workloads.md is made of them), and what is
wrong is said in words about the file, not about classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from ecoserve.data.arrivals import RateProfile
from ecoserve.data.laws import LAWS, LONGEST, Law
from ecoserve.errors import TraceError

LawName = Literal["lognormal", "weibull", "pareto", "logt", "gamma", "exponential"]


class Strict(BaseModel):
    """A mapping of the file: no keys but its own, no NaN, unchanged once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and cls.model_config.get("extra") == "forbid":
            unknown = [str(key) for key in content if key not in cls.model_fields]
            if unknown:
                raise ValueError(f"there is no key {unknown[0]!r} here; keys are {', '.join(cls.model_fields)}")
        return content


class TraceSource(Strict):
    """A trace that something is taken from."""

    trace: str = Field(
        min_length=1, description="A trace file (relative to the workload file; `${NAME}` is a variable) or a hub id."
    )
    format: str = Field("auto", description="Its format, where it is not recognised.")
    length_field: str | None = Field(None, description="Field with the response lengths, as in `--length-field`.")
    tokenizer: str | None = Field(None, description="Tokenizer that counts tokens where the trace has only text.")


class GivenLength(Strict):
    """A law with its parameters: see the table of laws."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    law: str = Field(description="Name of the law; its parameters are further keys.")
    longest: int | None = Field(
        None, description="No length is longer: the law is conditioned on it, nothing piles up there."
    )

    @model_validator(mode="after")
    def _is_law(self) -> GivenLength:
        self.as_law()
        return self

    def as_law(self) -> Law:
        """The law; a ``ValueError`` if it is none."""
        try:
            return Law(self.law, dict(self.model_extra or {}), self.longest)
        except TraceError as error:
            raise ValueError(str(error)) from None


class FittedTo(TraceSource):
    """A law fitted to the lengths of a trace."""

    law: LawName | Literal["best"] = Field("best", description="Which law; `best` has the smallest AIC.")
    longest: Annotated[int, Field(ge=1, le=LONGEST)] | None = Field(
        None, description="The trace leaves out what is longer; the law is fitted and drawn from as conditioned on it."
    )


class FittedLength(Strict):
    """Lengths of a law fitted to a trace."""

    fitted: FittedTo = Field(description="The trace, and which law.")


class EmpiricalLength(Strict):
    """Lengths as they occur in a trace (Kaplan-Meier where answers were cut off)."""

    empirical: TraceSource = Field(description="The trace.")


def _length_kind(content: Any) -> str:
    for key in ("fitted", "empirical"):
        if (isinstance(content, Mapping) and key in content) or hasattr(content, key):
            return f"length:{key}"
    return "length:given"


def _constant(content: Any) -> Any:
    """A bare number stands for a constant length."""
    is_number = isinstance(content, int | float) and not isinstance(content, bool)
    return {"law": "constant", "tokens": content} if is_number else content


LengthSpec = Annotated[
    Annotated[GivenLength, Tag("length:given")]
    | Annotated[FittedLength, Tag("length:fitted")]
    | Annotated[EmpiricalLength, Tag("length:empirical")],
    Discriminator(_length_kind),
    BeforeValidator(_constant),
]

Rate = Annotated[float, Field(gt=0)]
Cv = Annotated[float, Field(ge=0, le=100)]
_RATE = "Requests a second on average."
_CV = "Coefficient of variation of the gaps: 0 a metronome, 1 Poisson, above 1 clumps."


class PoissonArrivals(Strict):
    """Exponential gaps: independent requests."""

    process: Literal["poisson"] = Field(description="`poisson`")
    rate: Rate = Field(description=_RATE)


class GammaArrivals(Strict):
    """Gamma-distributed gaps: smoother or burstier than Poisson."""

    process: Literal["gamma"] = Field(description="`gamma`")
    rate: Rate = Field(description=_RATE)
    cv: Cv = Field(description=_CV)


class Wave(Strict):
    """One wave of a day."""

    amplitude: NonNegativeFloat = Field(description="Height, in mean rates.")
    peak_hour: float = Field(ge=0, le=24, description="Hour (0 to 24) of a peak.")
    cycles: PositiveInt = Field(1, description="Peaks a day.")


class DiurnalArrivals(Strict):
    """A rate that follows the day; `day_s` below 86,400 compresses it."""

    process: Literal["diurnal"] = Field(description="`diurnal`")
    rate: Rate = Field(description="Requests a second on average over a day.")
    day_s: PositiveFloat = Field(86_400.0, description="Seconds that a day lasts: 600 compresses it 144 times.")
    start_hour: float = Field(0.0, ge=0, le=24, description="Hour (0 to 24) at which the load begins.")
    waves: list[Wave] | None = Field(None, description="The rate is 1 plus these waves, in mean rates.")
    hours: list[float] | None = Field(None, description="Instead of waves: 24 relative rates, one for each full hour.")
    cv: Cv = Field(1.0, description=_CV)

    @model_validator(mode="after")
    def _has_a_shape(self) -> DiurnalArrivals:
        if (self.waves is None) == (self.hours is None):
            raise ValueError("a day's rate is given by `waves` or by `hours`, one of them")
        self.profile()
        return self

    def profile(self) -> RateProfile:
        """The day; a ``ValueError`` if it is none."""
        try:
            if self.hours is not None:
                return RateProfile.of_hours(self.hours, self.day_s)
            waves = [(wave.amplitude, wave.peak_hour, wave.cycles) for wave in self.waves or ()]
            return RateProfile.of_waves(waves, self.day_s)
        except TraceError as error:
            raise ValueError(str(error)) from None


class BurstArrivals(Strict):
    """Two rates that take turns (Markov-modulated): calm and burst."""

    process: Literal["bursts"] = Field(description="`bursts`")
    rate: Rate = Field(description="Requests a second on average over calm and burst.")
    factor: float = Field(ge=1, description="How many times higher the rate is in a burst.")
    burst_s: PositiveFloat = Field(description="Mean duration of a burst, seconds.")
    calm_s: PositiveFloat = Field(description="Mean duration between two bursts, seconds.")
    cv: Cv = Field(1.0, description=_CV)


class RecordedArrivals(TraceSource):
    """The arrivals of a trace, as they are or stretched to another rate."""

    process: Literal["recorded"] = Field(description="`recorded`")
    rate: Rate | None = Field(None, description="Stretch them to this many requests a second on average.")


class FittedArrivals(TraceSource):
    """Arrivals like a trace's: its rate over time, and its gaps in blocks."""

    process: Literal["fitted"] = Field(description="`fitted`")
    rate: Rate | None = Field(None, description="Stretch them to this many requests a second on average.")
    windows: PositiveInt | None = Field(
        None, description="Parts of the recorded time that have a rate each; by default, 200 arrivals a part, up to 48."
    )


class AtOnce(Strict):
    """Everything at 0 s."""

    process: Literal["at-once"] = Field(description="`at-once`")


ArrivalSpec = Annotated[
    PoissonArrivals | GammaArrivals | DiurnalArrivals | BurstArrivals | RecordedArrivals | FittedArrivals | AtOnce,
    Field(discriminator="process"),
]

assert set(LawName.__args__) == set(LAWS)  # type: ignore[attr-defined]
