"""README.md of an adapter folder and of the merged model: what a model hub shows, and lines that open the model elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minirlaif import distributed
from minirlaif.models.adapters import AdapterSet
from minirlaif.runs import gains
from minirlaif.runs.stage_dir import StageDir
from minirlaif.stages.registry import STAGES

FILE = "README.md"
# By the start of the base's name.
LICENSES = {"HuggingFaceTB/SmolVLM2": "apache-2.0", "Qwen/Qwen3-VL": "apache-2.0", "tiny": "apache-2.0"}
FIGURES = {  # of a stage's metrics: how a card names them, and their form
    "dev_win_rate": ("win rate over its start, by the judge, on dev questions", ".1%"),
    "dev_questions": ("dev questions", ",d"),
    "chosen_iteration": ("step that was kept; 0 is its start", ",d"),
    "kl": ("KL to the start, nats per answer", ".3g"),
    "accuracy": ("held-out pairs in which it scores the judge's choice higher", ".1%"),
    "held_out_pairs": ("held-out pairs", ",d"),
    "loss": ("last loss", ".3g"),
    "steps": ("steps", ",d"),
}


@dataclass(frozen=True)
class Base:
    """What a model was made from. name: a hub id, a folder or "tiny"."""

    name: str
    revision: str

    @property
    def of_hub(self) -> bool:
        """Whether it is a hub id."""
        return self.name.count("/") == 1 and not Path(self.name).is_dir()

    @property
    def shown(self) -> str:
        """Its name without folders."""
        return self.name if self.of_hub else Path(self.name).name


def write_adapter(out: StageDir, adapters: AdapterSet) -> None:
    """The card of the adapter of a stage that is about to be finished; of several processes the leader writes it."""
    if not distributed.leads():
        return
    known = {key: value for key, value in out.summary.items() if key in FIGURES and value is not None}
    stage = gains.split_name(out.name)[1]
    values = {
        "title": f"LoRA adapter: {stage}",
        "lines": [f"Method: `{stage}` ({STAGES[stage].help}).", f"Data: {_data(out.settings.get('data', {}))}."],
        "figures": [f"{FIGURES[key][0]}: {format(known[key], FIGURES[key][1])}" for key in FIGURES if key in known],
        "prompt": adapters.backbone.example_prompt,
    }
    base = Base(adapters.base_name, adapters.section.revision)
    _write(out.path / "adapter", "adapter_card.md", base, "peft", ["lora", stage], values)


def write_merged(folder: Path, base: Base, methods: Sequence[str], figures: Mapping[str, float], prompt: str) -> None:
    """The card of the merged model in transformers' layout. methods: that trained it, in order; figures: shares by what they
    count; prompt: a question without frames as the model reads it."""
    values = {
        "title": "Video model, aligned by its own feedback",
        "lines": [f"Methods, in order: {', '.join(f'`{name}`' for name in methods)}."],
        "figures": [f"{name}: {value:.1%}" for name, value in figures.items()],
        "prompt": prompt,
    }
    _write(folder, "merged_card.md", base, "transformers", methods, values)


def head(base: Base, library: str, tags: Sequence[str]) -> str:
    """The metadata that a model hub reads, as YAML between two lines of dashes."""
    data: dict[str, Any] = {"library_name": library, "pipeline_tag": "video-text-to-text", "tags": ["minirlaif", "rlaif", *tags]}
    if known := next((name for start, name in LICENSES.items() if base.name.startswith(start)), ""):
        data["license"] = known
    if base.of_hub:
        data["base_model"] = base.name
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"


def _data(data: Mapping[str, Any]) -> str:
    """Names of files alone: a card may be published."""
    if data.get("world"):
        return "the tiny world, which the run makes itself"
    parts = [names for part, names in data.items() if part != "sha256" and isinstance(names, list)]
    files = [f"`{Path(str(name)).name}`" for names in parts for name in names]
    return f"rows of {', '.join(files)}" if files else "questions about a folder of clips"


def _write(folder: Path, template: str, base: Base, library: str, tags: Sequence[str], values: Mapping[str, Any]) -> None:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["json"] = json.dumps
    text = environment.get_template(template).render({**values, "head": head(base, library, tags), "base": base})
    (folder / FILE).write_text(text.rstrip("\n") + "\n", encoding="utf-8")
