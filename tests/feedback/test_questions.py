"""Questions about clips without any: templates filled with descriptions, a model's lines, and which of them are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from minirlaif import tiny_world
from minirlaif.errors import UserError
from minirlaif.feedback import questions
from minirlaif.feedback.questions import Question, Templates, choose, fill, is_answer, parse, read_templates, split

PARTS = ["a red circle moves left.", "a blue square stays still.", "a white cross moves up."]
TINY = Path(tiny_world.__file__).with_name("questions.yaml")


def texts(made: list[Question], kind: str) -> list[str]:
    return [question.text for question in made if question.kind == kind]


def test_templates_are_filled_for_each_part_that_has_a_neighbour() -> None:
    made = fill(read_templates(TINY), PARTS)
    assert texts(made, "before") == ["what happens before the blue square?", "what happens before the white cross?"]
    assert texts(made, "after") == ["what happens after the red circle?", "what happens after the blue square?"]
    assert len(texts(made, "which way")) == 3 and texts(made, "how many") == ["how many things happen?"]
    assert {question.kind for question in made if question.names_part} == {"before", "after", "which way"}


def test_a_part_that_is_there_twice_is_named_by_no_question() -> None:
    """ "after the red circle" would have two answers."""
    made = fill(read_templates(TINY), [PARTS[0], PARTS[1], "a Red circle moves up."])
    named = [question.text for question in made if question.names_part]
    assert named and all("blue square" in text for text in named)
    assert fill(read_templates(TINY), ["nothing is to be seen"])[-1].names_part is False  # no subject: none is named


def test_an_event_is_quoted_while_it_is_short(tmp_path: Path) -> None:
    templates = Templates(None, {"before": ("What comes before this: {event}?",), "what": ("What is shown?",)})
    long = "A " + "very " * 20 + "long walk."
    made = fill(templates, ["A dog runs.", "A cat\n sits.", long])
    assert [(each.kind, each.text) for each in made] == [
        ("before", "What comes before this: A cat sits?"),
        ("what", "What is shown?"),
    ]


def test_a_models_lines_are_read_with_their_kinds() -> None:
    reply = """Sure! Here are some questions:
1. What: What colour is the circle?
- **After:** What does the man do after the jump?
first: What happens first
how many: How many circles are there?
describe: Describe the video.
mood: How does it feel?
why: I'm sorry, why can't I answer?
what: so?
before - What is before?"""
    made = parse(reply, PARTS)
    assert [(each.kind, each.text, each.names_part) for each in made] == [
        ("what", "What colour is the circle?", True),
        ("after", "What does the man do after the jump?", False),
        ("how many", "How many circles are there?", False),
        ("describe", "Describe the video.", False),
    ]


@pytest.mark.parametrize("text", ["", " ", "not said.", "It is not mentioned.", "I'm sorry, I cannot tell.", "That is unclear."])
def test_no_answer_is_none(text: str) -> None:
    assert not is_answer(text) and is_answer("a red circle.")


def test_half_of_the_questions_name_a_part_and_kinds_are_spread() -> None:
    made = fill(read_templates(TINY), PARTS)
    for seed in range(20):
        chosen = choose([*made, *made], 6, seed)
        assert len({each.text for each in chosen}) == 6 and sum(each.names_part for each in chosen) == 3
        assert len({each.kind for each in chosen}) == 6
    assert choose(made, 6, 1) == choose(made, 6, 1) and choose(made, 6, 1) != choose(made, 6, 2)
    assert len(choose(made, 99, 0)) == len(made) == 11
    few = [each for each in made if not each.names_part]
    assert len(choose(few, 3, 0)) == 3 and choose([], 3, 0) == []
    assert len(choose([Question("what", "What is it?"), Question("why", "what is  it")], 3, 0)) == 1  # the same words


def test_clips_are_kept_for_dev_and_test() -> None:
    clips = [f"c{number}" for number in range(40)]
    dev, test = split(clips, 0.1, 0.25, seed=3)
    assert (len(dev), len(test)) == (4, 10) and not dev & test and split(clips[::-1], 0.1, 0.25, seed=3) == (dev, test)
    assert split(clips, 0.1, 0.25, seed=4) != (dev, test)
    dev, test = split(["a", "b", "c"], 0.01, 0.01, seed=0)
    assert len(dev) == len(test) == 1  # one each at least
    assert split(["a"], 0.0, 0.0, seed=0) == (set(), set())
    with pytest.raises(ValueError, match="2 clips: 1 for test and 1 for dev leave none to learn from"):
        split(["a", "b"], 0.1, 0.1, seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("templates: {}", "needs `templates:`"),
        ("kinds: {what: [a]}", "kinds is neither"),
        ("templates: {what: []}", "what must have a list"),
        ("templates: {what: [1]}", "what must have a list"),
        ("templates: {what: ['who {does} it?']}", "what has {does}"),
        ("templates: {what: ['who is {subject}?']}", "does not say how it is found"),
        ("subject: '('\ntemplates: {what: [a]}", "no regular expression"),
        ("subject: abc\ntemplates: {what: [a]}", "needs a group"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_templates(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_packages_own_templates_can_be_read() -> None:
    made = fill(read_templates(Path(questions.__file__).with_name("questions.yaml")), ["A dog runs.", "It sits."])
    assert {"what", "first", "before", "after", "describe"} <= {each.kind for each in made}
    with pytest.raises(UserError, match="cannot be read"):
        read_templates(Path("/nowhere/x.yaml"))
