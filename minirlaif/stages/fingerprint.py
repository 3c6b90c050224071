"""What a stage's result depends on, as its manifest records it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minirlaif.config import DataSection, recorded
from minirlaif.data.dataset import fingerprint
from minirlaif.models.loading import base_hash, critic_model


def settings_of(seed: int, data: DataSection, sources: Sequence[str] = (), **sections: Any) -> dict[str, Any]:
    """The seed, whole sections by name, the base by hash (so that one trained again under the same name is noticed), and the
    parts of the data that the stage reads (`sources`), each local file by hash. `model` must be among the sections."""
    settings: dict[str, Any] = {"seed": seed} | {name: recorded(section) for name, section in sections.items()}
    settings["model"]["files"] = base_hash(sections["model"])
    reward = sections.get("reward")
    if reward and reward.base:
        settings["reward"]["files"] = base_hash(critic_model(sections["model"], reward))
    values = recorded(data)
    hashes = {source: fingerprint(source, data.videos) for part in sources for source in values[part]}
    parts = {part: values[part] for part in sources}
    settings["data"] = {"world": values["world"], "videos": values["videos"], **parts, "sha256": hashes}
    if "preferences" in sources and "preference_limit" in values:
        settings["data"]["preference_limit"] = values["preference_limit"]
    return settings
