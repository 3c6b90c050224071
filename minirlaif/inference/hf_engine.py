"""The chat engine for a training run: its adapters on its base model, on a GPU or a CPU.

A clip is decoded and encoded once per frame plan. Each model prefills the frames once; later questions reuse its KV cache.
"""

import gc
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from minirlaif import config
from minirlaif.errors import UserError
from minirlaif.inference.engine import JudgeVerdict, LoadedClip, SamplingParams
from minirlaif.models.generation import stream
from minirlaif.models.language_model import EncodedPrompt
from minirlaif.models.loading import critic_model
from minirlaif.models.logprobs import reward_scores
from minirlaif.models.prefix_cache import PrefixCache
from minirlaif.models.renderer import pieces
from minirlaif.runs.run import Run
from minirlaif.session import ModelSession, VideoInput, session_loader
from minirlaif.stages.registry import ADAPTERS
from minirlaif.types import Comparison, Turn, Verdict
from minirlaif.video.frame_sampling import uniform_plan

CACHED_CLIPS = 8  # the latest clips, whose frames and features stay in memory
CACHED_CONTEXTS = 64  # descriptions of clips, which are texts
PREFIX_CACHES = 4  # one per clip and model


class RunJudge(Protocol):
    """Describes clips and judges answers as the run's stage `feedback` did."""

    def context(self, video: str) -> str:
        """Descriptions of the clip's segments."""

    def verdict(self, pair: Comparison, video_input: VideoInput) -> Verdict:
        """Which answer is better."""


class HfEngine:
    """A finished run as a `ChatEngine`; a run without an RLAIF model offers its SFT model and its base.

    judge_of: builds the run's judge from the open session; `feedback.readout.judge_of_run`. scratch: a folder for
    what is known of clips; None: a temporary one.
    UserError: the run has no finished `sft` (without SFT: no aligned model), or one of its files was changed.
    """

    def __init__(
        self, run: Run, judge_of: Callable[[ModelSession, config.FeedbackSection, Run], RunJudge], scratch: Path | None = None
    ) -> None:
        run.require("sft" if run.start_model == "sft" else run.producer("rlaif"))
        cfg = config.load(run.root / "config.yaml")
        self.models = run.models()
        adapters = {model: run.adapter(model) for model in self.models if model in ADAPTERS}
        reward = run.manifest("reward")
        with ExitStack() as stack:
            folder = scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minirlaif-")))
            load = stack.enter_context(session_loader(folder / "features.sqlite", cfg.video, memory=0))  # see _clips
            session = self._session = self._critic = load(cfg.model)
            self._judge = judge_of(session, cfg.feedback, run)
            self._judge_context, self._reward_context = cfg.feedback.context, cfg.reward.context
            for model, adapter_dir in adapters.items():
                session.adapters.add(model, 0, adapter_dir)
            self._mean = float(run.metrics("reward", "bias")["bias"]) if reward else None
            if reward:
                adapter = run.adapter("reward")
                if cfg.reward.base:
                    self._critic = load(critic_model(cfg.model, cfg.reward))
                self._critic.adapters.add("reward", 0, adapter)
                self._critic.adapters.load_head("reward", adapter)
            self._open = stack.pop_all()
        self.title = f"{Path(cfg.model.base).name}, run {run.root.name}"
        self.frames = cfg.video.frames
        self.sampling = SamplingParams(cfg.rollout.temperature, cfg.feedback.top_p, cfg.rollout.max_new_tokens, cfg.seed)
        self._clips: OrderedDict[str, tuple[LoadedClip, VideoInput]] = OrderedDict()
        self._prefix = lru_cache(PREFIX_CACHES)(lambda key, model: PrefixCache())
        self._contexts: OrderedDict[str, str] = OrderedDict()
        self._prefill: Counter[str] = Counter()

    @property
    def counters(self) -> dict[str, int]:
        """Totals so far: decodes, encodes, prefilled_tokens, reused_tokens."""
        features = self._session.feature_cache.counters
        return {
            "decodes": features["decodes"],
            "encodes": features["encodes"],
            "prefilled_tokens": self._session.counters["prefilled_tokens"] + self._prefill["read"],
            "reused_tokens": self._prefill["reused"],
        }

    def load_clip(self, video: str, frames: int = 0) -> LoadedClip:
        """See `ChatEngine.load_clip`; the frames are encoded as well."""
        store = self._session.feature_cache
        info = store.info(video)
        plan = uniform_plan(info.seconds, frames or self.frames)
        size = store.size(info)
        key = f"{info.id}:{plan.key}:{size.key}"
        if key not in self._clips:
            pixels_FHW3, features_GHWE = store.pixels(video, plan)
            clip = LoadedClip(video, info.seconds, plan.times, pixels_FHW3, info.width / info.height, key)
            self._clips[key] = clip, VideoInput(plan.times, info.seconds, size, features_GHWE)
        self._clips.move_to_end(key)
        while len(self._clips) > CACHED_CLIPS:
            self._clips.popitem(last=False)
        return replace(self._clips[key][0], video=video)

    def stream(
        self, clip: LoadedClip, turns: Sequence[Turn], question: str, sampling: SamplingParams, model: str = ""
    ) -> Iterator[str]:
        """See `ChatEngine.stream`."""
        name = model or self.models[0]
        session, video_input = self._session, self._video_input(clip)
        ids = session.backbone.renderer.prompt(video_input.frame_layout, question, turns=turns)
        limit = int(session.backbone.model.config.get_text_config().max_position_embeddings)
        max_new_tokens = min(sampling.max_new_tokens, limit - len(ids))
        if max_new_tokens < 1:
            raise UserError(f"the conversation has {len(ids)} tokens, the model takes {limit}: clear it, or use fewer frames")
        source = torch.Generator().manual_seed(sampling.seed)
        prefix = self._prefix(clip.key, name)
        before = prefix.read, prefix.reused
        with session.adapters.inference_as(name):
            prompt = EncodedPrompt(ids, video_input.features)
            tokens = stream(session.backbone, prompt, prefix, sampling.temperature, sampling.top_p, max_new_tokens, source)
            try:
                with closing(tokens):
                    yield from pieces(session.backbone.renderer, tokens)
            finally:
                self._prefill.update(read=prefix.read - before[0], reused=prefix.reused - before[1])

    def score(self, clip: LoadedClip, question: str, answer: str) -> float | None:
        """The reward model's score of an answer minus its mean on held-out answers; None for a run without a reward model."""
        if self._mean is None:
            return None
        video_input, critic = self._video_input(clip), self._critic
        if critic is not self._session:
            store = critic.feature_cache
            ((_, features),) = store.get(clip.video, lambda info: [uniform_plan(info.seconds, len(clip.times))])
            video_input = VideoInput(clip.times, clip.seconds, store.size(store.info(clip.video)), features)
        context = self._context(clip) if self._reward_context else ""
        row = critic.encode_pair(video_input, question, critic.answer_ids(answer), context)
        with critic.adapters.inference_as("reward"):
            return float(reward_scores(critic.backbone, critic.adapters.heads["reward"], [row])) - self._mean

    def judge(self, clip: LoadedClip, question: str, answer_a: str, answer_b: str) -> JudgeVerdict:
        """The verdict of the run's own judge, formed as in its stage `feedback`."""
        context = self._context(clip) if self._judge_context else ""
        pair = Comparison("", clip.video, question, answer_a, answer_b, context)
        verdict = self._judge.verdict(pair, self._video_input(clip))
        return JudgeVerdict(verdict.choice, verdict.margin, verdict.orders, context)

    def close(self) -> None:
        """Free the model, stop the clip reader, delete the feature cache."""
        self._open.close()
        self._clips.clear()
        self._prefix.cache_clear()
        del self._session, self._critic
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _video_input(self, clip: LoadedClip) -> VideoInput:
        """The cached features of a clip; loaded again if they were evicted."""
        if clip.key not in self._clips:
            self.load_clip(clip.video, len(clip.times))
        return self._clips[clip.key][1]

    def _context(self, clip: LoadedClip) -> str:
        """Descriptions of the clip's segments, by the SFT model as in `feedback`; generated once per clip."""
        content = clip.key.split(":", 1)[0]
        if content not in self._contexts:
            self._contexts[content] = self._judge.context(clip.video)
            while len(self._contexts) > CACHED_CONTEXTS:
                self._contexts.popitem(last=False)
        return self._contexts[content]
