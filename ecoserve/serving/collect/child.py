"""The server process of a collection: ``python -m ecoserve.serving.collect.child PARENT_ID SOCKET MODEL [FLAGS]``.

It never outlives its collector, however that ends: the kernel sends it SIGTERM when its parent has died. vLLM's own
scheduler runs, as lengths do not depend on the order in which requests are served.
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
    """Serve until stopped, then delete the socket's folder."""
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
