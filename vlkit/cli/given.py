"""The values that the user gave for flags, on the command line or in YAML.

This module handles words, YAML and keys; :mod:`vlkit.cli.values` checks types.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlkit.cli.flags import Flag, kind_fields
from vlkit.errors import UserError, some


@dataclass(frozen=True)
class Given:
    """A value that the user gave for field ``name``, found at ``where`` (a flag or a YAML file).

    Attributes:
        value: a word, or the words of a list; any YAML value if ``in_yaml``.
    """

    name: str
    value: Any
    where: str
    in_yaml: bool = False


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
    """The kind of every kinds-field; a flag overrides YAML, YAML overrides the default.

    If a later file or a flag chooses another kind, a YAML section written for the first kind is dropped entirely.
    """
    chosen = {}
    for name, choices in kind_fields(cls).items():
        named = [(path, tree[name]["kind"]) for path, tree in files if "kind" in (_section(tree, name))]
        named += [(f"--{name}.kind", kind) for kind in _values_of(words, f"{name}.kind")]
        make: Any = next(f for f in dataclasses.fields(cls) if f.name == name).default_factory
        default = make().kind
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
    """The known keys, and the error message for an unknown one."""

    def __init__(self, cls: type, flags: Mapping[str, Flag], chosen: Mapping[str, str]) -> None:
        self.flags, self.chosen = flags, chosen
        self.kinds = kind_fields(cls)
        self.aliases = {flag.alias: flag.name for flag in flags.values() if flag.alias and flag.alias not in flags}
        self.sections = {name[: match.start()] for name in flags for match in re.finditer(r"\.", name)}

    def unknown(self, where: str, name: str) -> UserError:
        """The error for an unknown key: an option of another kind, a section, or a typo."""
        section, _, option = self._in_full(name).partition(".")
        if section in self.kinds:
            kind, choices = self.chosen[section], self.kinds[section]
            having = [k for k, options in choices.items() if option in {f.name for f in dataclasses.fields(options)}]
            if having:
                fix = f"choose one of these with --{section}.kind or omit the option"
                return UserError(f"{where}: not an option of {section} kind {kind}, but of {', '.join(having)}; {fix}")
        if name in self.sections:
            inside = [key for key in self.flags if key.startswith(f"{name}.")]
            return UserError(f"{where}: is a section, not a value; its keys: {some(inside, 12)}")
        return UserError(f"{where}: unknown key{_closest(name, self.flags)}; --help lists every flag")

    def _in_full(self, name: str) -> str:
        """The full name behind the alias of an option that another kind has."""
        for section, choices in self.kinds.items():
            fields = (field for options in choices.values() for field in dataclasses.fields(options))
            if any(field.metadata.get("alias") == name for field in fields):
                return f"{section}.{name}"
        return name


def _closest(name: str, known: Any) -> str:
    """``; did you mean <key>?`` for the known name most similar to ``name``; its last part is compared too."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    found = found or [key for key in known if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"; did you mean {found[0]}?" if found else ""


def given_in_yaml(path: str, tree: dict[str, Any], keys: KnownKeys, prefix: str = "") -> Iterator[Given]:
    """Every value of a YAML file, as parsed by YAML."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        where = f"{path}: {name}"
        if name in keys.flags:
            yield Given(name, value, where, in_yaml=True)
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
                raise UserError(f"unexpected argument {word!r} on the command line; write flags as --name VALUE")
            flag, values = slots.pop(0), [word]
            if flag.takes() == "many":
                values += _take_values(rest)
            yield Given(flag.name, _one_or_many(flag, values), flag.shown)
            continue
        name, equals, text = word[2:].partition("=")
        if name == "print_config":
            continue
        name = keys.aliases.get(name, name)
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
            raise UserError(f"--{name}: needs a value; write --{name}=VALUE if the value itself begins with --")
        if name != "config":
            yield Given(name, _one_or_many(keys.flags[name], values), f"--{name}")


def asks_for_help(words: Sequence[str], flags: Mapping[str, Flag]) -> bool:
    """Whether ``--help`` or ``-h`` is given, and not as the value of a flag as in ``--text -h``."""
    for number, word in enumerate(words):
        before = flags.get(words[number - 1].removeprefix("--")) if number else None
        if word == "--help" or (word == "-h" and (before is None or before.takes() == "switch")):
            return True
    return False


def _take_values(rest: list[str], limit: int | None = None) -> list[str]:
    values: list[str] = []
    while rest and not rest[0].startswith("--") and (limit is None or len(values) < limit):
        values.append(rest.pop(0))
    return values


def _one_or_many(flag: Flag, values: list[str]) -> str | list[str]:
    return values if flag.takes() == "many" else values[0]
