"""Settings as dataclass fields, each written once: its default, its help, and what it may be.

A group of settings is a frozen dataclass whose fields are made by `option`. `add_flags` makes a flag of each, and
`check_options` refuses from Python what a flag would refuse.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args

from sprc.core.command_line import absolute, user_path
from sprc.core.errors import InputError, shown

KEY = "option"
ACCEPTED: dict[type, tuple[type, ...]] = {
    int: (Integral,), float: (Real,), str: (str, os.PathLike), Path: (str, os.PathLike)
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """What a setting may be. `least` is allowed, `above` is not; `only_with` names the switch that it needs.

    `path_if` tells of a text whether it is a path, and not a word such as `off`.
    """

    help: str
    choices: Sequence[str] = ()
    least: float | None = None
    above: float | None = None
    only_with: str = ""
    metavar: str | None = None
    path_if: Callable[[str], bool] = lambda text: False


def option(help: str, default: Any = None, **rules: Any) -> Any:
    """A field of a group of settings. `rules` are fields of `Option`; the default `...` stands for a required value.

    A required value may be given by its position.
    """
    metadata = {KEY: Option(help, **rules)}
    return field(metadata=metadata, kw_only=False) if default is ... else field(default=default, metadata=metadata)


def options_of(group: type) -> dict[str, Field]:
    """Name -> field of every setting of a group that has a flag."""
    return {found.name: found for found in fields(group) if KEY in found.metadata}


def add_flags(parser: argparse.ArgumentParser, title: str, group: type, leave_out: Iterable[str] = ()) -> None:
    """One flag for each setting of a group, under a title. A flag that is not given is absent from the result."""
    section = parser.add_argument_group(title)
    for name, found in options_of(group).items():
        if name not in leave_out:
            section.add_argument(f"--{name.replace('_', '-')}", **_flag(found))


def _flag(found: Field) -> dict[str, Any]:
    """The arguments of `add_argument` for a setting."""
    rules = found.metadata[KEY]
    shared = {"help": rules.help + _default_in_words(found), "default": argparse.SUPPRESS}
    if found.type is bool:
        return shared | {"action": "store_true"}
    parse = user_path if base_type(found) is Path else base_type(found)
    return shared | {"type": parse, "choices": tuple(rules.choices) or None, "metavar": rules.metavar}


def require_given(parser: argparse.ArgumentParser, given: dict[str, Any], required: Sequence[str]) -> None:
    """End as argparse does if a setting was given nowhere: not by a flag, and not in a file."""
    missing = [f"--{name.replace('_', '-')}" for name in required if name not in given]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def _default_in_words(found: Field) -> str:
    if found.default in (MISSING, None, False):
        return ""
    return f" (default: {found.default})".replace("%", "%%")


def base_type(found: Field) -> type:
    """The type of a setting's values, None aside."""
    types = [one for one in get_args(found.type) or (found.type,) if one is not NoneType]
    return types[0]


def check_options(settings: Any) -> None:
    """Bring the settings of a frozen dataclass to their types; paths become absolute, so that they hold anywhere.

    Raises InputError that names the first setting, in backticks, that cannot have its value.
    """
    for name, found in options_of(type(settings)).items():
        value = getattr(settings, name)
        if value is None and found.default is None:
            continue
        object.__setattr__(settings, name, _typed(name, found, value))
        _check_value(name, found.metadata[KEY], value)
        _check_switch(settings, name, found)


def _typed(name: str, found: Field, value: Any) -> Any:
    """The value in the type of its field, a path from the root. Numbers of numpy count as numbers, a path as a text."""
    kind = base_type(found)
    accepted = ACCEPTED.get(kind, (kind,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"`{name}` is {shown(value)}: give a value of type {kind.__name__}")
    if kind is Path or (kind is str and found.metadata[KEY].path_if(str(value))):
        return kind(absolute(cast(str | Path, value)))
    return value if type(value) in (kind, int) else kind(value)  # a whole number may stand for a float


def _check_value(name: str, rules: Option, value: Any) -> None:
    if rules.choices and value not in rules.choices:
        raise InputError(f"`{name}` {value!r}: use one of {', '.join(rules.choices)}")
    if rules.above is not None and not rules.above < value < math.inf:
        raise InputError(f"`{name}` must be above {rules.above:g}, not {value}")
    if rules.least is not None and not rules.least <= value < math.inf:
        raise InputError(f"`{name}` must be at least {rules.least:g}, not {value}")


def _check_switch(settings: Any, name: str, found: Field) -> None:
    """A setting without its switch would change nothing: the run would not be the one that was meant."""
    switch = found.metadata[KEY].only_with
    if not switch or getattr(settings, name) == found.default:
        return
    if getattr(settings, switch) == options_of(type(settings))[switch].default:
        raise InputError(f"`{name}` has no effect without `{switch}`: give both, or neither")
