"""What to do next: what a run's figures show, the likely cause, and the command that changes it. Pure functions of figures."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from minirlaif.config import FeedbackSection
from minirlaif.feedback.counts import CUT_SHARE, DECIDED_SHARE, advice
from minirlaif.runs import gains
from minirlaif.stages.registry import GROUP_METHODS, SAMPLING

FEW_PROMPTS = 1000  # a run on the tiny world kept nothing with 400, and one gained 10 points with 3,800
FEW_DEV = 100  # questions: below, the standard error of a win rate is above 5 points
FEW_TEST = 100
FEW_STEPS = 50  # of SFT
ONE_SEGMENT = 0.1  # share of clips
NEAR_CHANCE = 0.6  # accuracy of a reward model on held-out pairs
RIGHT = 0.7  # share of decided pairs in which the judge agrees with the truth
SMALL_KL = 0.01  # nats per answer
MOST = 5  # steps shown
SECTIONS = {"bestofn": "distill"} | dict.fromkeys(GROUP_METHODS, "group")  # of a method, where the name is another one

Remake = Callable[..., str]  # (stage, section.field=value …) -> the command


class NextStep(NamedTuple):
    """What the figures show, why that matters or where it comes from, and the command that helps."""

    symptom: str
    cause: str
    command: str


def next_steps(
    numbers: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], remake: Remake, use: str
) -> list[NextStep]:
    """The MOST important first. numbers: of report.json; manifests: by stage; use: the command that tries the model out, for a
    run in which nothing stands out."""
    steps = [*_feedback(numbers, manifests, remake), *_reward(numbers, manifests, remake), *_method(numbers, manifests, remake)]
    steps += [*_sft(manifests, remake), *_test(numbers, manifests, remake)]
    if not steps:
        steps = [NextStep("Nothing stands out.", "Look at answers to clips of your own.", use)]
    return steps[:MOST]


def _feedback(numbers: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], remake: Remake) -> Iterator[NextStep]:
    """Descriptions and verdicts: everything behind them learns from these."""
    manifest = manifests["feedback"]
    counts, settings = manifest["metrics"], manifest["config"]
    f = FeedbackSection(
        **{name: value for name, value in settings["feedback"].items() if name in FeedbackSection.__annotations__}
    )
    first = "questions" if "questions" in manifests else "feedback"  # the stage that describes
    one, clips = counts.get("one_segment_clips", 0), counts.get("described_clips", 0)
    if f.context and one > ONE_SEGMENT * clips:
        video = settings["video"]
        change = (
            "video.min_segments=2"
            if video.get("min_segments", 2) < 2
            else f"video.segment_seconds={video['segment_seconds'] / 2:g}"
        )
        cause = "The description of one segment holds hardly more than the model sees without it, so there is little to learn."
        yield NextStep(f"{one:,} of {clips:,} clips have one segment.", cause, remake(first, change))
    cut, of = counts.get("cut_descriptions", 0), counts.get("descriptions", 0)
    if f.context and cut > CUT_SHARE * of:
        longer = f"feedback.describe_tokens={2 * f.describe_tokens}"
        yield NextStep(
            f"{cut:,} of {of:,} descriptions were cut at the limit of tokens.",
            "What they leave out, no answer is checked against.",
            remake(first, longer),
        )
    cut, of = counts.get("cut_answers", 0), counts.get("sampled_answers", 0)
    if cut > CUT_SHARE * of:
        longer = f"feedback.max_new_tokens={2 * f.max_new_tokens}"
        yield NextStep(
            f"{cut:,} of {of:,} answers were cut at the limit of tokens.",
            "Such answers are in no pair and are not learned.",
            remake("feedback", longer),
        )
    pairs = counts.get("pairs", 0) + counts.get("same_answers", 0)
    if gains.split_name(numbers["method"])[1] != "distill" and counts["decided"] < DECIDED_SHARE * pairs:
        why, remedy, setting = advice(counts, f)
        text = f"The judge decided {counts['decided']:,} of {pairs:,} pairs ({why})."
        yield NextStep(text, f"The others teach nothing; {remedy}.", remake("feedback", setting))
    judge = numbers["judge"]
    if (
        (right := judge.get("with_context")) is not None
        and right < RIGHT
        and "judge" not in settings
        and numbers["start"] == "sft"
    ):
        text = f"The judge is right in {right:.0%} of the pairs that it decides."
        yield NextStep(
            text,
            "The model after SFT judges; the base may judge better.",
            remake("feedback", "feedback.judge=base", "feedback.describer=base"),
        )


def _reward(numbers: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], remake: Remake) -> Iterator[NextStep]:
    model = numbers["reward_model"]
    if not model:
        return
    shares = [share for share in (model.get("accuracy"), model.get("against_judge")) if share is not None]
    if shares and shares[0] < NEAR_CHANCE:
        epochs = manifests["reward"]["config"]["reward"]["epochs"]
        text = f"The reward model prefers the right answer in {shares[0]:.0%} of held-out pairs; a coin has 50 %."
        yield NextStep(text, "Answers that it scores high are hardly better.", remake("reward", f"reward.epochs={2 * epochs:g}"))


def _method(numbers: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], remake: Remake) -> Iterator[NextStep]:
    """The stage that trained the aligned model: data first, then steps."""
    name = gains.name_of(numbers.get("round", 1), numbers["method"])
    method, metrics = numbers["method"], manifests[name]["metrics"]
    section = SECTIONS.get(method, method)
    settings, feedback = manifests[name]["config"][section], manifests["feedback"]
    values = feedback["config"]["feedback"]
    prompts = feedback["metrics"].get("sampled_answers", 0) // (values["answers"] + values.get("context_answers", 0))
    kept = metrics.get("chosen_iteration") != 0
    dev = metrics.get("dev_questions") or 0
    if not kept or _no_gain(numbers):
        shown = "No checkpoint was kept" if not kept else "Accuracy did not clearly rise"
        if prompts < FEW_PROMPTS:
            text = f"{shown}, and there were {prompts:,} prompts."
            if "questions" in manifests:
                count = manifests["questions"]["config"].get("questions", {}).get("per_clip", 6)
                cause = "Learning takes data: more clips, or more questions about each."
                yield NextStep(text, cause, remake("questions", f"questions.per_clip={2 * count}"))
            else:
                yield NextStep(text, "Learning takes data: add questions to data.prompts.", remake("feedback"))
        if "iterations" in settings:
            change = f"{section}.iterations={2 * settings['iterations']}"
        else:
            change = f"{section}.epochs={2 * settings['epochs']:g}"
        cause = "It may have learned for too few steps; the curves show whether the win rate was still rising."
        yield NextStep(f"{shown}.", cause, remake(name, change))
    if 0 < dev < FEW_DEV:
        error = 100 * 0.5 / math.sqrt(dev)
        text = f"The checkpoint was chosen on {dev} dev questions."
        cause = f"The standard error of their win rate is up to {error:.0f} points: small gains are not seen."
        if "questions" in manifests and (values := manifests["questions"]["config"].get("questions", {})) is not None:
            share = min(0.4, 2 * values.get("dev_share", 0.1))
            yield NextStep(text, cause, remake("questions", f"questions.dev_share={share:g}"))
        else:
            yield NextStep(text, cause + " Add questions to data.dev.", remake(name))
    if method in SAMPLING and kept and abs(metrics.get("kl") or 0.0) < SMALL_KL:
        text = f"The policy hardly moved: {metrics.get('kl') or 0.0:.3f} nats per answer from its start."
        change = f"{section}.learning_rate={3 * settings['learning_rate']:.2g}"
        yield NextStep(text, "Its learning rate is low for so few steps.", remake(name, change))
    if (explained := metrics.get("explained_variance")) is not None and explained < 0.1:
        text = f"The value model explains {max(0.0, explained):.0%} of the returns."
        yield NextStep(
            text,
            "PPO then learns from noise; a method without a value model does not need it.",
            remake(name, "rollout.normalize_score=true", "rollout.reward_scale=1", "ppo.vf_coef=0.5"),
        )


def _sft(manifests: Mapping[str, Mapping[str, Any]], remake: Remake) -> Iterator[NextStep]:
    if "sft" not in manifests or (steps := manifests["sft"]["metrics"].get("steps", FEW_STEPS)) >= FEW_STEPS:
        return
    settings = manifests["sft"]["config"]["sft"]
    cause = "So few hardly change a model. Rows of a few dozen are better left out: sft.enabled=false."
    yield NextStep(
        f"SFT took {steps} steps.",
        cause,
        remake("sft", f"sft.epochs={settings['epochs'] * math.ceil(FEW_STEPS / max(1, steps)):g}"),
    )


def _test(numbers: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]], remake: Remake) -> Iterator[NextStep]:
    if numbers["test_items"] < FEW_TEST:
        cause = "Differences of less than 10 points cannot be told from chance."
        text = f"The test has {numbers['test_items']:,} questions."
        if "questions" in manifests:
            share = manifests["questions"]["config"].get("questions", {}).get("test_share", 0.1)
            yield NextStep(text, cause, remake("questions", f"questions.test_share={min(0.4, 2 * share):g}"))
        else:
            yield NextStep(text, cause + " Add questions to data.test.", remake("evaluate"))


def _no_gain(numbers: Mapping[str, Any]) -> bool:
    gain = numbers["accuracy_gain" if numbers["start"] == "sft" else "gain_over_base"]
    return gain.get("ci95_low") is not None and gain["ci95_low"] <= 0
