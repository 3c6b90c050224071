"""What the ablation compares: its arms, and for each question the figures to show and the claims to decide.

An arm is the run `main` of a seed with some settings changed. It makes only the stages that these settings touch and takes the
others from the main run. Where an arm goes through PPO, it takes a third of the main run's iterations, and so does the arm that
it is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minirlaif.config import FeedbackSection, PpoSection, RolloutSection, VideoSection, WorldSection
from minirlaif.stages.registry import until

MAIN = "main"
BEST_OF = (2, 4, 8)
KL = (0.01, 0.03, 0.1, 0.3)
PAIRS = (250, 1000)
# What a figure counts, each between 0 and 1 per item.
ANSWERS, JUDGE, REWARD, SEGMENTS = "answers", "judge", "reward", "segments"
COUNTS = {
    JUDGE: "pairs judged right (undecided: half)",
    REWARD: "held-out pairs scored right",
    SEGMENTS: "segments described right",
    ANSWERS: "test questions answered right",
}

# What `ablate --help` says about each arm.
ABOUT = {
    "bare": "judge sees frames instead of descriptions, reward model frames alone; then PPO",
    "sft-mixed": "SFT without the curriculum, its segment descriptions, its answers",
    "reward-bare": "reward model without descriptions, verdicts of the main run; then PPO",
    **{f"pairs-{n}": f"reward model on {n:,} preference pairs; then PPO" for n in reversed(PAIRS)},
    "short": "PPO alone, nothing else changed: the baseline of the other arms with PPO",
    **{f"kl-{kl:g}": f"PPO alone, KL coefficient {kl:g}" for kl in KL},
    "best": f"no PPO: best of {', '.join(map(str, BEST_OF))} SFT answers by the reward model",
    "segments-1": "judge reads each clip described as one segment",
    "segments-1-whole": "the same, asked to describe the video instead of a part",
    "segments-2": "judge reads each clip described as two segments",
    "segments-fine": "judge reads each clip described in segments of half the length",
    "letter": "judge answers A or B (margin 0, orders averaged) instead of likelihoods",
}


@dataclass(frozen=True)
class Arm:
    """One way to run the pipeline. answered_by: who answers the test questions at the end, "policy", "sft" or "best" (the best of
    several SFT answers by the reward model); "": no one. weight: about how many seconds it takes on one busy core."""

    name: str
    changed: tuple[str, ...]  # settings, section.field=value
    shares: tuple[str, ...]  # stages of the main run
    makes: tuple[str, ...]  # stages of its own, in order
    answered_by: str = ""
    weight: int = 60


@dataclass(frozen=True)
class Measure:
    """One figure of a group: of which arm, what is counted, and which column of the arm's file is read."""

    key: str
    label: str
    arm: str
    counts: str  # a key of COUNTS
    column: str = ""


@dataclass(frozen=True)
class Claim:
    """That one measure of a group is better than another one."""

    text: str
    better: str
    worse: str


@dataclass(frozen=True)
class Group:
    """One question."""

    name: str
    title: str
    note: str
    measures: tuple[Measure, ...]
    claims: tuple[Claim, ...]


def arms(
    world: WorldSection, video: VideoSection, feedback: FeedbackSection, rollout: RolloutSection, ppo: PpoSection
) -> tuple[Arm, ...]:
    """All arms but the main run, whose sections are given, in the order in which they are made: long ones first."""
    short = f"ppo.iterations={max(1, round(ppo.iterations / 3))}"
    # Whole batches of prompts, a fifth of all: then an arm's pairs are the main run's, answer by answer.
    size, prompts = feedback.batch_size, world.prompt_clips * world.questions_per_clip
    fifth = f"feedback.limit={size * math.ceil(prompts / 5 / size)}"
    bare, any_reward = "reward.context=false", "reward.min_accuracy=0"
    to_reward, to_ppo = ("reward", "ppo", "exam"), ("ppo", "exam")
    upto_sft, upto_feedback, upto_reward = (until(name) for name in ("sft", "feedback", "reward"))

    def judged(name: str, *changed: str) -> Arm:
        return Arm(name, (*changed, fifth), upto_sft, ("feedback",))

    def trained(name: str, weight: int, *changed: str) -> Arm:
        return Arm(name, (*changed, any_reward, short), upto_feedback, to_reward, "policy", weight)

    def only_ppo(name: str, *changed: str) -> Arm:
        return Arm(name, (*changed, short), upto_reward, to_ppo, "policy", 140)

    one, long, other = "video.max_segments=1", "feedback.describe_tokens=40", "feedback.describe_prompt=describe the video."
    letter = ("feedback.readout=letter", "feedback.margin=0", "feedback.disagreement=average")
    no_context = ("feedback.context=false", "feedback.judge_frames=true", bare, any_reward, short)
    return (
        Arm("bare", no_context, upto_sft, ("feedback", *to_reward), "policy", 400),
        Arm("sft-mixed", ("sft.curriculum=false", fifth), ("world",), ("sft", "feedback", "exam"), "sft", 220),
        trained("reward-bare", 230, bare),
        *(trained(f"pairs-{n}", 150 + n // 25, f"data.preference_limit={n}") for n in reversed(PAIRS)),
        only_ppo("short"),
        *(only_ppo(f"kl-{kl:g}", f"rollout.kl_coef={kl:g}") for kl in KL if kl != rollout.kl_coef),
        Arm("best", (), upto_reward, ("exam",), "best", 80),
        judged("segments-1", one, long),
        judged("segments-1-whole", one, long, other),
        judged("segments-2", "video.max_segments=2", long),
        judged("segments-fine", f"video.segment_seconds={video.segment_seconds / 2:g}"),
        judged("letter", *letter),
    )


def listing() -> str:
    """What `ablate --help` prints below its flags."""
    wide = max(map(len, ABOUT))
    return "\n".join(
        [
            "arms (PPO: a third of the main run's iterations; kl-… of its own coefficient is short):",
            *(f"  {name:<{wide}}  {line}" for name, line in ABOUT.items()),
            "",
            "All arms of three seeds take about an hour and a half on two cores with --jobs 2. Main runs",
            "seed0, seed1 … that are finished are taken over, others are made first; finished arms are kept.",
        ]
    )


CONTEXT = Group(
    "context",
    "Does the judge need the context?",
    "The judge is the SFT model itself. With context it reads the segment descriptions, without it sees the frames. In the"
    " second comparison neither reward model reads descriptions, so the arms differ in the judge alone; it decides fewer"
    " pairs without context, and it also picks the checkpoint: iteration 0 is the SFT model itself.",
    (
        Measure("judge", "Judge with context", MAIN, JUDGE),
        Measure("judge-bare", "Judge without context", MAIN, JUDGE, "without_context"),
        Measure("model", "Model, verdicts with context", "reward-bare", ANSWERS, "policy"),
        Measure("model-bare", "Model, verdicts without context", "bare", ANSWERS, "policy"),
    ),
    (
        Claim("With the segment descriptions the judge is right more often", "judge", "judge-bare"),
        Claim("Verdicts with context make the better model", "model", "model-bare"),
    ),
)


SEGMENT_COUNT = Group(
    "segments",
    "How many segments should the context have?",
    "Clips hold two to four events of one second. Every segment is described from the same number of frames. A clip as one"
    " segment is measured twice: with the prompt for a part, as for all segments, and with a prompt for the video.",
    (
        Measure("segments-1", "One segment", "segments-1", JUDGE),
        Measure("segments-1-whole", "One segment, prompt for the video", "segments-1-whole", JUDGE),
        Measure("segments-2", "Two segments", "segments-2", JUDGE),
        Measure(MAIN, "A segment for each event", MAIN, JUDGE),
        Measure("segments-fine", "Two segments for each event", "segments-fine", JUDGE),
    ),
    (
        Claim("A segment for each event makes a better judge than one segment", MAIN, "segments-1"),
        Claim("It is also better than one segment with a prompt for the video", MAIN, "segments-1-whole"),
        Claim("A segment for each event makes a better judge than two segments", MAIN, "segments-2"),
        Claim("Segments shorter than the events make a worse judge", MAIN, "segments-fine"),
    ),
)


MORE_PAIRS = Group(
    "pairs",
    "Do more preference pairs help?",
    "One epoch over the pairs, so fewer pairs also mean fewer steps. Pairs are drawn from all training pairs; the held-out"
    " ones are the same for all. Counted are those of which exactly one answer is true.",
    (
        *(Measure(f"reward-{n}", f"Reward model, {n:,} pairs", f"pairs-{n}", REWARD) for n in PAIRS),
        Measure("reward", "Reward model, all pairs", MAIN, REWARD),
        *(Measure(f"model-{n}", f"Model, {n:,} pairs", f"pairs-{n}", ANSWERS, "policy") for n in PAIRS),
        Measure("model", "Model, all pairs", "short", ANSWERS, "policy"),
    ),
    (
        Claim(f"{PAIRS[1]:,} pairs make a better reward model than {PAIRS[0]:,}", f"reward-{PAIRS[1]}", f"reward-{PAIRS[0]}"),
        Claim(f"All pairs make a better reward model than {PAIRS[1]:,}", "reward", f"reward-{PAIRS[1]}"),
        Claim(f"{PAIRS[1]:,} pairs make a better model than {PAIRS[0]:,}", f"model-{PAIRS[1]}", f"model-{PAIRS[0]}"),
        Claim(f"All pairs make a better model than {PAIRS[1]:,}", "model", f"model-{PAIRS[1]}"),
    ),
)


CURRICULUM = Group(
    "curriculum",
    "Does the curriculum help SFT?",
    "Short answers first, then long ones, against the same rows mixed, for as many epochs. Segments are those of prompts.",
    (
        Measure("sft", "SFT, curriculum", MAIN, ANSWERS, "sft"),
        Measure("sft-mixed", "SFT, mixed", "sft-mixed", ANSWERS, "sft"),
        Measure("told", "Segments, curriculum", MAIN, SEGMENTS),
        Measure("told-mixed", "Segments, mixed", "sft-mixed", SEGMENTS),
    ),
    (
        Claim("After the curriculum more test questions are answered right", "sft", "sft-mixed"),
        Claim("After the curriculum more segments are described right", "told", "told-mixed"),
    ),
)


BEST_ANSWER = Group(
    "best-of",
    "Is PPO better than choosing the best of several answers?",
    "Best of n: the SFT model answers n times and describes the segments, and the reward model picks; that costs n answers"
    " and the descriptions at every question. PPO is the main run, all iterations, one greedy answer, no descriptions.",
    (
        Measure("base", "Base, before SFT", MAIN, ANSWERS, "base"),
        Measure("sft", "SFT", MAIN, ANSWERS, "sft"),
        *(Measure(f"best-{n}", f"Best of {n} by the reward model", "best", ANSWERS, f"best_{n}") for n in BEST_OF),
        Measure("ppo", "PPO", MAIN, ANSWERS, "rlaif"),
    ),
    (
        Claim(f"The best of {BEST_OF[-1]} answers by the reward model is better than SFT", f"best-{BEST_OF[-1]}", "sft"),
        Claim("PPO is better than SFT", "ppo", "sft"),
        Claim(f"PPO is better than the best of {BEST_OF[-1]} answers", "ppo", f"best-{BEST_OF[-1]}"),
        Claim("PPO is better than the base before SFT", "ppo", "base"),
    ),
)


REWARD_INPUT = Group(
    "reward-input",
    "Should the reward model read the context?",
    "The same verdicts, made with context; the reward model reads the segment descriptions beside the frames, or frames"
    " alone as in the paper's code.",
    (
        Measure("reward", "Reward model with context", MAIN, REWARD),
        Measure("reward-bare", "Reward model without", "reward-bare", REWARD),
        Measure("model", "Model, reward with context", "short", ANSWERS, "policy"),
        Measure("model-bare", "Model, reward without", "reward-bare", ANSWERS, "policy"),
    ),
    (
        Claim("With context in its input the reward model is right more often", "reward", "reward-bare"),
        Claim("With context in the reward model's input PPO gives a better model", "model", "model-bare"),
    ),
)


def _readout(margin: float) -> Group:
    # Not the read-out alone: a margin in nats per token means nothing to the log-odds of letters, and dropping pairs whose orders
    # differ would leave hardly any.
    return Group(
        "readout",
        "How should the verdict be read?",
        f"Likelihood: the mean log-likelihood of each answer, with the run's margin of {margin:g} nats per token, below which a"
        " pair is undecided. Letter: the logits of A and B, with margin 0; where the two orders differ their mean decides, since"
        " this model's orders hardly ever agree. An undecided pair counts one half, so the margin moves the figure too: this"
        " compares the two read-outs with these settings.",
        (Measure(MAIN, "Likelihood", MAIN, JUDGE), Measure("letter", "Letter", "letter", JUDGE)),
        (Claim("The likelihood read-out is right more often than the letter", MAIN, "letter"),),
    )


def _kl(main: float) -> Group:
    measures = [
        Measure(f"{kl:g}", f"KL coefficient {kl:g}", "short" if kl == main else f"kl-{kl:g}", ANSWERS, "policy")
        for kl in sorted({*KL, main})
    ]
    claims = [Claim(f"KL coefficient {kl:g} is worse than {main:g}", f"{main:g}", f"{kl:g}") for kl in KL if kl != main]
    note = f"The coefficient of the KL penalty per token; this run's is {main:g}, the paper's 0.1."
    return Group("kl", "Which KL coefficient?", note, tuple(measures), tuple(claims))


def groups(margin: float, kl_coef: float) -> tuple[Group, ...]:
    """The eight questions, in the order of the report. margin: feedback.margin of the main run; kl_coef: its rollout.kl_coef."""
    return (CONTEXT, SEGMENT_COUNT, MORE_PAIRS, CURRICULUM, BEST_ANSWER, REWARD_INPUT, _readout(margin), _kl(kl_coef))
