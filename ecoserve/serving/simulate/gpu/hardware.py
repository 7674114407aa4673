"""What a GPU is made of: the peaks no kernel can beat, and the facts that decide how attention runs on it.

Bandwidth, FLOP/s, memory and links are read from aiconfigurator-core's system files, so that they belong to the
measured kernels; multiprocessors, cache and shared memory, which are not in those files, are NVIDIA's published ones.
So is one bandwidth: the file of the RTX PRO 6000 Server Edition states 1,792 GB/s, which is the Workstation Edition's.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal

from ecoserve.errors import ConfigError

#: Which kernels vLLM takes for attention: by the GPU's architecture.
AttentionKernels = Literal["flash2", "flash3", "split"]

_MIB: Final = 1 << 20
_KIB: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Bytes, seconds, and their quotients.

    Attributes:
        name: aiconfigurator's.
        memory_bytes: as the driver reports it.
        bandwidth: peak of its memory.
        flops: peak of dense 16-bit matrix work; ``flops_fp8`` is 0 where it has none.
        multiprocessors: SMs.
        cache_bytes: L2.
        shared_bytes: shared memory of one SM.
        attention: ``flash2``: FlashAttention 2; ``flash3``: FlashAttention 3, which packs the query heads of one KV
            head and balances splits; ``split``: prefills and decodes in kernels of their own.
        pcie: whether GPUs reach each other over PCIe only.
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


#: SMs, L2 (MiB), shared memory of an SM (KiB), and vLLM's attention kernels.
_FACTS: Final[dict[str, tuple[int, int, int, AttentionKernels]]] = {
    "a100_sxm": (108, 40, 164, "flash2"),
    "h100_sxm": (132, 50, 228, "flash3"),
    "h200_sxm": (132, 50, 228, "flash3"),
    "l40s": (142, 96, 100, "flash2"),
    "rtx_pro_6000_server": (188, 128, 100, "flash2"),
    "b200_sxm": (148, 126, 228, "split"),
}

#: Published peaks that stand instead of the system file's, bytes a second.
_BANDWIDTH: Final = {"rtx_pro_6000_server": 1.597e12}

#: Usual names, in lower case without blanks, hyphens and underscores: the drivers', with and without the memory's size.
_USUAL: Final = {
    "a100_sxm": r"a100(sxm4?)?(80gb)?",
    "h100_sxm": r"h100(sxm5?)?(80gb)?(hbm3)?",
    "h200_sxm": r"h200(sxm5?)?(141gb)?(hbm3e)?",
    "l40s": r"l40s(48gb)?",
    "rtx_pro_6000_server": r"rtx(pro6000|6000pro)(blackwell)?(server(edition)?)?(96gb)?",
    "b200_sxm": r"b200(sxm6?)?(180gb|192gb)?",
}


def gpu_names() -> tuple[str, ...]:
    """The GPUs that can be modelled, by aiconfigurator's names."""
    return tuple(_FACTS)


def _plain(name: str) -> str:
    return name.lower().removeprefix("nvidia").replace("-", "").replace("_", "").replace(" ", "")


def find_gpu(name: str) -> Gpu:
    """A GPU by aiconfigurator's name or a usual one (``H100``, ``RTX PRO 6000``).

    Raises:
        ConfigError: if there is none of that name, or aiconfigurator-core is not installed.
    """
    plain = _plain(name)
    for known, usual in _USUAL.items():
        if re.fullmatch(usual, plain):
            return _load(known)
    short = {n.partition("_")[0]: n for n in _FACTS} | {n: n for n in _FACTS}
    near = [short[n] for n in difflib.get_close_matches(plain, list(short), n=3, cutoff=0.5)]
    options = list(dict.fromkeys(near)) or list(_FACTS)
    raise ConfigError(
        f"no GPU is called {name!r}", where="gpu", fix=f"{'near it' if near else 'known'}: {', '.join(options)}"
    )


@lru_cache(maxsize=len(_FACTS))
def _load(name: str) -> Gpu:
    system = _system_file(name)
    multiprocessors, cache, shared, attention = _FACTS[name]
    gpu, node = system["gpu"], system["node"]
    return Gpu(
        name=name,
        memory_bytes=int(gpu["mem_capacity"]),
        bandwidth=_BANDWIDTH.get(name, float(gpu["mem_bw"])),
        flops=float(gpu["bfloat16_tc_flops"]),
        flops_fp8=float(gpu.get("fp8_tc_flops", 0)),
        multiprocessors=multiprocessors,
        cache_bytes=cache * _MIB,
        shared_bytes=shared * _KIB,
        attention=attention,
        pcie=node["intra_node_bw"] <= node["pcie_bw"],
    )


def _system_file(name: str) -> dict[str, Any]:
    import yaml

    try:
        text = resources.files("aiconfigurator_core").joinpath("systems", f"{name}.yaml").read_text("utf-8")
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError(
            f"kernel times of {name} are not there ({error})",
            where="gpu",
            fix="install aiconfigurator-core as pyproject.toml names it",
        ) from None
    system: dict[str, Any] = yaml.safe_load(text)
    return system
