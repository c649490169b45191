"""From a command line to named texts: the fields a config class declares, and the values the user gave for them.

Knows words, YAML and keys; types are checked by :mod:`vlkit.cli.config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import yaml

from vlkit.errors import UserError, some

# --- what a config class declares ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flag:
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

    def takes(self) -> Literal["one", "many", "switch", "optional"]:
        """How many words follow the flag: one value, a list of them, none needed (a bool), or one if one is there."""
        members = [m for m in union_members(self.hint) if m is not type(None)]
        if bool in members:
            return "switch" if members == [bool] else "optional"
        return "many" if all(typing.get_origin(m) in (list, tuple) for m in members) else "one"


@dataclass(frozen=True)
class Given:
    """A value the user gave: ``text`` for field ``name``, found at ``where`` (a flag or a YAML file)."""

    name: str
    text: str
    where: str


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def kind_fields(cls: type) -> dict[str, Mapping[str, type]]:
    return {field.name: field.metadata["kinds"] for field in dataclasses.fields(cls) if "kinds" in field.metadata}


def _default_of(field: dataclasses.Field[Any], owner: Any) -> Any:
    """The field's value in ``owner`` (a default instance of its class) or, without one, its declared default."""
    if owner is not None:
        return getattr(owner, field.name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def walk(cls: type, chosen: Mapping[str, str], prefix: str = "", owner: Any = None) -> Iterator[Flag]:
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
            yield from walk(hint, chosen, f"{name}.", None if default is MISSING else default)
        else:
            is_positional = bool(field.metadata.get("positional"))
            yield Flag(name, hint, _default_of(field, owner), help_of.get(field.name, ""), is_positional)


def _walk_kind(name: str, choices: Mapping[str, type], kind: str, chosen: Mapping[str, str]) -> Iterator[Flag]:
    for flag in walk(choices[kind], chosen, f"{name}."):
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


# --- what the user gave ----------------------------------------------------------------------------------------------


def _values_of(words: Sequence[str], flag: str) -> list[str]:
    """Every value of ``--flag`` in ``words``, as ``--flag value`` or ``--flag=value``."""
    found = [word.split("=", 1)[1] for word in words if word.startswith(f"--{flag}=")]
    found += [words[i + 1] for i, word in enumerate(words[:-1]) if word == f"--{flag}"]
    return found


def read_config_files(words: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
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


def choose_kinds(cls: type, words: Sequence[str], files: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """The kind of every kinds-field: flag before YAML before default.

    A YAML section written for another kind than the one a later file or a flag chooses is dropped as a whole.
    """
    chosen = {}
    for name, choices in kind_fields(cls).items():
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


class KnownKeys:
    """The known keys, and the message for an unknown one."""

    def __init__(self, cls: type, flags: Mapping[str, Flag], chosen: Mapping[str, str]) -> None:
        self.flags, self.chosen = flags, chosen
        self.kinds = kind_fields(cls)
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


def given_in_yaml(path: str, tree: dict[str, Any], keys: KnownKeys, prefix: str = "") -> Iterator[Given]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        where = f"{path}: {name}"
        if name in keys.flags:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield Given(name, text, where)
        elif isinstance(value, dict) and name in keys.sections:
            yield from given_in_yaml(path, value, keys, f"{name}.")
        elif not (value is None and name in keys.sections):
            raise keys.unknown(where, name)


def given_in_words(words: Sequence[str], keys: KnownKeys) -> Iterator[Given]:
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
            yield Given(flag.name, _one_text(flag, values), flag.shown)
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
        if not values and takes == "optional":
            values = ["true"]
        if not values:
            raise UserError(f"--{name}: needs a value")
        if name != "config":
            yield Given(name, _one_text(keys.flags[name], values), f"--{name}")


def _take_values(rest: list[str], limit: int | None = None) -> list[str]:
    values: list[str] = []
    while rest and not rest[0].startswith("--") and (limit is None or len(values) < limit):
        values.append(rest.pop(0))
    return values


def _one_text(flag: Flag, values: list[str]) -> str:
    """Words as the text jsonargparse reads: a list becomes one JSON array, unless the user already wrote one."""
    if flag.takes() == "many" and not (len(values) == 1 and (values[0].startswith("[") or values[0] == "null")):
        loaded = [value if str in _item_types(flag.hint) else _number(value) for value in values]
        return json.dumps(loaded)
    return values[0]


def _item_types(hint: Any) -> set[Any]:
    return {item for member in union_members(hint) for item in typing.get_args(member)}


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
