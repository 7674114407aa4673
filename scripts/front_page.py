"""The README's picture and table, from the result files.

    python scripts/front_page.py    # renews docs/assets/accuracy.svg and the table between the README's marks

A test holds both to ``benchmarks/results/accuracy.json`` and ``default_against_vllm.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
README: Final = ROOT / "README.md"
PICTURE: Final = ROOT / "docs" / "assets" / "accuracy.svg"

#: Load of accuracy.json: its name and colour.
LINES: Final = {
    "heavy tail": ("heavy tail, H100, 45/s", "#0f766e"),
    "alpaca": ("Alpaca, L40S, 40/s", "#b45309"),
    "sharegpt": ("ShareGPT, A100, 3.5/s", "#6d28d9"),
}
#: Rank correlation of lengths with the true ones.
TAUS: Final = {"tau:0.2": 0.2, "tau:0.4": 0.4, "tau:0.6": 0.6, "tau:0.8": 0.8, "true": 1.0}
#: Loads of default_against_vllm.json.
LOADS: Final = {
    "alpaca": "Alpaca, L40S, 40/s",
    "alpaca 64 seats": "Alpaca, 64 seats, 20/s",
    "sharegpt": "ShareGPT, A100, 3.5/s",
    "azure conversations": "Azure chat, H100, 24/s",
    "azure code": "Azure code, H100, 16/s",
    "arxiv": "arXiv, H100, 14/s",
    "mooncake": "Mooncake, H100, 2/s",
}
ROWS: Final = {
    "vllm": "vLLM",
    "vllm at its best": "vLLM tuned",
    "ecoserve, no lengths": "no lengths",
    "ecoserve": "ecoserve",
}


def read(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["tables"]


def loads_table() -> str:
    """In SLO and mean latency, the best of each row of loads in bold."""
    lines = [f"| in SLO, latency | {' | '.join(ROWS.values())} |", "|---" * (1 + len(ROWS)) + "|"]
    for load, rows in read("default_against_vllm").items():
        most = max(rows[name]["in_slo"] for name in ROWS)
        least = min(rows[name]["e2el_s"] for name in ROWS)
        cells = []
        for name in ROWS:
            share, seconds = rows[name]["in_slo"], rows[name]["e2el_s"]
            digits = 1 if least >= 1 else 2
            first, second = f"{share:.0%}".replace("%", " %"), f"{seconds:.{digits}f} s"
            cells.append(
                f"{f'**{first}**' if share == most else first}, {f'**{second}**' if seconds == least else second}"
            )
        lines.append(f"| {LOADS[load]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture() -> str:
    """Goodput (share of the arriving requests served within their SLO) over the accuracy of lengths, as SVG."""
    width, height, left, right, top, bottom = 760, 330, 56, 200, 34, 46
    floor = 0.2

    def x(tau: float) -> float:
        return left + 34 + tau * (width - left - right - 34)

    def y(share: float) -> float:
        return top + (1 - share) / (1 - floor) * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        "<title>Goodput over the accuracy of predicted lengths</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
        f'<text x="{left - 40}" y="20" fill="#111827" font-weight="600">Requests served within their SLO (goodput), by '
        "accuracy of lengths</text>",
    ]
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        out.append(f'<path d="M{left} {y(share):.1f}H{width - right}" stroke="#e5e7eb"/>')
        out.append(f'<text x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end" fill="#4b5563">{share:.0%}</text>')
    for tau in TAUS.values():
        out.append(
            f'<text x="{x(tau):.1f}" y="{height - bottom + 20}" text-anchor="middle" fill="#4b5563">'
            f"{'true' if tau == 1 else tau}</text>"
        )
    out.append(
        f'<text x="{left + 12}" y="{height - bottom + 20}" text-anchor="middle" fill="#4b5563">none</text>'
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 8}" text-anchor="middle" fill="#4b5563">'
        "Kendall’s tau of the predicted lengths</text>"
    )
    labels: list[tuple[float, str, str]] = []
    for load, rows in read("accuracy").items():
        name, colour = LINES[load]
        points = [(x(tau), y(rows[f"ecoserve, {kind}"]["in_slo"])) for kind, tau in TAUS.items()]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in points]
        none = y(rows["ecoserve, none"]["in_slo"])
        out.append(f'<circle cx="{left + 12}" cy="{none:.1f}" r="4" fill="#fff" stroke="{colour}" stroke-width="2"/>')
        stock = y(rows["vllm"]["in_slo"])
        out.append(f'<path d="M{left} {stock:.1f}H{width - right}" stroke="{colour}" stroke-dasharray="5 4"/>')
        labels.append((points[-1][1], name, colour))
        labels.append((stock, f"vLLM, {name.partition(',')[0]}", colour))
    lowest = 0.0
    for at, text, colour in sorted(labels):
        lowest = max(at + 4, lowest + 17)  # labels of one height stand below each other
        out.append(f'<text x="{width - right + 10}" y="{lowest:.1f}" fill="{colour}">{text}</text>')
    return "\n".join([*out, "</svg>", ""])


def fill(text: str) -> str:
    """The README with its table renewed."""
    head, mark, rest = text.partition("<!-- loads: made by scripts/front_page.py -->\n")
    assert mark, "the README has lost its mark"
    return head + mark + loads_table() + "\n" + rest[rest.index("<!-- end of loads -->") :]


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
    README.write_text(fill(README.read_text(encoding="utf-8")), encoding="utf-8")
