"""Command lines from dataclasses: flags, YAML, help and exit codes.

A script declares a dataclass, nested by subject, with the help of each field as a string literal below it, and ends
with ``run(main, Config)``. Flags are dotted field names (``--data.root DIR``); YAML from ``--config`` sets them, flags
override it; ``--print_config`` shows the result as YAML that can be fed back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import signal
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser

from vlkit.cli.flags import Flag, kind_fields, walk
from vlkit.cli.given import KnownKeys, asks_for_help, choose_kinds, given_in_words, given_in_yaml, read_config_files
from vlkit.cli.show import one_line, safe_streams, visible
from vlkit.cli.values import typed_values
from vlkit.errors import UserError, some

C = TypeVar("C")


def kinds(choices: Mapping[str, type], default: str) -> Any:
    """Declare a field whose dataclass depends on its own ``kind``: ``adapter: Any = kinds(ADAPTERS, "sherl")``.

    Args:
        choices: kind -> options dataclass, each with a field ``kind: Literal["name"] = "name"``. Only the options of
            the chosen kind are accepted.
        default: the kind used when neither a flag nor the YAML names one.
    """
    return dataclasses.field(default_factory=lambda: choices[default](), metadata={"kinds": choices})


def positional(default: Any = MISSING) -> Any:
    """Declare a field that is given without a flag: ``check.py DIR``. A list field takes every remaining word."""
    return dataclasses.field(default=default, metadata={"positional": True})


def repeated() -> Any:
    """Declare a list of texts or paths whose flag takes one value and may be repeated: ``--text A --text B``."""
    return dataclasses.field(default_factory=list, metadata={"repeated": True})


def run(main: Callable[[C], Any], config_class: type[C], argv: Sequence[str] | None = None) -> None:
    """Parse the command line, call ``main(config)`` and turn errors into exit codes.

    Returns after success. Otherwise raises ``SystemExit``: 2 after a :class:`UserError` (one line on stderr), 130 after
    Ctrl-C, 143 after SIGTERM. Any other exception is a bug in vlkit and passes through (traceback, exit code 1).
    """
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    safe_streams()
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("%(message)s"))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, handlers=[handler])
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if in_main_thread else None
    try:
        config = parse(config_class, argv)
        check_files(config)
        main(config)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in REFUSED_PLACES or error.filename is None:
            raise
        place = one_line(f"{error.filename2 or error.filename}: {error.strerror}")
        print(f"error: {place}; give another place, or change its permissions", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


REFUSED_PLACES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST),  # a file where a folder should be, or the other way round
)
"""Errors of the file system that say that a path of the user's cannot be used."""


def check_files(config: Any) -> None:
    """Refuse a folder where a file is to be written, before the work whose result it would hold.

    Raises:
        UserError: ``--json`` is a folder.
    """
    value = getattr(config, "json", None)
    if isinstance(value, Path) and value.is_dir():
        raise UserError(f"--json {value}: is a folder; give a file")


class _Visible(logging.Formatter):
    """Escape control characters: messages contain file names and queries of users."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@contextlib.contextmanager
def about(flag: str) -> Iterator[None]:
    """Prefix errors about a value with its flag: ``with about("--image"): open_image(config.image)``.

    Raises:
        UserError: the body raised one; the library's messages name values, not flags.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag} {error}") from None


def parse(config_class: type[C], argv: Sequence[str] | None = None) -> C:
    """Build a config from flags and YAML.

    Args:
        config_class: the (nested) dataclass.
        argv: arguments of the command line; None = those of this process.

    Raises:
        UserError: unknown key, wrong type, missing value; the message names the key and its place.
        SystemExit: after ``--help`` or ``--print_config``, with code 0.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    files = read_config_files(words)
    chosen = choose_kinds(config_class, words, files)
    flags = {flag.name: flag for flag in walk(config_class, chosen)}
    parser = _make_parser(config_class, flags)
    if asks_for_help(words, flags):
        parser.print_help()
        raise SystemExit(0)
    check = KnownKeys(config_class, flags, chosen)
    given = [word for path, tree in files for word in given_in_yaml(path, tree, check)]
    given += given_in_words(words, check)
    missing = [flag.shown for flag in flags.values() if flag.required and flag.name not in {g.name for g in given}]
    if missing and "--print_config" not in words:
        raise UserError(f"missing {some(missing)}: give it a value (--help describes every flag)")
    values = typed_values(parser, given, flags)
    if "--print_config" in words:
        sys.stdout.write(_dump(flags, values))
        raise SystemExit(0)
    return _build(config_class, chosen, values, "")


def to_yaml(config: Any) -> str:
    """The resolved config as commented YAML; ``--config`` with that file gives an equal config."""
    chosen = {name: getattr(config, name).kind for name in kind_fields(type(config))}
    flags = {flag.name: flag for flag in walk(type(config), chosen)}
    return _dump(flags, {name: _get(config, name) for name in flags})


def _make_parser(cls: type, flags: Mapping[str, Flag]) -> ArgumentParser:
    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=(cls.__doc__ or "").strip().partition("\n\n")[0],
        usage=" ".join(["%(prog)s", *(f.shown for f in flags.values() if f.positional), "[--FLAG VALUE ...]"]),
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that sets flags; command-line flags override it")
    parser.add_argument("--print_config", action="store_true", help="print the resolved config as YAML and stop")
    groups: dict[str, Any] = {"": parser}
    for flag in flags.values():
        section = flag.name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        default = {} if flag.required else {"default": flag.default}
        metavar = {"metavar": "VALUE ..."} if flag.takes() == "many" else {}
        groups[section].add_argument(f"--{flag.name}", type=flag.hint, help=flag.help or None, **default, **metavar)
    return parser


def _build(cls: type[C], chosen: Mapping[str, str], values: Mapping[str, Any], prefix: str) -> C:
    """Build the nested dataclasses from leaf values; an error in ``__post_init__`` becomes a ``UserError``."""
    hints, arguments = typing.get_type_hints(cls), dict[str, Any]()
    for field in dataclasses.fields(cast(Any, cls)):
        if not field.init:
            continue
        name = prefix + field.name
        nested: Any = field.metadata["kinds"][chosen[name]] if "kinds" in field.metadata else hints[field.name]
        is_nested = dataclasses.is_dataclass(nested)
        arguments[field.name] = _build(cast(type, nested), chosen, values, f"{name}.") if is_nested else values[name]
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{prefix.rstrip('.') or 'config'}: {error}") from error


def _dump(flags: Mapping[str, Flag], values: Mapping[str, Any]) -> str:
    """YAML with the help of each field as a comment above it."""
    lines: list[str] = []
    open_section: list[str] = []
    for flag in flags.values():
        *section, key = flag.name.split(".")
        for depth, part in enumerate(section):
            if open_section[: depth + 1] != section[: depth + 1]:
                lines.append(f"{'  ' * depth}{part}:")
        open_section = section
        indent = "  " * len(section)
        lines += [f"{indent}# {flag.help}"] if flag.help else []
        text = yaml.safe_dump(_plain(values[flag.name]), default_flow_style=True, allow_unicode=True, width=10**6)
        lines.append(f"{indent}{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    """A value for YAML: paths become text, tuples become lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config
