"""vLLM's own flags: its parser for ``vllm serve``, its help, and its complaints in terms of what was typed."""

from __future__ import annotations

import difflib
import os
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from ecoserve.errors import ConfigError
from ecoserve.options import flag, problem
from ecoserve.serving.adapter.engine_process import one_line
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

#: Seconds for open requests to end after SIGTERM. With vLLM's default, 0, its server can hang on an open stream.
SHUTDOWN_TIMEOUT_S: Final = 5
_SEE: Final = "ecoserve serve --help=all lists all options"


def parse(model: str, flags: Sequence[str]) -> Namespace:
    """Read vLLM's flags with vLLM's own parser for ``vllm serve``.

    Raises:
        ConfigError: for flags that vLLM does not know or accept, naming the one that was typed.
    """
    parser, own = _parsers()

    def refuse(message: str) -> NoReturn:
        raise _refused(message, flags, (option for action in own._actions for option in action.option_strings))

    parser.error = own.error = refuse
    own.set_defaults(shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    try:
        args: Namespace = parser.parse_args(["serve", model, *flags])
    except (ValueError, TypeError, OSError) as error:
        raise complaint(error, flags, "vLLM flags") from error
    args.model = model
    return args


def help_text(word: str) -> str:
    """vLLM's help on its flags: all of them (``all``), a group's by its title, or those whose names have ``word``."""
    parser, own = _parsers()
    type(parser)._search_keyword = word
    return str(own.format_help())


def complaint(error: BaseException, flags: Sequence[str], where: str) -> ConfigError:
    """vLLM's complaint about its settings as one line, which names an option of ``flags`` if it is about one."""
    place, what = problem(error) if isinstance(error, ValidationError) else ("", line_of(error))
    name = "--" + place.partition(".")[0].replace("_", "-")
    text = f"{place} {what}".replace("_", "-")
    said = next((f for f in _typed(flags) if re.search(rf"(?<![a-z-]){re.escape(_name(f)[2:])}(?![a-z-])", text)), None)
    if said is not None:
        return ConfigError(what, where=said)
    given = " ".join(flags)
    fix = f"given: {given[:200]}" if given else None
    return ConfigError(f"{name}: {what}" if place else what, where=where, fix=fix)


def line_of(error: BaseException) -> str:
    return problem(error)[1] if isinstance(error, ValidationError) else one_line(error)


def _parsers() -> tuple[Any, Any]:
    """vLLM's parser, and that of its ``serve``."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # As vLLM's own command line does: workers that are forked break CUDA.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    parser = FlexibleArgumentParser(prog="ecoserve")
    return parser, ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))


def _refused(message: str, flags: Sequence[str], known: Iterable[str]) -> ConfigError:
    """The error for what argparse says."""
    about, _, what = message.removeprefix("argument ").partition(": ")
    if message.startswith("argument "):
        options = about.split("/")
        return ConfigError(what, where=next((f for f in _typed(flags) if _name(f) in options), options[0]), fix=_SEE)
    if about != "unrecognized arguments":
        return ConfigError(message, where="vLLM flags", fix=_SEE)
    words = what.split()
    typed = next((w for w in words if w.startswith("-")), words[0])
    if not typed.startswith("-"):
        return ConfigError("belongs to no option", where=typed, fix=_SEE)
    ours = [flag(name, MiddlewareSettings) for name in MiddlewareSettings.model_fields]
    near = difflib.get_close_matches(_name(typed), [*known, *ours], 1, 0.75)
    fix = f"did you mean {near[0]}?" if near else _SEE
    return ConfigError("there is no such option", where=typed.partition("=")[0], fix=fix)


def _typed(flags: Sequence[str]) -> list[str]:
    """The options among what was typed, without their values."""
    return [f.partition("=")[0] for f in flags if re.match(r"--?[A-Za-z]", f)]


def _name(option: str) -> str:
    """vLLM takes underscores for dashes."""
    return option.partition("=")[0].replace("_", "-")
