"""From what was given to all settings: presets beneath it, every value of the type that it should have."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from icckd.errors import UserError
from icckd.settings.definition import Settings
from icckd.settings.names import flat, nested, refuse_renamed
from icckd.settings.presets import DECISIVE, preset_defaults

# How jsonargparse says, once it is one line, that a value is of none of several types; it may say so within.
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: ((?!Does not).)*? Errors: "
    r"(?P<errors>((?!Does not).)*?) Given value type: .*? Given value: (?P<value>.*?)(?= - expected |$)"
)


def settings_from(values: Mapping[str, Any], source: str) -> Settings:
    """The settings of which `values` gives some, nested or by dotted name; the others have their defaults.

    Raises UserError, naming the setting and `source`, where a name or a type is wrong. `check` looks at the values.
    """
    given = flat(dict(values))
    refuse_renamed(given, source)
    parser = _parser()
    try:
        parsed = parser.parse_object(nested(defaults_under(given) | given))
        refuse_nulls(parsed)
        parsed = parser.instantiate(parsed)
    except (UserError, argparse.ArgumentError) as error:
        raise UserError(f"{source}: {one_line(str(error))}") from error
    return Settings(**{field.name: parsed[field.name] for field in fields(Settings)})


@cache
def _parser() -> ArgumentParser:
    """What knows every setting; a comparison asks it once a variant, and it takes a while to make."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Settings)
    return parser


def defaults_under(given: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the preset that `given` names, by dotted name. Raises UserError where it has none for the data.

    None where a setting that they depend on is not of its type: whoever reads the settings says so.
    """
    defaults = flat(asdict(Settings()))
    chosen = {name: given.get(name, defaults[name]) for name in ("preset", *DECISIVE)}
    kinds = {name: object if defaults[name] is None else type(defaults[name]) for name in chosen}
    if any(not isinstance(value, kinds[name]) for name, value in chosen.items()):
        return {}
    return preset_defaults(chosen["preset"], chosen)


def refuse_nulls(values: Namespace, kind: Any = Settings, prefix: str = "") -> None:
    """Raise UserError where a setting of the dataclass `kind` is null that cannot be, or a group no group.

    jsonargparse takes any null, and a number for a group.
    """
    wanted = get_type_hints(kind)
    for setting in fields(kind):
        name, value = setting.name, values[setting.name]
        if value is None and setting.default is not None and NoneType not in get_args(wanted[name]):
            raise UserError(f"{prefix}{name} is null; leave it out for its default, or give a value")
        if is_dataclass(wanted[name]):
            if not isinstance(value, Namespace):
                raise UserError(f"{prefix}{name} is {value!r}; it should hold settings by name")
            refuse_nulls(value, wanted[name], f"{prefix}{name}.")


def one_line(text: str) -> str:
    """jsonargparse's messages in the words of a user: one line, type names without Python's spelling of them."""
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    text = re.sub(r"Expected a <class '(\w+)'>", r"expected \1", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", text)
    text = re.sub(r"\. Got value: ", ", got ", text)
    text = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"\1.\2 is no setting", text)
    text = re.sub(
        r"Subcommand '(\w+)' does not accept option '([^']+)'", r"\2 is no setting; icckd \1 --help has all", text
    )
    text = " ".join(text.split())
    while _UNION.search(text):
        text = _UNION.sub(_alternatives, text)
    return text


def _alternatives(found: re.Match[str]) -> str:
    """What is said of a value of none of several types."""
    wanted = [error.removeprefix("- ").removeprefix("expected ") for error in found["errors"].split(" - expected ")]
    named = dict.fromkeys("null" if error == "NoneType" else error.partition(", got ")[0] for error in wanted)
    return f"expected {' or '.join(named)}, got {found['value']}"
