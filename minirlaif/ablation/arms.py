"""What the ablation compares, from arms.yaml: its arms, and for each question the figures to show and the claims to decide.

An arm is the run `main` of a seed with some settings changed. It makes only the stages that these settings touch and takes the
others from the main run, or from another arm. Where an arm varies PPO, it takes a third of the main run's iterations, and so does
the arm that it is compared with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from minirlaif.config import FeedbackSection, PpoSection, RolloutSection, VideoSection, WorldSection
from minirlaif.stages.registry import METHODS, pipeline, until

MAIN = "main"
PATIENT = ("distill.patience=0", "dpo.patience=0", "ppo.patience=0", "group.patience=0")
# What a figure counts, each between 0 and 1 per item.
ANSWERS, JUDGE, REWARD, SEGMENTS = "answers", "judge", "reward", "segments"
COUNTS = {
    JUDGE: "pairs judged right (undecided: half)",
    REWARD: "held-out pairs scored right",
    SEGMENTS: "segments described right",
    ANSWERS: "test questions answered right",
}


@dataclass(frozen=True)
class Arm:
    """One way to run the pipeline. answered_by: who answers the test questions at the end, "policy", "sft" or "best" (the best of
    several SFT answers by the reward model); "": no one. weight: about how many seconds it takes on one busy core. source: whose
    stages it shares, the main run's or another arm's."""

    name: str
    changed: tuple[str, ...]  # settings, section.field=value
    shares: tuple[str, ...]  # stages of the source
    makes: tuple[str, ...]  # stages of its own, in order
    answered_by: str = ""
    weight: int = 60
    source: str = MAIN


@dataclass(frozen=True)
class Measure:
    """One figure of a group: of which arm, what is counted, and which column of the arm's file is read."""

    key: str
    label: str
    arm: str
    counts: str  # a key of COUNTS
    column: str = ""


@dataclass(frozen=True)
class Group:
    """One question. claims: (text, key of the measure that should be better, key of the other one)."""

    name: str
    title: str
    note: str
    measures: tuple[Measure, ...]
    claims: tuple[tuple[str, str, str], ...]


@cache
def _tables() -> dict[str, Any]:
    text = Path(__file__).with_name("arms.yaml").read_text(encoding="utf-8")
    tables: dict[str, Any] = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # C: every `--help` reads this
    return tables


def arms(
    world: WorldSection,
    video: VideoSection,
    feedback: FeedbackSection,
    rollout: RolloutSection,
    ppo: PpoSection,
    stages: Sequence[str],
) -> tuple[Arm, ...]:
    """All arms but the main run, whose sections and stages are given, in the order in which they are made: long ones first.
    An arm that needs a stage which the main run does not have (SFT, a reward model, PPO) is left out, and so is one with methods
    of its own that starts from another model than the main run."""
    # Whole batches of prompts: then an arm's pairs are the main run's, answer by answer.
    size, prompts = feedback.batch_size, world.prompt_clips * world.questions_per_clip
    each = feedback.answers + feedback.context_answers
    rest = (prompts * each - ppo.iterations * rollout.rollouts) / each / size
    values = {
        "short": f"ppo.iterations={max(1, round(ppo.iterations / 3))}",
        "fifth": f"feedback.limit={size * math.ceil(prompts / 5 / size)}",
        "each": f"{each}",
        "rest": f"feedback.limit={size * max(1, math.floor(rest))}",
        "half": f"{video.segment_seconds / 2:g}",
    }
    result = []
    for name, row in _tables()["arms"].items():
        methods, own = row.get("methods"), stages
        if methods:
            own = pipeline(methods, "sft" in stages)
            there = row["start"] == ("sft" if "sft" in stages else "base") and ("from" in row or row["shares"] in stages)
            there = there and (feedback.context_answers > 0 or not {"distill", "bestofn"} & set(methods))
        else:
            there = {row["shares"], *row["makes"]} <= {*stages, "exam"}
        same = (f"kl-{rollout.kl_coef:g}", *(["own-judge"] if {feedback.describer, feedback.judge} != {"base"} else []))
        if there and name not in same and not _is_main(name, stages):  # not the main run once more
            changed = [setting.format(**values) for setting in row.get("changed", ())]
            if methods:  # compared by what they were given, so none ends early
                changed += [f"optimize.methods=[{','.join(methods)}]", *PATIENT]
            more = {key: row[key] for key in ("answered_by", "weight") if key in row} | {"source": row.get("from", MAIN)}
            made = {*until(row["shares"], own)} - {*row["makes"]}
            shares = tuple(stage for stage in own if stage in made)
            result.append(Arm(name, tuple(changed), shares, tuple(row["makes"]), **more))
    return tuple(result)


def _is_main(arm: str, stages: Sequence[str]) -> bool:
    """Whether an arm is the main run once more: its methods, and nothing else changed."""
    row = _tables()["arms"].get(arm, {})
    own = [stage for stage in stages if stage in METHODS]
    return bool(own) and row.get("methods") == own and not row.get("changed") and "from" not in row


def _exists(measure: Measure, stages: Sequence[str]) -> bool:
    """Whether a main run with these stages has what is counted; arms are checked where they are chosen."""
    if measure.counts == REWARD:
        return "reward" in stages
    return measure.column != "sft" or "sft" in stages


def _measure(entry: Sequence[str], stages: Sequence[str]) -> Measure:
    """One entry of arms.yaml; the answers of an arm that is the main run once more are the main run's."""
    key, label, arm, *rest = entry
    return Measure(key, label, MAIN, ANSWERS, "rlaif") if _is_main(arm, stages) else Measure(key, label, arm, *rest)


def listing() -> str:
    """What `ablate --help` prints below its flags."""
    rows = _tables()["arms"]
    lines = ["arms (PPO runs a third of the main run's iterations; its own KL coefficient is the arm short):"]
    lines += [f"  {name:<{max(map(len, rows))}}  {row['about']}" for name, row in rows.items()]
    lines += ["", "All arms of three seeds take about an hour and a half on two cores with --jobs 2. Finished"]
    return "\n".join([*lines, "main runs seed0, seed1 … and finished arms are reused; missing main runs are made first."])


def groups(margin: float, kl_coef: float, stages: Sequence[str]) -> tuple[Group, ...]:
    """The questions, in the order of the report; a run that starts elsewhere has none about methods. margin: feedback.margin of
    the main run; kl_coef: its rollout.kl_coef; stages: that it has. Figures of a model that it does not have are left out, with
    their claims."""
    result, start = [], "sft" if "sft" in stages else "base"
    for row in _tables()["groups"]:
        if row.get("start", start) != start:
            continue
        measures = [measure for each in row["measures"] if _exists(measure := _measure(each, stages), stages)]
        known_keys = {measure.key for measure in measures}
        claims = [tuple(each) for each in row["claims"] if set(each[1:]) <= known_keys]
        if row["name"] == "kl":
            known, main = [float(name[3:]) for name in _tables()["arms"] if name.startswith("kl-")], f"{kl_coef:g}"
            for kl in map("{:g}".format, sorted({*known, kl_coef})):
                measures.append(Measure(kl, f"KL coefficient {kl}", "short" if kl == main else f"kl-{kl}", ANSWERS, "policy"))
            claims += [(f"KL coefficient {kl:g} is worse than {main}", main, f"{kl:g}") for kl in known if kl != kl_coef]
        note = row["note"].format(margin=margin, kl=kl_coef)
        result.append(Group(row["name"], row["title"], note, tuple(measures), tuple(claims)))
    return tuple(result)
