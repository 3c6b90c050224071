"""Who describes and who judges in the stage `feedback`: the start model, the base, or a judge that reads text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config as configs
from minirlaif.cli import main
from minirlaif.errors import UserError
from minirlaif.feedback import describe
from minirlaif.feedback import label as labels
from minirlaif.feedback.win_rate import WinRateEvaluator
from minirlaif.judges import local  # noqa: F401  loaded before its sampler is replaced
from minirlaif.judges.config import feedback_judge
from minirlaif.models import generation
from minirlaif.models.generation import Completion
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.runs.run import Run
from minirlaif.session import VideoInput
from minirlaif.stages import feedback, method_loop
from minirlaif.stages.registry import pipeline
from minirlaif.types import Comparison, Sample, Turn, Verdict
from tests.fixtures import endpoints, fixed_reply, tiny

TRUE, FALSE, DESCRIBED = "a red circle moves left.", "a blue cross stays still.", "a green square moves up."
PROMPTS = [Sample(f"q{number}", f"/clips/{number % 2}", (Turn(f"what happens in {number}?"),)) for number in range(6)]


class Session(tiny.TinySession):
    """Every clip is one segment."""

    def segment_inputs(self, video: str) -> list[tuple[tuple[float, float], VideoInput]]:
        return [((0.0, 2.0), self.views[video])]


def staged(patch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> tuple[Any, Run]:
    """Settings and a run with SFT, whose answers to each prompt are TRUE and FALSE."""
    base = tiny.backbone()
    cfg = tiny.settings("feedback.readout=likelihood", "feedback.batch_size=2", *overrides)
    session = Session(base, {f"/clips/{number}": tiny.view(base, 2, number) for number in range(2)}, cfg)

    def sample(_: Any, prompts: Sequence[EncodedPrompt], answers: int = 1, *rest: Any, **named: Any) -> list[list[Completion]]:
        texts = [DESCRIBED] if answers == 1 else [TRUE, FALSE]
        return [[Completion(base.renderer.answer(text), True, ()) for text in texts] for _ in prompts]

    tiny.use_session(patch, feedback, session, prompts=PROMPTS)
    patch.setattr(labels, "sample", sample)
    patch.setattr(generation, "sample", sample)  # the descriptions
    run = Run(folder / "runs" / "a")
    if run.manifest("sft") is None:
        tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
    return cfg, run


def endpoint_file(folder: Path, url: str, **more: Any) -> Path:
    lines = {"kind": "openai", "name": "judge-1", "url": url, **more}
    path = folder / "judge.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()))
    return path


def named_judge(kind: str, folder: Path, stack: ExitStack) -> str:
    """A judge that replies TRUE to everything, of a kind, as `feedback.judge` names it."""
    if kind == "hf":
        return f"hf:{fixed_reply.write_folder(folder / 'parrot', TRUE)}"
    path = fixed_reply.write_gguf(folder / "parrot.gguf", TRUE)
    if kind == "gguf":
        return f"gguf:{path}"
    return str(endpoint_file(folder, stack.enter_context(endpoints.llama_server(path))))


@pytest.mark.parametrize("kind", ["hf", "openai"])
def test_a_judge_that_reads_text_labels_pairs(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The endpoint is llama.cpp's server over a GGUF file."""
    with ExitStack() as stack:
        judge = named_judge(kind, tmp_path, stack)
        cfg, run = staged(monkeypatch, tmp_path, f"feedback.judge={judge}")
        feedback.run(cfg, run)
    rows = tiny.read_lines(run.dir("feedback") / "preferences.jsonl")
    assert [(row["chosen"], row["rejected"], row["context"]) for row in rows] == [(TRUE, FALSE, f"0s: {DESCRIBED}\n")] * 6
    manifest = run.manifest("feedback")
    assert manifest is not None and manifest["config"]["judge"]["kind"] == kind
    assert "judge" not in manifest["config"]["feedback"] and str(tmp_path) not in str(manifest["config"])


def test_a_gguf_judge_that_always_names_the_first_answer_decides_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kept to the letters A and B, the parrot says A in both orders."""
    with ExitStack() as stack:
        cfg, run = staged(monkeypatch, tmp_path, f"feedback.judge={named_judge('gguf', tmp_path, stack)}")
        with pytest.raises(UserError, match="the judge decided no pair .disagree 6, tie 0, invalid 0"):
            feedback.run(cfg, run)


def test_an_endpoint_that_dies_costs_no_reply(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: list[str] = []

    def act(handler: Any, body: dict[str, Any]) -> None:
        question = body["messages"][-1]["content"]
        if broken and len(sent) >= 9:
            endpoints.send(handler, b"{}", 503)
            return
        sent.append(question)
        endpoints.answer(handler, TRUE)

    broken = True
    server = endpoints.Server(act)
    words = f"feedback.judge={endpoint_file(tmp_path, server.url, retries=1, backoff_seconds=0.01, parallel=1)}"
    cfg, run = staged(monkeypatch, tmp_path / "one", words)
    with pytest.raises(UserError, match=r"judge judge-1: no reply from .* after 2 tries .* replies so far\s+are kept"):
        feedback.run(cfg, run)
    assert not run.dir("feedback").exists() and len(sent) == 9
    broken = False
    feedback.run(*staged(monkeypatch, tmp_path / "one", words))
    assert len(sent) == len(set(sent)) == 6 * 4  # both orders, with and without the descriptions
    whole, other = staged(monkeypatch, tmp_path / "two", words)
    feedback.run(whole, other)
    server.close()
    for name in ("preferences.jsonl", "verdicts.jsonl"):
        assert (run.dir("feedback") / name).read_bytes() == (other.dir("feedback") / name).read_bytes()


def test_a_judge_that_may_cost_too_much_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = endpoints.Server(lambda handler, body: endpoints.answer(handler, TRUE))
    prices = {"price_in": 1000, "price_out": 1000, "attempts": 1}
    limits = ("video.max_segments=2", "feedback.describe_tokens=16", "feedback.max_new_tokens=40")
    # 6 prompts in two orders, with and without descriptions: 24 times 2 x 16 + 2 x 40 + 300 tokens in and 128 out
    for most, refused in ((13.0, False), (12.9, True)):
        path = endpoint_file(tmp_path, server.url, max_cost=most, **prices)
        cfg, run = staged(monkeypatch, tmp_path / str(most), f"feedback.judge={path}", *limits)
        if refused:
            with pytest.raises(UserError, match=r"24 comparisons would cost up to 12.96, max_cost is 12.9"):
                feedback.run(cfg, run)
        else:
            feedback.run(cfg, run)
            assert (
                "judge judge-1: up to 24 comparisons of up to 412 tokens, at most 12.96 at the given" in capsys.readouterr().out
            )
            asked = len(server.bodies)
    server.close()
    assert len(server.bodies) == asked == 24


@pytest.mark.parametrize(("describer", "judge"), [("start", "start"), ("base", "start"), ("start", "base"), ("base", "base")])
def test_the_base_describes_or_judges(describer: str, judge: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cfg, run = staged(monkeypatch, tmp_path, f"feedback.describer={describer}", f"feedback.judge={judge}")
    active: dict[str, set[str]] = {}
    for module, name in ((describe, "describe_segments"), *((labels, n) for n in ("draw_answers", "candidate_scores", "judge"))):
        monkeypatch.setattr(module, name, recorded(getattr(module, name), active.setdefault(name, set())))
    if judge == "start" == describer:
        feedback.run(cfg, run)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(labels, "judge", recorded(in_favour, active["judge"]))
            feedback.run(cfg, run)
    roles = {"start": {"sft"}, "base": {"base"}}
    wanted = {"describe_segments": roles[describer], "draw_answers": {"sft"}}
    assert active == {**wanted, "candidate_scores": roles[judge], "judge": roles[judge]}
    settings = (run.manifest("feedback") or {})["config"]
    assert settings["feedback"].get("describer", "start") == describer and "judge" not in settings["feedback"]
    assert settings.get("judge") == ({"kind": "base"} if judge == "base" else None)


def recorded(function: Any, roles: set[str]) -> Any:
    """The function, which notes which adapter is active."""

    def wrapper(session: Any, *words: Any, **named: Any) -> Any:
        roles.add(session.adapters._active())
        return function(session, *words, **named)

    return wrapper


def in_favour(session: Any, pairs: Sequence[Comparison], *words: Any) -> list[Verdict]:
    """Verdicts for TRUE."""
    choices = ["A" if pair.answer_a == TRUE else "B" for pair in pairs]
    return [Verdict(pair.id, choice, 0.5, (choice, choice)) for pair, choice in zip(pairs, choices, strict=True)]  # type: ignore[arg-type]


class Agrees:
    """A judge that prefers answers with a word in them."""

    def __init__(self, word: str) -> None:
        self.word = word

    def compare(self, pairs: Sequence[Comparison]) -> list[str]:
        return ["A" if self.word in pair.answer_a else "B" if self.word in pair.answer_b else "tie" for pair in pairs]


def test_the_judge_of_feedback_picks_the_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base = tiny.backbone()
    cfg = tiny.settings("feedback.judge=gguf:x.gguf")
    session = Session(base, {"/clips/0": tiny.view(base, 2, 0)}, cfg)
    models, run = tiny.models_of(session), Run(tmp_path / "a")
    questions = method_loop.Questions([], [Sample("d", "/clips/0", (Turn("what?"),))], {"/clips/0": "0s: x\n"})
    with monkeypatch.context() as patch:
        patch.setattr(method_loop, "feedback_judge", lambda section: "settings")
        patch.setattr(method_loop, "open_judge", lambda settings, path: Agrees("left"))
        evaluator = method_loop.evaluator(cfg.feedback, run, "distill", models, questions, 8)
    session.adapters.add("reference", 0)
    answers = {"policy": "it moves left.", "reference": "it moves up."}

    def given(self: Any, session: Any, role: str) -> list[Completion]:
        return [Completion(base.renderer.answer(answers[role]), True, ())]

    monkeypatch.setattr(WinRateEvaluator, "_answers", given)
    assert evaluator.win_rate().rate == 1.0
    answers["policy"] = "it stays."
    assert evaluator.win_rate().rate == 0.5
    based = method_loop.evaluator(tiny.settings("feedback.judge=base").feedback, run, "distill", models, questions, 8)
    assert (evaluator._judge, based._judge, based._text_judge) == ("reference", "base", None)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("gguff:x", "feedback.judge gguff:x: no such judge; did you mean gguf[?] known are start, base, "),
        ("exact", "feedback.judge exact: cannot say which of two answers is better; name one of start, base, hf:FOLDER"),
        ("none", "feedback.judge none: cannot say which"),
        (
            "openai:m",
            "feedback.judge openai:m: url is empty: set the address; write kind, name and its settings into a YAML file",
        ),
        ("gguf:nothing.gguf", "judge gguf:nothing.gguf: no such file"),
    ],
)
def test_judges_that_cannot_be_are_refused_before_anything_runs(
    judge: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=words):
        feedback_judge(tiny.settings(f"feedback.judge={judge}").feedback)
    config = Path(__file__).parents[2] / "configs" / "tiny-ppo.yaml"
    flags = ["--config", str(config), "--run", "a", "--runs-dir", str(tmp_path), "--set", f"feedback.judge={judge}"]
    assert main.main(["run", *flags]) == 2
    assert re.search(words, capsys.readouterr().err) and not (tmp_path / "a" / "world").exists()


def test_pairs_that_no_stage_learns_from_may_all_be_undecided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a margin that no pair reaches: refused where a reward model would learn, not where a file scores."""
    cfg, run = staged(monkeypatch, tmp_path / "one", "feedback.margin=1000")
    with pytest.raises(UserError, match="the judge decided no pair"):
        feedback.run(cfg, run)
    cfg, run = staged(monkeypatch, tmp_path / "two", "feedback.margin=1000")
    run.stages = pipeline(("ppo",), reward=False)
    feedback.run(cfg, run)
    assert (run.manifest("feedback") or {})["metrics"]["decided"] == 0


def test_manifests_record_who_describes_and_not_where_it_lies() -> None:
    for value, written in (("start", None), ("base", "base"), ("hf:/home/me/model", None)):
        assert configs.recorded(configs.FeedbackSection(describer=value)).get("describer") == written
