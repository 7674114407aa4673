"""``ecoserve deploy``: replicas of a model on a cluster."""

from __future__ import annotations

import signal
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Target(Enum):
    """Where replicas can be deployed."""

    RAY = "ray"


def command(
    target: Annotated[Target, typer.Argument(metavar="ray", help="Kind of cluster.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Config file of Ray Serve, as deploy/ray-serve.yaml.")],
    *,
    address: Annotated[
        str,
        typer.Option("--address", metavar="HOST:PORT", help="The cluster; auto: the one here; local: a new one here."),
    ] = "auto",
) -> None:
    """Serve a model by several replicas, each request sent by predicted work.

    FILE is checked first. Runs until Ctrl-C or SIGTERM, then takes the application down.
    """
    from ecoserve.errors import ConfigError
    from ecoserve.serving.cluster.config_file import read_config
    from ecoserve.sweep.ray_cluster import connected

    config = read_config(file)
    connected(address, None, where="--address")
    try:
        from ray import serve
    except ImportError as error:
        what = "Ray is installed without Ray Serve"
        raise ConfigError(what, where="ecoserve deploy ray", fix="pip install 'ecoserve[ray]'") from error

    from ecoserve.serving.cluster.app import application
    from ecoserve.serving.cluster.engine import vllm_server

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.start(http_options=config.http_options)
    app = application(config.settings, vllm_server)
    print(f"ecoserve: deploying {config.name}; `serve status` says how far it is", file=sys.stderr)
    serve.run(app, name=config.name, route_prefix=config.route_prefix, blocking=True)
