"""What was right, item by item: kept in ablation.json, so that seeds that were measured by another command, whose runs are gone,
can be counted with those of this one. Test questions are the same for every seed and keep their names; pairs and segments are a
seed's own, and of them only the clips matter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minirlaif.ablation.outcomes import Items
from minirlaif.errors import UserError
from minirlaif.runs.io import read_json
from minirlaif.stats import grouped


@dataclass(frozen=True)
class EarlierSeeds:
    """Of one question of the ablation. items: by seed and measure; remarks: likewise."""

    items: Mapping[int, Mapping[str, Items]] = field(default_factory=dict)
    remarks: Mapping[int, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


def encode(items: Mapping[int, Mapping[str, Items]], remarks: Mapping[int, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """As JSON: the questions by clip, and for each seed and measure a text of 0 and 1 in their order. Empty where two measures
    have other questions, or something else than right and wrong."""
    each = [items_of for of_seed in items.values() for items_of in of_seed.values()]
    if not each or any(one.keys() != each[0].keys() or {value for _, value in one.values()} - {0.0, 1.0} for one in each):
        return {}
    questions: dict[str, list[str]] = {}
    for name, (clip, _) in sorted(each[0].items()):
        questions.setdefault(clip, []).append(name)
    order = [name for names in questions.values() for name in names]
    right = {
        str(seed): {key: "".join(f"{of_measure[name][1]:.0f}" for name in order) for key, of_measure in of_seed.items()}
        for seed, of_seed in items.items()
    }
    return {"questions": questions, "right": right, "remarks": {str(seed): remarks.get(seed, {}) for seed in items}}


def encode_own(items: Mapping[int, Mapping[str, Items]], counts: Mapping[str, str]) -> dict[str, Any]:
    """As JSON, items that are a seed's own: by seed and what is counted how many items each clip has, and for each measure a text
    of 0, 1 and h (a half) in the order of the clips. counts: what each measure counts; those of one kind have the same items."""
    result: dict[str, Any] = {}
    for seed, of_seed in items.items():
        kinds: dict[str, Any] = {}
        for key, of_measure in of_seed.items():
            order = sorted(of_measure, key=lambda name: (of_measure[name][0], name))
            sizes = [len(values) for values in grouped(of_measure[name] for name in order).values()]
            kind = kinds.setdefault(counts[key], {"clips": sizes, "values": {}})
            kind["values"][key] = "".join({0.0: "0", 0.5: "h", 1.0: "1"}[of_measure[name][1]] for name in order)
        result[str(seed)] = kinds
    return result


def read(paths: Sequence[str], settings: str, seeds: Sequence[int]) -> dict[str, EarlierSeeds]:
    """The answers of earlier files, by the name of the question. settings: hash of those of this command without the seed; seeds:
    its own. UserError: a file has no answers, or was made with other settings, or a seed stands in two places."""
    merged: dict[str, EarlierSeeds] = {}
    for path in paths:
        if not Path(path).is_file():
            raise UserError(f"--add {path}: no such file; name the ablation.json of an earlier command")
        try:
            values = read_json(Path(path))
            made_with = values["settings"]
            of_file = {
                group["name"]: _decoded(group.get("answers") or {}, group.get("own") or {}, group.get("remarks") or {})
                for group in values["groups"]
                if group.get("answers") or group.get("own")
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"--add {path}: not an ablation.json of this version; make it again with `ablate`") from None
        if made_with != settings:
            raise UserError(f"--add {path}: made with other settings; make it again, or name its own --config and --set")
        if not of_file:
            raise UserError(f"--add {path}: holds no answers to count; make it again with `ablate`")
        for name, answers in of_file.items():
            known = merged.get(name, EarlierSeeds())
            if twice := sorted({*known.items, *seeds} & set(answers.items)):
                raise UserError(f"--add {path}: seed {twice[0]} is among --seeds or in another file, too; name each seed once")
            merged[name] = EarlierSeeds({**known.items, **answers.items}, {**known.remarks, **answers.remarks})
    return merged


def _decoded(answers: Mapping[str, Any], own: Mapping[str, Any], remarks: Mapping[str, Any]) -> EarlierSeeds:
    places = [(name, str(clip)) for clip, names in answers.get("questions", {}).items() for name in names]
    items: dict[int, dict[str, Items]] = {}
    for seed, of_seed in answers.get("right", {}).items():
        for key, text in of_seed.items():
            items.setdefault(int(seed), {})[key] = _items(places, text)
    for seed, kinds in own.items():
        for kind in kinds.values():
            clips = [f"{seed}/{number:06}" for number, size in enumerate(kind["clips"]) for _ in range(size)]
            for key, text in kind["values"].items():
                items.setdefault(int(seed), {})[key] = _items([(str(n), clip) for n, clip in enumerate(clips)], text)
    notes: dict[int, dict[str, Mapping[str, float]]] = {}
    for seed, of_seed in [*answers.get("remarks", {}).items(), *remarks.items()]:
        notes.setdefault(int(seed), {}).update(of_seed)
    return EarlierSeeds(items, notes)


def _items(places: Sequence[tuple[str, str]], text: str) -> Items:
    """ValueError: other values than there are places."""
    if len(text) != len(places):
        raise ValueError(text)
    return {name: (clip, {"0": 0.0, "h": 0.5, "1": 1.0}[value]) for (name, clip), value in zip(places, text, strict=True)}
