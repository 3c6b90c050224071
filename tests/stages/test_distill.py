"""Stage `distill`: which answers are learned, by which loss, from where, and that the judge chooses the checkpoint."""

from __future__ import annotations

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.feedback.win_rate import WinRate
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.runs.run import Run
from minirlaif.stages import distill, method_loop, registry
from minirlaif.training.checkpoint import MethodProgress, Start
from minirlaif.types import Sample, Turn
from tests.fixtures import tiny

CLIP, QUESTION = "/clips/0", "what happens first?"


def session_of(cfg: Config | None = None) -> tiny.TinySession:
    base = tiny.backbone()
    return tiny.TinySession(base, {CLIP: tiny.view(base, 2, 0)}, cfg)


def answers_of(session: tiny.TinySession, *texts: str) -> list[distill.Target]:
    row = Sample("q", CLIP, (Turn(QUESTION),))
    return [distill.Target(row, session.answer_ids(text)) for text in texts]


def record(name: str, texts: list[str], stopped: list[bool], with_context: list[bool]) -> dict[str, Any]:
    ids = [[place, 2] for place, _ in enumerate(texts)]
    line = {"id": name, "video": CLIP, "question": QUESTION, "answers": texts, "ids": ids}
    return line | {"stopped": stopped, "with_context": with_context}


def after_feedback(root: Path, *records: dict[str, Any], preferences: list[dict[str, Any]] | None = None) -> Run:
    """A run without SFT whose feedback is finished."""
    run = Run(root)
    run.stages = registry.pipeline(("distill",), sft=False)

    def fill(path: Path) -> None:
        tiny.write_lines(path / "answers.jsonl", records)
        if preferences is not None:
            tiny.write_lines(path / "preferences.jsonl", preferences)
        tiny.write_lines(path / "contexts.jsonl", [{"video": CLIP, "context": "0s: it falls.\n"}])

    tiny.finished(run, "feedback", fill)
    return run


def test_finished_context_answers_are_learned_by_their_token_ids(tmp_path: Path):
    lines = [
        record("a", ["sampled", "it falls"], [True, True], [False, True]),
        record("b", ["sampled", "cut off in", " "], [True, False, True], [False, True, True]),
    ]
    targets, left_out = distill.read_targets(after_feedback(tmp_path / "run", *lines))
    assert [(target.row.id, target.row.video, target.answer) for target in targets] == [("a", CLIP, (1, 2))] and left_out == 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([record("a", ["cut"], [False], [True])], "all 1 context answers were cut .* feedback.max_new_tokens=…"),
        ([record("a", ["sampled"], [True], [False])], "no answer that was given with .* feedback.context_answers=1"),
        ([{"id": "a", "video": CLIP, "question": QUESTION, "answers": ["of an earlier version"]}], "context_answers=1"),
    ],
)
def test_no_answer_to_learn_is_one_line_with_the_command(lines: list[dict[str, Any]], words: str, tmp_path: Path):
    with pytest.raises(UserError, match=f"{words}.*--redo`") as caught:
        distill.read_targets(after_feedback(tmp_path / "run", *lines))
    assert "\n" not in str(caught.value)


def judged(name: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "id": name,
        "videos": [CLIP],
        "prompt": QUESTION,
        "chosen": chosen,
        "rejected": rejected,
        "context": "",
        "margin": 1.0,
    }


def test_the_best_answer_of_each_prompt_is_learned(tmp_path: Path):
    """Of a, three is best: the first decided pair lies furthest apart, and two won as many. Of b, whose pairs came in any order,
    three won two. Of c no pair was decided; d has one answer three times, e one that ended beside one that was cut, f none."""
    run = after_feedback(
        tmp_path / "run",
        *(record(name, ["one", "two", "three"], [True] * 3, [False] * 3) for name in "abc"),
        record("d", ["one", "one", "one"], [True] * 3, [False] * 3),
        record("e", ["cut", "one", ""], [False, True, True], [False] * 3),
        record("f", ["cut", "cut"], [False] * 2, [False] * 2),
        preferences=[
            judged("a#0", "three", "one"),
            judged("a#1", "two", "one"),
            judged("b#0", "one", "two"),
            judged("b#1", "three", "one"),
            judged("b#2", "three", "two"),
        ],
    )
    targets, left_out = distill.read_best(run)
    learned = [(target.row.id, target.answer) for target in targets]
    assert learned == [("a", (2, 2)), ("b", (2, 2)), ("d", (0, 2)), ("e", (1, 2))] and left_out == 2
    assert targets[0].row == Sample("a", CLIP, (Turn(QUESTION),))


def test_no_best_answer_is_one_line_with_the_command(tmp_path: Path):
    run = after_feedback(tmp_path / "run", record("a", ["x", "x"], [True] * 2, [False] * 2), preferences=[])
    with pytest.raises(UserError, match="bestofn: the judge decided no pair, .*feedback.answers=8 .*--redo`"):
        distill.read_best(run)


def stirred(session: tiny.TinySession, cfg: Config, folder: Path) -> Any:
    trainer = distill.build(session, cfg.distill, Start(0, folder, "none"))
    tiny.stir(session.adapters, "policy", 3)
    return trainer


def test_the_loss_is_the_mean_over_all_answer_tokens(tmp_path: Path):
    """Against the model's own logits, read token by token from a plain forward pass over each row alone."""
    cfg = tiny.settings("distill.batch_size=2", "distill.micro_batch_size=1")
    session = session_of(cfg)
    trainer = stirred(session, cfg, tmp_path)
    batch = answers_of(session, "it falls down.", "yes")
    total = count = 0.0
    with session.adapters.inference_as("policy"):
        for target in batch:
            view = session.video_input(CLIP)
            prompt = EncodedPrompt(session.prompt(view, QUESTION), view.features)
            ids = [*prompt.ids, *target.answer]
            base = session.backbone
            ids_BT, mask_BT = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)
            positions = base.positions(ids_BT, mask_BT, [prompt.features])
            hidden_BTD = base.hidden(base.embed(ids_BT, [prompt.features]), mask_BT, positions)
            logits_TV = base.logits(hidden_BTD[0]).float()
            logits_TV[:, base.disallowed_V] = -torch.inf  # tokens that are never sampled
            for place, token in enumerate(target.answer, start=len(prompt.ids)):
                total -= float(logits_TV[place - 1].log_softmax(-1)[token])
                count += 1
    assert distill.step(trainer, batch, 0.0)["loss"] == pytest.approx(total / count, rel=1e-4)


def test_micro_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the losses of three steps nor the gradient of the first. (AdamW moves a weight whose gradient is next to nothing by
    a whole step in either direction, so weights say less.)"""
    losses, gradients = [], []
    for size in (1, 3):
        cfg = tiny.settings(f"distill.micro_batch_size={size}")
        session = session_of(cfg)
        trainer = stirred(session, cfg, tmp_path)
        batch = answers_of(session, "it falls down.", "yes", "it moves to the left")
        seen: list[torch.Tensor] = []
        monkeypatch.setattr(trainer, "step", noting_gradients(trainer, seen))
        losses.append([distill.step(trainer, batch, 0.05)["loss"] for _ in range(3)])
        gradients.append(seen[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][2] < losses[0][0]
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))
    assert float(gradients[0].abs().max()) > 0


def noting_gradients(trainer: Any, seen: list[torch.Tensor]) -> Any:
    """The trainer's step, which first keeps the gradient that it is about to use."""
    step = trainer.step

    def wrapper(rate: float) -> float:
        seen.append(torch.cat([weight.grad.detach().flatten().clone() for weight in trainer.parameters]))
        return float(step(rate))

    return wrapper


def test_the_learned_answer_becomes_likelier_and_another_less_likely(tmp_path: Path):
    """The sign: a step against the gradient of the loss would do the opposite."""
    cfg = tiny.settings()
    session = session_of(cfg)
    trainer = stirred(session, cfg, tmp_path)
    learned, other = answers_of(session, "it falls down."), answers_of(session, "it moves to the left")

    def losses() -> tuple[float, float]:
        return tuple(distill.step(trainer, answers, 0.0)["loss"] for answers in (learned, other))  # type: ignore[return-value]

    before = losses()
    for _ in range(4):
        distill.step(trainer, learned, 0.02)
    after = losses()
    assert after[0] < before[0] and after[0] - after[1] < before[0] - before[1]


@pytest.mark.parametrize(("epochs", "patience"), [(3, 0), (9, 2)])
def test_it_starts_from_the_base_and_keeps_what_the_judge_prefers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], epochs: int, patience: int
):
    """Nine steps are begun with a patience of two: the best is behind the first, and two later looks find nothing better."""
    cfg = tiny.settings(
        "sft.enabled=false", "feedback.context_answers=1", "optimize.methods=[distill]", "data.dev=[dev]",
        f"distill.epochs={epochs}", "distill.batch_size=1", "distill.dev_every=1", "distill.learning_rate=0.01",
        f"distill.patience={patience}",
    )  # fmt: skip
    session, judged = session_of(cfg), []
    tiny.use_session(monkeypatch, distill, session, dev=[Sample("d", CLIP, (Turn(QUESTION),))])

    class Judge:
        rates = [0.5, 0.8, 0.7, 0.6]
        questions = ("d",)

        def __init__(self, models: Any, dev: Any, contexts: Any, section: Any, limit: int, judge: str, text_judge: Any) -> None:
            assert judge == "reference" and text_judge is None and len(dev) == 1  # the base, in its frozen copy

        def win_rate(self) -> WinRate:
            with session.adapters.inference_as("policy"):
                judged.append(tiny.digest(list(session.adapters.named("policy").values())))
            return WinRate(self.rates[len(judged) - 1], 0.0)

    monkeypatch.setattr(method_loop, "WinRateEvaluator", Judge)
    answers = ["it falls"]
    ids = list(session.answer_ids(answers[0]))
    run = after_feedback(tmp_path / "run", {**record("a", answers, [True], [True]), "ids": [ids]})
    distill.run(cfg, run)
    weights = session.adapters.named("policy")
    metrics = (run.manifest("distill") or {})["metrics"]
    assert (metrics["chosen_iteration"], metrics["dev_win_rate"], metrics["answers"], metrics["left_out"]) == (1, 0.8, 1, 0)
    text = "distill: stopped at iteration 3, 2 looks at the dev prompts in a row found none to keep (patience)"
    assert (text in capsys.readouterr().out) == bool(patience)
    assert len(judged) == len(set(judged)) == 4 and any("lora_B" in name and bool(w.any()) for name, w in weights.items())
    session.adapters.add("kept", 0, run.dir("distill") / "adapter")
    assert tiny.digest(list(session.adapters.named("kept").values())) == judged[1]


@pytest.mark.parametrize(
    ("rates", "patience", "looks", "steps", "kept"),
    [
        ([0.5, 0.6, 0.55, 0.9], 0, [0, 3, 6, 7], 7, 7),  # the last step is looked at, too
        ([0.5, 0.6, 0.55, 0.58], 2, [0, 3, 6, 7], 7, 3),
        ([0.5, 0.4, 0.45], 2, [0, 3, 6], 6, 0),  # two looks in a row, three steps each, kept none
        ([0.5, 0.6], 0, [0, 2], 2, 2),  # stopped by the method: looked at, whatever the step
    ],
)
def test_when_the_policy_is_judged_and_when_that_is_enough(
    rates: list[float], patience: int, looks: list[int], steps: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third step of seven, and at the end. patience counts looks, not steps."""
    done, judged, answers = [0], list[int](), iter(rates)

    def win_rate() -> WinRate:
        judged.append(done[0])
        return WinRate(next(answers), 0.01)

    def step(number: int) -> dict[str, float]:
        done[0] = number + 1
        return {}

    out: Any = SimpleNamespace(
        kept=lambda name: name, log=lambda *_, **__: None, due=lambda *_: False, publish_kept=lambda *_: None, summary={}
    )
    models: Any = SimpleNamespace(
        policy=SimpleNamespace(adapters=SimpleNamespace(save=lambda *_: None)), add_counters=lambda out: None
    )
    monkeypatch.setattr(method_loop.adapter_card, "write_adapter", lambda *_: None)
    dev: Any = SimpleNamespace(win_rate=win_rate, questions=["d"])
    accelerator: Any = SimpleNamespace(log=lambda *_, **__: None)
    checks = tiny.settings("distill.dev_every=3", f"distill.patience={patience}").distill
    ends = looks[-1] if looks[-1] % 3 else 0

    def stop(stats: Any) -> str:
        return "enough" if done[0] == ends < 7 else ""

    loop = method_loop.Loop("distill", 7, checks, step, lambda path: None, MethodProgress(), accelerator, stop)
    method_loop.train(out, models, loop, dev, 0)
    assert (judged, done[0], out.summary["chosen_iteration"]) == (looks, steps, kept)


def test_a_gain_within_its_standard_error_leaves_the_start(tmp_path: Path) -> None:
    """Nine won, six lost, 285 alike: 1.5 / 300 above a half, with an error of sqrt(15 * 0.25 - 300 * (1.5 / 300) ** 2) / 300. Two
    more won and one less lost is kept, and then only what is better than that."""
    saved: list[str] = []
    models: Any = SimpleNamespace(policy=SimpleNamespace(adapters=SimpleNamespace(save=lambda role, path: saved.append(path))))
    out: Any = SimpleNamespace(kept=lambda name: name)
    progress = MethodProgress()

    def rate(won: int, lost: int) -> WinRate:
        each = [1.0] * won + [0.0] * lost + [0.5] * (300 - won - lost)
        return WinRate(sum(each) / 300, statistics.pstdev(each) / 300**0.5)

    assert rate(9, 6) == pytest.approx((0.505, 0.0064485), abs=1e-6)
    looks = [rate(0, 0), rate(9, 6), rate(11, 7), rate(11, 5), rate(11, 5), rate(60, 52), rate(30, 20)]
    for iteration, won in enumerate(looks):
        dev: Any = SimpleNamespace(win_rate=lambda won=won: won)
        assert method_loop._keep_best(out, models, progress, dev, iteration) == won.rate
    assert saved == ["iteration-0", "iteration-3", "iteration-6"] and progress.best["win_rate"] == rate(30, 20).rate


@pytest.mark.parametrize(("stages", "role"), [(("distill", "ppo"), "judge"), (("ppo", "distill"), "reference")])
def test_the_start_model_judges_whatever_came_between(stages: tuple[str, ...], role: str, tmp_path: Path):
    run = Run(tmp_path / "run")
    run.stages = registry.pipeline(stages)
    tiny.finished(run, "sft", lambda path: tiny.save_adapter(path / "adapter", 1))
    session = session_of()
    session.adapters.add("reference", 0)
    made = method_loop.evaluator(
        tiny.settings().feedback, run, "ppo", tiny.models_of(session), method_loop.Questions([], [], {}), 4
    )
    assert made._judge == role
    run.stages = registry.pipeline(("distill", "ppo"), sft=False)
    made = method_loop.evaluator(
        tiny.settings().feedback, run, "ppo", tiny.models_of(session), method_loop.Questions([], [], {}), 4
    )
    assert made._judge == "base"
