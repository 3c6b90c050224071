"""Settings: sections with types and ranges (schema), and how YAML and `--set` become them (loader)."""

from minirlaif.config.loader import dump, load, recorded, section
from minirlaif.config.schema import (
    Config,
    DataSection,
    EvaluateSection,
    ExportSection,
    FeedbackSection,
    ModelSection,
    PpoSection,
    PretrainSection,
    ReferenceSection,
    RewardSection,
    RolloutSection,
    SftSection,
    VideoSection,
    WorldSection,
)

__all__ = [
    "Config",
    "DataSection",
    "EvaluateSection",
    "ExportSection",
    "FeedbackSection",
    "ModelSection",
    "PpoSection",
    "PretrainSection",
    "ReferenceSection",
    "RewardSection",
    "RolloutSection",
    "SftSection",
    "VideoSection",
    "WorldSection",
    "dump",
    "load",
    "recorded",
    "section",
]
