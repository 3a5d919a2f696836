"""What `make docs` shows: every public name says what it is."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
MODULES = ["icckd.functional", *re.search(r"^DOCUMENTED := (.+)$", MAKEFILE, re.MULTILINE)[1].split()]


def is_explained(thing):
    """By a docstring that somebody wrote, of a method also of what it overrides."""
    text = thing.__doc__ if inspect.isclass(thing) else inspect.getdoc(thing)
    return bool(text) and not text.startswith(f"{thing.__name__}(")  # As Python writes it of tuples and dataclasses.


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__
    public = {of: getattr(module, of) for of in module.__all__}
    things = {of: thing for of, thing in public.items() if inspect.isclass(thing) or inspect.isroutine(thing)}
    methods = {
        f"{of}.{member}": getattr(thing, member)
        for of, thing in things.items()
        if inspect.isclass(thing)
        for member, value in vars(thing).items()
        if inspect.isfunction(value) and not member.startswith("_")
    }
    assert things
    assert not [of for of, thing in (things | methods).items() if not is_explained(thing)]
