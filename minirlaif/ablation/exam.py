"""Stage `exam` of an arm: its answers to the test questions, and nothing else of what `evaluate` does.

Out: answers.jsonl, a row per question with one column for each way to answer: "policy", "sft", or "best_n" for the answer that
the reward model likes best of the SFT model's first n.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from minirlaif.ablation.arms import BEST_OF
from minirlaif.config import Config
from minirlaif.models.generation import Completion, sample
from minirlaif.models.logprobs import micro_batches, reward_scores
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, open_session, read_samples, readable, settings_of, stored
from minirlaif.stages import evaluate, feedback
from minirlaif.training.optim import generator
from minirlaif.types import Sample

MODELS = {"policy": ("rlaif",), "sft": ("sft",), "best": ("sft", "reward")}  # that each way to answer uses


def run(cfg: Config, run: Run, who: str) -> None:
    """1. questions 2. answers 3. one row per question. who: "policy", "sft" or "best"."""
    settings = settings_of(cfg, "model", "video", "feedback", "rollout", "evaluate", sources=["test"])
    with run.stage("exam", {**settings, "who": who}, inputs=[run.producer(model) for model in MODELS[who]]) as out:
        if out is None:
            return
        # 1. questions
        tests = read_samples(cfg, run, "test", need_answers=False)
        with open_session(cfg, run, for_ppo=who == "best") as session:
            tests = readable(session, tests)
            # 2. answers
            if who == "best":
                answers = _best(session, run, tests)
            else:
                session.adapters.add(who, 0, run.adapter(MODELS[who][0]))
                answers = {who: evaluate.greedy_answers(session, who, tests, lambda row, view: view)}
            session.counted(out)
        # 3. rows
        with (out.path / "answers.jsonl").open("w", encoding="utf-8") as file:
            for number, row in enumerate(tests):
                truth = row.turns[0].answer
                asked = {"id": row.id, "video": stored(run, row.video), "question": row.turns[0].question, "truth": truth}
                said = {name: texts[number] for name, texts in answers.items()}
                file.write(json.dumps({**asked, **said}, ensure_ascii=False) + "\n")


def _best(session: ModelSession, run: Run, tests: Sequence[Sample]) -> dict[str, list[str]]:
    """Sampled SFT answers, and of the first n the one with the highest score; the reward model may read descriptions."""
    cfg, reward = session.cfg, run.adapter("reward")
    session.adapters.add("sft", 0, run.adapter("sft"))
    session.critic.adapters.add("reward", 0, reward)
    session.critic.adapters.load_head("reward", reward)
    with session.adapters.inference_as("sft"):
        told = feedback.describe(session, run, tests, {})
    contexts = {video: record["context"] if cfg.reward.context else "" for video, record in told.items()}
    texts: dict[str, list[str]] = {f"best_{n}": [] for n in BEST_OF}
    size = cfg.evaluate.batch_size
    for start in progress(range(0, len(tests), size), -(-len(tests) // size), "exam"):
        some = tests[start : start + size]
        asked = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in some]
        source, r = generator(cfg.seed, "exam", start), cfg.rollout
        with session.adapters.inference_as("sft"):
            drawn = sample(session.backbone, asked, BEST_OF[-1], r.temperature, 1.0, r.max_new_tokens, source)
        for completions, scores in zip(drawn, _scores(session.critic, some, drawn, contexts), strict=True):
            for n in BEST_OF:
                best = max(range(n), key=scores.__getitem__)
                texts[f"best_{n}"].append(session.backbone.renderer.decode(completions[best].ids))
    return texts


def _scores(
    critic: ModelSession, some: Sequence[Sample], drawn: Sequence[Sequence[Completion]], contexts: dict[str, str]
) -> list[list[float]]:
    """The reward model's scores of each row's answers."""
    rows = [
        critic.encode_pair(critic.video_input(row.video), row.turns[0].question, completion.ids, contexts[row.video])
        for row, completions in zip(some, drawn, strict=True)
        for completion in completions
    ]
    scores = [0.0] * len(rows)
    head = critic.adapters.heads["reward"]
    with critic.adapters.inference_as("reward"):
        for index in micro_batches([len(row) for row in rows], critic.cfg.rollout.batch_size):
            for place, score in zip(index, reward_scores(critic.backbone, head, [rows[i] for i in index]).tolist(), strict=True):
                scores[place] = score
    count = len(drawn[0])
    return [scores[start : start + count] for start in range(0, len(rows), count)]
