"""The networks: images → (features, logits), on request with the maps of their stages; a file per family.

`build_model` makes one by name, `ARCHITECTURES` has the names, `save_model` and `load_model` keep trained ones. A
family is a file of this folder, or a module that an entry point of the group `icckd.models` names, which registers a
function that builds its `Trunk`.
"""

from icckd.models.files import (
    DESCRIPTION,
    WEIGHTS,
    ModelDescription,
    file_digest,
    is_state_dict,
    load_model,
    read_description,
    save_model,
)
from icckd.models.model import Model, Stages, Trunk, build_model, not_finite
from icckd.models.registry import ARCHITECTURES, register

__all__ = [
    "ARCHITECTURES",
    "DESCRIPTION",
    "WEIGHTS",
    "Model",
    "ModelDescription",
    "Stages",
    "Trunk",
    "build_model",
    "file_digest",
    "is_state_dict",
    "load_model",
    "not_finite",
    "read_description",
    "register",
    "save_model",
]
