"""The verb `start`: from a folder of clips to a config for them, and the next command. No torch before the clips were read."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from minirlaif import config
from minirlaif.cli.flags import add_flags, verb
from minirlaif.cli.plan import plan_of
from minirlaif.config import VideoSection
from minirlaif.errors import UserError, counted
from minirlaif.runs.io import write_atomic
from minirlaif.runs.progress import clock, progress
from minirlaif.video.frame_sampling import SHORTEST_CUT, segment_spans

if TYPE_CHECKING:
    from minirlaif.memory.fit import Card
    from minirlaif.video.reader import ClipInfo, UnreadableClip

BASES = (  # the best that fits is taken: name, and the smallest batch with which it is still worth while
    ("Qwen/Qwen3-VL-4B-Instruct", 8),
    ("Qwen/Qwen3-VL-2B-Instruct", 4),
    ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 1),
)
BATCHES = (32, 16, 8, 4, 2, 1)  # rows in memory at once, tried in this order
FEW, SHOWN = 100, 5  # clips below which a warning is printed; unreadable clips that are listed
LONG = 600  # seconds, above which a clip is too long to be described in a few parts
COMMENTS = {
    "model": "the base, and the size of what is trained",
    "video": "frames of a whole clip, and of the parts in which it is described",
    "data": "a folder of clips; for rows of your own name files in prompts, dev and test",
    "sft": "on, with data.sft, where you have written answers",
    "questions": "written about each clip, unless the folder has a file of questions, or data.prompts names some",
    "feedback": "an answer from the frames alone, and one given with the descriptions as text",
    "optimize": "what trains the model: here it learns to give the second answer from the frames alone",
    "distill": "how",
    "evaluate": "answers to the questions about the clips that were kept for test",
    "export": "GGUF files for llama.cpp at the end",
}
CHECKS = 6  # of the model on the dev questions, at least, also with few clips
PARTS = 4  # that a clip of the middle length is cut into
SECONDS = (1.0, 8.0)  # shortest and longest part


@dataclass(frozen=True)
class FolderOfClips:
    """What a folder holds. infos: of its readable clips; bad: the others; questions: the name of its file of questions, or ""."""

    folder: Path
    infos: Sequence[ClipInfo]
    bad: Sequence[UnreadableClip]
    questions: str

    @property
    def seconds(self) -> list[float]:
        """The clips' lengths."""
        return [info.seconds for info in self.infos]


def add(verbs: Any) -> None:
    """Add the parser of `start`."""
    text = "look at a folder of clips and write a config for them"
    parser = verb(verbs, "start", text, "start clips --card 24", run)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of clips; rows are not needed")
    parser.add_argument("--card", metavar="GIB", type=float, help="GPU memory to plan for (default: that of the installed GPU)")
    best = "model to train: a folder, a name on the hub, or tiny (default: the best that fits)"
    parser.add_argument("--base", metavar="NAME", default="", help=best)
    parser.add_argument("--out", metavar="FILE", type=Path, help="config to write (default: FOLDER's name with .yaml, here)")
    parser.add_argument("--yes", action="store_true", help="overwrite the config if it exists")
    add_flags(parser, "set")


def run(options: argparse.Namespace) -> int:
    """1. look at the clips 2. choose settings 3. write the config, say what comes next. UserError: no clip can be used."""
    name = Path(os.path.abspath(options.folder)).name
    out = options.out or Path(f"{name}.yaml")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: no file can be written there; create its folder, or name another file")
    if out.exists() and not options.yes:
        raise UserError(f"{out}: exists already; overwrite it with --yes, or name another file with --out")
    if options.card is not None and not options.card > 0:
        raise UserError(f"--card {options.card:g}: must be above 0")
    check_settings(options.set)  # before the clips are read
    # 1. clips
    clips = read_folder(options.folder)
    print("\n".join(described(clips)))
    # 2. settings
    from minirlaif.memory import fit

    card = fit.find_card(options.card, "auto")
    values = chosen(clips, options.base, card, options.set)
    for item in options.set:
        key, _, value = item.partition("=")
        section, _, field = key.strip().rpartition(".")
        values.setdefault(section, {})[field] = yaml.safe_load(value)
    cfg = _loaded(values, [])
    # 3. the config
    write_atomic(out, text_of(values, clips, out.stem))
    config.load(out)
    print("\n".join([*notes(cfg, card, clips), f"{out}: written. Next, memory, hours (on the machine of the run), and the run:"]))
    gib, path = f" --gpu-gib {options.card:g}" if options.card else "", shlex.quote(str(out))
    print(f"  python -m minirlaif plan --config {path}{gib}\n  python -m minirlaif plan --config {path} --hours")
    print(f"  python -m minirlaif run --config {path} --run {shlex.quote(out.stem)}")
    return 0


def check_settings(settings: Sequence[str]) -> None:
    """UserError for a wrong `--set`, by the settings for an example."""
    from minirlaif.video.reader import ClipInfo

    example = FolderOfClips(Path("clips"), [ClipInfo("a.mp4", "", 10.0, 640, 480, 25.0, "av")], [], "")
    _loaded(_usual(example, "tiny", False, 1), settings)


def read_folder(folder: Path) -> FolderOfClips:
    """Read the properties of every clip in a folder, as a run does. UserError: there are too few."""
    from minirlaif.data.dataset import question_files
    from minirlaif.data.tables import clip_files
    from minirlaif.stages.questions import FEWEST
    from minirlaif.video.reader import ClipReader, UnreadableClip

    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name the folder that holds the clips")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of clips")
    infos, bad, paths = [], [], clip_files(folder)
    with ClipReader.of(VideoSection()) as reader:
        for path in progress(paths, len(paths), "start: clips"):
            try:
                infos.append(reader.info(path))
            except UnreadableClip as error:
                bad.append(error)
    if len(infos) < FEWEST:
        there = f"{counted(len(infos), 'clip')} that can be read" if paths else "no clips"
        why = f" ({bad[0]})" if bad else ""
        raise UserError(f"{folder}: {there}{why}; {FEWEST} are needed at least, and about 300 are a start")
    files = question_files(folder)
    return FolderOfClips(folder, infos, bad, files[0].name if files else "")


def described(clips: FolderOfClips) -> list[str]:
    """What was seen, for people."""
    seconds, sizes = clips.seconds, sorted({(info.width, info.height) for info in clips.infos})
    frame = f"{sizes[0][0]} x {sizes[0][1]} pixels" if len(sizes) == 1 else f"{len(sizes)} sizes of frames"
    lengths = f"{min(seconds):.1f} to {max(seconds):.1f} s, {median(seconds):.1f} s in the middle"
    lines = [f"{clips.folder}: {counted(len(seconds), 'clip')}, {clock(sum(seconds))} in all; {lengths}; {frame}"]
    lines += [f"cannot be read, left out: {clip}" for clip in clips.bad[:SHOWN]]
    if len(clips.bad) > SHOWN:
        lines.append(f"cannot be read, left out: {len(clips.bad) - SHOWN} more")
    if len(seconds) < FEW:
        lines.append(
            f"{len(seconds)} clips are few: everything runs, but figures about so few are mostly chance; 300 are a start"
        )
    if short := sum(length <= SHORTEST_CUT for length in seconds):
        lines.append(
            f"{counted(short, 'clip')} of a second or less: too short to be described in parts, so little is learned from them"
        )
    if long := sum(length > LONG for length in seconds):
        lines.append(
            f"{counted(long, 'clip')} of more than {LONG // 60} minutes: their parts are long, and much is missed; cut them"
        )
    return lines


def gpu_is_here() -> bool:
    """Whether a GPU is installed that can be used."""
    from minirlaif.memory import fit

    return fit.find_card(None, "auto").gpu


def notes(cfg: config.Config, card: Card, clips: FolderOfClips) -> list[str]:
    """What was chosen, and what is missing."""
    v = cfg.video
    parts = [len(segment_spans(s, v.segment_seconds, v.max_segments, v.min_segments)) for s in clips.seconds]
    lines = [
        f"model: {cfg.model.base}{' in 4 bits' if cfg.model.quantization == 'nf4' else ''}, for"
        f" {card.bytes / 2**30:.0f} GiB ({card.name.replace('--gpu-gib', '--card')})",
        f"parts of {v.segment_seconds:g} s: {min(parts)} to {max(parts)} for each clip",
    ]
    if cfg.model.base == "tiny":
        lines.append("tiny knows the tiny world alone: about other clips it makes things up, so this only tries the way out")
    elif card.gpu and not gpu_is_here():
        lines.append("there is no GPU here: plan as you like, and run it where there is one")
    if not card.gpu and cfg.model.base != "tiny":
        lines.append(
            "no GPU: a model of this size learns on a CPU for days; name a card with --card, or run it where there is one"
        )
    if clips.questions:
        lines.append(f"{clips.questions}: its questions are asked, none are written")
    else:
        lines.append(f"questions: at most {cfg.questions.per_clip} about each clip will be written from its descriptions")
    return lines


def chosen(clips: FolderOfClips, base: str, card: Card, settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings that suit the clips, a base ("": the best that fits) and a card. UserError: nothing fits."""
    names = [(base, 1)] if base else [*BASES]
    for name, least in names:
        for size in [size for size in BATCHES if size >= least]:
            values = _tiny(clips) if name == "tiny" else _usual(clips, name, card.gpu, size)
            if name == "tiny" or _fits(values, settings, card):
                d, rows = values["distill"], len(clips.infos) * values["questions"]["per_clip"]
                values["distill"]["dev_every"] = min(d["dev_every"], max(1, int(d["epochs"] * rows / d["batch_size"]) // CHECKS))
                return values
    raise UserError(
        f"{names[-1][0]} does not fit into {card.bytes / 2**30:.1f} GiB ({card.name}) even with one row at a time; name a smaller"
        " model with --base, such as HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
    )


def _fits(values: Mapping[str, Any], settings: Sequence[str], card: Card) -> bool:
    from minirlaif.memory.planner import peak

    return peak(plan_of(_loaded(values, settings), card.gpu))[1] <= card.room


def _loaded(values: Mapping[str, Mapping[str, Any]], settings: Sequence[str]) -> config.Config:
    """The settings, checked. UserError for a wrong `--set`."""
    fields = [(f"{section}.{name}", value) for section, of_section in values.items() for name, value in of_section.items()]
    given = [f"{name.removeprefix('.')}={json.dumps(value)}" for name, value in fields]
    return config.load(None, [*given, *settings])


def _usual(clips: FolderOfClips, base: str, gpu: bool, size: int) -> dict[str, dict[str, Any]]:
    """Settings for a model of the hub. gpu: whether it learns on one; size: rows in memory at once."""
    total = len(clips.infos) + len(clips.bad)
    unreadable = {"max_unreadable": min(1.0, -(-100 * len(clips.bad) // total) / 100)} if clips.bad else {}
    # A clip of the middle length is cut into PARTS, to half a second; a longer one into twice as many at most.
    length = min(max(round(2 * median(clips.seconds) / PARTS) / 2, SECONDS[0]), SECONDS[1])
    small = {"quantization": "nf4", "gradient_checkpointing": True, "optimizer": "paged_adamw_8bit"} if gpu else {}
    return {
        "model": {"base": base, "lora_r": 32, "lora_alpha": 64, **small},
        "video": {"frames": 16, "segment_frames": 8, "segment_seconds": length, "max_segments": 2 * PARTS, **unreadable},
        "data": {"clips": str(clips.folder)},
        "sft": {"enabled": False},
        "questions": {"per_clip": 6},
        "feedback": {
            "answers": 1,
            "context_answers": 1,
            "readout": "auto",
            "describe_tokens": 96,
            "max_new_tokens": 128,
            "batch_size": size,
        },
        "optimize": {"methods": ["distill"]},
        "distill": {
            "epochs": 2.0,
            "learning_rate": 1e-4,
            "batch_size": 16,
            "micro_batch_size": min(size, 16),
            "dev_every": 50,
        },
        "evaluate": {"max_new_tokens": 128, "batch_size": size},
        "export": {"enabled": True},
    }


def _tiny(clips: FolderOfClips) -> dict[str, dict[str, Any]]:
    """Settings for the tiny base, which knows the tiny world alone."""
    values = _usual(clips, "tiny", False, 100)
    values["model"] |= {"dtype": "float32", "lora_r": 16, "lora_alpha": 16}
    values["video"] |= {"frames": 12, "segment_frames": 6, "cache_gib": 2.0}
    values["questions"] = {"per_clip": 12, "written": False}
    values["feedback"] |= {"max_new_tokens": 40, "describe_prompt": "describe this part.", "describe_tokens": 16}
    values["feedback"] |= {"judge_frames": False, "margin": 0.2}
    values["distill"] |= {"epochs": 8.0, "learning_rate": 0.003, "batch_size": 64, "micro_batch_size": 64, "dev_every": 100}
    values["evaluate"]["max_new_tokens"] = 40
    return values


def text_of(values: Mapping[str, Mapping[str, Any]], clips: FolderOfClips, run: str) -> str:
    """The config as YAML, with a comment at each section that says what it is for."""
    lines = [
        f"# For {counted(len(clips.infos), 'clip')} in {clips.folder}, of {median(clips.seconds):.1f} s in the middle.",
        f"#   python -m minirlaif run --config {run}.yaml --run {run}",
        "# All settings with their meaning: minirlaif/config/schema.py and methods.py; what to try: .github/docs/own-clips.md",
    ]
    for section, fields in sorted(values.items(), key=lambda item: item[0] != ""):  # those of no section first
        lines += [f"# {COMMENTS.get(section, 'as named with --set')}", *([f"{section}:"] if section else [])]
        lines += [f"{'  ' * bool(section)}{name}: {_yaml(value)}" for name, value in fields.items()]
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)).removesuffix("...\n").strip()
