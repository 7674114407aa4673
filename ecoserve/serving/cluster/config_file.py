"""A config file of Ray Serve with our application in it, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ecoserve.errors import ConfigError
from ecoserve.options import checked
from ecoserve.serving.adapter.server import check_model, check_policy
from ecoserve.serving.cluster.settings import RaySettings

#: What builds our application.
IMPORT_PATH: Final = "ecoserve.serving.cluster.engine:build"
_FIX: Final = "start from deploy/ray-serve.yaml"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What is deployed: our settings, the application's name and route, and Ray's own HTTP options."""

    settings: RaySettings
    name: str
    route_prefix: str
    http_options: dict[str, Any]


def read_config(file: Path) -> ConfigFile:
    """Read and check a config file.

    Raises:
        ConfigError: if it cannot be read, has another application than ours or several, or a setting, a model or a
            predictor cannot be used.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror or error})", where=str(file), fix=_FIX) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not YAML ({' '.join(str(error).split())[:200]})", where=str(file), fix=_FIX) from error
    applications = content.get("applications") if isinstance(content, dict) else None
    found = applications[0] if isinstance(applications, list) and len(applications) == 1 else None
    if not isinstance(found, dict) or found.get("import_path") != IMPORT_PATH:
        raise ConfigError(f"needs one application, with import_path: {IMPORT_PATH}", where=str(file), fix=_FIX)
    settings = checked(RaySettings, found.get("args") or {}, lambda name: f"{file}: args.{name}".rstrip("."))
    check_policy(settings.policy, settings.level)
    check_model(settings.model)
    if settings.predictor is not None:
        from ecoserve.serving.adapter.prediction_service import shared_predictor

        shared_predictor(settings.predictor)
    return ConfigFile(
        settings,
        str(found.get("name", "ecoserve")),
        str(found.get("route_prefix", "/")),
        dict(content.get("http_options") or {}),
    )
