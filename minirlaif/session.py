"""What every stage works with: an open backbone with its adapters, the clips' features, and prompts made of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minirlaif import distributed
from minirlaif.config import DataSection, ModelSection, ReferenceSection, RewardSection, VideoSection, recorded
from minirlaif.data import preflight
from minirlaif.data.dataset import fingerprint
from minirlaif.data.preflight import Preflight, Row
from minirlaif.errors import UserError
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.feature_cache import MEMORY, VisionFeatureCache, offloaded_vision
from minirlaif.models.generation import Completion, greedy
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import base_hash, check_tokenizers, critic_model, hub_commit, open_backbone
from minirlaif.models.logprobs import EncodedPair
from minirlaif.models.renderer import FrameLayout
from minirlaif.runs import clips
from minirlaif.runs.database import database_errors
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.types import Preference, Sample
from minirlaif.video.frame_sampling import FramePlan, FrameSize, segment_spans, uniform_plan
from minirlaif.video.reader import ClipInfo, ClipReader
from minirlaif.video.spans import file_of


@dataclass(frozen=True)
class VideoInput:
    """A clip as the model gets it: frame times, its length in seconds, the frames' pixels, and features_GHWE."""

    times: tuple[float, ...]
    seconds: float
    size: FrameSize
    features: Tensor

    @property
    def frame_layout(self) -> FrameLayout:
        """The part of it that prompts are rendered from."""
        return FrameLayout(self.times, self.seconds, self.features.shape[1] * self.features.shape[2])


def settings_of(seed: int, data: DataSection, sources: Sequence[str] = (), **sections: Any) -> dict[str, Any]:
    """What a stage's result depends on, as its manifest records it: the seed, sections by name (with `model`), the base by hash,
    so that one trained again is noticed, and the parts of the data that it reads (`sources`), local files by hash."""
    settings: dict[str, Any] = {"seed": seed} | {name: recorded(section) for name, section in sections.items()}
    settings["model"]["files"] = base_hash(sections["model"])
    reward = sections.get("reward")
    if reward and reward.base:
        settings["reward"]["files"] = base_hash(critic_model(sections["model"], reward))
    values = recorded(data)
    hashes = {source: fingerprint(source, data.videos) for part in sources for source in values[part]}
    parts = {part: values[part] for part in sources}
    settings["data"] = {"world": values["world"], "videos": values["videos"], **parts, "sha256": hashes}
    if "preferences" in sources and "preference_limit" in values:
        settings["data"]["preference_limit"] = values["preference_limit"]
    settings["data"] |= {name: values[name] for name in ("ignore_columns", "max_rows") if sources and name in values}
    return settings


class ModelSession:
    """An open backbone with adapters and features. Built by `open_session`, or as one of `open_ppo_models`."""

    def __init__(
        self, model: ModelSection, video: VideoSection, backbone: VisionLanguageModel, feature_cache: VisionFeatureCache
    ) -> None:
        self.model, self.video, self.backbone, self.feature_cache = model, video, backbone, feature_cache
        self.adapters = AdapterSet(backbone, model)
        self.root: Path | None = None  # of the run that lists what is left out
        self.counters: dict[str, int] = {"prefilled_tokens": 0}

    def video_input(self, video: str) -> VideoInput:
        """The clip as the policy sees it: frames spread over its whole length."""
        ((plan, features),) = self.feature_cache.get(video, lambda info: [self.video_plan(info)])
        info = self.feature_cache.info(video)
        return VideoInput(plan.times, info.seconds, self.feature_cache.size(info), features)

    def segment_inputs(self, video: str) -> list[tuple[tuple[float, float], VideoInput]]:
        """The clip cut into segments, each with frames of its own (dense), for describing."""
        info = self.feature_cache.info(video)
        v = self.video
        spans = segment_spans(info.seconds, v.segment_seconds, v.max_segments, v.min_segments)
        dense = [uniform_plan(info.seconds, self.video.segment_frames, *span) for span in spans]
        # With those of the whole clip, so that the file is read once for all of them.
        parts = self.feature_cache.get(video, lambda info: [self.video_plan(info), *dense])[1:]
        return [
            (span, VideoInput(plan.times, span[1] - span[0], self.feature_cache.size(info), features))
            for span, (plan, features) in zip(spans, parts, strict=True)
        ]

    def encode_shared(self, videos: Iterable[str]) -> None:
        """Before several processes need the same clips: each encodes a share of them for all."""
        if distributed.count() > 1:
            for video in distributed.share(list(dict.fromkeys(videos))):
                self.video_input(video)
            distributed.wait()

    def readable(self, rows: Sequence[Row]) -> list[Row]:
        """See `preflight.readable`."""
        return preflight.readable(rows, self.feature_cache, self.video.max_unreadable, self.root)

    def record_clips(self, run: Run, out: StageDir, rows: Iterable[Sample | Preference]) -> None:
        """List the content of the clips of a stage's rows (runs/clips.py)."""
        if distributed.leads():
            infos = (self.feature_cache.info(file) for file in {file_of(row.video) for row in rows})
            clips.record(run.root, out.path, {info.path: info.id for info in infos})

    def strip(self, video: str) -> bytes:
        """JPEG of the whole-clip frames side by side."""
        return self.feature_cache.strip(video, self.video_plan(self.feature_cache.info(video)))

    def prompt(self, view: VideoInput | None, question: str, context: str = "") -> tuple[int, ...]:
        """Ids of a prompt about a video input (None: text only)."""
        return self.backbone.renderer.prompt(view.frame_layout if view else None, question, context)

    def encode_prompt(self, view: VideoInput | None, question: str, context: str = "") -> EncodedPrompt:
        """A prompt for the sampler."""
        ids = self.prompt(view, question, context)
        self.counters["prefilled_tokens"] += len(ids)
        return EncodedPrompt(ids, view.features if view else None)

    def encode_pair(self, view: VideoInput | None, question: str, answer: Sequence[int], context: str = "") -> EncodedPair:
        """A prompt with an answer, for the scorer."""
        return EncodedPair(self.prompt(view, question, context), tuple(answer), view.features if view else None)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer with its end."""
        return self.backbone.renderer.answer(text)

    def greedy_texts(self, prompts: Iterable[EncodedPrompt], max_new_tokens: int, batch_size: int) -> list[str]:
        """The active adapter's most likely answer to each prompt, generated in batches."""
        return [self.backbone.decode(c.ids) for c in greedy(self.backbone, prompts, batch_size, max_new_tokens)]

    def greedy_answers(
        self, questions: Iterable[tuple[VideoInput | None, str]], max_new_tokens: int, batch_size: int
    ) -> list[str]:
        """The active adapter's most likely answer to each question, generated in batches; inputs are made batch by batch."""
        return [self.backbone.decode(c.ids) for c in self.greedy_completions(questions, max_new_tokens, batch_size)]

    def greedy_completions(
        self, questions: Iterable[tuple[VideoInput | None, str]], max_new_tokens: int, batch_size: int
    ) -> list[Completion]:
        """As `greedy_answers`, with token ids and whether each answer ended before the limit."""
        prompts = (self.encode_prompt(view, question) for view, question in questions)
        return list(greedy(self.backbone, prompts, batch_size, max_new_tokens))

    def add_counters(self, out: StageDir) -> None:
        """Move this session's counters into the stage's (before a state is committed, and at the end), and name the hub's commit
        that the base comes from."""
        if commit := hub_commit(self.model):
            out.extra.setdefault("hub_commits", {})[self.model.base] = commit
        for counters in (self.feature_cache.counters, self.counters):
            for name, value in distributed.total(counters).items():
                out.counters[name] = out.counters.get(name, 0) + int(value)
                counters[name] = 0

    def video_plan(self, info: ClipInfo) -> FramePlan:
        """Which frames `video_input` has of a clip."""
        return uniform_plan(info.seconds, self.video.frames)


@dataclass(frozen=True)
class PPOModels:
    """The sessions of PPO's models; one and the same unless the config gives reference or critic weights of their own.
    critic: of the reward and the value adapter; offload_reference: whether the reference is in host memory between uses."""

    policy: ModelSession
    reference: ModelSession
    critic: ModelSession
    offload_reference: bool = True

    def enable_offload(self) -> None:
        """From now on every adapter is on the device only while a phase needs it; the reference too, if `offload_reference`."""
        self.policy.adapters.enable_offload("policy")
        if self.offload_reference:
            self.reference.adapters.enable_offload("reference")
        for role in self.critic.adapters.heads:  # the reward model, and where the method has one, the value model
            self.critic.adapters.enable_offload(role)

    def add_counters(self, out: StageDir) -> None:
        """As `ModelSession.add_counters`, for all of them."""
        for session in (self.policy, self.reference, self.critic):
            session.add_counters(out)


@contextmanager
def open_session(run: Run, model: ModelSection, video: VideoSection, checks: Preflight | None = None) -> Iterator[ModelSession]:
    """Load the backbone and open the run's feature cache; closes the cache and the reader.

    The first one that a command opens reads all rows that this stage and the ones after it will read, and checks their clips:
    UserError for whatever is wrong with rows, clips or the base.
    """
    with session_loader(run.root / "cache" / "features.sqlite", video) as load:
        yield _load_checked(run, load, model, checks, video.max_unreadable)


@contextmanager
def open_ppo_models(
    run: Run, model: ModelSection, video: VideoSection, checks: Preflight, reference: ReferenceSection, reward: RewardSection
) -> Iterator[PPOModels]:
    """As `open_session`, with the reference and the reward base as well where the config gives them weights of their own."""
    with session_loader(run.root / "cache" / "features.sqlite", video) as load:
        policy = _load_checked(run, load, model, checks, video.max_unreadable)
        frozen = second_base(policy, reference) if reference.kind == "model" else policy
        critic = policy
        if reward.base:
            critic = load(critic_model(model, reward))
            if reward.rest == "cpu":
                critic.adapters.enable_offload("base")
        yield PPOModels(policy, frozen, critic, reference.rest == "cpu")


@contextmanager
def session_loader(cache: Path, video: VideoSection, memory: int = MEMORY) -> Iterator[Callable[[ModelSection], ModelSession]]:
    """A function that loads a base; all sessions share the clip reader and the feature cache file, and are closed at the end.
    memory: see `VisionFeatureCache`."""
    with database_errors(cache, "delete it, it is made again from the clips"), ExitStack() as stack:
        reader = stack.enter_context(ClipReader.of(video))
        if torch.cuda.is_available():
            stack.callback(torch.cuda.empty_cache)

        def load(model: ModelSection) -> ModelSession:
            backbone = open_backbone(model)
            feature_cache = VisionFeatureCache(cache, backbone, reader, video, memory)
            stack.callback(feature_cache.close)
            return ModelSession(model, video, backbone, feature_cache)

        yield load


def _load_checked(
    run: Run, load: Callable[[ModelSection], ModelSession], model: ModelSection, checks: Preflight | None, max_missing: float
) -> ModelSession:
    if checks is None:
        return load(model)
    check_tokenizers(model, checks.reward)
    # Before weights: a typing error is found at once.
    rows = {} if run.full_run.checked else preflight.rows_ahead(checks.data, run, max_missing)
    if checks.normalize_by and rows.get("prompts"):
        preflight.check_column(checks.normalize_by, rows["prompts"])
    session = load(model)
    session.root = run.root
    readable = {part: session.readable(rows[part]) for part in rows if part != "test" and rows[part]}  # `evaluate` opens the test
    _check_lengths(session, readable.get("sft", []), checks.sft.max_length)
    run.full_run.checked = True
    return session


def second_base(session: ModelSession, reference: ReferenceSection) -> ModelSession:
    """The same base loaded again. It gets the first one's features, so its own vision modules stay in host memory."""
    backbone = open_backbone(session.model)
    offloaded_vision(backbone)
    second = ModelSession(session.model, session.video, backbone, session.feature_cache)
    if reference.rest == "cpu":
        second.adapters.enable_offload("base")
    return second


def _check_lengths(session: ModelSession, samples: Sequence[Sample], max_length: int) -> None:
    """UserError naming the first conversation that is longer than sft.max_length."""
    vectors: dict[FrameSize, int] = {}  # per frame: clips of one size all have as many
    problems = []
    for row in samples:
        info = session.feature_cache.info(row.video)
        size = session.feature_cache.size(info)
        if size not in vectors:
            session.encode_shared([row.video])
            vectors[size] = session.video_input(row.video).frame_layout.vectors
        layout = FrameLayout(session.video_plan(info).times, info.seconds, vectors[size])
        try:
            session.backbone.renderer.conversation(layout, row.turns, "", max_length)
        except UserError as error:
            problems.append(f"{row.where}: {error}")
    if problems:
        more = f" ({len(problems) - 1} more rows are too long)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
