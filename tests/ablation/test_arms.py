"""`ablate`: what each arm's settings mean, loaded over configs/tiny-ppo.yaml, and what the texts say of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minirlaif import config
from minirlaif.ablation import runner
from minirlaif.ablation.arms import MAIN
from minirlaif.cli import main as cli
from minirlaif.config import Config
from minirlaif.runs.run import Run
from minirlaif.stages.registry import GROUP_METHODS, SAMPLING
from minirlaif.video.frame_sampling import segment_spans
from tests.fixtures import ablation_runs, small_config
from tests.fixtures.ablation_runs import arms_of, groups_of

CFG = config.load(small_config.TINY, ablation_runs.DISTILLED)
ARMS = {arm.name: arm for arm in arms_of(CFG)}
SECONDS = 4.0  # the longest clip: four events of one second


def of(name: str) -> Config:
    return config.load(small_config.TINY, [*ablation_runs.DISTILLED, *ARMS[name].changed])


def cut(name: str) -> list[float]:
    """Lengths of the segments of a clip of four events, in seconds."""
    video = of(name).video
    return [end - start for start, end in segment_spans(SECONDS, video.segment_seconds, video.max_segments)]


def test_the_bare_judge_sees_frames_instead_of_context_and_so_does_its_reward_model() -> None:
    bare = of("bare")
    assert not bare.feedback.context and bare.feedback.judge_frames  # neither would leave a judge that sees nothing
    assert not bare.reward.context
    assert CFG.feedback.context and not CFG.feedback.judge_frames and CFG.reward.context
    assert "feedback" in ARMS["bare"].makes  # verdicts of its own


def test_only_the_judge_differs_between_bare_and_reward_bare() -> None:
    """The second comparison about the context: same reward model input, same verdict rule, same PPO."""
    one, other = of("bare"), of("reward-bare")
    assert not other.reward.context and other.feedback == CFG.feedback
    assert (one.reward, one.ppo, one.rollout, one.data) == (other.reward, other.ppo, other.rollout, other.data)
    assert "feedback" in ARMS["reward-bare"].shares and "reward" in ARMS["reward-bare"].makes


def test_the_letter_arm_reads_letters_and_its_note_says_what_else_it_sets() -> None:
    letter, main = of("letter").feedback, CFG.feedback
    assert (letter.readout, letter.margin, letter.disagreement) == ("letter", 0.0, "average")
    assert (main.readout, main.margin) == ("likelihood", 0.2)
    note = next(group.note for group in groups_of(CFG) if group.name == "readout")
    assert "with the run's margin of 0.2 nats" in note and "A and B, with margin 0;" in note
    assert "their mean decides" in note and "An undecided pair counts one half" in note
    other = config.load(small_config.TINY, ["feedback.margin=0.05"])
    assert "margin of 0.05 nats" in next(group.note for group in groups_of(other) if group.name == "readout")


def test_how_the_longest_clip_is_cut_for_each_judge() -> None:
    """configs/tiny-ppo.yaml cuts it at its four events; that is what the claims call a segment for each event."""
    main = segment_spans(SECONDS, CFG.video.segment_seconds, CFG.video.max_segments)
    assert [end - start for start, end in main] == [1.0] * 4
    assert cut("segments-1") == cut("segments-1-whole") == [4.0]
    assert cut("segments-2") == [2.0, 2.0]
    assert cut("segments-fine") == [0.5] * 8
    for name in ("segments-1", "segments-1-whole", "segments-2", "segments-fine"):
        assert of(name).feedback.readout == "likelihood" and of(name).feedback.margin == CFG.feedback.margin
    # Up to four events are told at once, so there is room for them; a segment of one event keeps the main run's.
    assert of("segments-1").feedback.describe_tokens > CFG.feedback.describe_tokens
    assert of("segments-fine").feedback.describe_tokens == CFG.feedback.describe_tokens
    assert of("segments-1").feedback.describe_prompt == CFG.feedback.describe_prompt
    assert "the video" in of("segments-1-whole").feedback.describe_prompt


def test_sft_mixed_leaves_the_curriculum_and_nothing_else() -> None:
    mixed = of("sft-mixed")
    assert CFG.sft.curriculum and not mixed.sft.curriculum
    assert (mixed.sft.epochs, mixed.sft.learning_rate) == (CFG.sft.epochs, CFG.sft.learning_rate)
    assert ARMS["sft-mixed"].makes[0] == "sft" and ARMS["sft-mixed"].answered_by == "sft"


@pytest.mark.parametrize("pairs", [250, 1000])
def test_a_reward_model_sees_as_many_pairs_as_its_arm_says(pairs: int) -> None:
    arm = of(f"pairs-{pairs}")
    assert arm.data.preference_limit == pairs and CFG.data.preference_limit == 0
    assert arm.reward.context == CFG.reward.context and arm.feedback == CFG.feedback


PPO = ("bare", "reward-bare", "pairs-250", "pairs-1000", "short", "kl-0.01", "kl-0.1", "kl-0.3")


@pytest.mark.parametrize("name", PPO)
def test_every_arm_that_goes_through_ppo_takes_a_third_of_the_iterations(name: str) -> None:
    assert CFG.ppo.iterations == 30 and of(name).ppo.iterations == 10
    kl = float(name.removeprefix("kl-")) if name.startswith("kl-") else 0.03
    assert of(name).rollout.kl_coef == kl
    assert (of(name).sft, of(name).video, of(name).world) == (CFG.sft, CFG.video, CFG.world)


def test_no_other_arm_goes_through_ppo() -> None:
    whole = {"sft-ppo", "sft-distill-ppo"}  # which compare methods
    assert {name for name, arm in ARMS.items() if "ppo" in arm.makes} == {*PPO, *whole}
    assert all(of(name).ppo.iterations == CFG.ppo.iterations for name in whole)


# The verb.


def test_help_says_what_each_arm_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ablate", "--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("arms "))
    listed = dict(line.split(maxsplit=1) for line in lines[start + 1 : lines.index("", start)])
    # Whatever the run's own KL coefficient is, and whether it has SFT, every arm that there can be is in the list.
    others = arms_of(config.load(small_config.TINY, ["rollout.kl_coef=0.5"]))
    others += arms_of(config.load(small_config.NO_LABELS))
    others += arms_of(config.load(small_config.NO_LABELS, ["optimize.methods=[bestofn]"]))  # then `distill` is an arm
    assert set(listed) == {arm.name for arm in (*ARMS.values(), *others)}
    assert len(set(listed.values())) == len(listed) and max(map(len, lines)) <= 100
    text = " ".join(lines)
    assert "about an hour and a half on two cores with --jobs 2" in text and "finished arms are reused" in text


def given(runs_dir: Path, *more: str) -> list[str]:
    return ["ablate", "--config", str(small_config.TINY), "--runs-dir", str(runs_dir), *more]


def test_every_arm_has_the_seed_of_its_main_run(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of an arm that were made alike would count one measurement twice."""
    made = ablation_runs.make(runs_dir, (3, 5))
    configs: dict[str, Config] = {}

    def carried(jobs: Any, at_once: int, failed: dict[str, str]) -> Iterator[float]:
        for job in jobs:
            words = job.command()
            if words is not None and "minirlaif.ablation.run_arm" in words:
                configs[job.name] = config.load(Path(words[-1]) / "config.yaml")  # what the child reads
        yield 0.0

    monkeypatch.setattr(runner, "run_jobs", carried)
    monkeypatch.setattr(runner.report, "write", lambda *_: None)
    assert cli.main(given(runs_dir, "--seeds", "3,5", "--arms", "short,sft-mixed,letter", "--run", "again")) == 0
    assert {name: cfg.seed for name, cfg in configs.items()} == {
        f"seed {seed}, {arm}": seed for seed in made for arm in ("short", "sft-mixed", "letter")
    }


def test_an_arm_whose_own_stages_no_longer_fit_together_is_not_finished(runs_dir: Path) -> None:
    """sft-mixed makes its own SFT and feedback; when its SFT is made again, its feedback and its exam are of another model."""
    main = ablation_runs.make(runs_dir)[0][MAIN]
    run = Run(runs_dir / "ablation" / "seed0" / "mixed")
    here = runner.ArmRun(0, ARMS["sft-mixed"], config.dump(of("sft-mixed")), run, main)
    assert runner._arm_job(here).command() is not None

    def make(stage: str, content: str, inputs: list[str]) -> None:
        with run.stage(stage, {}, inputs, redo=True) as out:
            (out.path / "said.txt").write_text(content)  # type: ignore[union-attr]

    make("sft", "one", ["world"])
    make("feedback", "one", ["sft"])
    make("exam", "one", ["sft"])
    assert runner._finished(here) and runner._arm_job(here).command() is None
    make("sft", "two", ["world"])
    assert not runner._finished(here) and runner._arm_job(here).command() is not None
    make("feedback", "two", ["sft"])
    assert not runner._finished(here)  # the exam is still of the first
    make("exam", "two", ["sft"])
    assert runner._finished(here)


def test_a_run_without_sft_has_the_arms_and_claims_that_it_can_have() -> None:
    """Of configs/tiny-nolabels.yaml: no reward model and no PPO, so the arms are other methods from the base."""
    cfg = config.load(small_config.NO_LABELS)
    methods = {"ppo", "rloo", "grpo", "dr-grpo", "dpo", "bestofn", "distill-ppo", "then-ppo", "distill-dpo", "rounds"}
    assert {arm.name for arm in arms_of(cfg)} == {"part", *methods}
    assert not {"part", *methods} & {arm.name for arm in ARMS.values()}  # nor does a run with SFT have these
    questions = {group.name: group for group in groups_of(cfg)}
    (claim,) = questions["base"].claims
    assert claim == ("The aligned model is better than the base", "rlaif", "base")
    measures = [measure for group in questions.values() for measure in group.measures]
    assert not [measure for measure in measures if measure.column == "sft" or measure.counts == "reward"]


def test_methods_from_the_base_get_as_many_sampled_answers() -> None:
    """Main run: an answer from the frames and one with the descriptions, to 12,000 questions. Methods that sample: 30 batches of
    128 answers, and feedback on 10,080 questions. Two rounds: twice as many."""
    cfg = config.load(small_config.NO_LABELS)
    known = {arm.name: arm for arm in arms_of(cfg)}
    each = cfg.feedback.answers + cfg.feedback.context_answers
    total = cfg.world.prompt_clips * cfg.world.questions_per_clip * each
    assert total == 24_000
    for name, arm in known.items():
        here = config.load(small_config.NO_LABELS, arm.changed)
        of_feedback = (here.feedback.limit or total // each) * each
        sampled = {"ppo": here.ppo.iterations, "group": here.group.iterations}
        learned = [sampled["ppo" if method == "ppo" else "group"] for method in here.optimize.methods if method in SAMPLING]
        assert here.optimize.rounds == (2 if name == "rounds" else 1)
        if name == "then-ppo":
            assert of_feedback == total and arm.source == MAIN
        elif name != "part":
            assert of_feedback + sum(learned) * here.rollout.rollouts == total, name
            assert arm.source == ("part" if learned else MAIN)
        assert (here.rollout.samples_per_prompt > 1) == bool(set(here.optimize.methods) & set(GROUP_METHODS))
    part, ppo = (config.load(small_config.NO_LABELS, known[name].changed) for name in ("part", "ppo"))
    assert known["part"].makes == ("feedback", "reward") and part == ppo  # what one makes is what the other would make


def test_an_arm_that_was_chosen_brings_the_one_whose_stages_it_shares() -> None:
    known = arms_of(config.load(small_config.NO_LABELS))
    assert [arm.name for arm in runner._chosen(known, "grpo")] == ["part", "grpo"]
    assert [arm.name for arm in runner._chosen(known, "dpo")] == ["dpo"]


def test_the_main_runs_can_be_made_without_any_arm() -> None:
    known = arms_of(config.load(small_config.NO_LABELS))
    assert runner._chosen(known, MAIN) == []
    assert [arm.name for arm in runner._chosen(known, "main,dpo")] == ["dpo"]
    assert runner._chosen(known, "") == list(known)


def test_an_arm_that_is_the_main_run_once_more_is_not_made_again() -> None:
    """configs/tiny.yaml learns the best answers, as the arm sft-bestofn does: its figure is the main run's."""
    cfg = config.load(small_config.TINY.with_name("tiny.yaml"))
    names = {arm.name for arm in arms_of(cfg)}
    assert "sft-bestofn" not in names and {"sft-distill", "sft-ppo", "sft-grpo", "sft-distill-ppo", "own-judge"} <= names
    measures = {group.name: {each.key: each for each in group.measures} for group in groups_of(cfg)}
    for place in (measures["methods-sft"]["bestofn"], measures["judge"]["model"]):
        assert (place.arm, place.column) == (MAIN, "rlaif")
    other = config.load(small_config.TINY.with_name("tiny.yaml"), ["optimize.methods=[distill]"])
    assert "sft-bestofn" in {arm.name for arm in arms_of(other)}


def test_methods_from_sft_get_as_many_sampled_answers() -> None:
    """Main run: three answers to 6,000 questions. Those that sample have 30 batches of 128, and feedback on 4,680 questions,
    whole batches of 120 that leave at least as many."""
    file = small_config.TINY.with_name("tiny.yaml")
    cfg = config.load(file)
    each = cfg.feedback.answers + cfg.feedback.context_answers
    total = cfg.world.prompt_clips * cfg.world.questions_per_clip * each
    assert (each, total) == (3, 18_000)
    for name in ("sft-ppo", "sft-grpo", "sft-distill-ppo", "sft-distill"):
        arm = next(arm for arm in arms_of(cfg) if arm.name == name)
        here = config.load(file, arm.changed)
        learned = sum({"ppo": here.ppo, "grpo": here.group}[m].iterations for m in here.optimize.methods if m in SAMPLING)
        of_feedback = (here.feedback.limit or total // each) * each
        assert total - each * cfg.feedback.batch_size < of_feedback + learned * here.rollout.rollouts <= total, name
        assert (here.rollout.samples_per_prompt == 4) == (name == "sft-grpo")
        patience = {section: getattr(here, section).patience for section in ("distill", "dpo", "ppo", "group")}
        assert set(patience.values()) == {0}  # none ends early
    assert cfg.ppo.patience == 2  # as the main run's own would


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny-ppo.yaml", "tiny-nolabels.yaml"])
def test_the_settings_of_every_arm_fit_together(name: str) -> None:
    """All are read before the first main run; one that does not fit refuses `ablate` as a whole."""
    file = small_config.TINY.with_name(name)
    for arm in arms_of(config.load(file)):
        here = config.load(file, arm.changed)
        if arm.name == "bare":  # without descriptions no answer reads them; as many as in the main run are compared
            assert (here.feedback.answers, here.feedback.context_answers) == ({"tiny.yaml": 3, "tiny-ppo.yaml": 4}[name], 0)


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny-nolabels.yaml"])
def test_group_methods_sample_as_many_answers_as_ppo(name: str) -> None:
    cfg = config.load(small_config.TINY.with_name(name))
    assert cfg.group.iterations == cfg.ppo.iterations == 30


def test_an_arm_makes_a_stage_that_the_main_run_lacks() -> None:
    """PPO from the distilled model needs a reward model, which comes before distillation and which distillation does without."""
    arm = next(arm for arm in arms_of(config.load(small_config.NO_LABELS)) if arm.name == "then-ppo")
    assert arm.shares == ("world", "feedback", "distill") and arm.makes == ("reward", "ppo", "exam")
