"""What one request costs ``ecoserve predict-server``: CPU time of the whole server side, without sockets.

    python benchmarks/studies/predict_server.py TRACE [RESULT.json]

Trains a LightGBM predictor on the first 2,000 rows of TRACE, then posts its other prompts one after another.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from common import RESULTS, arguments_of, command, write

from ecoserve.data import load_trace
from ecoserve.predictor import load_predictor, train_predictor
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.predict_server import prediction_app


async def posted(folder: Path, prompts: list[str]) -> list[float]:
    """CPU ms of each request, of all threads."""
    app = prediction_app(load_predictor(folder), MiddlewareSettings(predict_timeout_ms=60_000.0))
    took = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client,
    ):
        for prompt in prompts:
            began = time.process_time()
            body = {"messages": [{"role": "user", "content": prompt}]}
            answer = await client.post("/predict/v1/chat/completions", json=body)
            took.append((time.process_time() - began) * 1e3)
            assert answer.status_code == 200
    return took


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("trace")
    parser.add_argument("result", type=Path, nargs="?", default=RESULTS / "predict_server.json")
    given = parser.parse_args()
    trace = load_trace(given.trace)
    rows = [r for r in trace.records if r.prompt and r.response_tokens]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "lightgbm"
        trace = dataclasses.replace(trace, records=tuple(rows[:2000]))
        train_predictor(trace, backend="lightgbm", output_dir=folder, seed=0)
        took = asyncio.run(posted(folder, [r.prompt or "" for r in rows[2000:2500]]))
    figures = {f"p{q}_ms": round(float(np.percentile(took, q)), 2) for q in (50, 90, 99)}
    write(given.result, {"command": command("predict_server", "TRACE"), "requests": len(took), "cpu": figures})
    print(figures)


if __name__ == "__main__":
    main()
