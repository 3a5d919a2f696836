"""Every setting of a run, with its default and meaning: the one place where both are written.

Those of a method stand in its own file in `icckd/methods/`; `losses` puts them together. The command line (`icckd.cli`)
turns these classes into `--help`, YAML files and dotted overrides; `checks` says which values are right.
"""

from icckd.settings.checks import check, check_text
from icckd.settings.comparison import Comparison, comparison_from, read_comparison
from icckd.settings.definition import (
    STAGES,
    AugmentationSettings,
    ClassAugmentationSettings,
    DataSettings,
    EvaluationSettings,
    FederatedSettings,
    MemorySettings,
    Settings,
    StrongAugmentationSettings,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
    shown_name,
    stage_of,
)
from icckd.settings.label_noise import LabelNoise, label_noise_of
from icckd.settings.losses import NO_METHOD, StudentLossSettings, TeacherLossSettings, methods_of, setting_name
from icckd.settings.names import flat, refuse_renamed
from icckd.settings.resolution import defaults_under, one_line, refuse_nulls, settings_from

__all__ = [
    "NO_METHOD",
    "STAGES",
    "AugmentationSettings",
    "ClassAugmentationSettings",
    "Comparison",
    "DataSettings",
    "EvaluationSettings",
    "FederatedSettings",
    "LabelNoise",
    "MemorySettings",
    "Settings",
    "StrongAugmentationSettings",
    "StudentLossSettings",
    "StudentSettings",
    "TeacherLossSettings",
    "TeacherSettings",
    "TrainingSettings",
    "check",
    "check_text",
    "comparison_from",
    "defaults_under",
    "flat",
    "label_noise_of",
    "methods_of",
    "one_line",
    "read_comparison",
    "refuse_nulls",
    "refuse_renamed",
    "setting_name",
    "settings_from",
    "shown_name",
    "stage_of",
]
