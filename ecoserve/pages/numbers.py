"""Number formatting of every report: three significant digits, a unit, a real minus sign."""

from __future__ import annotations

from typing import Final

#: Shown where there is no number.
NOTHING: Final = "–"
_MINUS: Final = "−"


def write(value: float | None, unit: str = "") -> str:
    """A number with its unit: ``11.1 s``, ``34.2 ms/token``, ``1,234``, ``67 %`` (unit ``share``), ``–`` for None."""
    if value is None:
        return NOTHING
    if unit == "share":
        return f"{digits(100 * value)} %"
    if unit == "ms" and abs(value) >= 1000:
        value, unit = value / 1000, "s"
    return f"{digits(value, count=not unit)} {unit}".rstrip()


def write_range(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval: ``76.1 % to 78.9 %``; empty where it is unknown."""
    return "" if low is None or high is None else f"{write(low, unit)} to {write(high, unit)}"


def write_change(relative: float, *, sign: bool = True) -> str:
    """A relative difference: ``−71 %``, ``+3.2 %``; from +200 % on as a factor: ``12.0×``."""
    if relative >= 2:
        return f"{digits(1 + relative)}×"
    percent = 100 * relative
    text = f"{abs(percent):.0f}" if abs(percent) >= 9.95 else f"{abs(percent):.1f}"
    if float(text) == 0:
        return "0 %"
    mark = (_MINUS if percent < 0 else "+") if sign else ""
    return f"{mark}{text} %"


def signed(value: float, unit: str = "") -> str:
    """A difference with its sign: ``+12 tokens``."""
    text = write(abs(value), unit)
    return text if value == 0 else f"{'+' if value > 0 else _MINUS}{text}"


def digits(value: float, *, count: bool = False) -> str:
    """Three significant digits, at least the integer part, thousands separated; whole counts without decimals."""
    size = abs(value)
    if size == 0:
        return "0"
    if count and value == int(value) and size < 1e15:
        return f"{int(value):,}".replace("-", _MINUS)
    if size >= 99.95:
        text = f"{size:,.0f}"
    elif size >= 9.995:
        text = f"{size:.1f}"
    elif size >= 0.9995:
        text = f"{size:.2f}"
    elif size >= 0.0005:
        text = f"{size:.3f}"
    else:
        text = f"{size:.1e}"
    return f"{_MINUS if value < 0 else ''}{text}"
