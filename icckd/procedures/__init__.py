"""How a student is trained from beginning to end.

`procedure` says what a procedure is, what it may use, and what a run needs of its training. `distillation` is the usual
one, whose losses are a sum of methods; the others stand under the names of the methods that they are.
"""

from icckd.methods.absld import Absld
from icckd.methods.pkd import Pkd
from icckd.methods.rgal import Rgal
from icckd.methods.staged import Staged
from icckd.procedures.absld import AntiBiasDistillation
from icckd.procedures.distillation import Distillation
from icckd.procedures.federated import FederatedLearning
from icckd.procedures.procedure import Lesson, Procedure, Trainable
from icckd.procedures.rgal import DataFreeDistillation
from icckd.procedures.staged import StagedDistillation

__all__ = ["Lesson", "Procedure", "Trainable", "procedure_of"]

# By the name of the method that says what its losses are.
_PROCEDURES: dict[str, type[Procedure]] = {
    Absld.name: AntiBiasDistillation,
    Rgal.name: DataFreeDistillation,
    Staged.name: StagedDistillation,
    Pkd.name: FederatedLearning,
}


def procedure_of(lesson: Lesson) -> Procedure:
    """What `student.loss.method` names, made ready. Raises UserError where it cannot be done with what there is."""
    method = lesson.settings.student.loss.procedure()
    return Distillation(lesson) if method is None else _PROCEDURES[method.name](lesson)
