"""Kernel times on a grid, made once and kept on disk, and the lower bounds that they are lifted to.

By tokens there is a value for every size up to ``DENSE_TOKENS``, because matrix kernels work in tiles and their time
jumps where one more tile is needed; attention, which is smooth, is on a geometric grid with linear interpolation. A
cache file that cannot be read, or was made by another version, is made again.

Kernels were measured repeatedly on the same weights and KV. What fits the GPU's cache (L2) never came from memory
there; in a model, with all other layers in between, it does. So ``decode_attention`` of such sizes is at least the line
through the sizes that do not fit, and other tables are lifted to the GPU's published peaks (:class:`Floors`).

A GPU that was not measured has the times of another of its kind, scaled by the two GPUs' bounds (:func:`scaled`).
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ecoserve.files import write_atomically
from ecoserve.serving.simulate.gpu.hardware import Gpu, find_gpu
from ecoserve.serving.simulate.gpu.kernels import KernelTimes, kernels_version
from ecoserve.serving.simulate.gpu.shapes import ModelShape

Floats = NDArray[np.float64]


class Floors:
    """The least milliseconds of each table, all layers of one GPU: no kernel can beat the GPU's published peaks."""

    def __init__(self, shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int = 1) -> None:
        self._shape, self._gpu, self._tp, self._ranks = shape, gpu, tp, expert_ranks
        self._wide = shape.weights == "bfloat16"
        self._peak = gpu.flops if self._wide else gpu.flops_fp8

    def _matrices(self, rows: Sequence[int], parameters: float, *, wide: bool, read: float | None = None) -> Floats:
        """``rows`` times matrices of so many parameters, of which ``read`` come from memory (None: all)."""
        size = (parameters if read is None else read) * (2 if wide else 1)
        peak = self._gpu.flops if wide else self._peak
        work = 2.0 * np.asarray(rows, dtype=np.float64) * parameters
        least: Floats = np.maximum(size / self._gpu.bandwidth, work / peak) / self._tp * 1e3
        return least

    def tokens(self, tokens: Sequence[int]) -> Floats:
        s = self._shape
        parameters = s.attention_parameters + (0 if s.experts else s.expert_parameters)
        return self._matrices(tokens, s.layers * parameters, wide=self._wide)

    def experts(self, tokens: Sequence[int]) -> Floats:
        """Experts of ``tokens`` of each replica; at least the experts of one token are read."""
        s = self._shape
        used = float(s.layers * s.expert_parameters * s.experts_per_token)
        return self._matrices(tokens, used, wide=self._wide, read=used / self._ranks)

    def logits(self, samples: Sequence[int]) -> Floats:
        return self._matrices(samples, self._shape.embedding_parameters, wide=True)

    def prefill_attention(self, new: Sequence[int], context: Sequence[int]) -> Floats:
        """Attention of a piece of a prompt; rows are new tokens, columns the tokens before them."""
        s = self._shape
        n = np.asarray(new, dtype=np.float64)[:, None]
        before = np.asarray(context, dtype=np.float64)[None, :]
        work = 4.0 * s.layers * s.heads * s.head_dim * n * (before + (n + 1) / 2)
        read = s.kv_token_bytes * (before + n)
        least: Floats = np.maximum(read / self._gpu.bandwidth, work / self._gpu.flops) / self._tp * 1e3
        return least

    def all(self) -> dict[str, Floats]:
        """By the name and the grids of the table."""
        return {
            "tokens": self.tokens(TOKENS),
            "experts": self.experts(TOKENS),
            "logits": self.logits(SAMPLES),
            "prefill_attention": self.prefill_attention(PREFILL_NEW, PREFILL_CONTEXT),
        }


#: Raised whenever grids or their meaning change.
VERSION: Final = 3
DENSE_TOKENS: Final = 4096
MAX_TOKENS: Final = 32768
MAX_SAMPLES: Final = 2048
MAX_CONTEXT: Final = 131072


def _geometric(first: int, last: int, ratio: float) -> list[int]:
    grid = [first]
    while grid[-1] < last:
        grid.append(min(last, max(grid[-1] + 1, round(grid[-1] * ratio))))
    return grid


#: Above the dense part a tile is a small share of the whole.
TOKENS: Final = [*range(1, DENSE_TOKENS + 1), *range(DENSE_TOKENS + 128, MAX_TOKENS + 1, 128)]
SAMPLES: Final = list(range(1, MAX_SAMPLES + 1))
PREFILL_NEW: Final = [*range(1, 64, 9), *_geometric(64, MAX_TOKENS, 1.1)]
#: The kernels with and without tokens before the new ones are measured apart, hence 0 and 1.
PREFILL_CONTEXT: Final = [0, 1, *_geometric(64, MAX_CONTEXT, 1.25)]
DECODE_REQUESTS: Final = sorted({*range(1, 17), *_geometric(16, MAX_SAMPLES, 1.15), *(1 << i for i in range(12))})
DECODE_CONTEXT: Final = sorted({*_geometric(1, MAX_CONTEXT, 1.15), *(1 << i for i in range(18))})


@dataclass(frozen=True, slots=True)
class Tables:
    """Milliseconds of one GPU over all layers, by the grids of this module.

    ``tokens``, ``experts``, ``reduce`` and ``dispatch`` are by ``TOKENS``; ``logits`` and ``gather`` by ``SAMPLES``;
    ``prefill_attention`` by ``PREFILL_NEW`` and ``PREFILL_CONTEXT``; ``decode_attention`` by ``DECODE_REQUESTS`` and
    ``DECODE_CONTEXT``. ``stream`` is one number: bytes of KV that decode attention takes from memory a second.
    """

    tokens: Floats
    experts: Floats
    reduce: Floats
    dispatch: Floats
    logits: Floats
    gather: Floats
    prefill_attention: Floats
    decode_attention: Floats
    stream: Floats


def load_tables(shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int = 1) -> Tables:
    """A model's tables on a GPU, cached or made now (a second or two); ConfigError without measurements."""
    path = cache_file(shape, gpu, tp, expert_ranks)
    tables = _read(path)
    if tables is None:
        tables, _ = lifted(make_tables(shape, gpu, tp, expert_ranks), Floors(shape, gpu, tp, expert_ranks))
        _write(path, tables)
    return tables


def lifted(tables: Tables, floors: Floors) -> tuple[Tables, dict[str, float]]:
    """Tables in which nothing beats the GPU's peaks, and the share of values that did, by the table's name."""
    least = floors.all()
    shares = {name: float((getattr(tables, name) < floor).mean()) for name, floor in least.items()}
    return replace(tables, **{name: np.maximum(getattr(tables, name), floor) for name, floor in least.items()}), shares


def scaled(tables: Tables, shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int = 1) -> Tables:
    """Times measured on ``gpu.kernels``, for a GPU of the same kind: what is bound by memory goes by the bandwidths,
    what is bound by matrix work by the FLOP/s. Collectives stay as they are, since such a GPU's link is stated.
    """
    source = find_gpu(gpu.kernels)
    there, here = (Floors(shape, g, tp, expert_ranks).all() for g in (source, gpu))
    by_bound = {
        name: getattr(tables, name) * np.divide(here[name], floor, out=np.ones_like(floor), where=floor > 0)
        for name, floor in there.items()
    }
    faster = gpu.bandwidth / source.bandwidth
    kv = {"decode_attention": tables.decode_attention / faster, "stream": tables.stream * faster}
    return replace(tables, **by_bound, **kv)


def cache_file(shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int = 1) -> Path:
    """Where the tables of this combination are kept; its name says all that they depend on."""
    sizes = shape.model_dump_json(exclude={"name", "max_model_len"})
    key = f"{sizes} {gpu} {tp} {expert_ranks} {kernels_version()} {VERSION}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ecoserve", "gpu")
    return folder / f"{gpu.name}-tp{tp}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def _read(path: Path) -> Tables | None:
    try:
        # Of a file cut short numpy would leave the file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            arrays = {f.name: np.asarray(stored[f.name], dtype=np.float64) for f in fields(Tables)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    good = all(a.shape == _SHAPES[n] and bool(np.isfinite(a).all()) and (a >= 0).all() for n, a in arrays.items())
    return Tables(**arrays) if good else None


def _write(path: Path, tables: Tables) -> None:
    """Keep the tables if the cache can be written; without it they are made again next time."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f.name: getattr(tables, f.name) for f in fields(Tables)})
    try:
        write_atomically(path, buffer.getvalue())
    except OSError:
        return


#: Sizes of the tables; of those that are not named, by TOKENS.
_SHAPES: Final[dict[str, tuple[int, ...]]] = {f.name: (len(TOKENS),) for f in fields(Tables)} | {
    "logits": (len(SAMPLES),),
    "gather": (len(SAMPLES),),
    "prefill_attention": (len(PREFILL_NEW), len(PREFILL_CONTEXT)),
    "decode_attention": (len(DECODE_REQUESTS), len(DECODE_CONTEXT)),
    "stream": (1,),
}


def make_tables(shape: ModelShape, gpu: Gpu, tp: int, expert_ranks: int = 1) -> Tables:
    """Ask for all kernel times of the grids, as measured or scaled; ConfigError if the combination has none."""
    if not gpu.measured:
        return scaled(make_tables(shape, find_gpu(gpu.kernels), tp, expert_ranks), shape, gpu, tp, expert_ranks)
    kernels = KernelTimes(shape, gpu, tp, expert_ranks)

    def by(ask: Callable[[int], float], grid: Sequence[int]) -> Floats:
        return np.asarray([ask(n) for n in grid], dtype=np.float64)

    def plane(ask: Callable[[int, int], float], rows: Sequence[int], columns: Sequence[int]) -> Floats:
        return np.asarray([[ask(n, m) for m in columns] for n in rows], dtype=np.float64)

    with kernels.asking():
        stream, decode = _from_memory(kernels, plane(kernels.decode_attention_ms, DECODE_REQUESTS, DECODE_CONTEXT))
        return Tables(
            tokens=by(kernels.tokens_ms, TOKENS),
            experts=by(kernels.experts_ms, TOKENS),
            reduce=by(kernels.reduce_ms, TOKENS),
            dispatch=by(kernels.dispatch_ms, TOKENS),
            logits=by(kernels.logits_ms, SAMPLES),
            gather=by(kernels.gather_logits_ms, SAMPLES),
            prefill_attention=plane(kernels.prefill_attention_ms, PREFILL_NEW, PREFILL_CONTEXT),
            decode_attention=decode,
            stream=np.asarray([stream]),
        )


#: KV of this many times the cache comes from memory for all but a part that does not matter.
_BEYOND: Final = 2.0
#: Decoding requests that show the bandwidth: enough to keep the GPU busy, with contexts long enough to measure.
_BUSY: Final = (8, 16, 32, 64, 128)


def _from_memory(kernels: KernelTimes, measured: Floats) -> tuple[float, Floats]:
    """Decode attention whose KV comes from memory, and the bandwidth at which it does (bytes a second)."""
    gpu = kernels.gpu
    token = layer_kv_bytes(kernels.shape, kernels.tp)
    layers = kernels.shape.layers
    seen = []
    for requests in _BUSY:
        near, far = (int(times * gpu.cache_bytes / (token * requests)) for times in (_BEYOND, 2 * _BEYOND))
        if near >= 256 and far <= MAX_CONTEXT:
            took = kernels.decode_attention_ms(requests, far) - kernels.decode_attention_ms(requests, near)
            if took > 0:
                seen.append(layers * token * requests * (far - near) / took * 1e3)
    stream = min(gpu.bandwidth, float(np.median(seen))) if seen else 0.85 * gpu.bandwidth
    corrected = measured.copy()
    contexts = np.asarray(DECODE_CONTEXT, dtype=np.float64)
    for i, requests in enumerate(DECODE_REQUESTS):
        near = _BEYOND * gpu.cache_bytes / (token * requests)
        slope = layers * token * requests / stream * 1e3
        if near <= MAX_CONTEXT:
            at_near = kernels.decode_attention_ms(requests, max(1, int(near)))
            if 2 * near <= MAX_CONTEXT:
                # Few requests wait for each other's blocks and not for memory: their own line is the steeper one.
                own = kernels.decode_attention_ms(requests, int(2 * near)) - at_near
                slope = max(slope, own / near)
            line = at_near + slope * (contexts - near)
        else:
            # Too few requests to be measured beyond the cache: what the kernel takes at least, and the bandwidth.
            line = measured[i, 0] + slope * contexts
        inside = contexts < near
        corrected[i, inside] = np.maximum(measured[i, inside], line[inside])
        peak = layers * token * requests * contexts / gpu.bandwidth * 1e3
        corrected[i] = np.maximum(corrected[i], peak)
    return stream, corrected


def layer_kv_bytes(shape: ModelShape, tp: int) -> int:
    """KV of one token in one layer on one GPU; KV heads that cannot be divided are there several times."""
    heads = -(-shape.kv_heads // tp)
    return heads * shape.head_dim * 2 * (2 if shape.kv_cache == "bfloat16" else 1)


class Line:
    """Values by a whole number, dense at first; beyond the grid they go on along its last piece."""

    def __init__(self, grid: Sequence[int], values: Floats) -> None:
        self._grid = list(grid)
        self._values: list[float] = values.tolist()
        self._dense = next((i for i, g in enumerate(grid) if g != i + 1), len(grid))

    def __call__(self, at: int) -> float:
        if at <= self._dense:
            return self._values[at - 1]
        grid, values = self._grid, self._values
        i = min(bisect_right(grid, at), len(grid) - 1)
        share = (at - grid[i - 1]) / (grid[i] - grid[i - 1])
        return values[i - 1] + share * (values[i] - values[i - 1])


class Plane:
    """Values by two numbers, laid between the points of a grid; beyond it the last piece goes on."""

    def __init__(self, rows: Sequence[int], columns: Sequence[int], values: Floats) -> None:
        self._rows, self._columns = list(rows), list(columns)
        self._values: list[list[float]] = values.tolist()

    def __call__(self, row: float, column: float) -> float:
        rows, columns = self._rows, self._columns
        i = min(max(bisect_right(rows, row), 1), len(rows) - 1)
        j = min(max(bisect_right(columns, column), 1), len(columns) - 1)
        low, high = self._values[i - 1], self._values[i]
        x = (row - rows[i - 1]) / (rows[i] - rows[i - 1])
        y = (column - columns[j - 1]) / (columns[j] - columns[j - 1])
        a = low[j - 1] + y * (low[j] - low[j - 1])
        b = high[j - 1] + y * (high[j] - high[j - 1])
        return a + x * (b - a)
