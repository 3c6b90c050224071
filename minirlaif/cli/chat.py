"""The verb `chat`: questions about one clip on a terminal, to a training run or to exported files (without torch)."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif.cli.flags import verb
from minirlaif.errors import UserError
from minirlaif.types import Turn

if TYPE_CHECKING:
    from minirlaif.inference.engine import ChatEngine, LoadedClip, SamplingParams

PROMPT = "> "


def add(verbs: Any) -> None:
    """Add the parser of `chat`."""
    verb(verbs, "chat", run)


def run(options: argparse.Namespace) -> int:
    """Answer one question or many; returns the exit code. UserError as for every verb."""
    if bool(options.run) == (options.gguf is not None):
        raise UserError("chat: name exported files with --gguf DIR, or a training run with --run NAME")
    if not Path(options.video).is_file():
        raise UserError(f"{options.video}: no such file; name a clip with --video")
    if options.temperature < 0 or not 0 < options.top_p <= 1:
        raise UserError("chat: --temperature must be 0 or more, --top-p above 0 and at most 1")
    try:
        with closing(_engine(options)) as engine:
            if options.model and options.model not in engine.models:
                raise UserError(f"--model {options.model}: not available; choose one of {', '.join(engine.models)}")
            started = time.perf_counter()
            clip = engine.load_clip(options.video, options.frames)
            if options.times:
                print(f"[frames {time.perf_counter() - started:.3f} s]", file=sys.stderr, flush=True)
            sampling = _options(engine, options)
            if options.question is None:
                _converse(engine, clip, sampling, options)
            else:
                _answer(engine, clip, [], options.question, sampling, options)
    except KeyboardInterrupt:
        print()
        return 130
    return 0


def _engine(options: argparse.Namespace) -> Any:
    if options.gguf is not None:
        from minirlaif.gguf.runtime.engine import GgufEngine

        return GgufEngine(options.gguf, options.mmproj, options.type, options.threads, options.ctx)
    if options.mmproj or options.type or options.ctx or options.threads:
        raise UserError("chat: --mmproj, --type, --ctx and --threads need --gguf; leave them out with --run")
    from minirlaif.runs.run import Run

    try:
        from minirlaif.feedback.judge import SessionJudge
        from minirlaif.inference.hf_engine import HfEngine
    except ModuleNotFoundError as error:
        raise UserError(f"chat --run: {error.name} is not installed; `pip install -r requirements.txt`, or use --gguf") from None

    return HfEngine(Run(options.runs_dir / options.run), SessionJudge)


def _options(engine: ChatEngine, options: argparse.Namespace) -> SamplingParams:
    longest = options.max_new_tokens or engine.sampling.max_new_tokens
    return replace(
        engine.sampling, temperature=options.temperature, top_p=options.top_p, max_new_tokens=longest, seed=options.seed
    )


def _converse(engine: ChatEngine, clip: LoadedClip, sampling: SamplingParams, options: argparse.Namespace) -> None:
    """Questions until /quit or the end of input. Ctrl-C during an answer ends that answer, and otherwise the conversation."""
    try:
        import readline  # noqa: F401  arrow keys and history, where there are any
    except ImportError:
        pass
    times = ", ".join(f"{time:.1f}" for time in clip.times)
    print(f"{engine.title}: {len(clip.times)} frames at {times} seconds. Ask about the clip; /quit to leave.", flush=True)
    turns: list[Turn] = []
    while True:
        try:
            question = input(PROMPT if sys.stdin.isatty() else "").strip()
        except EOFError:
            print()
            return
        if question == "/quit":
            return
        if not question:
            continue
        try:
            answer = _answer(engine, clip, turns, question, sampling, options)
        except UserError as error:
            print(f"minirlaif: {error}", file=sys.stderr, flush=True)
            continue
        if options.remember:
            turns.append(Turn(question, answer))


def _answer(
    engine: ChatEngine, clip: LoadedClip, turns: list[Turn], question: str, sampling: SamplingParams, options: argparse.Namespace
) -> str:
    """Print an answer as it comes."""
    pieces: list[str] = []
    clock = [time.perf_counter()]
    before = dict(engine.counters)
    stream: Any = engine.stream(clip, turns, question, sampling, options.model)
    with closing(stream):
        for piece in stream:
            clock.append(time.perf_counter())
            pieces.append(piece)
            print(piece, end="", flush=True)
    print(flush=True)
    if options.times and pieces:
        first, rest = clock[1] - clock[0], clock[-1] - clock[1]
        speed = f"{(len(pieces) - 1) / rest:.0f} pieces a second" if rest else "one piece"
        read, reused = (engine.counters[name] - before[name] for name in ("prefilled_tokens", "reused_tokens"))
        print(
            f"[first piece after {first:.3f} s, then {speed}; prompt: {read} tokens prefilled, {reused} reused]",
            file=sys.stderr,
            flush=True,
        )
    return "".join(pieces)
