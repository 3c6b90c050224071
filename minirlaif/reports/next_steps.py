"""What to do next: what a run's figures show, the likely cause, and the command that changes it. Pure functions of figures."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from minirlaif.config import FeedbackSection
from minirlaif.feedback.counts import CUT_SHARE, DECIDED_SHARE, advice
from minirlaif.runs import gains
from minirlaif.stages.registry import GROUP_METHODS, PAIRED, PIPELINE, SAMPLING, STAGES

FEW_PROMPTS = 1000  # a run on the tiny world kept nothing with 400, and one gained 10 points with 3,200
FEW_DEV = 100  # questions: below, the standard error of a win rate is above 5 points
FEW_TEST = 100  # questions: below, a 95 % interval of an accuracy of one half is wider than 1.96 x 0.5 / sqrt(100), 10 points
FEW_STEPS = 50  # of SFT
ONE_SEGMENT = 0.1  # share of clips
NEAR_CHANCE = 0.6  # accuracy of a reward model on held-out pairs
RIGHT = 0.7  # share of decided pairs in which the judge agrees with the truth
FELL = 0.45  # win rate at the end, over the start
SMALL_KL = 0.01  # nats per answer
LARGEST_SHARE = 0.4  # of the clips that may be kept for dev, or for test
MOST = 5  # steps shown
SECTIONS = {"bestofn": "distill"} | dict.fromkeys(GROUP_METHODS, "group")  # of a method, where the name is another one
DESCRIPTIONS = ("feedback.describe", "feedback.describer")  # settings that the stage `questions` depends on, too

Manifests = Mapping[str, Mapping[str, Any]]
Remake = Callable[..., str]  # (stage, section.field=value …) -> the command


class NextStep(NamedTuple):
    """What the figures show, why that matters or where it comes from, and the command that helps."""

    symptom: str
    cause: str
    command: str


def next_steps(numbers: Mapping[str, Any], manifests: Manifests, remake: Remake, use: str) -> list[NextStep]:
    """At most MOST steps, in the order of the stages. numbers: of report.json; manifests: by stage; use: the command that tries
    the model out, for a run in which nothing stands out."""

    def change(*settings: str) -> str:
        return remake(first_changed(manifests, settings), *settings)

    steps = [*_feedback(numbers, manifests, change), *_reward(numbers, manifests, change)]
    steps += [*_sft(manifests, change), *_method(numbers, manifests, change, remake)]
    steps += [*_base(numbers, manifests, change, remake), *_test(numbers, manifests, change, remake)]
    steps = [step for place, step in enumerate(steps) if step.command not in {other.command for other in steps[:place]}]
    if not steps:
        steps = [NextStep("Nothing stands out.", "Look at answers to clips of your own.", use)]
    return steps[:MOST]


def first_changed(manifests: Manifests, settings: tuple[str, ...]) -> str:
    """The first stage of the run whose result depends on one of the settings (section.field=value): the one to begin with, or
    those before would be refused as made with other settings."""
    sections = {setting.partition(".")[0] for setting in settings}
    for name in PIPELINE:
        described = name == "questions" and any(setting.startswith(DESCRIPTIONS) for setting in settings)
        if name in manifests and (described or sections & set(STAGES[name].sections)):
            return name
    raise ValueError(f"no stage of this run depends on {', '.join(settings)}")


def _feedback(numbers: Mapping[str, Any], manifests: Manifests, change: Callable[..., str]) -> Iterator[NextStep]:
    """Descriptions and verdicts: everything behind them learns from these."""
    counts, settings = manifests["feedback"]["metrics"], manifests["feedback"]["config"]
    values = {name: value for name, value in settings["feedback"].items() if name in FeedbackSection.__annotations__}
    f = FeedbackSection(**values)
    f = replace(f, readout=counts.get("readout", f.readout))  # of two that were tried
    one, clips = counts.get("one_segment_clips", 0), counts.get("described_clips", 0)
    if f.context and one > ONE_SEGMENT * clips:
        cause = "The description of one segment holds hardly more than the model sees without it, so there is little to learn."
        yield NextStep(f"{one:,} of {clips:,} clips have one segment.", cause, change(_more_segments(settings["video"])))
    cut, of = counts.get("cut_descriptions", 0), counts.get("descriptions", 0)
    if f.context and cut > CUT_SHARE * of:
        text = f"{cut:,} of {of:,} descriptions were cut at the limit of tokens."
        yield NextStep(text, "What they leave out is missing.", change(f"feedback.describe_tokens={2 * f.describe_tokens}"))
    cut, of = counts.get("cut_answers", 0), counts.get("sampled_answers", 0)
    if cut > CUT_SHARE * of:
        text = f"{cut:,} of {of:,} answers were cut at the limit of tokens."
        cause = "Such answers are in no pair and are not learned."
        yield NextStep(text, cause, change(f"feedback.max_new_tokens={2 * f.max_new_tokens}"))
    pairs, other = counts.get("pairs", 0) + counts.get("same_answers", 0), settings.get("judge", {"kind": "base"})
    if numbers["method"] != "distill" and PAIRED & manifests.keys() and counts["decided"] < DECIDED_SHARE * pairs:
        why, remedy, setting = advice(counts, f, text_judge=other["kind"] != "base")
        text = f"The judge decided {counts['decided']:,} of {pairs:,} pairs ({why})."
        yield NextStep(text, f"The others teach nothing; {remedy}.", change(setting))
    right, own = numbers["judge"].get("with_context"), not {"judge", "describer"} & settings.keys()
    if right is not None and right < RIGHT and own and f.describer == "start" and numbers["start"] == "sft":
        text = f"The judge is right in {right:.0%} of the pairs that it decides."
        cause = "The model after SFT describes and judges; the base may do both better."
        yield NextStep(text, cause, change("feedback.judge=base", "feedback.describer=base"))


def _more_segments(video: Mapping[str, Any]) -> str:
    if video["max_segments"] < 2:
        return "video.max_segments=8"
    return (
        "video.min_segments=2" if video.get("min_segments", 1) < 2 else f"video.segment_seconds={video['segment_seconds'] / 2:g}"
    )


def _reward(numbers: Mapping[str, Any], manifests: Manifests, change: Callable[..., str]) -> Iterator[NextStep]:
    model = numbers["reward_model"] or {}
    shares = [share for share in (model.get("accuracy"), model.get("against_judge")) if share is not None]
    if shares and shares[0] < NEAR_CHANCE:
        epochs = manifests["reward"]["config"]["reward"]["epochs"]
        text = f"The reward model prefers the right answer in {shares[0]:.0%} of held-out pairs; a coin has 50 %."
        yield NextStep(text, "Answers that it scores high are hardly better.", change(f"reward.epochs={2 * epochs:g}"))


def _sft(manifests: Manifests, change: Callable[..., str]) -> Iterator[NextStep]:
    if "sft" in manifests and (steps := manifests["sft"]["metrics"].get("steps", FEW_STEPS)) < FEW_STEPS:
        epochs = manifests["sft"]["config"]["sft"]["epochs"] * math.ceil(FEW_STEPS / max(1, steps))
        cause = "So few hardly change a model; a few dozen rows are better left out, with sft.enabled=false in a new run."
        yield NextStep(f"SFT took {steps} steps.", cause, change(f"sft.epochs={epochs:g}"))


def _method(numbers: Mapping[str, Any], manifests: Manifests, change: Callable[..., str], remake: Remake) -> Iterator[NextStep]:
    """The stage that trained the aligned model: data first, then steps."""
    method, made = numbers["method"], manifests[gains.name_of(numbers.get("round", 1), numbers["method"])]
    metrics, section = made["metrics"], SECTIONS.get(method, method)
    settings, kept, dev = made["config"].get(section, {}), metrics.get("chosen_iteration") != 0, metrics.get("dev_questions") or 0
    if not kept or _no_gain(numbers):
        shown = "No checkpoint was kept" if not kept else "Accuracy did not clearly rise"
        prompts = _prompts(manifests["feedback"])
        if prompts is not None and prompts < FEW_PROMPTS:
            text = f"{shown}, and there were {prompts:,} prompts."
            yield NextStep(text, *_more_prompts(manifests, change, remake))
        last = numbers.get(method, {}).get("last_dev_win_rate")
        if last is not None and last < FELL and "learning_rate" in settings:
            less = f"{section}.learning_rate={settings['learning_rate'] / 3:.2g}"
            cause = "Training made the answers worse: it takes more prompts, or a lower learning rate."
            yield NextStep(f"{shown}, and the win rate ended at {last:.0%}.", cause, remake(method, less))
        cause = "It may have learned for too few steps; the curves show whether the win rate was still rising."
        for field in ("iterations", "epochs") if last is None or last >= FELL else ():
            if field in settings:
                yield NextStep(f"{shown}.", cause, remake(method, f"{section}.{field}={2 * settings[field]:g}"))
                break
    if 0 < dev < FEW_DEV:
        cause = f"The standard error of their win rate is up to {50 / math.sqrt(dev):.0f} points: small gains are not seen."
        named = bool(made["config"].get("data", {}).get("dev"))
        text = f"The checkpoint was chosen on {dev} dev questions."
        yield from _larger_part("dev", text, cause, named, method, manifests, change, remake)
    if method in SAMPLING and "learning_rate" in settings and kept and abs(metrics.get("kl") or 0.0) < SMALL_KL:
        text = f"The policy hardly moved: {metrics.get('kl') or 0.0:.3f} nats per answer from its start."
        more = f"{section}.learning_rate={3 * settings['learning_rate']:.2g}"
        yield NextStep(text, "Its learning rate is low for so few steps.", remake(method, more))
    if (explained := metrics.get("explained_variance")) is not None and explained < 0.1:
        rollout, cures = made["config"]["rollout"], []
        cures += ["rollout.normalize_score=true"] * (not rollout["normalize_score"])
        cures += ["rollout.reward_scale=1"] * (rollout["reward_scale"] > 1) + ["ppo.vf_coef=0.5"] * (settings["vf_coef"] < 0.5)
        if cures:
            text = f"The value model explains {max(0.0, explained):.0%} of the returns."
            yield NextStep(text, "PPO then learns from noise.", remake(method, *cures))


def _prompts(feedback: Mapping[str, Any]) -> int | None:
    """How many prompts were answered; None where that was not counted."""
    values, answers = feedback["config"]["feedback"], feedback["metrics"].get("sampled_answers")
    each = values["answers"] + values.get("context_answers", 0)
    return answers // each if answers and each else None


def _more_prompts(manifests: Manifests, change: Callable[..., str], remake: Remake) -> tuple[str, str]:
    """Why more prompts help, and the command."""
    if "world" in manifests:
        count = manifests["world"]["config"]["world"]["prompt_clips"]
        return "Learning takes data: more clips.", change(f"world.prompt_clips={2 * count}")
    if "questions" in manifests and "own" not in manifests["questions"]["config"]:
        count = manifests["questions"]["config"]["questions"].get("per_clip", 6)
        written, clips = (manifests["questions"]["metrics"].get(key, 0) for key in ("questions", "clips"))
        if written < 0.9 * count * clips:  # the templates and the model have no more
            return "Learning takes data: add clips; there are no more questions to write about these.", remake("questions")
        cause = "Learning takes data: more clips, or more questions about each."
        return cause, change(f"questions.per_clip={2 * count}")
    place = "the file in the folder of clips" if "questions" in manifests else "data.prompts"
    return f"Learning takes data: add questions to {place}.", remake("questions" if "questions" in manifests else "feedback")


def _larger_part(
    part: str,
    text: str,
    cause: str,
    named: bool,
    stage: str,
    manifests: Manifests,
    change: Callable[..., str],
    remake: Remake,
) -> Iterator[NextStep]:
    """More questions for dev or test. named: the settings name files of it; stage: that reads them."""
    if "world" in manifests:
        count = manifests["world"]["config"]["world"][f"{part}_clips"]
        yield NextStep(text, cause, change(f"world.{part}_clips={2 * count}"))
    elif "questions" in manifests and not named:
        share = manifests["questions"]["config"]["questions"].get(f"{part}_share", 0.1)
        if share < LARGEST_SHARE:
            larger = f"questions.{part}_share={min(LARGEST_SHARE, 2 * share):g}"
            yield NextStep(text, cause, change(larger))
        else:
            yield NextStep(text, f"{cause} Add clips.", remake("questions"))
    else:
        yield NextStep(text, f"{cause} Add questions to data.{part}.", remake(stage))


def _base(numbers: Mapping[str, Any], manifests: Manifests, change: Callable[..., str], remake: Remake) -> Iterator[NextStep]:
    """A model that feedback improved, and that is still worse than what was downloaded."""
    if numbers["start"] != "sft" or numbers.get("against_base") != "below":
        return
    text, settings = "The aligned model is worse than the base before SFT.", manifests["feedback"]["config"]
    if not {"judge", "describer"} & settings.keys() and settings["feedback"].get("describer", "start") == "start":
        cause = "The model after SFT described and judged; the base may do both better."
        yield NextStep(text, cause, change("feedback.judge=base", "feedback.describer=base"))
    else:
        cause = "The written answers may be poorer than its own: correct them, or set sft.enabled=false in a new run."
        yield NextStep(text, cause, remake("sft"))


def _test(numbers: Mapping[str, Any], manifests: Manifests, change: Callable[..., str], remake: Remake) -> Iterator[NextStep]:
    if (count := numbers["test_items"]) < FEW_TEST and numbers.get("answered_items", count):  # without truth nothing is measured
        cause = "With fewer than 100 questions the 95 % interval of an accuracy can be wider than 10 points to either side."
        named = bool(manifests["evaluate"]["config"].get("data", {}).get("test"))
        yield from _larger_part("test", f"The test has {count:,} questions.", cause, named, "evaluate", manifests, change, remake)


def _no_gain(numbers: Mapping[str, Any]) -> bool:
    gain = numbers["accuracy_gain" if numbers["start"] == "sft" else "gain_over_base"]
    return gain.get("ci95_low") is not None and gain["ci95_low"] <= 0
