"""GPUs and links: the peaks no kernel can beat, and the facts that decide how attention runs.

A GPU is one row of :data:`GPUS`, under the name of its system file in aiconfigurator-core. Bandwidth, FLOP/s, memory
and links are read from that file, so that they belong to the measured kernels; what the file lacks is in the row, from
NVIDIA's published figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal, NamedTuple

from ecoserve.errors import ConfigError

#: Which kernels vLLM takes for attention: by the GPU's architecture.
AttentionKernels = Literal["flash2", "flash3", "split"]


class GpuRow(NamedTuple):
    """What is stated of a GPU here; ``bandwidth`` (bytes a second) is in place of the system file's.

    ``names``: pattern of its usual names, in lower case without blanks, hyphens and underscores. The rest as in
    :class:`Gpu`.
    """

    names: str
    multiprocessors: int
    cache_mib: int
    shared_kib: int
    attention: AttentionKernels
    bandwidth: float | None = None


GPUS: Final[dict[str, GpuRow]] = {
    "a100_sxm": GpuRow(r"a100(sxm4?)?(80gb)?", 108, 40, 164, "flash2"),
    "h100_sxm": GpuRow(r"h100(sxm5?)?(80gb)?(hbm3)?", 132, 50, 228, "flash3"),
    "h200_sxm": GpuRow(r"h200(sxm5?)?(141gb)?(hbm3e)?", 132, 50, 228, "flash3"),
    "l40s": GpuRow(r"l40s(48gb)?", 142, 96, 100, "flash2"),
    # The system file states 1,792 GB/s, which is the Workstation Edition's.
    "rtx_pro_6000_server": GpuRow(
        r"rtx(pro6000|6000pro)(blackwell)?(server(edition)?)?(96gb)?", 188, 128, 100, "flash2", bandwidth=1.597e12
    ),
    "b200_sxm": GpuRow(r"b200(sxm6?)?(180gb|192gb)?", 148, 126, 228, "split"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: memory and its peak bandwidth, peak of dense 16-bit matrix work, SMs, L2, shared memory of one SM.

    Bytes, seconds, and their quotients; ``flops_fp8`` is 0 where it has none. ``attention``: ``flash2``: FlashAttention
    2; ``flash3``: FlashAttention 3, which packs the query heads of one KV head and balances splits; ``split``: prefills
    and decodes in kernels of their own. ``pcie``: GPUs reach each other over PCIe only.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float
    flops_fp8: float
    multiprocessors: int
    cache_bytes: int
    shared_bytes: int
    attention: AttentionKernels
    pcie: bool


def find_gpu(name: str) -> Gpu:
    """A GPU by a key of :data:`GPUS` or a usual name (``H100``, ``RTX PRO 6000``); ConfigError if there is none."""
    plain = re.sub(r"[-_ ]", "", name.lower().removeprefix("nvidia"))
    for known, row in GPUS.items():
        if re.fullmatch(row.names, plain):
            return _load(known, row)
    raise ConfigError(f"no GPU is called {name!r}", where="gpu", fix=f"one of {', '.join(GPUS)}")


@lru_cache(maxsize=len(GPUS))
def _load(name: str, row: GpuRow) -> Gpu:
    system = _system_file(name)
    gpu, node = system["gpu"], system["node"]
    return Gpu(
        name=name,
        memory_bytes=int(gpu["mem_capacity"]),
        bandwidth=row.bandwidth or float(gpu["mem_bw"]),
        flops=float(gpu["bfloat16_tc_flops"]),
        flops_fp8=float(gpu.get("fp8_tc_flops", 0)),
        multiprocessors=row.multiprocessors,
        cache_bytes=row.cache_mib << 20,
        shared_bytes=row.shared_kib << 10,
        attention=row.attention,
        pcie=node["intra_node_bw"] <= node["pcie_bw"],
    )


def _system_file(name: str) -> dict[str, Any]:
    import yaml

    try:
        text = resources.files("aiconfigurator_core").joinpath("systems", f"{name}.yaml").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError(
            f"there are no kernel times of {name} ({error})",
            where="gpu",
            fix="install aiconfigurator-core as pyproject.toml names it",
        ) from None
    system: dict[str, Any] = yaml.safe_load(text)
    return system


@dataclass(frozen=True, slots=True)
class Link:
    """The way between any two GPUs of a machine, where it is not that of the measured collectives, as in a workstation.

    ``latency_s``: until a collective's first byte. ``bandwidth``: bytes a second in each direction, when both are busy;
    one direction alone gets up to twice that.
    """

    latency_s: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.bandwidth <= 0:
            raise ConfigError("a link needs a bandwidth above 0 and a latency of at least 0", where="link")

    def all_reduce_s(self, message: float, gpus: int) -> float:
        return self.latency_s * (gpus - 1) + 2 * (gpus - 1) / gpus * message / self.bandwidth

    def gather_s(self, pieces: list[float]) -> float:
        """All-gather of ``pieces`` (bytes, one a GPU), or a reduce-scatter of sums of that size."""
        gpus = len(pieces)
        return self.latency_s * (gpus - 1) + sum(pieces) * (gpus - 1) / gpus / self.bandwidth
