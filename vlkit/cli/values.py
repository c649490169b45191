"""Conversion to typed values: text is taken literally, numbers and choices are parsed by jsonargparse."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from jsonargparse import ArgumentParser

from vlkit.cli.flags import Flag, union_members
from vlkit.cli.given import Given
from vlkit.errors import UserError

# jsonargparse reads words as YAML, where these begin a comment, an anchor, a tag, a quotation, a base-60 number, …
_YAML_MARKS = re.compile("[#&*!~{}|>%@`'\":?]")


def typed_values(parser: ArgumentParser, given: list[Given], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """A value for every flag: the last one given (all words of a repeated flag), or its default.

    Raises:
        UserError: a value has the wrong type for its flag.
    """
    last = {item.name: item for item in given}
    for name, item in last.items():
        if flags[name].repeated and not item.in_yaml:
            words = [other.value for other in given if other.name == name and not other.in_yaml]
            last[name] = replace(item, value=words)
    texts = {name: _literal(flags[name], item) for name, item in last.items() if flags[name].text is not None}
    others = {name: item for name, item in last.items() if name not in texts}
    return _parsed(parser, others, flags) | texts


def _literal(flag: Flag, item: Given) -> Any:
    """The value of a text flag: words taken literally, regardless of their meaning in YAML."""
    if item.in_yaml:
        return _literal_from_yaml(flag, item)
    if flag.repeated:
        return [_text(flag, item, word) for word in item.value]
    if flag.takes() == "many":
        return [_text(flag, item, word) for word in _words_of(item.value)]
    if flag.takes_null and item.value == "null":
        return None
    if flag.takes() == "optional" and item.value.lower() in ("true", "false"):
        return item.value.lower() == "true"
    return _text(flag, item, item.value)


def _literal_from_yaml(flag: Flag, item: Given) -> Any:
    """YAML has already distinguished text from null."""
    value = item.value
    if value is None and type(None) in union_members(flag.hint):
        return None
    if isinstance(value, bool) and flag.takes() == "optional":
        return value
    if flag.repeated or flag.takes() == "many":
        return [_text(flag, item, part) for part in (value if isinstance(value, list) else [value])]
    return _text(flag, item, value)


def _words_of(words: list[str]) -> list[str]:
    """The words of a list; a single word may hold the whole list as JSON: ``["a", "b"]``. ``[backup]`` is a name."""
    if len(words) == 1 and words[0].startswith("["):
        found = _number(words[0])
        if isinstance(found, list) and all(isinstance(part, str) for part in found):
            return found
    return words


def _text(flag: Flag, item: Given, value: Any) -> Any:
    """One text or path.

    Raises:
        UserError: YAML gave another type, or a path is empty or contains an invalid character.
    """
    if isinstance(value, int | float):
        value = json.dumps(value)
    if not isinstance(value, str):
        raise _wrong(flag, item)
    if flag.text is not str and (not value or "\0" in value):
        raise UserError(f"{item.where}: {value!r} is not a path; give a file or folder")
    assert flag.text is not None  # the reader of a flag of text
    return flag.text(value)


def _parsed(parser: ArgumentParser, given: Mapping[str, Given], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Numbers, choices, switches and lists of numbers, parsed by jsonargparse; defaults of all other flags."""
    words = {name: _word(flags[name], item) for name, item in given.items()}
    try:
        namespace = parser.parse_args([f"--{name}={word}" for name, word in words.items()])
    except Exception as error:  # jsonargparse raises argparse errors, its own and plain TypeErrors for a wrong value
        match = re.match(r'\s*Parser key "([^"]+)"', str(error)) or re.search(r"--([\w.]+)", str(error))
        if not match or match[1] not in given:
            raise
        raise _wrong(flags[match[1]], given[match[1]]) from None
    for name, item in given.items():
        if namespace.get(name) is None and words[name] != "null":
            raise _wrong(flags[name], item)
    return {name: namespace.get(name) for name in flags}


def _word(flag: Flag, item: Given) -> str:
    """The word for jsonargparse; a list becomes a JSON array, unless the user already wrote one."""
    value = item.value
    if item.in_yaml:
        return value if isinstance(value, str) else json.dumps(value, default=str)
    if any(_YAML_MARKS.search(word) for word in ([value] if isinstance(value, str) else value)):
        raise _wrong(flag, item)
    if isinstance(value, str):
        return value
    if len(value) == 1 and (value[0].startswith("[") or value[0] == "null"):
        return value[0]
    return json.dumps([_number(word) for word in value])


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text


def _wrong(flag: Flag, item: Given) -> UserError:
    got = item.value
    if isinstance(got, list) and not item.in_yaml:
        got = " ".join(got)
    return UserError(f"{item.where}: expected {describe(flag.hint)}, got {got!r}")


def describe(hint: Any) -> str:
    """A type in words: ``int``, ``one of a, b``, ``Path or null``, ``list of int``."""
    if hint is type(None):
        return "null"
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin in (list, tuple):
        return f"list of {describe(args[0])}"
    return getattr(hint, "__name__", str(hint))
