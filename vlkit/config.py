"""Command lines from dataclasses: flags, YAML, help and exit codes. The only place that knows jsonargparse.

A script declares a dataclass, nested by subject, with the help of each field as a string literal below it, and ends with
``run(main, Config)``. Flags are dotted field names (``--data.root DIR``); YAML from ``--config`` sets them, flags
override it; ``--print_config`` shows the result as YAML that can be fed back.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from vlkit.errors import UserError, some

C = TypeVar("C")


def kinds(choices: Mapping[str, type], default: str) -> Any:
    """Declare a field whose dataclass depends on its own ``kind``: ``adapter: Any = kinds(ADAPTERS, "sherl")``.

    Args:
        choices: kind -> options dataclass, each with a field ``kind: Literal["name"] = "name"``. Only the options of the
            chosen kind are accepted.
        default: the kind used when neither a flag nor the YAML names one.
    """
    return dataclasses.field(default_factory=lambda: choices[default](), metadata={"kinds": choices})


def positional(default: Any = MISSING) -> Any:
    """Declare a field that is given without a flag: ``check.py DIR``. A list field takes every remaining word."""
    return dataclasses.field(default=default, metadata={"positional": True})


def run(main: Callable[[C], Any], config_class: type[C], argv: Sequence[str] | None = None) -> None:
    """Parse the command line, call ``main(config)`` and turn what goes wrong into the exit codes of every script.

    Returns after success. Otherwise raises ``SystemExit``: 2 after a :class:`UserError` (one line on stderr), 130 after
    Ctrl-C, 143 after SIGTERM. Any other exception is a bug of ours and passes through (traceback, exit code 1).
    """
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s")
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if in_main_thread else None
    try:
        main(parse(config_class, argv))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


def parse(config_class: type[C], argv: Sequence[str] | None = None) -> C:
    """Build a config from flags and YAML.

    Args:
        config_class: the (nested) dataclass.
        argv: words of the command line; None = those of this process.

    Raises:
        UserError: unknown key, wrong type, missing value; the message names the key and where it stands.
        SystemExit: after ``--help`` or ``--print_config`` were answered, with code 0.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    files = _config_files(words)
    chosen = _choose_kinds(config_class, words, files)
    flags = {flag.name: flag for flag in _walk(config_class, chosen)}
    parser = _make_parser(config_class, flags)
    if "-h" in words or "--help" in words:
        parser.print_help()
        raise SystemExit(0)
    check = _Keys(config_class, flags, chosen)
    given = [word for path, tree in files for word in _words_of_yaml(path, tree, check)]
    given += _words_of_argv(words, check)
    missing = [flag.shown for flag in flags.values() if flag.required and flag.name not in {g.name for g in given}]
    if missing and "--print_config" not in words:
        raise UserError(f"missing {some(missing)}: give it a value (--help describes every flag)")
    values = _parse_words(parser, given, flags)
    if "--print_config" in words:
        sys.stdout.write(_dump(flags, values))
        raise SystemExit(0)
    return _build(config_class, chosen, values, "")


def to_yaml(config: Any) -> str:
    """The resolved config as commented YAML; ``--config`` with that file gives an equal config."""
    chosen = {name: getattr(config, name).kind for name in _kind_fields(type(config))}
    flags = {flag.name: flag for flag in _walk(type(config), chosen)}
    return _dump(flags, {name: _get(config, name) for name in flags})


# --- what a config class declares ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Flag:
    """One leaf field: dotted ``name``, type ``hint``, ``default`` (MISSING = required) and ``help``."""

    name: str
    hint: Any
    default: Any
    help: str
    positional: bool = False

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def shown(self) -> str:
        return self.name.upper() if self.positional else f"--{self.name}"

    def takes(self) -> Literal["one", "many", "switch"]:
        """How many words follow the flag: one value, a list of them, or none needed (a bool)."""
        members = [m for m in _members(self.hint) if m is not type(None)]
        if members == [bool]:
            return "switch"
        return "many" if all(typing.get_origin(m) in (list, tuple) for m in members) else "one"


@dataclass(frozen=True)
class _Given:
    """A value the user gave: ``text`` for field ``name``, found at ``where`` (a flag or a YAML file)."""

    name: str
    text: str
    where: str


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _kind_fields(cls: type) -> dict[str, Mapping[str, type]]:
    return {field.name: field.metadata["kinds"] for field in dataclasses.fields(cls) if "kinds" in field.metadata}


def _default_of(field: dataclasses.Field[Any], owner: Any) -> Any:
    """The field's value in ``owner`` (a default instance of its class) or, without one, its declared default."""
    if owner is not None:
        return getattr(owner, field.name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _walk(cls: type, chosen: Mapping[str, str], prefix: str = "", owner: Any = None) -> Iterator[_Flag]:
    """Every leaf field of ``cls``, nested dataclasses included, in the order of declaration."""
    hints, help_of = typing.get_type_hints(cls), _field_help(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        name, hint = prefix + field.name, hints[field.name]
        if "kinds" in field.metadata:
            yield from _walk_kind(name, field.metadata["kinds"], chosen[name], chosen)
        elif dataclasses.is_dataclass(hint):
            default = _default_of(field, owner)
            yield from _walk(hint, chosen, f"{name}.", None if default is MISSING else default)
        else:
            is_positional = bool(field.metadata.get("positional"))
            yield _Flag(name, hint, _default_of(field, owner), help_of.get(field.name, ""), is_positional)


def _walk_kind(name: str, choices: Mapping[str, type], kind: str, chosen: Mapping[str, str]) -> Iterator[_Flag]:
    for flag in _walk(choices[kind], chosen, f"{name}."):
        if flag.name == f"{name}.kind":
            text = f"Which {name}; the options {name}.* below are those of {kind}."
            flag = dataclasses.replace(flag, hint=Literal[tuple(choices)], default=kind, help=text)
        yield flag


def _field_help(cls: type) -> dict[str, str]:
    """Field name -> the string literal below it, base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            for item in docstring_parser.parse_from_object(base).params:
                found[item.arg_name] = " ".join((item.description or "").split())
    return found


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


# --- what the user gave ----------------------------------------------------------------------------------------------


def _values_of(words: Sequence[str], flag: str) -> list[str]:
    """Every value of ``--flag`` in ``words``, as ``--flag value`` or ``--flag=value``."""
    found = [word.split("=", 1)[1] for word in words if word.startswith(f"--{flag}=")]
    found += [words[i + 1] for i, word in enumerate(words[:-1]) if word == f"--{flag}"]
    return found


def _config_files(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Read the YAML files named by ``--config``."""
    files = []
    for path in _values_of(words, "config"):
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path}: cannot be read ({error}); give a YAML file") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}:" if mark else ""
            raise UserError(f"{path}:{line} not valid YAML ({getattr(error, 'problem', error)})") from None
        if not isinstance(tree, dict | None):
            raise UserError(f"{path}: expected keys with values (see --print_config), got {type(tree).__name__}")
        files.append((path, tree or {}))
    return files


def _choose_kinds(cls: type, words: Sequence[str], files: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """The kind of every kinds-field: flag before YAML before default.

    A YAML section written for another kind than the one a later file or a flag chooses is dropped as a whole.
    """
    chosen = {}
    for name, choices in _kind_fields(cls).items():
        named = [(path, tree[name]["kind"]) for path, tree in files if "kind" in (_section(tree, name))]
        named += [(f"--{name}.kind", kind) for kind in _values_of(words, f"{name}.kind")]
        default = next(f for f in dataclasses.fields(cls) if f.name == name).default_factory().kind
        where, kind = named[-1] if named else ("", default)
        if kind not in choices:
            place = where if where.startswith("--") else f"{where}: {name}.kind"
            raise UserError(f"{place}: no kind {kind!r}{_closest(str(kind), choices)}; known: {', '.join(choices)}")
        chosen[name] = kind
        for _, tree in files:
            if _section(tree, name).get("kind", kind) != kind:
                del tree[name]
    return chosen


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return tree[name] if isinstance(tree.get(name), dict) else {}


class _Keys:
    """The known keys, and the message for an unknown one."""

    def __init__(self, cls: type, flags: Mapping[str, _Flag], chosen: Mapping[str, str]) -> None:
        self.flags, self.chosen = flags, chosen
        self.kinds = _kind_fields(cls)
        self.sections = {name[: match.start()] for name in flags for match in re.finditer(r"\.", name)}

    def unknown(self, where: str, name: str) -> UserError:
        """The error for a key that is not there: an option of another kind, a section, or a slip of the pen."""
        section, _, option = name.partition(".")
        if section in self.kinds:
            kind, choices = self.chosen[section], self.kinds[section]
            having = [k for k, options in choices.items() if option in {f.name for f in dataclasses.fields(options)}]
            if having:
                mend = f"choose one of these with --{section}.kind or leave the option out"
                return UserError(f"{where}: not an option of {section} kind {kind}, but of {', '.join(having)}; {mend}")
        if name in self.sections:
            inside = [key for key in self.flags if key.startswith(f"{name}.")]
            return UserError(f"{where}: is a section, not a value; its keys: {some(inside, 12)}")
        return UserError(f"{where}: unknown key{_closest(name, self.flags)}; --help lists every flag")


def _closest(name: str, known: Any) -> str:
    """``; did you mean <key>?`` for the known name most like ``name``, its last part counted as well."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    found = found or [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {found[0]}?" if found else ""


def _words_of_yaml(path: str, tree: dict[str, Any], keys: _Keys, prefix: str = "") -> Iterator[_Given]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        where = f"{path}: {name}"
        if name in keys.flags:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield _Given(name, text, where)
        elif isinstance(value, dict) and name in keys.sections:
            yield from _words_of_yaml(path, value, keys, f"{name}.")
        elif not (value is None and name in keys.sections):
            raise keys.unknown(where, name)


def _words_of_argv(words: Sequence[str], keys: _Keys) -> Iterator[_Given]:
    """Pair every flag with its value; a list flag takes the words up to the next flag, a bool flag needs none."""
    slots = [flag for flag in keys.flags.values() if flag.positional]
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if not slots:
                raise UserError(f"unexpected word {word!r} on the command line; flags look like --name VALUE")
            flag, values = slots.pop(0), [word]
            if flag.takes() == "many":
                values += _take_values(rest)
            yield _Given(flag.name, _one_text(flag, values), flag.shown)
            continue
        name, equals, text = word[2:].partition("=")
        if name == "print_config":
            continue
        if name not in keys.flags and name != "config":
            raise keys.unknown(f"--{name}", name)
        takes = "one" if name == "config" else keys.flags[name].takes()
        if equals:
            values = [text]
        elif takes == "switch":
            values = [rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"]
        else:
            values = _take_values(rest, None if takes == "many" else 1)
        if not values:
            raise UserError(f"--{name}: needs a value")
        if name != "config":
            yield _Given(name, _one_text(keys.flags[name], values), f"--{name}")


def _take_values(rest: list[str], limit: int | None = None) -> list[str]:
    values: list[str] = []
    while rest and not rest[0].startswith("--") and (limit is None or len(values) < limit):
        values.append(rest.pop(0))
    return values


def _one_text(flag: _Flag, values: list[str]) -> str:
    """Words as the text jsonargparse reads: a list becomes one JSON array, unless the user already wrote one."""
    if flag.takes() == "many" and not (len(values) == 1 and (values[0].startswith("[") or values[0] == "null")):
        loaded = [value if str in _item_types(flag.hint) else _number(value) for value in values]
        return json.dumps(loaded)
    return values[0]


def _item_types(hint: Any) -> set[Any]:
    return {item for member in _members(hint) for item in typing.get_args(member)}


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# --- parsing, building, dumping --------------------------------------------------------------------------------------


def _make_parser(cls: type, flags: Mapping[str, _Flag]) -> ArgumentParser:
    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name,
        description=(cls.__doc__ or "").strip().partition("\n\n")[0],
        usage=" ".join(["%(prog)s", *(f.shown for f in flags.values() if f.positional), "[--FLAG VALUE ...]"]),
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file that sets flags; flags given here override it")
    parser.add_argument("--print_config", action="store_true", help="print the resolved config as YAML and stop")
    groups: dict[str, Any] = {"": parser}
    for flag in flags.values():
        section = flag.name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        default = {} if flag.required else {"default": flag.default}
        groups[section].add_argument(f"--{flag.name}", type=flag.hint, help=flag.help or None, **default)
    return parser


def _parse_words(parser: ArgumentParser, given: list[_Given], flags: Mapping[str, _Flag]) -> dict[str, Any]:
    """Turn texts into typed values; the last one given for a name counts."""
    last = {item.name: item for item in given}
    try:
        namespace = parser.parse_args([f"--{item.name}={item.text}" for item in last.values()])
    except Exception as error:  # jsonargparse raises argparse's, its own and plain TypeErrors for a wrong value
        match = re.match(r'\s*Parser key "([^"]+)"', str(error)) or re.search(r"--([\w.]+)", str(error))
        if not match or match[1] not in last:
            raise
        item = last[match[1]]
        raise UserError(f"{item.where}: expected {_describe(flags[item.name].hint)}, got {item.text!r}") from None
    return {name: namespace.get(name) for name in flags}


def _describe(hint: Any) -> str:
    """A type in words: ``int``, ``one of a, b``, ``Path or null``, ``list of int``."""
    if hint is type(None):
        return "null"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args)
    if origin in (list, tuple):
        return f"list of {_describe(args[0])}"
    return getattr(hint, "__name__", str(hint))


def _build(cls: type[C], chosen: Mapping[str, str], values: Mapping[str, Any], prefix: str) -> C:
    """Make the nested dataclasses from leaf values; what ``__post_init__`` rejects is the user's error."""
    hints, arguments = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        name = prefix + field.name
        nested = field.metadata["kinds"][chosen[name]] if "kinds" in field.metadata else hints[field.name]
        is_nested = dataclasses.is_dataclass(nested)
        arguments[field.name] = _build(nested, chosen, values, f"{name}.") if is_nested else values[name]
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"{prefix.rstrip('.') or 'config'}: {error}") from error


def _dump(flags: Mapping[str, _Flag], values: Mapping[str, Any]) -> str:
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
    """A value as YAML knows it: paths become text, tuples lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
