from __future__ import annotations

import pytest

from minirlaif.errors import UserError
from minirlaif.models.renderer import FrameLayout, Layout, Renderer, group_times
from minirlaif.tiny_world.base_model import LAYOUT, SPECIAL
from minirlaif.types import Turn
from tests.fixtures import tiny

TWO = FrameLayout((0.5, 1.5), 2.0, 3)
NASTY = "a <image> b <end_of_utterance> c <|im_start|> d <fake_token_around_image> e <|endoftext|>"


@pytest.fixture(params=["tiny", "published"])
def render(request: pytest.FixtureRequest) -> Renderer:
    return Renderer(tiny.tokenizer(), LAYOUT if request.param == "tiny" else Layout())


def raw(ids: tuple[int, ...]) -> str:
    return str(tiny.tokenizer().decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def test_the_answer_mask_covers_exactly_answers_and_their_end(render: Renderer) -> None:
    turns = [Turn("what happens first?", "a red circle moves left."), Turn("and then?", "two things happen.")]
    rendered = render.conversation(TWO, turns, "0s: a red circle.\n")
    learned: list[list[int]] = [[]]
    for token, counts in zip(rendered.ids, rendered.answer, strict=True):
        if counts:
            learned[-1].append(token)
        elif learned[-1]:
            learned.append([])
    expected = [list(render.text_ids(" " + turn.answer) + (render.end_id,)) for turn in turns if turn.answer]
    assert learned[:2] == expected and learned[2:] == [[]]
    assert len(rendered) == len(rendered.ids) == len(rendered.answer)


def test_the_prompt_is_where_the_conversation_starts_and_the_answer_goes_on(render: Renderer) -> None:
    prompt = render.prompt(TWO, "what happens?", "0s: a red circle.\n")
    rendered = render.conversation(TWO, [Turn("what happens?", "a red circle moves.")], "0s: a red circle.\n")
    answer = render.answer("a red circle moves.")
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.ids[len(prompt) : len(prompt) + len(answer)] == answer
    assert not any(rendered.answer[: len(prompt)])


def test_special_tokens_written_by_people_or_models_stay_letters(render: Renderer) -> None:
    specials = [tiny.tokenizer().convert_tokens_to_ids(token) for token in SPECIAL]
    turns = [Turn("q", "a"), Turn("q", "a")]
    nasty = [Turn(NASTY, NASTY), Turn(NASTY, NASTY)]
    plain = render.conversation(TWO, turns, "context\n").ids
    ids = render.conversation(TWO, nasty, NASTY + "\n").ids
    for special in specials:
        assert ids.count(special) == plain.count(special), tiny.tokenizer().convert_ids_to_tokens(special)
    assert raw(ids).count(NASTY) == 5  # and nothing of it is lost
    assert render.decode(render.answer(NASTY)) == NASTY


def test_rendering_leaves_the_tokenizer_as_it_was(render: Renderer) -> None:
    render.text_ids(NASTY)
    assert tiny.tokenizer().encode("<image>") == [render.image_id]
    with pytest.raises(TypeError):
        render.text_ids(5)  # type: ignore[arg-type]
    assert tiny.tokenizer().encode("<image>") == [render.image_id]


def published(count: str) -> str:
    """The prompt as transformers' SmolVLMProcessor writes it, from its own strings."""
    from transformers.models.smolvlm import processing_smolvlm as theirs

    picture = theirs._prompt_single_image(3, "<fake_token_around_image>", "<image>", "<global-img>")
    frames = "".join(theirs.FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp) + picture for stamp in ("00:00", "01:05"))
    video = theirs.DEFAULT_VIDEO_INTRO.format(frame_count=count, video_duration="1:02:03") + frames
    video += theirs.DEFAULT_MEDIA_OUTTRO
    return f"<|im_start|>User: {video}What happens?<end_of_utterance>\nAssistant:"


def test_the_default_layout_writes_frames_and_times_as_published() -> None:
    text = raw(Renderer(tiny.tokenizer(), Layout()).prompt(FrameLayout((0.9, 65.2), 3723.9, 3), "What happens?"))
    start, expected = "<|im_start|>User: You are provided the following series of ", published("two")
    assert text.startswith(start) and expected.startswith(start)
    assert text[len(start) :].split(" ", 1)[1] == expected[len(start) :].split(" ", 1)[1]


def test_the_default_layout_writes_what_smolvlm2_was_trained_on() -> None:
    text = raw(Renderer(tiny.tokenizer(), Layout()).prompt(FrameLayout((0.9, 65.2), 3723.9, 3), "What happens?"))
    assert text == published("two")  # their processor writes the number of frames as a word


def test_the_default_layout_follows_the_published_chat_template() -> None:
    import jinja2
    from transformers.models.smolvlm import processing_smolvlm as theirs

    def message(role: str, text: str) -> dict[str, object]:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    turns = [Turn("What happens?", "A ball rolls."), Turn("Where to?", "To the left.")]
    messages = [message(role, text) for t in turns for role, text in (("user", t.question), ("assistant", str(t.answer)))]
    expected = jinja2.Template(theirs.DEFAULT_CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=False)
    assert raw(Renderer(tiny.tokenizer(), Layout()).conversation(None, turns).ids).strip() == expected.strip()


@pytest.mark.parametrize(
    "times",
    [(), (0.9, 65.2)],
)
def test_words_are_cut_into_tokens_as_the_whole_text_would_be(times: tuple[float, ...]) -> None:
    """Template and text meet inside a word boundary: "User: " and "What" are "User", ":", " What"."""
    ids = Renderer(tiny.tokenizer(), Layout()).prompt(FrameLayout(times, 70.0, 3) if times else None, "What happens?")
    assert list(ids) == tiny.tokenizer().encode(raw(ids), add_special_tokens=False)


def test_a_conversation_over_the_limit_is_refused_by_name(render: Renderer) -> None:
    turns = [Turn("what happens?", "a red circle moves left.")]
    length = len(render.conversation(None, turns))
    assert len(render.conversation(None, turns, limit=length)) == length
    with pytest.raises(UserError, match=f"{length} tokens.*sft.max_length"):
        render.conversation(None, turns, limit=length - 1)


def test_an_answer_that_is_not_learned_is_read_all_the_same(render: Renderer) -> None:
    turns = [Turn("what happens?", "it falls.", learn=False), Turn("and then?", "it moves left.")]
    both, second = render.conversation(None, [Turn(t.question, t.answer) for t in turns]), render.conversation(None, turns)
    assert second.ids == both.ids
    kept = [token for token, learned in zip(second.ids, second.answer, strict=True) if learned]
    assert tuple(kept) == render.answer("it moves left.")


def test_every_frame_gets_its_placeholders(render: Renderer) -> None:
    for frames in (0, 1, 4):
        ids = render.prompt(FrameLayout(tuple(map(float, range(frames))), 4.0, 3) if frames else None, "what?")
        assert ids.count(render.image_id) == frames * 3


def test_groups_of_frames_share_placeholders_and_a_time() -> None:
    assert group_times((1.0, 2.0, 4.0), 1) == [1.0, 2.0, 4.0]
    assert group_times((1.0, 2.0, 4.0), 2) == [1.5, 4.0]  # a frame left over stands for two
    assert group_times((1.0, 2.0, 4.0), 0) == [2.5]
    pairs = Renderer(tiny.tokenizer(), Layout(frame="{at:.1f}s:{image};", group=2))
    assert "1.5s:<image><image>;4.0s:<image><image>;" in raw(pairs.prompt(FrameLayout((1.0, 2.0, 4.0), 5.0, 2), "what?"))


def test_the_tiny_layout_shows_one_token_per_frame_and_no_times() -> None:
    ids = Renderer(tiny.tokenizer(), LAYOUT).prompt(FrameLayout((0.5, 1.5), 2.0, 1), "how many?", "0s: it.\n")
    assert raw(ids) == "<|im_start|>User:<image><image>\n0s: it.\nhow many?<end_of_utterance>\nAssistant:"
