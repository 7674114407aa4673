"""GPUs and links: the peaks no kernel can beat, and the facts that decide how attention and collectives run.

A GPU is one row of :data:`GPUS`. Bandwidth, FLOP/s and memory are read from the system file of its name in
aiconfigurator-core, so that they belong to the measured kernels; what the file lacks is in the row, from NVIDIA's
published figures. Kernel times of a GPU without measurements are those of one of its kind, scaled by the peaks
(:mod:`~ecoserve.serving.simulate.gpu.tables`).
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
#: The way between the GPUs of a machine: NVLink; PCIe from card to card; PCIe through the host's memory.
LinkKind = Literal["nvlink", "pcie", "pcie-host"]


class GpuRow(NamedTuple):
    """What is stated of a GPU here.

    ``names``: pattern of its usual names, in lower case without blanks, hyphens and underscores. ``link``: the way
    between its cards by default. ``kernels``: the GPU whose measured kernel times are scaled to this one's peaks.
    ``figures``: in place of the system file's or, where there is none, all of them. The rest as in :class:`Gpu`.
    """

    names: str
    multiprocessors: int
    cache_mib: int
    shared_kib: int
    attention: AttentionKernels
    link: LinkKind = "nvlink"
    kernels: str | None = None
    figures: dict[str, float] | None = None


_SERVER: Final = "rtx_pro_6000_server"
GPUS: Final[dict[str, GpuRow]] = {
    "a100_sxm": GpuRow(r"a100(sxm4?)?(80gb)?", 108, 40, 164, "flash2"),
    "h100_sxm": GpuRow(r"h100(sxm5?)?(80gb)?(hbm3)?", 132, 50, 228, "flash3"),
    "h200_sxm": GpuRow(r"h200(sxm5?)?(141gb)?(hbm3e)?", 132, 50, 228, "flash3"),
    "l40s": GpuRow(r"l40s(48gb)?", 142, 96, 100, "flash2", "pcie"),
    # The system file states 1,792 GB/s, which is the Workstation Edition's. The recorded machine of this kind passes
    # everything through the host's memory.
    _SERVER: GpuRow(
        r"rtx(pro6000|6000pro)(blackwell)?(server(edition)?)?(96gb)?",
        *(188, 128, 100, "flash2", "pcie-host"),
        figures={"mem_bw": 1.597e12},
    ),
    "b200_sxm": GpuRow(r"b200(sxm6?)?(180gb|192gb)?", 148, 126, 228, "split"),
    "b300_sxm": GpuRow(r"b300(sxm6?)?(288gb)?", 148, 126, 228, "split"),
    "gb200": GpuRow(r"gb200", 148, 126, 228, "split"),
    "gb300": GpuRow(r"gb300", 148, 126, 228, "split"),
    # Without measurements of their own.
    "a100_pcie": GpuRow(r"a100pcie(80gb)?", 108, 40, 164, "flash2", "pcie", "a100_sxm"),
    "a30": GpuRow(r"a30(24gb)?", 56, 24, 164, "flash2", "pcie", "a100_sxm"),
    "h100_pcie": GpuRow(r"h100pcie(80gb)?", 114, 50, 228, "flash3", "pcie", "h100_sxm"),
    "l4": GpuRow(r"l4(24gb)?", 58, 48, 100, "flash2", "pcie", "l40s"),
    # Matrix work with sums in 32 bits, as vLLM's kernels do, is half of the figure that is often quoted. The driver
    # lets no GeForce card read another's memory.
    "rtx_4090": GpuRow(
        r"(geforce)?rtx4090(24gb)?",
        *(128, 72, 100, "flash2", "pcie-host", "l40s"),
        figures={"mem_bw": 1.008e12, "mem_capacity": 24564 << 20, "bfloat16_tc_flops": 165.2e12,
                 "fp8_tc_flops": 330.3e12, "pcie_bw": 32e9},
    ),
    "rtx_pro_6000_workstation": GpuRow(
        r"rtx(pro6000|6000pro)(blackwell)?workstation(edition)?(96gb)?",
        *(188, 128, 100, "flash2", "pcie-host", _SERVER),
        figures={"mem_bw": 1.792e12, "mem_capacity": 97887 << 20, "bfloat16_tc_flops": 467.8e12,
                 "fp8_tc_flops": 935.6e12, "pcie_bw": 64e9},
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: memory and its peak bandwidth, peak of dense 16-bit matrix work, SMs, L2, shared memory of one SM.

    Bytes, seconds, and their quotients; ``flops_fp8`` is 0 where it has none. ``attention``: ``flash2``: FlashAttention
    2; ``flash3``: FlashAttention 3, which packs the query heads of one KV head and balances splits; ``split``: prefills
    and decodes in kernels of their own. ``link``: the way between cards by default, ``pcie``: bytes a second of its
    PCIe slot in one direction. ``kernels``: whose measured kernel times it has, its own or another GPU's.
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
    link: LinkKind
    pcie: float
    kernels: str

    @property
    def measured(self) -> bool:
        return self.kernels == self.name


def find_gpu(name: str) -> Gpu:
    """A GPU by a key of :data:`GPUS` or a usual name (``H100``, ``RTX PRO 6000``); ConfigError if there is none."""
    plain = re.sub(r"[-_ ]", "", name.lower().removeprefix("nvidia"))
    for known, row in GPUS.items():
        if re.fullmatch(row.names, plain):
            return _load(known)
    raise ConfigError(f"no GPU is called {name!r}", where="gpu", fix=f"one of {', '.join(GPUS)}")


@lru_cache(maxsize=len(GPUS))
def _load(name: str) -> Gpu:
    row = GPUS[name]
    own = row.figures or {}
    figures = own
    if "mem_capacity" not in own:
        system = _system_file(name)
        figures = {**system["gpu"], **system["node"], **own}
    return Gpu(
        name=name,
        memory_bytes=int(figures["mem_capacity"]),
        bandwidth=float(figures["mem_bw"]),
        flops=float(figures["bfloat16_tc_flops"]),
        flops_fp8=float(figures.get("fp8_tc_flops", 0)),
        multiprocessors=row.multiprocessors,
        cache_bytes=row.cache_mib << 20,
        shared_bytes=row.shared_kib << 10,
        attention=row.attention,
        link=row.link,
        pcie=float(figures["pcie_bw"]),
        kernels=row.kernels or name,
    )


def _system_file(name: str) -> dict[str, Any]:
    import yaml

    try:
        text = resources.files("aiconfigurator_core").joinpath("systems", f"{name}.yaml").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError(
            f"there are no kernel times of {name} ({error})",
            where="gpu",
            fix="pip install 'ecoserve[gpu-models]'",
        ) from None
    system: dict[str, Any] = yaml.safe_load(text)
    return system


#: NCCL's own estimates of a ring over PCIe (``src/graph/tuning.cc``), by protocol (LL, Simple): seconds until the first
#: byte, seconds a step, share of the bandwidth. vLLM leaves to NCCL what its own all-reduce does not do.
_RING: Final = ((6.6e-6, 1.0e-6, 0.25), (8.4e-6, 5.7e-6, 1.0))


def _ring_s(protocol: int, steps: int) -> float:
    first, each, _ = _RING[protocol]
    return first + each * steps


@dataclass(frozen=True, slots=True)
class Link:
    """The way between any two GPUs of a machine, where it is not that of the measured collectives.

    ``latency_s``: until the first byte of a collective of two GPUs. ``bandwidth``: bytes a second in each direction,
    when both are busy; one direction alone gets up to twice that. ``direct``: a card reads the other's memory, so that
    two cards use vLLM's own all-reduce; it is off for more than two cards on PCIe.
    """

    latency_s: float
    bandwidth: float
    direct: bool = False

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.bandwidth <= 0:
            raise ConfigError("a link needs a bandwidth above 0 and a latency of at least 0", where="link")

    def all_reduce_s(self, message: float, gpus: int) -> float:
        """Seconds to sum ``message`` bytes of every GPU: one exchange, or NCCL's ring by its faster protocol."""
        if self.direct and gpus == 2:
            return self.latency_s + message / self.bandwidth
        steps = 2 * (gpus - 1)
        slower = 1.0 if self.direct else self.latency_s / _ring_s(1, 2)
        return min(
            slower * _ring_s(i, steps) + steps / gpus * message / (share * self.bandwidth)
            for i, (_, _, share) in enumerate(_RING)
        )

    def gather_s(self, pieces: list[float]) -> float:
        """All-gather of ``pieces`` (bytes, one a GPU), or a reduce-scatter of sums of that size."""
        gpus = len(pieces)
        latency = self.latency_s * _ring_s(1, gpus - 1) / _ring_s(1, 1)
        return latency + sum(pieces) * (gpus - 1) / gpus / self.bandwidth


#: Through the host's memory: as stated for the machine of the recorded runs; NCCL assumes 16 GB/s of its own accord.
_THROUGH_HOST: Final = Link(20e-6, 16e9)
#: Latency and share of the slot's bandwidth between two cards on PCIe: the L40S and the RTX PRO 6000, measured.
_PCIE_S: Final = 5e-6
_PCIE_SHARE: Final = 0.57


def find_link(gpu: Gpu, name: str | None = None) -> Link | None:
    """The way between the GPUs of a machine; None: that of the machine where the collectives were measured.

    ``name``: a kind (:data:`LinkKind`), by default the GPU's; or ``MICROSECONDS:GB/S``, as ``20:16``. ConfigError for
    anything else, and for NVLink where the GPU has none.
    """
    kind = name or gpu.link
    if kind == "pcie-host":
        return _THROUGH_HOST
    if kind == "pcie":
        # The measured collectives of a card without NVLink went this way.
        measured = gpu.measured and gpu.link != "nvlink"
        return None if measured else Link(_PCIE_S, _PCIE_SHARE * gpu.pcie, direct=True)
    if kind == "nvlink":
        if gpu.link != "nvlink":
            raise ConfigError(f"{gpu.name} has no NVLink", where="link", fix="take pcie or pcie-host")
        return None
    try:
        latency, bandwidth = (float(part) for part in kind.split(":"))
        return Link(latency * 1e-6, bandwidth * 1e9)
    except ValueError:
        fix = "nvlink, pcie, pcie-host, or MICROSECONDS:GB/S as 20:16"
        raise ConfigError(f"no link is called {kind!r}", where="link", fix=fix) from None
