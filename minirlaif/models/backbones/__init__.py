"""The registry of backbone families. A module here that is named after a transformers `model_type` is a family.

Such a module sets FAMILY to its subclass of `base.VisionLanguageModel`, which holds everything that is particular to the family.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import VisionLanguageModel

FAMILIES = {  # model_type -> module; a family outside this folder adds itself here
    module.name: f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__) if module.name != "base"
}


def family_of(model_type: str) -> type[VisionLanguageModel]:
    """The family's class. It is imported only now, because it loads torch. KeyError for an unknown model type."""
    family: type[VisionLanguageModel] = import_module(FAMILIES[model_type]).FAMILY
    return family
