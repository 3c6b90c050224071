"""The child process that makes one arm: `python -m minirlaif.ablation.run_arm FOLDER`, with the config.yaml and arm.json there.

The last stage, exam, answers the test questions by the function of `evaluate`; nothing else of what `evaluate` does. Its file
exam/answers.jsonl has a row per question with one column for each way to answer: "policy", "sft", or "best_n" for the answer
with the highest reward score among the SFT model's first n.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from minirlaif import config
from minirlaif.algorithms.rollout import score_pairs
from minirlaif.config import RolloutSection
from minirlaif.data.preflight import Preflight, read_samples
from minirlaif.errors import UserError
from minirlaif.feedback.describe import SessionDescriber
from minirlaif.feedback.label import describe
from minirlaif.models.generation import sample
from minirlaif.models.seeds import generator
from minirlaif.runs import rounds
from minirlaif.runs.io import read_json
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.session import PPOModels, open_ppo_models, settings_of
from minirlaif.stages.evaluate import greedy_answers
from minirlaif.stages.registry import STAGES
from minirlaif.types import Sample

BEST_OF = (2, 4, 8)  # how many sampled answers the best is chosen from; arms.yaml names the columns
MODELS = {"policy": ("rlaif",), "sft": ("sft",), "best": ("sft", "reward")}  # who answers -> the models of the run that it uses


def main(folder: str) -> int:
    """Make the stages that are not finished. Exit code 2, with one line, for a UserError."""
    root, config_file = Path(folder), Path(folder, "config.yaml")
    try:
        arm, cfg = read_json(root / "arm.json"), config.load(config_file)
        run = Run(root, ("--config", str(config_file)))
        for name in arm["makes"]:
            rounds.record(run)
            if name == "exam":
                answer_questions(config_file, run, arm["exam"])
            elif not rounds.held_back(run, name):
                stage, where, seed = rounds.place(run, name, cfg.seed)
                STAGES[stage].load()(replace(cfg, seed=seed), where)
    except UserError as error:
        print(f"minirlaif: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return 0


def answer_questions(config_file: Path, run: Run, who: str) -> None:
    """The stage exam: 1. questions 2. answers 3. one row per question. config_file: the arm's settings; who: a key of MODELS."""
    cfg = config.load(config_file)
    sections = cfg.sections("model", "video", "feedback", "rollout", "evaluate")
    settings = settings_of(cfg.seed, cfg.data, ["test"], **sections) | {"who": who}
    with run.stage("exam", settings, inputs=[run.producer(model) for model in MODELS[who]]) as out:
        if out is None:
            return
        # 1. questions
        tests = read_samples(cfg.data, run, "test", need_answers=False, max_missing=cfg.video.max_unreadable)
        checks = Preflight(cfg.data, cfg.sft, cfg.reward)
        with open_ppo_models(run, cfg.model, cfg.video, checks, cfg.reference, cfg.reward) as models:
            session = models.policy
            tests = session.readable(tests)
            # 2. answers
            if who == "best":
                reward = run.adapter("reward")
                session.adapters.add("sft", 0, run.adapter("sft"))
                models.critic.adapters.add("reward", 0, reward)
                models.critic.adapters.load_head("reward", reward)
                with session.adapters.inference_as("sft"):
                    described = describe(SessionDescriber(session), cfg.feedback, run, tests, {})
                contexts = {video: row["context"] if cfg.reward.context else "" for video, row in described.items()}
                answers = _best(models, cfg.rollout, tests, contexts, cfg.evaluate.batch_size, cfg.seed)
            else:
                session.adapters.add(who, 0, run.adapter(MODELS[who][0]))
                answers = {who: greedy_answers(session, cfg.evaluate, who, tests)}
            models.add_counters(out)
        # 3. rows
        with (out.path / "answers.jsonl").open("w", encoding="utf-8") as file:
            for number, row in enumerate(tests):
                turn = row.turns[0]
                record = {"id": row.id, "video": run.stored(row.video), "question": turn.question, "truth": turn.answer}
                record |= {name: texts[number] for name, texts in answers.items()}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _best(
    models: PPOModels, section: RolloutSection, tests: Sequence[Sample], contexts: Mapping[str, str], size: int, seed: int
) -> dict[str, list[str]]:
    """Sampled SFT answers, and of the first n the one with the highest score. size: questions per batch."""
    session, critic, most = models.policy, models.critic, BEST_OF[-1]
    texts: dict[str, list[str]] = {f"best_{n}": [] for n in BEST_OF}
    for start in progress(range(0, len(tests), size), -(-len(tests) // size), "exam"):
        batch = tests[start : start + size]
        prompts = [session.encode_prompt(session.video_input(row.video), row.turns[0].question) for row in batch]
        source = generator(seed, "exam", start)
        with session.adapters.inference_as("sft"):
            drawn = sample(session.backbone, prompts, most, section.temperature, 1.0, section.max_new_tokens, source)
        rows = [
            critic.encode_pair(critic.video_input(row.video), row.turns[0].question, completion.ids, contexts[row.video])
            for row, completions in zip(batch, drawn, strict=True)
            for completion in completions
        ]
        with critic.adapters.inference_as("reward"):
            scores = score_pairs(critic, rows, section.batch_size)
        for number, completions in enumerate(drawn):
            for n in BEST_OF:
                ended = [place for place in range(n) if completions[place].stopped] or range(n)  # one that was cut is not chosen
                best = max(ended, key=lambda place: scores[number * most + place])
                texts[f"best_{n}"].append(session.backbone.renderer.decode(completions[best].ids))
    return texts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
