"""The engine over a training run: its own adapters on its own base, on a GPU or a CPU. See talk.py for what an engine is.

A clip is decoded and encoded once per frame plan, and a model reads its frames once: later questions start from the kept cache.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from minirlaif import config
from minirlaif.errors import UserError
from minirlaif.inference.engine import Judged, LoadedClip, SamplingParams
from minirlaif.models.feature_cache import VisionFeatureCache
from minirlaif.models.generation import EncodedPrompt, PrefixCache
from minirlaif.models.loading import open_backbone
from minirlaif.models.logprobs import reward_scores
from minirlaif.models.renderer import pieces
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, VideoInput, critic_config
from minirlaif.types import Comparison, Turn, Verdict
from minirlaif.video.frame_sampling import FramePlan, uniform_plan
from minirlaif.video.reader import ClipReader

ROLES = {"rlaif": "policy", "sft": "sft", "base": "base"}  # name of a model -> role
LOOKS = 8  # looks whose frames and features are kept, the latest ones
KEPT = 4  # caches of (look, model)


@dataclass(frozen=True, eq=False)
class _Seen:
    look: LoadedClip
    plan: FramePlan
    view: VideoInput


class RunJudge(Protocol):
    """Describes clips and judges answers as the run's stage `feedback` did."""

    def context(self, video: str) -> str:
        """Descriptions of the clip's segments."""
        ...

    def verdict(self, pair: Comparison, view: VideoInput) -> Verdict:
        """Which answer is better."""
        ...


class HfEngine:
    """A finished run as an engine; without `ppo` only its SFT model and its base answer.

    judge_of: makes the run's judge from the open session; `feedback.judge.SessionJudge`.

    Raises:
        UserError: the run has no finished `sft`, or what it holds was changed.
    """

    def __init__(self, run: Run, judge_of: Callable[[ModelSession, config.FeedbackSection], RunJudge]) -> None:
        sft = run.require("sft") / "adapter"
        cfg = config.load(run.root / "config.yaml")
        aligned = run.require("ppo") / "adapter" if run.manifest("ppo") else None
        reward = run.manifest("reward")
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minirlaif-")))
            reader = stack.enter_context(ClipReader(cfg.video.timeout_seconds))

            def opened(own: config.Config, name: str) -> ModelSession:
                backbone = open_backbone(own.model)
                store = VisionFeatureCache(folder / name, backbone, reader, own.video)
                stack.callback(store.close)
                return ModelSession(own, backbone, store, reader)

            session = self._session = opened(cfg, "features.sqlite")
            self._judge = judge_of(session, cfg.feedback)
            session.adapters.add("sft", 0, sft)
            if aligned:
                session.adapters.add("policy", 0, aligned)
            self._mean = float(reward["metrics"]["bias"]) if reward else None
            if reward:
                adapter = run.require("reward") / "adapter"
                if cfg.reward.base:
                    session.critic = opened(critic_config(cfg), "critic.sqlite")
                session.critic.adapters.add("reward", 0, adapter)
                session.critic.adapters.load_head("reward", adapter)
            self._open = stack.pop_all()
        self.models = tuple(name for name in ROLES if name != "rlaif" or aligned)
        self.title = f"{Path(cfg.model.base).name}, run {run.root.name}"
        self.frames = cfg.video.frames
        self.options = SamplingParams(cfg.rollout.temperature, cfg.feedback.top_p, cfg.rollout.max_new_tokens, cfg.seed)
        self._looks: OrderedDict[str, _Seen] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str], PrefixCache] = OrderedDict()
        self._contexts: dict[str, str] = {}
        self._reading: Counter[str] = Counter()

    @property
    def counters(self) -> dict[str, int]:
        """decodes, encodes, prefilled_tokens and reused_tokens so far."""
        looked = self._session.feature_cache.counters
        read = {"prefilled_tokens": self._session.counters["prefilled_tokens"] + self._reading["read"]}
        return {name: looked[name] for name in ("decodes", "encodes")} | read | {"reused_tokens": self._reading["reused"]}

    def look(self, video: str, frames: int = 0) -> LoadedClip:
        """Decode and encode `frames` frames (0: as many as in training), spread evenly over the clip; known ones are kept.

        Raises:
            UserError: the clip cannot be read.
        """
        store = self._session.feature_cache
        info = store.info(video)
        plan = uniform_plan(info.seconds, frames or self.frames)
        size = store.size(info)
        key = f"{info.id}:{plan.key}:{size.key}"
        if key not in self._looks:
            pixels_FHW3, features_GHWE = store.pixels(video, plan)
            view = VideoInput(plan.times, info.seconds, size, features_GHWE)
            look = LoadedClip(video, info.seconds, plan.times, pixels_FHW3, info.width / info.height, key)
            self._looks[key] = _Seen(look, plan, view)
        self._looks.move_to_end(key)
        while len(self._looks) > LOOKS:
            self._looks.popitem(last=False)
        return replace(self._looks[key].look, video=video)

    def stream(
        self, look: LoadedClip, turns: Sequence[Turn], question: str, options: SamplingParams, model: str = ""
    ) -> Iterator[str]:
        """Pieces of the answer as they are sampled; see `talk.Engine`. Finish or close one stream before the next call."""
        name = model or self.models[0]
        session, view = self._session, self._seen(look).view
        ids = session.backbone.renderer.prompt(view.shown, question, turns=turns)
        limit = int(session.backbone.model.config.get_text_config().max_position_embeddings)
        room = min(options.max_new_tokens, limit - len(ids))
        if room < 1:
            raise UserError(f"the conversation has {len(ids)} tokens, the model takes {limit}: clear it, or show fewer frames")
        source = torch.Generator().manual_seed(options.seed)
        kept = self._cache(look.key, name)
        before = kept.read, kept.reused
        with session.adapters.inference_as(ROLES[name]):
            asked = EncodedPrompt(ids, view.features)
            tokens = kept.stream(session.backbone, asked, options.temperature, options.top_p, room, source)
            try:
                with closing(tokens):
                    yield from pieces(session.backbone.renderer, tokens)
            finally:
                self._reading.update(read=kept.read - before[0], reused=kept.reused - before[1])

    def score(self, look: LoadedClip, question: str, answer: str) -> float | None:
        """The reward model's score of an answer, above or below its mean on held-out answers; None where the run has none."""
        if self._mean is None:
            return None
        seen, critic = self._seen(look), self._session.critic
        view = seen.view
        if critic is not self._session:
            ((_, features),) = critic.feature_cache.get(look.video, lambda info: [seen.plan])
            view = VideoInput(
                seen.plan.times, look.seconds, critic.feature_cache.size(critic.feature_cache.info(look.video)), features
            )
        context = self._context(look) if critic.cfg.reward.context else ""
        row = critic.encode_pair(view, question, critic.answer_ids(answer), context)
        with critic.adapters.inference_as("reward"):
            return float(reward_scores(critic.backbone, critic.adapters.heads["reward"], [row])) - self._mean

    def judge(self, look: LoadedClip, question: str, answer_a: str, answer_b: str) -> Judged:
        """The run's own judge on two answers, read out as in its stage `feedback`."""
        context = self._context(look) if self._session.cfg.feedback.context else ""
        pair = Comparison("", look.video, question, answer_a, answer_b, context)
        verdict = self._judge.verdict(pair, self._seen(look).view)
        return Judged(verdict.choice, verdict.margin, verdict.orders, context)

    def close(self) -> None:
        """Free the model, end the clip reader, delete the feature cache."""
        self._open.close()
        self._looks.clear()
        self._kept.clear()
        del self._session
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _seen(self, look: LoadedClip) -> _Seen:
        """What is kept of a look; made again where too many others came between."""
        if look.key not in self._looks:
            self.look(look.video, len(look.times))
        return self._looks[look.key]

    def _cache(self, key: str, model: str) -> PrefixCache:
        kept = self._kept.setdefault((key, model), PrefixCache())
        self._kept.move_to_end((key, model))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return kept

    def _context(self, look: LoadedClip) -> str:
        """Descriptions of the clip's segments, by the SFT model as in `feedback`; made once per clip."""
        clip = look.key.split(":", 1)[0]
        if clip not in self._contexts:
            self._contexts[clip] = self._judge.context(look.video)
        return self._contexts[clip]
