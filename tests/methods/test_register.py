"""What may be registered as a method, and what an installed package cannot spoil."""

from dataclasses import dataclass, fields

import pytest

from icckd.errors import UserError
from icckd.methods import METHODS, MethodSettings, StudentMethod, StudentMethodSettings, TeacherMethod, register
from icckd.settings import StudentLossSettings, TeacherLossSettings
from icckd.settings.losses import methods_of, setting_name


@dataclass
class Settings(StudentMethodSettings):
    gain: float = 2.0


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is forgotten after it."""
    list(METHODS)
    monkeypatch.setattr(METHODS, "_items", dict(METHODS._items))


def student_method(name, annotation=Settings):
    return type("Mine", (StudentMethod,), {"name": name, "__annotations__": {"settings": annotation}})


@pytest.mark.parametrize("name", ["mine", "Mine2", "my-own", "my_own"])
def test_a_word_names_a_method(name):
    method = register(student_method(name))
    assert METHODS.find(name, "method") is method


@pytest.mark.parametrize(
    "name", ["", "a+b", "a.b", "a b", "1st", "-a", "a-", "a--b", "Ünï", "kd:", "class", "none", "loss", "a\n"]
)
def test_what_the_command_line_or_a_setting_cannot_be_called_is_no_name(name):
    with pytest.raises(ValueError, match=r"Mine\.name is .*; it should be words of letters and digits"):
        register(student_method(name))


def test_no_method_hides_another_setting():
    own = {f.name for kind in (StudentLossSettings, TeacherLossSettings) for f in fields(kind)}
    for name in own - {setting_name(name) for name in METHODS}:
        for spelling in (name, name.replace("_", "-")):
            with pytest.raises(ValueError, match=r"neither a word of Python nor one of"):
                register(student_method(spelling))


@pytest.mark.parametrize("name", ["kd", "similarity_preserving", "multi_head"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=r"a method named .* is registered already"):
        register(student_method(name))


class NotDecorated(StudentMethodSettings):
    gain: float = 2.0


@dataclass(kw_only=True)
class WithoutDefault(StudentMethodSettings):
    gain: float


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (NotDecorated, "decorated with @dataclass"),
        (MethodSettings, "derived from StudentMethodSettings"),
        (WithoutDefault, r"WithoutDefault\.gain has no default"),
        (dict, "derived from StudentMethodSettings"),
    ],
)
def test_settings_that_would_not_be_settings_are_refused(annotation, words):
    with pytest.raises(TypeError, match=words):
        register(student_method("mine", annotation))


def test_a_teacher_s_method_needs_no_student_s_settings():
    method = type("Mine", (TeacherMethod,), {"name": "mine", "__annotations__": {"settings": MethodSettings}})
    register(method)
    assert methods_of(TeacherMethod)["mine"] is method


@pytest.mark.parametrize("failure", [SystemExit(3), SystemExit("no"), ValueError("no")])
def test_an_entry_point_that_ends_the_process_costs_nobody_else_anything(monkeypatch, failure):
    class Entry:
        name, value = "theirs", "their_module"

        def load(self):
            raise failure

    monkeypatch.setattr("icckd.registry.entry_points", lambda group: [Entry()] if group == "icckd.methods" else [])
    monkeypatch.setattr(METHODS, "_loaded", False)
    monkeypatch.setattr(METHODS, "_problems", [])
    assert "kd" in METHODS
    assert METHODS.problems() == [
        f"the entry point theirs = their_module cannot be imported ({type(failure).__name__}: {failure})"
    ]


def test_a_method_that_comes_too_late_for_settings_is_told_so(monkeypatch):
    monkeypatch.setattr(METHODS, "_items", {**METHODS._items, "late": METHODS.find("kd", "method")})
    with pytest.raises(UserError, match=r"late was registered after icckd\.settings was imported"):
        StudentLossSettings(method="late").method_settings()
