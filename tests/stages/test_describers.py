"""`feedback.describer`: clips described by another model of transformers, by an export, or by an endpoint that takes pictures."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minirlaif import config
from minirlaif.cli import main
from minirlaif.config import FeedbackSection, VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf.runtime.describer import GgufDescriber
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.judges.config import JudgeSettings, feedback_describer
from minirlaif.judges.describer import EndpointDescriber
from minirlaif.models.loading import TINY
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader
from tests.fixtures import chat_run, endpoints, gguf_files, small_config, tiny

SETTINGS = (
    "world.prompt_clips=2 world.dev_clips=1 world.test_clips=1 world.questions_per_clip=3"
    " feedback.batch_size=3 feedback.answers=2 feedback.margin=0"
).split()


def words(runs_dir: Path, stages: Sequence[str], *settings: str) -> list[str]:
    flags = ["--config", str(small_config.NO_LABELS), "--run", "a", "--runs-dir", str(runs_dir)]
    return ["run", *stages, *flags, "--set", *SETTINGS, *settings]


@pytest.fixture(scope="module")
def by_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base described."""
    folder = tmp_path_factory.mktemp("base")
    assert main.main(words(folder, ["world", "feedback"])) == 0
    return folder / "a"


def contexts(run: Path) -> list[dict[str, Any]]:
    return tiny.read_lines(run / "feedback" / "contexts.jsonl")


def begun(by_base: Path, runs_dir: Path) -> Path:
    shutil.copytree(by_base / "world", runs_dir / "a" / "world")
    return runs_dir / "a"


def export_of(folder: Path) -> Path:
    """An export of the shipped base in float32, with a chat template."""
    return gguf_files.tiny(folder, template=gguf_files.TEMPLATE)


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_the_same_model_in_another_form_describes_in_the_same_words(kind: str, by_base: Path, tmp_path: Path) -> None:
    """The shipped base once more: from its folder by transformers, and as a GGUF file by llama.cpp."""
    where = TINY if kind == "hf" else export_of(tmp_path / "export")
    run = begun(by_base, tmp_path / "runs")
    assert main.main(words(tmp_path / "runs", ["feedback"], f"feedback.describer={kind}:{where}")) == 0
    assert contexts(run) == contexts(by_base) and len(contexts(run)) == 3
    assert all(text for row in contexts(run) for text in row["segments"])
    recorded = json.loads((run / "feedback" / "manifest.json").read_text())["config"]
    assert recorded["describer"]["kind"] == kind and "describer" not in recorded["feedback"]
    assert str(where) not in json.dumps(recorded) or kind == "hf"  # the base's own folder is model.base


def test_another_model_describes_in_its_own_words(by_base: Path, tmp_path: Path) -> None:
    """A base of random weights: the adapters and the judge are still the run's base."""
    from minirlaif.tiny_world.base_model import make_model

    other = tmp_path / "other"
    shutil.copytree(TINY, other)
    make_model(tiny.tokenizer(), 5, 4).save_pretrained(other)
    run = begun(by_base, tmp_path / "runs")
    assert main.main(words(tmp_path / "runs", ["feedback"], f"feedback.describer=hf:{other}", "feedback.readout=likelihood")) == 0
    pairs = zip(contexts(run), contexts(by_base), strict=True)
    assert all(mine["segments"] != theirs["segments"] for mine, theirs in pairs)
    answers = (tiny.read_lines(folder / "feedback" / "answers.jsonl") for folder in (run, by_base))
    sampled = [[row["answers"][:2] for row in rows] for rows in answers]  # of the run's base, without the descriptions
    assert sampled[0] == sampled[1]


def test_a_server_of_llama_cpp_describes_from_the_frames(by_base: Path, tmp_path: Path) -> None:
    """llama-cpp-python's server over the base and its projector: a run with it, then the same replies from disk."""
    folder = export_of(tmp_path / "export")
    text, projector = folder / "text.gguf", folder / "mmproj.gguf"
    run = begun(by_base, tmp_path / "runs")
    judge = tmp_path / "describer.yaml"
    with endpoints.llama_server(text, projector) as url:
        judge.write_text(f"kind: openai\nname: tiny\nurl: {url}\nparallel: 1\ntimeout_seconds: 120\n")
        assert main.main(words(tmp_path / "runs", ["feedback"], f"feedback.describer={judge}")) == 0
    first = contexts(run)
    assert len(first) == 3 and all(text for row in first for text in row["segments"])
    # the server is gone: every description comes from disk
    again = words(tmp_path / "runs", ["feedback"], f"feedback.describer={judge}")
    assert main.main([*again, "--redo"]) == 0 and contexts(run) == first
    with ClipReader.of(VideoSection()) as reader:
        seconds = [reader.info(run / "feedback" / row["video"]).seconds for row in first]
    assert [len(row["segments"]) for row in first] == [round(each) for each in seconds]  # a segment each second


def test_what_an_endpoint_is_sent_is_the_frames_of_the_segment_and_the_prompt(tmp_path: Path) -> None:
    clip = chat_run.world_clip(tmp_path / "a.mp4")
    server = endpoints.Server(lambda handler, body: endpoints.answer(handler, " It falls. "))
    video = VideoSection(segment_frames=2, segment_seconds=1.0)
    section = FeedbackSection(describe_prompt="what is here?", describe_tokens=9)
    settings = JudgeSettings("openai", "m", url=server.url, parallel=1)
    describer = EndpointDescriber(settings, section, video, None)
    (described,) = describer.describe([str(clip)], section).values()
    describer.close()
    server.close()
    assert [text for _, text in described.segments] == ["It falls."] * len(described.segments)
    with ClipReader.of(video) as reader:
        seconds = reader.info(clip).seconds
        spans = [(0.0, 1.0), (1.0, seconds)]
        assert [span for span, _ in described.segments] == spans and (described.cut, described.missing) == (0, 0)
        for body, (start, end) in zip(server.bodies, spans, strict=True):
            assert (body["max_tokens"], body["temperature"], body["model"]) == (9, 0.0, "m")
            (message,) = body["messages"]
            *pictures, text = message["content"]
            assert text == {"type": "text", "text": "what is here?"} and len(pictures) == 2
            (frames,) = reader.frames(clip, [uniform_plan(seconds, 2, start, end)])
            for picture, frame in zip(pictures, frames, strict=True):
                head, _, data = picture["image_url"]["url"].partition(",")
                shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
                assert head == "data:image/jpeg;base64" and abs(shown - frame).mean() < 8


def test_cut_and_refused_descriptions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = chat_run.world_clip(tmp_path / "a.mp4")

    def cut(handler: Any, body: dict[str, Any]) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "It fa"}, "finish_reason": "length"}
        endpoints.send(handler, json.dumps({"model": "m", "choices": [choice]}).encode())

    def refuses(handler: Any, body: dict[str, Any]) -> None:
        endpoints.send(handler, b'{"error": "not this one"}', 400)

    server, section = endpoints.Server(cut, refuses), FeedbackSection()
    settings = JudgeSettings("openai", "m", url=server.url, parallel=1)
    describer = EndpointDescriber(settings, section, VideoSection(segment_frames=2, segment_seconds=1.0), None)
    (described,) = describer.describe([str(clip)], section).values()
    describer.close()
    server.close()
    assert [text for _, text in described.segments] == ["It fa", ""] and (described.cut, described.missing) == (1, 1)


def test_an_endpoint_that_dies_costs_no_description(by_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[str] = []

    def act(handler: Any, body: dict[str, Any]) -> None:
        if broken and len(sent) >= 3:
            endpoints.send(handler, b"{}", 503)
            return
        sent.append(json.dumps(body["messages"]))
        endpoints.answer(handler, f"number {len(sent)} falls.")

    server, broken = endpoints.Server(act), True
    judge = tmp_path / "describer.yaml"
    judge.write_text(f"kind: openai\nname: m\nurl: {server.url}\nretries: 1\nbackoff_seconds: 0.01\nparallel: 1\n")
    run = begun(by_base, tmp_path / "runs")
    call = words(tmp_path / "runs", ["feedback"], f"feedback.describer={judge}")
    assert main.main(call) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "no reply from" in line and "replies so far are kept" in line and len(sent) == 3
    broken = False
    assert main.main(call) == 0
    server.close()
    assert len(sent) == len(set(sent)) == sum(len(row["segments"]) for row in contexts(run))


def test_a_describer_that_may_cost_too_much_is_refused(by_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = tmp_path / "describer.yaml"
    judge.write_text("kind: openai\nname: m\nurl: http://127.0.0.1:9/v1\nprice_in: 1000\nprice_out: 1000\nmax_cost: 1\n")
    begun(by_base, tmp_path / "runs")
    assert main.main(words(tmp_path / "runs", ["feedback"], f"feedback.describer={judge}")) == 2
    # three clips of at most eight segments
    assert "24 descriptions would cost up to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("exact", "cannot describe a clip; name one of start, base, hf:FOLDER"),
        ("hff:x", "no such describer"),
        ("gguf:nowhere", "no such folder; `python -m minirlaif export` makes one"),
        ("hf:./nowhere", "describer hf:./nowhere: no such folder"),
        ("hf:./tests", "no config.json in it; name the folder of a model"),
        ("gguf:./tests", "no minirlaif.json in it, so it is no export"),
        ("openai:m", "write kind, name and its settings into a YAML file and name that in feedback.describer"),
    ],
)
def test_a_describer_that_cannot_be_is_refused_before_anything_runs(
    value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words(tmp_path, ["world", "feedback"], f"feedback.describer={value}")) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "a" / "world").exists()
    with pytest.raises(UserError):
        feedback_describer(config.load(None, [f"feedback.describer={value}"]).feedback)


def test_settings_that_a_describer_does_not_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "describer.yaml"
    path.write_text("kind: openai\nname: m\nurl: http://127.0.0.1:9/v1\nmax_tokens: 2000\nprompts: x.yaml\n")
    assert main.main(words(tmp_path, ["world", "feedback"], f"feedback.describer={path}")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "prompts, max_tokens changes nothing for a describer of kind openai" in line and "feedback.describe_tokens" in line


def test_an_export_counts_the_descriptions_that_it_had_to_cut(tmp_path: Path) -> None:
    clip = chat_run.world_clip(tmp_path / "a.mp4")
    video = VideoSection(segment_frames=4, segment_seconds=1.0)
    with closing(GgufDescriber(export_of(tmp_path / "export"), video)) as describer:
        for limit, cut in ((3, 2), (60, 0)):
            section = FeedbackSection(describe_prompt="describe this part.", describe_tokens=limit)
            (described,) = describer.describe([str(clip)], section).values()
            assert described.cut == cut and len(described.segments) == 2


def test_a_segment_is_told_its_own_length_whichever_clip_was_loaded_before(tmp_path: Path) -> None:
    """One frame a segment, three segments: the middle one has the frame of the whole clip."""
    clip = chat_run.world_clip(tmp_path / "a.mp4", (*chat_run.TWO, chat_run.TWO[0]))
    with closing(GgufEngine(export_of(tmp_path / "export"))) as engine:
        whole = engine.load_clip(str(clip), 1)
        middle = whole.seconds / 3, 2 * whole.seconds / 3
        part = engine.load_clip(str(clip), 1, middle)
    assert part.times == pytest.approx(whole.times) and part.seconds == pytest.approx(whole.seconds / 3)
    assert part.key != whole.key


def test_a_model_that_sees_nothing_cannot_describe(by_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.fixtures import fixed_reply

    folder = fixed_reply.write_folder(tmp_path / "parrot", "yes")
    begun(by_base, tmp_path / "runs")
    assert main.main(words(tmp_path / "runs", ["feedback"], f"feedback.describer=hf:{folder}")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "feedback.describer" in line and "no vision-language model of a known family" in line
