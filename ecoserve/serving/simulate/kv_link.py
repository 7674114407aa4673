"""How long a request's KV takes from the engine that computed its prompt to the one that decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ecoserve.errors import ConfigError

#: vLLM's KV connector of such engines.
CONNECTOR: Final = "ecoserve.serving.simulate.pools:LinkConnector"
#: KV of a token where no GPU is modelled: of a 13B model, as the linear cost is.
LINEAR_KV_TOKEN_BYTES: Final = 819_200
#: Seconds until a request's first byte, and bytes a second that one GPU sends: NVLink of an A100 and PCIe 4 as copies
#: reach them, and a network of 100 Gb/s for each GPU.
KV_LINKS: Final = {"nvlink": (20e-6, 250e9), "pcie": (30e-6, 24e9), "network": (100e-6, 11e9)}


@dataclass(frozen=True, slots=True)
class KVLink:
    """The way from a prefill engine to a decode engine: seconds until the first byte, seconds a token of KV."""

    latency_s: float
    token_s: float

    @classmethod
    def of(cls, name: str, token_bytes: float, gpus: int) -> KVLink:
        """A kind (:data:`KV_LINKS`) or ``MICROSECONDS:GB/S`` of one GPU; ``gpus``: that send at once."""
        if name in KV_LINKS:
            latency, bandwidth = KV_LINKS[name]
        else:
            try:
                microseconds, gigabytes = (float(part) for part in name.split(":"))
            except ValueError:
                microseconds = gigabytes = -1.0
            latency, bandwidth = microseconds * 1e-6, gigabytes * 1e9
        if latency < 0 or bandwidth <= 0:
            fix = f"{', '.join(KV_LINKS)}, or MICROSECONDS:GB/S as 30:24"
            raise ConfigError(f"no way for KV is called {name!r}", where="kv_link", fix=fix)
        return cls(latency, token_bytes / (bandwidth * gpus))
