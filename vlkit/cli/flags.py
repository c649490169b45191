"""The flags that a config class declares: one for each leaf field, with type, default and help."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import docstring_parser


@dataclass(frozen=True)
class Flag:
    """One leaf field: dotted ``name``, type ``hint``, ``default`` (MISSING = required) and ``help``.

    Attributes:
        alias: a second name on the command line, from the field's metadata; empty = none.
        repeated: the flag of a list takes one value and may be given several times.
    """

    name: str
    hint: Any
    default: Any
    help: str
    positional: bool = False
    alias: str = ""
    repeated: bool = False

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def shown(self) -> str:
        """The flag as the user writes it."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def text(self) -> type | None:
        """``str`` or ``Path`` if each word is taken literally; None for numbers and choices."""
        members = [m for m in union_members(self.hint) if m not in (type(None), bool)]
        items = {item for m in members for item in (typing.get_args(m) if typing.get_origin(m) is list else (m,))}
        return next(iter(items)) if items in ({str}, {Path}) else None

    @property
    def takes_null(self) -> bool:
        """Whether the word ``null`` means None. A text flag must say so in its help, since "null" may be a query."""
        return type(None) in union_members(self.hint) and (self.text is None or "null" in self.help.split())

    def takes(self) -> Literal["one", "many", "switch", "optional"]:
        """Number of words after the flag: one value, a list of values, none needed (a bool), or an optional value."""
        members = [m for m in union_members(self.hint) if m is not type(None)]
        if bool in members:
            return "switch" if members == [bool] else "optional"
        if self.repeated:
            return "one"
        return "many" if all(typing.get_origin(m) in (list, tuple) for m in members) else "one"


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
        name, hint = prefix + field.name, cast(Any, hints[field.name])
        if "kinds" in field.metadata:
            yield from _walk_kind(name, field.metadata["kinds"], chosen[name], chosen)
        elif dataclasses.is_dataclass(hint):
            default = _default_of(field, owner)
            yield from walk(cast(type, hint), chosen, f"{name}.", None if default is MISSING else default)
        else:
            is_positional = bool(field.metadata.get("positional"))
            alias, repeated = field.metadata.get("alias", ""), bool(field.metadata.get("repeated"))
            default = _default_of(field, owner)
            yield Flag(name, hint, default, help_of.get(field.name, ""), is_positional, alias, repeated)


def _walk_kind(name: str, choices: Mapping[str, type], kind: str, chosen: Mapping[str, str]) -> Iterator[Flag]:
    for flag in walk(choices[kind], chosen, f"{name}."):
        if flag.name == f"{name}.kind":
            text = f"Kind of {name}; the options {name}.* below are those of {kind}."
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
