"""Settings made of what a file gives."""

from collections.abc import Mapping
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from icckd.errors import UserError
from icckd.settings.definition import Settings
from icckd.settings.names import flat


def settings_from(values: Mapping[str, Any], source: str) -> Settings:
    """The settings that `values`, nested or dotted, of `source` give; others have their defaults.

    Raises UserError, naming `source`, where one is unknown or of another type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Settings)
    try:
        parsed = parser.parse_object(flat(dict(values)))
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{source}: {' '.join(str(error).split())}") from error
    made = parser.instantiate_classes(parsed)
    return Settings(**{name: made[name] for name in Settings.__dataclass_fields__})
