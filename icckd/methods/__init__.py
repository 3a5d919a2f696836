"""How teachers and students are trained: a file for each method, found by its name.

`base` says what a method is. A file of this folder, or a module that another package declares as an entry point of the
group "icckd.methods", makes its method known with `register`; settings, help, training and checkpoints follow from it.
"""

from icckd.methods.base import (
    LARGEST_FACTOR,
    METHODS,
    EvaluationSet,
    Findings,
    Method,
    MethodSettings,
    Network,
    Outputs,
    Pair,
    Rule,
    Samples,
    StudentMethod,
    StudentMethodSettings,
    StudentProcedure,
    TeacherMethod,
    TrainingSet,
    above_zero,
    not_negative,
    register,
    settings_type,
)

__all__ = [
    "LARGEST_FACTOR",
    "METHODS",
    "EvaluationSet",
    "Findings",
    "Method",
    "MethodSettings",
    "Network",
    "Outputs",
    "Pair",
    "Rule",
    "Samples",
    "StudentMethod",
    "StudentMethodSettings",
    "StudentProcedure",
    "TeacherMethod",
    "TrainingSet",
    "above_zero",
    "not_negative",
    "register",
    "settings_type",
]
