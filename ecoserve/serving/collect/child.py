"""The process of a server that a collection starts for itself.

Rule: it never outlives its collector, however that ends: the kernel tells it when its parent has died, and then it
stops as on SIGTERM. Lengths do not depend on the order in which requests are served, so vLLM's own scheduler runs.

    python -m ecoserve.serving.collect.child PARENT_ID SOCKET MODEL [vLLM's flags]
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from typing import Final

from ecoserve.errors import EcoServeError

_PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """Get SIGTERM when process ``parent``, which has started this one, ends; exit if it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Serve until stopped; ``arguments``: the parent's id, the socket, the model, vLLM's flags.

    The socket's folder goes with the server, also where nobody is left to take it away.
    """
    parent, socket, model, *flags = arguments
    try:
        end_with(int(parent))
        from ecoserve.serving.adapter.server import STOCK, serve

        serve(model, vllm_flags=[*flags, "--uds", socket], policy=STOCK)
    except EcoServeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        shutil.rmtree(os.path.dirname(socket), ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
