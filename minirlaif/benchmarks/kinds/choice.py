"""Multiple choice: accuracy of the option that a reply names, or of the likeliest option."""

from collections.abc import Mapping
from typing import Any

from minirlaif.benchmarks.kinds import base
from minirlaif.benchmarks.kinds.base import ACCURACY, Answer, BenchmarkKind, Grade, Item
from minirlaif.benchmarks.kinds.options import has_options, question_and_options, right_place
from minirlaif.data.options import COLUMNS
from minirlaif.feedback.text_judge import GradeResult, JudgeName
from minirlaif.judges.rubric import CHOOSE, choice_question, chosen_option

# Tasks of MVBench and TVBench, a file each, and the folder that MVBench's clips of the task lie in; TVBench's is the task's own.
TASKS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception",
    "action_localization": "sta",
    "action_prediction": "star",
    "action_sequence": "star",
    "character_order": "perception",
    "counterfactual_inference": "clevrer",
    "egocentric_navigation": "vlnqa",
    "egocentric_sequence": "",
    "episodic_reasoning": "tvqa",
    "fine_grained_action": "Moments_in_Time_Raw",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer",
    "moving_count": "clevrer",
    "moving_direction": "clevrer",
    "object_count": "",
    "object_existence": "clevrer",
    "object_interaction": "star",
    "object_shuffle": "perception",
    "scene_transition": "scene_qa",
    "state_change": "perception",
    "unexpected_action": "FunQA_test",
}


class MultipleChoice(BenchmarkKind):
    """`question`, `options` (also `candidates`, `choices`, a0 …, A …) and `answer` (letter, number or text); EgoSchema; LVBench,
    whose options stand in the question; MVBench and TVBench, whose tasks are a part each."""

    name = "choice"
    columns = "question, options, answer, video"
    metrics = (ACCURACY,)
    depths = {"accuracy": 1}
    has_readouts = True
    has_breakdown = True
    uses = COLUMNS

    def matches(self, row: Mapping[str, Any], part: str) -> bool:
        return has_options(row)

    def parse(self, row: Mapping[str, Any], part: str, clip: str) -> Item:
        question, options = question_and_options(row)
        right = options.texts[right_place(row, options)]
        return Item("", part if part in TASKS else self.name, clip, "", (question,), right, options.texts, row, base.own_id(row))

    def prompts(self, item: Item) -> list[str]:
        return [choice_question(question, item.options) for question in item.questions]

    def grader(self, ranked: bool, ask: str) -> JudgeName:
        """Likelihoods are of the options' texts alone; letters depend on how they are asked for."""
        if ranked:
            return JudgeName("likelihood", "likeliest candidate per token", "1", "")
        return JudgeName("letter", "letter of the reply", "3", base.text_hash(ask or CHOOSE))

    def grade(self, item: Item, answer: Answer, results: Mapping[str, GradeResult]) -> list[Grade]:
        """A reply that names no option is a wrong answer, and says so."""
        if answer.why or answer.rank is not None:
            return super().grade(item, answer, results)
        chosen = chosen_option(answer.texts[0], item.options)
        is_right = chosen is not None and item.options[chosen] == item.answer
        return [Grade(item.id, item.name, "accuracy", float(is_right), "" if chosen is not None else "names no option")]

    def question_text(self, item: Item) -> str:
        options = [f"{base.option_letter(place)}. {option}" for place, option in enumerate(item.options)]
        return "\n".join([*item.questions, *options])

    def truth_text(self, item: Item) -> str:
        return f"{base.option_letter(item.options.index(item.answer))}. {item.answer}"

    def answer_text(self, item: Item, answer: Answer) -> str:
        """A letter with its option."""
        text = super().answer_text(item, answer)
        chosen = chosen_option(text, item.options) if answer.rank is None else None
        return text if chosen is None or item.options[chosen] in text else f"{text} ({item.options[chosen]})"
