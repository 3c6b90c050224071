"""Stage `evaluate`: held-out answers of base, SFT (where there is one) and aligned model; the first stage that reads the truth.

Out: answers.jsonl (a row per test question with every model's answer), strips/ (frames for the report), result.json.
Controls: the same models on blank frames and on frames in a wrong order. Of a run with further rounds the model of every round
answers, as "round-1" and so on; that of the round which counts as "rlaif". Questions without a true answer (a user's own
clips) count in no accuracy; where none has one, the answers are written side by side and no accuracy is given.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, zip_longest
from typing import Any

from minirlaif.config import Config, EvaluateSection
from minirlaif.config.seeds import seed_of
from minirlaif.data.dataset import fingerprint, load_preferences, load_samples
from minirlaif.data.left_out import RowRules
from minirlaif.data.preflight import Preflight, read_samples
from minirlaif.errors import UserError
from minirlaif.models.feature_cache import blank_features
from minirlaif.models.seeds import shuffled
from minirlaif.reports import against_truth, run_results
from minirlaif.reports.against_truth import Truth
from minirlaif.runs import gains
from minirlaif.runs.progress import progress
from minirlaif.runs.records import COUNTS
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import ModelSession, VideoInput, open_session, settings_of
from minirlaif.stages.registry import MODELS, STAGES, first_reader
from minirlaif.stats import exact_match, guess_rate, paired_bootstrap
from minirlaif.types import Preference, Sample
from minirlaif.video.reader import UnreadableClip
from minirlaif.video.spans import file_of

CONTROLS = ("blind", "shuffled")
PARTS_BEFORE = ("sft", "prompts", "dev", "preferences")  # parts of the data that stages before the test read
SAMPLE_EVERY = 25  # of so many test rows one stands in samples.jsonl


def run(cfg: Config, run: Run, redo: bool = False) -> None:
    """1. models and questions 2. answers of every model and control 3. accuracy, intervals 4. judge and reward against truth."""
    settings = settings_of(cfg.seed, cfg.data, STAGES["evaluate"].reads, **cfg.sections(*STAGES["evaluate"].sections))
    with run.stage("evaluate", settings, inputs=run.inputs("evaluate"), redo=redo) as out:
        if out is None:
            return
        # 1. models and questions
        truth = _truth(run) if cfg.data.world else {}
        earlier = _against_truth(run, truth) if cfg.data.world else {}  # read first: what is wrong with it costs no answers
        tests = read_samples(cfg.data, run, "test", need_answers=False, max_missing=cfg.video.max_unreadable)
        with open_session(run, cfg.model, cfg.video, Preflight(cfg.data, cfg.sft, cfg.reward)) as session:
            models = tuple(model for model in MODELS if model in (*run.adapters(), "base"))
            for model in run.adapters():
                session.adapters.add(model, 0, run.adapter(model))
            others = _other_rounds(run)
            for name, stage in others.items():
                session.adapters.add(name, 0, run.require(stage) / "adapter")
            tests = session.readable(tests)
            session.record_clips(run, out, tests)
            # 2. answers
            first, state = out.resume() or (0, None)
            answers: dict[str, list[str]] = json.loads((state / "answers.json").read_text()) if state else {}
            blanks: dict[Any, Any] = {}
            jobs = [(model, model, "") for model in models]
            jobs += [(f"{model}_{control}", model, control) for model in models for control in CONTROLS]
            jobs += [(name, name, "") for name in others]
            for number, (name, model, control) in enumerate(
                progress(jobs[first:], len(jobs), "evaluate", initial=first), first + 1
            ):
                texts = greedy_answers(
                    session, cfg.evaluate, model, tests, partial(_controlled, session, cfg.seed, control, blanks)
                )
                answers[name], words = texts, sum(len(text.split()) for text in texts) / max(1, len(texts))
                out.log(number, answers=name, different=len(set(texts)), words=words)
                session.add_counters(out)
                out.commit_state(number, lambda folder: (folder / "answers.json").write_text(json.dumps(answers)))
            _write(out, run, session, tests, answers, cfg.evaluate.gallery)
            seen = seen_before(session, run, tests)
            session.add_counters(out)
        # 3. accuracy and intervals
        known = [number for number, row in enumerate(tests) if row.turns[0].answer]
        result: dict[str, Any] = {"test_items": len(tests), "test_clips": len({row.video for row in tests}), "seed": cfg.seed}
        result |= {"test_clips_seen_before": seen, "answered_items": len(known)}
        if known:
            scored = {name: [texts[number] for number in known] for name, texts in answers.items()}
            answered = [tests[number] for number in known]
            result |= _accuracy(answered, scored, truth, cfg.evaluate.bootstrap, seed_of(cfg.seed, "bootstrap"))
        # 4. judge and reward model against truth
        result |= earlier
        (out.path / "result.json").write_text(json.dumps(result, indent=1))
        figures = [name for name in ("accuracy_gain", "gain_over_base") if name == "accuracy_gain" or "sft" not in run.stages]
        out.summary.update({name: result.get(name) for name in ("accuracy", *figures)})


def _other_rounds(run: Run) -> dict[str, str]:
    """The last methods of the rounds that do not count, by the name under which their models answer."""
    counts = run.producer("rlaif")
    return {f"{gains.FOLDER}{number}": stage for number, stage in run.scored_rounds().items() if stage != counts}


def _against_truth(run: Run, truth: Truth) -> dict[str, Any]:
    """The judge, the reward model and the segment descriptions of a run on the tiny world; those of its rounds by number.
    UserError: rows of an earlier stage are not such rows, or are about nothing that the world knows."""
    result = _judged(run, "feedback", truth)
    rounds = {str(number): _judged(run, gains.name_of(number, "feedback"), truth) for number in run.scored_rounds()}
    result |= {"rounds": rounds} if rounds else {}
    if "reward" not in run.stages:
        return result
    run.require("reward")
    scored = run.rows("reward", "held_out.jsonl", "id", "chosen", "rejected", "score_chosen", "score_rejected")
    trained = run.metrics("reward", "accuracy", "accuracy_by_type", "bias")
    return result | {"reward_model": against_truth.reward(scored, trained, truth)}


def _judged(run: Run, stage: str, truth: Truth) -> dict[str, Any]:
    """The judge and the segment descriptions of one round's feedback."""
    feedback = run.require(stage)
    verdicts = run.rows(stage, "verdicts.jsonl", "id", "answer_a", "answer_b", "choice")
    for number, row in enumerate(verdicts, start=1):
        if row["id"].split("#")[0] not in truth:
            what = f"{feedback / 'verdicts.jsonl'}: row {number}, id: no question of the world"
            raise UserError(f"{what}; make the stage again: `{run.remake(stage)}`")
    return {
        "judge": against_truth.judge(verdicts, run.metrics(stage, *COUNTS), truth),
        "context": against_truth.segments(run.rows(stage, "contexts.jsonl", "video", "segments"), truth),
    }


def _truth(run: Run) -> Truth:
    run.require("world")
    return {row["id"]: row for row in run.rows("world", "truth.jsonl", "id", "video", "type", "key", "answer", "segments")}


def _controlled(
    session: ModelSession, seed: int, control: str, blanks: dict[Any, Any], row: Sample, view: VideoInput
) -> VideoInput:
    """What becomes of a video input: unchanged, blank, or with its frames in another order."""
    if control == "blind":
        return replace(view, features=blank_features(session.feature_cache, len(view.times), view.size, blanks))
    if control == "shuffled":
        order = shuffled(len(view.times), seed, "frames", row.id)
        return replace(view, features=session.backbone.reordered(view.features, order))
    return view


def greedy_answers(
    session: ModelSession,
    section: EvaluateSection,
    role: str,
    tests: Sequence[Sample],
    change: Callable[[Sample, VideoInput], VideoInput] = lambda row, view: view,
) -> list[str]:
    """Greedy answers, in the order of the questions. change: makes another video input of a question's own."""
    questions = ((change(row, session.video_input(row.video)), row.turns[0].question) for row in tests)
    with session.adapters.inference_as(role):
        return session.greedy_answers(questions, section.max_new_tokens, section.batch_size)


def _write(
    out: StageDir, run: Run, session: ModelSession, tests: Sequence[Sample], answers: Mapping[str, list[str]], gallery: int
) -> None:
    (out.path / "strips").mkdir(exist_ok=True)
    strips: dict[str, str] = {}  # clip -> its picture
    shown = _gallery(tests, answers, gallery)
    with (out.path / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(tests):
            if row.video in shown and row.video not in strips:
                strips[row.video] = f"strips/{len(strips):03d}.jpg"
                (out.path / strips[row.video]).write_bytes(session.strip(row.video))
            record = {
                "id": row.id,
                "video": run.stored(row.video),
                "type": row.tags.get("type", ""),
                "question": row.turns[0].question,
                "truth": row.turns[0].answer,
                "strip": strips.get(row.video, ""),
                **{name: texts[number] for name, texts in answers.items()},
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            if number % SAMPLE_EVERY == 0:
                out.sample({name: record[name] for name in ("video", "question", "truth", *MODELS) if name in record})


def _gallery(tests: Sequence[Sample], answers: Mapping[str, list[str]], wanted: int) -> set[str]:
    """Clips whose frames are kept: in turn one of each kind of question, so that no kind goes without."""
    kinds: dict[str, list[str]] = {name: [] for name in run_results.KINDS}
    start = answers.get("sft", answers["base"])
    for row, before, rlaif in zip(tests, start, answers["rlaif"], strict=True):
        kinds[run_results.kind({"truth": row.turns[0].answer, "base": before, "rlaif": rlaif})].append(row.video)
    turns = (clip for turn in zip_longest(*map(dict.fromkeys, kinds.values())) for clip in turn if clip)
    return set(islice(dict.fromkeys(turns), wanted))


def seen_before(session: ModelSession, run: Run, tests: Sequence[Sample]) -> int | None:
    """How many clips of the test are clips that an earlier stage read, byte for byte: a copy under another name counts too, and
    so does another part of the same file.
    None when that can no longer be known, because a file of rows or a clip is gone, or was changed since."""
    try:
        parts = [part for part in PARTS_BEFORE if first_reader(part) in run.stages]
        earlier = set().union(*(_clips(run, first_reader(part), part) for part in parts))
    except UserError:
        return None
    ids = set()
    for video in sorted(earlier):
        try:
            ids.add(session.feature_cache.info(video).id)
        except UnreadableClip:  # so it was left out then (video.max_unreadable)
            continue
    return sum(session.feature_cache.info(file_of(video)).id in ids for video in {row.video for row in tests})


def _clips(run: Run, stage: str, part: str) -> set[str]:
    """Clips of the rows that a finished stage read, as its manifest names them. UserError when the rows are no longer those."""
    manifest = run.manifest(stage)
    if manifest is None:
        raise UserError(f"{run.dir(stage)}: does not exist")
    data = manifest["config"]["data"]
    rows: list[Sample | Preference] = []
    if data["world"] and part != "preferences":
        rows += load_samples(str(run.require("world") / f"{part}.jsonl"), need_answers=False)
    for source in data[part]:
        if fingerprint(source, data["videos"]) != data["sha256"][source]:
            raise UserError(f"{source}: has changed since {stage} read it")
        missing = manifest["config"].get("video", {}).get("max_unreadable", 0.0)
        rules = RowRules(data.get("ignore_columns", ()), max_bad=1.0, max_missing=missing)  # what was left out then, still is
        if part == "preferences":
            rows += load_preferences(source, data["videos"], rules)
        else:
            rows += load_samples(source, data["videos"], False, rules)
    return {file_of(os.path.abspath(row.video)) for row in rows}


# From here on rows and numbers only.


def _accuracy(
    tests: Sequence[Sample], answers: Mapping[str, Sequence[str]], truth: Truth, resamples: int, seed: int
) -> dict[str, Any]:
    """Share of right answers by model, also by question type, the gains of "rlaif" over "sft" and "base", and of each model over
    itself on blank frames."""
    right = {
        name: [float(exact_match(text, row.turns[0].answer or "")) for text, row in zip(texts, tests, strict=True)]
        for name, texts in answers.items()
    }
    keys: dict[str, list[str]] = {}
    by_type: dict[str, dict[str, float]] = {}
    known: dict[str, list[str]] = {}  # what a guesser may know: how often answers come up on other clips
    for fact in truth.values():
        known.setdefault(fact["type"], []).append(fact["key"])
    for row in tests:
        keys.setdefault(row.tags.get("type", "all"), []).append(row.tags.get("key", row.turns[0].answer or ""))
    for kind in keys:
        index = [i for i, row in enumerate(tests) if row.tags.get("type", "all") == kind]
        by_type[kind] = {name: sum(hits[i] for i in index) / len(index) for name, hits in right.items()} | {"n": len(index)}

    def gain(new: str, old: str) -> dict[str, float]:
        clusters: dict[str, list[float]] = {}
        for row, a, b in zip(tests, right[new], right[old], strict=True):
            clusters.setdefault(file_of(row.video), []).append(a - b)
        mean, low, high = paired_bootstrap(clusters, resamples, seed)
        return {"mean": mean, "ci95_low": low, "ci95_high": high}

    accuracy = {name: sum(hits) / len(hits) for name, hits in right.items()} | {"guess": guess_rate(keys, known)}
    return {
        "accuracy": accuracy,
        "accuracy_by_type": by_type,
        "guess_with_hindsight": guess_rate(keys),  # constants read off the test truths themselves, which nobody can know
        **({"accuracy_gain": gain("rlaif", "sft")} if "sft" in right else {}),
        "gain_over_base": gain("rlaif", "base"),
        "gain_over_blank": {name: gain(name, f"{name}_blind") for name in MODELS if f"{name}_blind" in right},
    }
