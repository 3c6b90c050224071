"""Settings: sections with types and ranges (schema), and how YAML and `--set` become them (loader)."""

from minirlaif.config.loader import dump as dump
from minirlaif.config.loader import load as load
from minirlaif.config.loader import plain as plain
from minirlaif.config.loader import recorded as recorded
from minirlaif.config.loader import stages_of as stages_of
from minirlaif.config.methods import DistillSection as DistillSection
from minirlaif.config.methods import DpoSection as DpoSection
from minirlaif.config.methods import GroupSection as GroupSection
from minirlaif.config.methods import PpoSection as PpoSection
from minirlaif.config.methods import ReferenceSection as ReferenceSection
from minirlaif.config.methods import RolloutSection as RolloutSection
from minirlaif.config.schema import Config as Config
from minirlaif.config.schema import DataSection as DataSection
from minirlaif.config.schema import EvaluateSection as EvaluateSection
from minirlaif.config.schema import ExportSection as ExportSection
from minirlaif.config.schema import FeedbackSection as FeedbackSection
from minirlaif.config.schema import ModelSection as ModelSection
from minirlaif.config.schema import PretrainSection as PretrainSection
from minirlaif.config.schema import QuestionsSection as QuestionsSection
from minirlaif.config.schema import RewardSection as RewardSection
from minirlaif.config.schema import SftSection as SftSection
from minirlaif.config.schema import VideoSection as VideoSection
from minirlaif.config.schema import WorldSection as WorldSection
