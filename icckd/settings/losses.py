"""The settings of both networks' losses: which method, and those of every method that there is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from icckd.errors import UserError
from icckd.methods import (
    METHODS,
    Method,
    MethodSettings,
    StudentMethod,
    StudentMethodSettings,
    StudentProcedure,
    TeacherMethod,
    settings_type,
)
from icckd.methods.intra_class import IntraClass, IntraClassSettings

Backend = Literal["auto", "reference", "cpu", "cuda", "triton"]
Kind = TypeVar("Kind", bound=Method)
NO_METHOD = "none"


def setting_name(method: str) -> str:
    """A method's name as part of a setting's."""
    return method.replace("-", "_")


def methods_of(kind: type[Kind]) -> dict[str, type[Kind]]:
    """The methods of one kind by name."""
    named = {name: METHODS.find(name, "method") for name in METHODS}
    return {name: method for name, method in named.items() if issubclass(method, kind)}


def _settings_of(loss: Any, method: str) -> Any:
    if not hasattr(loss, setting_name(method)):
        raise UserError(
            f"the method {method} was registered after icckd.settings was imported, and has no settings there; "
            "register it before, or by an entry point"
        )
    return getattr(loss, setting_name(method))


@dataclass
class _TeacherLoss(IntraClassSettings):
    method: str = IntraClass.name
    backend: Backend = "auto"

    def method_class(self) -> type[TeacherMethod]:
        """The method in force. Raises UserError where there is none of that name."""
        known = methods_of(TeacherMethod)
        if self.method not in known:
            raise METHODS.unknown(self.method, "teacher.loss.method", known)
        return known[self.method]

    def method_settings(self) -> MethodSettings:
        """The settings of the method in force."""
        return self if self.method == IntraClass.name else _settings_of(self, self.method)

    def strong_views(self) -> int:
        """How many views of each image the method in force wants varied strongly."""
        return self.method_class().strong_views_of(self.method_settings())


@dataclass
class _StudentLoss:
    method: str = "kd"
    cross_entropy_weight: float | None = None
    backend: Backend = "auto"

    def procedure(self) -> type[StudentProcedure] | None:
        """What replaces the whole training, if `method` names such."""
        return methods_of(StudentProcedure).get(self.method)

    def method_classes(self) -> dict[str, type[StudentMethod]]:
        """The methods in force by name; none for "none" or a procedure.

        Raises UserError where one is unknown or given twice.
        """
        if self.method == NO_METHOD or self.procedure() is not None:
            return {}
        known, procedures, setting = methods_of(StudentMethod), methods_of(StudentProcedure), "student.loss.method"
        names = self.method.split("+")
        for name in names:
            if name in procedures:
                raise UserError(f"{setting} is {self.method!r}; {name} stands alone: it replaces the whole training")
            if name not in known and name != NO_METHOD:
                raise METHODS.unknown(self.method, setting, (*known, NO_METHOD, "several joined by +", *procedures))
            if names.count(name) > 1:
                raise UserError(f"{setting} is {self.method!r}, which names {name} twice; give it once")
        if NO_METHOD in names:
            raise UserError(f"{setting} is {self.method!r}; {NO_METHOD} stands alone: it is no method")
        return {name: known[name] for name in names}

    def method_settings(self) -> dict[str, StudentMethodSettings]:
        """The settings of the methods in force, by name."""
        return {name: _settings_of(self, name) for name in self.method_classes()}

    def settings_in_force(self) -> Mapping[str, MethodSettings]:
        """The settings of the methods in force, or of the procedure, by name."""
        return self.method_settings() if self.procedure() is None else {self.method: _settings_of(self, self.method)}

    def weights(self) -> dict[str, float]:
        """The weights in force, by method."""
        settings = self.method_settings()
        return {name: each.weight_of(len(settings)) for name, each in settings.items()}

    def weight_of_cross_entropy(self) -> float:
        """The weight in force of the cross-entropy with the true labels: given, or published beside the method."""
        if self.cross_entropy_weight is not None:
            return self.cross_entropy_weight
        methods = list(self.method_classes().values())
        if any(method.holds_cross_entropy for method in methods):
            return 0.0
        return methods[0].cross_entropy_weight if len(methods) == 1 else 1.0

    def in_force(self) -> dict[str, Any]:
        """What the loss is made of, by name: the settings of the methods in force, with the weights that they have.

        Of a procedure: its settings.
        """
        if self.procedure() is not None:
            own = {setting_name(name): asdict(each) for name, each in self.settings_in_force().items()}
            return {**own, "backend": self.backend}
        weights = self.weights()
        methods = {
            setting_name(name): {**asdict(each), "weight": weights[name]}
            for name, each in self.method_settings().items()
        }
        return {"cross_entropy_weight": self.weight_of_cross_entropy(), **methods, "backend": self.backend}


def _with_methods(name: str, base: type, methods: Mapping[str, type[Method]], document: str) -> Any:
    """`base` with a further setting for the settings of each method."""
    types = {setting_name(method): settings_type(each) for method, each in methods.items()}
    fields = [(setting, each, field(default_factory=each)) for setting, each in types.items()]
    lines = [f"        {setting}: {_title(each)}" for setting, each in types.items()]
    members = {"__doc__": "\n".join([document, *lines]), "__module__": __name__}
    return make_dataclass(name, fields, bases=(base,), namespace=members)


def _procedures() -> str:
    return (
        f"""; or one that replaces the whole training:
                {", ".join(procedures)}"""
        if (procedures := methods_of(StudentProcedure))
        else ""
    )


def _cross_entropy_weights() -> str:
    methods = methods_of(StudentMethod)
    alone = [f"{m.cross_entropy_weight:g} beside {n} alone" for n, m in methods.items() if m.cross_entropy_weight != 1]
    held = [f"0 beside {name}, which holds it" for name, method in methods.items() if method.holds_cross_entropy]
    return ", ".join(["1", *alone, *held])


def _title(settings: type) -> str:
    return ((settings.__doc__ or "").strip() or settings.__name__).splitlines()[0]


if TYPE_CHECKING:
    TeacherLossSettings: TypeAlias = _TeacherLoss
    StudentLossSettings: TypeAlias = _StudentLoss
else:
    TeacherLossSettings = _with_methods(
        "TeacherLossSettings",
        _TeacherLoss,
        {name: method for name, method in methods_of(TeacherMethod).items() if name != IntraClass.name},
        f"""The teacher's loss. The settings of intra-class stand here; other methods have theirs under their names.

        Args:
            method: How the teacher is trained: {", ".join(methods_of(TeacherMethod))}. Settings of others are ignored.
            backend: Who computes the losses: auto, reference, cpu, cuda or triton.""",
    )
    StudentLossSettings = _with_methods(
        "StudentLossSettings",
        _StudentLoss,
        methods_of(StudentMethod) | methods_of(StudentProcedure),
        f"""The student's loss: cross_entropy_weight · cross-entropy + the weighted losses of the methods.

        Args:
            method: Distillation method, or several joined by + (kd+rkd): {", ".join(methods_of(StudentMethod))}; or
                {NO_METHOD}, for cross-entropy alone{_procedures()}.
                Settings of methods that are not in force are ignored.
            cross_entropy_weight: Weight of the cross-entropy with the true labels, where methods are summed (null:
                {_cross_entropy_weights()}).
            backend: Who computes the losses: auto, reference, cpu, cuda or triton.""",
    )
