"""What to do next: one bad figure at a time, from a run in which nothing stands out."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import pytest

from minirlaif.config import load, recorded
from minirlaif.reports.next_steps import MOST, NextStep, next_steps
from minirlaif.stages.registry import METHODS, STAGES

FEEDBACK = {"decided": 900, "pairs": 1000, "same_answers": 100, "disagree": 0, "tie": 200, "invalid": 0}
FEEDBACK |= {"sampled_answers": 4000, "cut_answers": 0, "descriptions": 3000, "cut_descriptions": 0}
FEEDBACK |= {"described_clips": 1000, "one_segment_clips": 0}
METHOD = {"chosen_iteration": 10, "dev_questions": 300, "kl": 1.0, "explained_variance": 0.5}
NUMBERS = {
    "method": "ppo",
    "round": 1,
    "start": "sft",
    "test_items": 750,
    "judge": {"with_context": 0.95},
    "reward_model": {"accuracy": 0.9, "against_judge": 0.95},
    "accuracy_gain": {"mean": 0.2, "ci95_low": 0.15, "ci95_high": 0.25},
    "gain_over_base": {"mean": 0.1, "ci95_low": 0.05, "ci95_high": 0.15},
}


def remake(stage: str, *settings: str) -> str:
    return " ".join([stage, *settings])


def steps(
    method: str = "ppo",
    questions: bool | Mapping[str, int] = False,
    sft: bool = True,
    sft_steps: int = 400,
    settings: tuple[str, ...] = (),
    more: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    world: bool = False,
    reward: bool = True,
    **changed: Any,
) -> list[NextStep]:
    """The steps of a good run with these figures changed. changed: by stage, or those of report.json as
    `numbers`; more: of a stage's recorded settings."""
    cfg = load(
        None,
        [
            f"optimize.methods=[{method}]",
            "feedback.context_answers=2",
            "rollout.samples_per_prompt=4",
            "feedback.pairs_per_prompt=6",
            *settings,
        ],
    )
    names = [
        *(["world"] if world else []),
        *(["sft"] if sft else []),
        *(["questions"] if questions else []),
        "feedback",
        *(["reward"] if reward else []),
        method,
        "evaluate",
    ]
    figures = {
        "sft": {"steps": sft_steps},
        "questions": questions if isinstance(questions, Mapping) else {},
        "feedback": FEEDBACK,
        method: METHOD,
    }
    manifests = {
        name: {
            "config": {part: recorded(getattr(cfg, part)) for part in STAGES[name].sections} | more.get(name, {}),
            "metrics": {**figures.get(name, {}), **changed.get(name, {})},
        }
        for name in names
    }
    numbers = deepcopy(NUMBERS) | {"method": method, "start": "sft" if sft else "base"} | changed.get("numbers", {})
    return next_steps(numbers, manifests, remake, "python app.py --run a")


def test_a_good_run_has_one_line_that_tries_it_out() -> None:
    for method in METHODS:
        assert steps(method) == [
            NextStep("Nothing stands out.", "Look at answers to clips of your own.", "python app.py --run a")
        ]


@pytest.mark.parametrize(
    ("kept", "symptom", "command"),
    [
        ({"feedback": {"one_segment_clips": 200}}, "200 of 1,000 clips have one segment.", "sft video.segment_seconds=4"),
        (
            {"feedback": {"one_segment_clips": 200}, "settings": ("video.min_segments=1",)},
            "200 of 1,000 clips have one segment.",
            "sft video.min_segments=2",
        ),
        (
            {"feedback": {"one_segment_clips": 200}, "questions": True},
            "200 of 1,000 clips have one segment.",
            "sft video.segment_seconds=4",
        ),
        (
            {"feedback": {"one_segment_clips": 200}, "questions": True, "sft": False},
            "200 of 1,000 clips have one segment.",
            "questions video.segment_seconds=4",
        ),
        (
            {"feedback": {"one_segment_clips": 200}, "settings": ("video.max_segments=1",)},
            "200 of 1,000 clips have one segment.",
            "sft video.max_segments=8",
        ),
        ({"feedback": {"cut_descriptions": 160}, "questions": True}, "160 of 3,000", "questions feedback.describe_tokens=256"),
        ({"feedback": {"cut_descriptions": 160}}, "160 of 3,000 descriptions were cut", "feedback feedback.describe_tokens=256"),
        ({"feedback": {"cut_answers": 210}}, "210 of 4,000 answers were cut", "feedback feedback.max_new_tokens=512"),
        (
            {"feedback": {"decided": 500, "disagree": 450, "tie": 150}},
            "The judge decided 500 of 1,100 pairs (disagree 450, tie 50, invalid 0, alike 100).",
            "feedback feedback.readout=likelihood",
        ),
        (
            {"numbers": {"judge": {"with_context": 0.6}}},
            "The judge is right in 60% of the pairs",
            "feedback feedback.judge=base feedback.describer=base",
        ),
        (
            {"feedback": {"decided": 500, "disagree": 600, "readout": "letter"}, "settings": ("feedback.readout=auto",)},
            "The judge decided 500 of 1,100 pairs",
            "feedback feedback.readout=likelihood",
        ),
        (
            {"feedback": {"decided": 500, "disagree": 600, "readout": "likelihood"}, "settings": ("feedback.readout=auto",)},
            "The judge decided 500 of 1,100 pairs",
            "feedback feedback.disagreement=average",
        ),
        (
            {"feedback": {"decided": 500, "disagree": 600}, "more": {"feedback": {"judge": {"kind": "openai"}}}},
            "The judge decided 500 of 1,100 pairs",
            "feedback feedback.disagreement=average",
        ),
        (
            {"numbers": {"reward_model": {"accuracy": 0.55, "against_judge": 0.9}}},
            "The reward model prefers the right answer in 55%",
            "reward reward.epochs=2",
        ),
        (
            {"numbers": {"reward_model": {"accuracy": None, "against_judge": 0.5}}},
            "The reward model prefers the right answer in 50%",
            "reward reward.epochs=2",
        ),
        ({"ppo": {"chosen_iteration": 0}}, "No checkpoint was kept.", "ppo ppo.iterations=200"),
        (
            {"numbers": {"accuracy_gain": {"mean": 0.0, "ci95_low": -0.02, "ci95_high": 0.02}}},
            "Accuracy did not clearly rise.",
            "ppo ppo.iterations=200",
        ),
        (
            {"ppo": {"chosen_iteration": 0}, "method": "rloo", "rloo": {"chosen_iteration": 0}},
            "No checkpoint",
            "rloo group.iterations=200",
        ),
        ({"method": "bestofn", "bestofn": {"chosen_iteration": 0}}, "No checkpoint was kept.", "bestofn distill.epochs=4"),
        ({"ppo": {"dev_questions": 25}}, "The checkpoint was chosen on 25 dev questions.", "ppo"),
        (
            {"ppo": {"dev_questions": 25}, "questions": True},
            "The checkpoint was chosen on 25 dev questions.",
            "questions questions.dev_share=0.2",
        ),
        ({"ppo": {"kl": 0.001}}, "The policy hardly moved: 0.001 nats", "ppo ppo.learning_rate=9e-05"),
        (
            {"ppo": {"explained_variance": -0.3}},
            "The value model explains 0% of the returns.",
            "ppo rollout.normalize_score=true rollout.reward_scale=1 ppo.vf_coef=0.5",
        ),
        (
            {"ppo": {"explained_variance": 0.0}, "settings": ("rollout.normalize_score=true", "ppo.vf_coef=0.6")},
            "The value model explains 0% of the returns.",
            "ppo rollout.reward_scale=1",
        ),
        ({"sft_steps": 20}, "SFT took 20 steps.", "sft sft.epochs=3"),
        ({"numbers": {"test_items": 40}}, "The test has 40 questions.", "evaluate"),
        ({"numbers": {"test_items": 40}, "questions": True}, "The test has 40 questions.", "questions questions.test_share=0.2"),
        (
            {"numbers": {"test_items": 40}, "questions": True, "settings": ("questions.test_share=0.3",)},
            "The test has 40 questions.",
            "questions questions.test_share=0.4",
        ),
        (
            {"numbers": {"test_items": 40}, "questions": True, "settings": ("questions.test_share=0.5",)},
            "The test has 40 questions.",
            "questions",
        ),
        (
            {"numbers": {"test_items": 40}, "questions": True, "more": {"evaluate": {"data": {"test": ["t.jsonl"]}}}},
            "The test has 40 questions.",
            "evaluate",
        ),
        (
            {"numbers": {"against_base": "below"}},
            "The aligned model is worse than the base before SFT.",
            "feedback feedback.judge=base feedback.describer=base",
        ),
        (
            {"numbers": {"against_base": "below"}, "settings": ("feedback.describer=base",)},
            "The aligned model is worse than the base before SFT.",
            "sft",
        ),
        (  # one remedy for two symptoms is named once
            {"numbers": {"against_base": "below", "judge": {"with_context": 0.6}}},
            "The judge is right in 60% of the pairs",
            "feedback feedback.judge=base feedback.describer=base",
        ),
        ({"numbers": {"test_items": 40}, "world": True}, "The test has 40 questions.", "world world.test_clips=500"),
    ],
)
def test_one_bad_figure_has_one_step(kept: dict[str, Any], symptom: str, command: str) -> None:
    (step,) = steps(**kept)
    assert step.symptom.startswith(symptom) and step.command == command and step.cause.endswith(".")


def test_after_a_win_rate_that_fell_more_steps_are_not_advised() -> None:
    fell = {"numbers": {"ppo": {"last_dev_win_rate": 0.375}}, "ppo": {"chosen_iteration": 0}}
    (step,) = steps(**fell)
    assert (
        step.symptom == "No checkpoint was kept, and the win rate ended at 38%." and step.command == "ppo ppo.learning_rate=1e-05"
    )
    (step,) = steps(numbers={"ppo": {"last_dev_win_rate": 0.49}}, ppo={"chosen_iteration": 0})
    assert step.command == "ppo ppo.iterations=200"


def test_more_questions_are_advised_only_where_more_can_be_written() -> None:
    few, none = {"sampled_answers": 4 * 90}, {"chosen_iteration": 0}
    first, _ = steps(feedback=few, ppo=none, questions={"questions": 114, "clips": 20})  # of 120
    assert first.command == "questions questions.per_clip=12"
    first, _ = steps(feedback=few, ppo=none, questions={"questions": 100, "clips": 20})
    assert first.command == "questions" and "add clips" in first.cause


def test_without_truth_more_test_questions_measure_nothing() -> None:
    assert steps(numbers={"test_items": 40, "answered_items": 0})[0].symptom == "Nothing stands out."
    assert steps(numbers={"test_items": 40, "answered_items": 20})[0].symptom == "The test has 40 questions."


def test_few_prompts_come_before_more_steps() -> None:
    few = {"sampled_answers": 4 * 90}  # two sampled answers and two with the descriptions to each prompt
    first, second = steps(feedback=few, ppo={"chosen_iteration": 0}, questions=True)
    assert (
        first.symptom == "No checkpoint was kept, and there were 90 prompts."
        and first.command == "questions questions.per_clip=12"
    )
    assert second.command == "ppo ppo.iterations=200"
    assert steps(feedback=few)[0].symptom == "Nothing stands out."  # it gained, with few prompts
    first, _ = steps(feedback=few, ppo={"chosen_iteration": 0})
    assert first.cause == "Learning takes data: add questions to data.prompts."


def test_pairs_matter_only_to_methods_that_learn_from_them() -> None:
    few = {"decided": 10, "disagree": 990}
    assert [step.symptom[:9] for step in steps("distill", feedback=few)] == ["Nothing s"]
    assert [step.symptom[:9] for step in steps("dpo", feedback=few)] == ["The judge"]
    assert [step.symptom[:9] for step in steps("grpo", feedback=few)] == ["The judge"]
    assert [step.symptom[:9] for step in steps("grpo", feedback=few, reward=False)] == ["Nothing s"]  # by the judge, or a file
    assert [step.symptom[:9] for step in steps("dpo", feedback=few, reward=False)] == ["The judge"]


@pytest.mark.parametrize(
    "other",
    [
        {"sft": False},
        {"settings": ("feedback.describer=base",)},
        {"more": {"feedback": {"judge": {"kind": "base"}}}},
        {"more": {"feedback": {"describer": {"kind": "gguf"}}}},
    ],
)
def test_a_judge_or_describer_that_is_another_one_already_is_not_changed(other: dict[str, Any]) -> None:
    assert steps(numbers={"judge": {"with_context": 0.6}}, **other)[0].symptom == "Nothing stands out."


def test_a_method_of_ones_own_may_have_other_settings() -> None:
    made = steps(ppo={"chosen_iteration": 0}, more={"ppo": {"ppo": {"strength": 2}}})
    assert [step.symptom for step in made] == ["Nothing stands out."]


def test_prompts_of_other_origin_are_added_where_they_come_from() -> None:
    few, none = {"sampled_answers": 4 * 90}, {"chosen_iteration": 0}
    own = {"questions": {"own": "1234"}}
    first, _ = steps(feedback=few, ppo=none, questions=True, more=own)
    assert first.cause.endswith("add questions to the file in the folder of clips.") and first.command == "questions"
    first, _ = steps(feedback=few, ppo=none, world=True)
    assert first.command.startswith("world world.prompt_clips=")
    (only,) = steps(feedback={"sampled_answers": 0}, ppo=none)  # made by an earlier version, which did not count them
    assert only.symptom == "No checkpoint was kept."


def test_a_critic_with_all_settings_that_help_has_no_step() -> None:
    good = ("rollout.normalize_score=true", "rollout.reward_scale=1", "ppo.vf_coef=0.5")
    assert steps(settings=good, ppo={"explained_variance": 0.0})[0].symptom == "Nothing stands out."


def test_a_bad_run_has_the_first_five_in_the_order_of_the_stages() -> None:
    bad = {"one_segment_clips": 900, "cut_descriptions": 900, "cut_answers": 900, "decided": 10, "sampled_answers": 1000}
    found = steps(feedback=bad, ppo={"chosen_iteration": 0, "dev_questions": 5}, sft=True, numbers={"test_items": 5})
    assert len(found) == MOST
    assert [step.command.split()[0] for step in found] == ["sft", "feedback", "feedback", "feedback", "feedback"]
