"""The verb `chat`: questions about one clip on a terminal, to a training run or to exported files (without torch)."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minirlaif.cli.flags import add_flags, positive, verb
from minirlaif.errors import UserError
from minirlaif.types import Turn
from minirlaif.video.spans import file_of, local_path

if TYPE_CHECKING:
    from minirlaif.inference.engine import ChatEngine, LoadedClip, SamplingParams

PROMPT = "> "


def add(verbs: Any) -> None:
    """Add the parser of `chat`."""
    example = 'chat --gguf runs/tiny/export --video clip.mp4 "what happens first?"'
    parser = verb(verbs, "chat", "ask a trained or exported model about a clip", example, run)
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="one question (default: read questions from stdin)")
    parser.add_argument("--gguf", metavar="DIR_OR_FILE", type=Path, help="the folder of an export, or a text GGUF file in it")
    name = {"required": False, "default": "", "help": "a training run instead of exported files; needs torch"}
    add_flags(parser, "run", "runs-dir", run=name)
    parser.add_argument("--video", metavar="FILE", required=True, help="the clip, or a part of it: a.mp4#t=10,20")
    parser.add_argument("--model", metavar="NAME", default="", help="rlaif, sft or base (default: rlaif, or the first available)")
    parser.add_argument("--frames", metavar="N", type=positive, default=0, help="frames of the clip (default: as in training)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 (default): always the most likely token")
    parser.add_argument("--top-p", metavar="P", type=float, default=1.0, help="sample from the smallest set of this probability")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive, default=0, help="longest answer (default: as in training)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="seed of sampling, with a temperature above 0")
    parser.add_argument("--times", action="store_true", help="print on stderr how long each answer took")
    parser.add_argument("--remember", action="store_true", help="keep earlier questions and answers in the prompt")
    parser.add_argument("--mmproj", metavar="FILE", type=Path, help="mmproj GGUF file (default: that of the export)")
    parser.add_argument("--type", metavar="TYPE", default="", help="type of the text GGUF in the folder, such as q8_0")
    threads = "CPU threads of llama.cpp (default: one per core; one for a tiny model)"
    parser.add_argument("--threads", metavar="N", type=positive, default=0, help=threads)
    parser.add_argument("--ctx", metavar="N", type=positive, default=0, help="context length in tokens (default: as needed)")


def run(options: argparse.Namespace) -> int:
    """Answer one question or many; returns the exit code. UserError as for every verb."""
    if bool(options.run) == (options.gguf is not None):
        raise UserError("chat: name exported files with --gguf DIR, or a training run with --run NAME")
    video = local_path(options.video)
    if not Path(file_of(video)).is_file():
        raise UserError(f"{options.video}: no such file; name a clip with --video")
    if options.temperature < 0 or not 0 < options.top_p <= 1:
        raise UserError("chat: --temperature must be 0 or more, --top-p above 0 and at most 1")
    try:
        with closing(_engine(options)) as engine:
            if options.model and options.model not in engine.models:
                raise UserError(f"--model {options.model}: not available; choose one of {', '.join(engine.models)}")
            started = time.perf_counter()
            clip = engine.load_clip(video, options.frames)
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
        from minirlaif.feedback.readout import judge_of_run
        from minirlaif.inference.hf_engine import HfEngine
    except ModuleNotFoundError as error:
        raise UserError(f"chat --run: {error.name} is not installed; `pip install -r requirements.txt`, or use --gguf") from None

    return HfEngine(Run(options.runs_dir / options.run), judge_of_run)


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
