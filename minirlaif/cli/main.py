"""The command line: one verb per stage, `run` for all, and those beside it. No torch before work starts."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from minirlaif import __version__, config, distributed
from minirlaif.cli import chat, evaluate, export, plan
from minirlaif.errors import UserError
from minirlaif.runs.io import disk_is_full, read_json, write_atomic
from minirlaif.runs.run import Run
from minirlaif.runs.status import report_state, status_table
from minirlaif.stages.registry import PIPELINE, STAGES

TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX")}  # packages; the others are named as accelerate names them


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if match := re.match(r"argument VERB: invalid choice: '(.*?)'", message):
            known = [*STAGES, "run", "status", "path", *plan.VERBS, *evaluate.VERBS, "chat", "export", "doctor"]
            near = difflib.get_close_matches(match[1], known, n=1, cutoff=0.0)[0]
            message = f"{match[1]}: no such verb (did you mean {near}?)"
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0: done, 1: `doctor` found something missing, `plan` that it does not
    fit, or `bench` that a stage fails, 2: the user can put it right, 130: Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        _parser().print_help()
        return 0
    try:
        return _dispatch(_parser().parse_args(arguments), arguments)
    except UserError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        again = shlex.join(["python", "-m", "minirlaif", *(word for word in arguments if word != "--redo")])
        return _complain(f"stopped; `{again}` goes on from the last saved step", code=130)
    except OSError as error:
        if disk_is_full(error, Path.cwd()):
            return _complain("the disk is full; free some space and repeat the command, it goes on")
        if isinstance(error, PermissionError):
            return _complain(f"{error.filename}: no permission; choose another folder with --runs-dir")
        raise


def _complain(message: str, code: int = 2) -> int:
    who = "minirlaif" if distributed.leads() else f"minirlaif, process {distributed.rank()}"
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m minirlaif",
        description="VLM-RLAIF: a video model that gets better by judging its own answers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python -m minirlaif doctor                                            what is installed, what is missing
  python -m minirlaif run --config configs/tiny.yaml --run tiny         the whole laptop run, into runs/tiny/
  python -m minirlaif run --config configs/tiny.yaml --run b --set seed=1 rollout.kl_coef=0.05
  python -m minirlaif status --run tiny                                 what is finished
  python -m minirlaif plan --config configs/24gb-smolvlm2-500m.yaml --gpu-gib 24    what each stage takes of a card
  python -m minirlaif bench --model smolvlm2-500m --gpu-gib 24          what it really takes, with random weights
""",
    )
    parser.add_argument("--version", action="version", version=f"minirlaif {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    everything = plan.verb(
        verbs, "run", "all stages in order; finished ones are skipped", "run --config configs/tiny.yaml --run tiny"
    )
    everything.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"only these ({', '.join(STAGES)}); default: all but pretrain"
    )
    _add_run_flags(everything, trains=True)
    for name in STAGES:
        stage = plan.verb(verbs, name, STAGES[name].help, f"{name} --config configs/tiny.yaml --run tiny")
        _add_run_flags(stage, trains=True, needs_config=name != "evaluate")
        if name == "evaluate":
            evaluate.add_benchmark_flags(stage)
    _add_run_flags(plan.verb(verbs, "status", "table of a run's stages", "status --run tiny"), trains=False)
    path = plan.verb(verbs, "path", "print the folder of a finished stage, of report the page itself", "path ppo --run tiny")
    path.add_argument("stage", metavar="STAGE", help=", ".join(STAGES))
    _add_run_flags(path, trains=False)
    plan.add(verbs)
    export.add(plan.verb(verbs, "export", "the aligned model as GGUF files, compared with it", "export --run tiny"))
    ask = 'chat --gguf runs/tiny/export --video clip.mp4 "what happens first?"'
    chat.add(plan.verb(verbs, "chat", "ask a trained or exported model about a clip", ask))
    evaluate.add(verbs)
    plan.verb(verbs, "doctor", "versions, GPU, memory, decoders: what is missing and how to get it", "doctor")
    return parser


def _add_run_flags(parser: argparse.ArgumentParser, trains: bool, needs_config: bool = True) -> None:
    required = trains and needs_config
    parser.add_argument("--config", metavar="FILE", required=required, help="settings, such as configs/tiny.yaml")
    parser.add_argument("--run", metavar="NAME", required=True, help="name of the run folder")
    parser.add_argument("--runs-dir", metavar="DIR", default="runs", type=Path, help="where run folders lie (default: runs)")
    if trains:
        parser.add_argument(
            "--set", metavar="SECTION.FIELD=VALUE", nargs="+", action="extend", default=[], help="settings that win over the file"
        )
        parser.add_argument("--redo", action="store_true", help="make finished or begun stages again from their start")


def _dispatch(options: argparse.Namespace, words: Sequence[str]) -> int:
    if options.verb == "doctor":
        from minirlaif.cli.doctor import run as examine

        return examine()
    if options.verb in plan.VERBS:
        return plan.dispatch(options)
    if options.verb == "chat":
        return chat.run(options)
    if options.verb in evaluate.VERBS:
        return evaluate.dispatch(options)
    if not options.run or Path(options.run).name != options.run or options.run == "..":
        raise UserError(f"--run {options.run!r}: must be a plain name; the folder it lies in goes to --runs-dir")
    if options.verb == "export":
        return export.run(options)
    settings = getattr(options, "set", [])
    given = ["--config", options.config, *(["--set", *settings] if settings else [])] if hasattr(options, "set") else []
    run = Run(options.runs_dir / options.run, given)
    for path in (run.root, *run.root.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, run folders cannot lie in it; choose another --run or --runs-dir")
    if options.verb in ("status", "path"):
        if not run.root.is_dir():
            others = sorted(path.name for path in options.runs_dir.glob("*") if path.is_dir())
            raise UserError(f"{run.root}: no such run folder; runs there: {', '.join(others) or 'none'}")
        print(status_table(run, list(STAGES)) if options.verb == "status" else _folder(run, options.stage))
        return 0
    if getattr(options, "benchmark", None):
        return evaluate.evaluate(options, words)
    if not options.config:
        raise UserError(f"{options.verb}: name the settings with --config; see `python -m minirlaif {options.verb} --help`")
    return _make(run, config.load(options.config, options.set), options)


def _make(run: Run, cfg: config.Config, options: argparse.Namespace) -> int:
    """Make the stages that were asked for."""
    names = _chosen(options, cfg)
    exports = cfg.export.enabled and options.verb == "run" and not options.stages
    _check_settings(options.config, cfg, names)
    distributed.start(on_cpu=cfg.model.device == "cpu")
    if distributed.leads():
        check_base(run, cfg)
        if not (run.root / "config.yaml").is_file():
            record_config(run, cfg)
        run.accepted = lambda name: record_config(run, cfg, name)
        if options.redo and len(names) > 1:  # all at once, so that after a kill the command without --redo goes on
            for name in [*names, *(["export"] if exports else [])]:
                run.set_aside(name)
        if options.verb == "run":
            from minirlaif.memory.measure import before_run

            before_run(cfg, run, names, options.redo)
    distributed.wait()
    for number, name in enumerate(names, start=1):
        if len(names) > 1 and distributed.leads():
            print(f"[{number}/{len(names)}] {name}: {STAGES[name].help}", flush=True)
        if STAGES[name].distributed:
            STAGES[name].load()(cfg, run, redo=options.redo)
        elif distributed.leads():
            with distributed.alone():
                STAGES[name].load()(cfg, run, redo=options.redo)
        distributed.wait()
    if "report" in names and distributed.leads():
        print(f"report: {run.root / 'report.html'}")
    if exports and distributed.leads():
        with distributed.alone():
            export.after_run(cfg, run, options.redo)
        print(f"GGUF: {run.dir('export')}")
    return 0


def _chosen(options: argparse.Namespace, cfg: config.Config) -> list[str]:
    """The stages to work on, in the order of the pipeline."""
    if options.verb != "run":
        asked = [options.verb]
    elif options.stages:
        asked = [_known(name) for name in options.stages]
    else:
        return [name for name in PIPELINE if name != "world" or cfg.data.world]
    if "world" in asked and not cfg.data.world:
        raise UserError(f'{options.config}: data.world is empty, so there is no world to make; set data.world to "tiny"')
    return [name for name in STAGES if name in asked]


def _known(name: str) -> str:
    if name not in STAGES:
        near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.0)[0]
        raise UserError(f"{name}: no such stage (did you mean {near}?)")
    return name


def _folder(run: Run, stage: str) -> Path:
    if _known(stage) == "report" and report_state(run)[0] != "missing":
        return run.root / "report.html"
    if run.manifest(stage) is None:
        raise UserError(f"{run.dir(stage)}: not finished; run `{run.command(stage)}` first")
    return run.dir(stage)


def _check_settings(where: str, cfg: config.Config, names: Sequence[str]) -> None:
    """UserError for what can be known before the first of these stages starts: a source or a tracker that is missing."""
    missing = [f"data.{part}" for name in names for part in STAGES[name].needs if not getattr(cfg.data, part)]
    if len(names) > 1 and missing and not cfg.data.world:  # a stage asked for by itself says so itself
        listed = " and ".join(dict.fromkeys(missing))
        raise UserError(f"{where}: {listed} names no file; set it, or make only stages that can do without: `run sft …`")
    trackers = TRACKERS.get(cfg.report_to, (cfg.report_to,))
    # A folder of logs in the working folder, such as wandb/, is found too, but has no origin.
    installed = any(getattr(importlib.util.find_spec(name), "origin", None) for name in trackers)
    if cfg.report_to != "none" and not installed:
        raise UserError(f"{where}: report_to is {cfg.report_to}, which is not installed; `pip install {trackers[0]}`, or none")


def check_base(run: Run, cfg: config.Config) -> None:
    """UserError when the run folder was made with another base model."""
    path = run.root / "config.yaml"
    if path.is_file():
        try:
            base = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["base"]
        except (yaml.YAMLError, ValueError, TypeError, KeyError):
            raise UserError(f"{path}: cannot be read as this run's settings; choose another --run") from None
        if base != cfg.model.base:
            raise UserError(f"{path}: made with model.base {base}, the settings now say {cfg.model.base}; choose another --run")


def record_config(run: Run, cfg: config.Config, accepted: str = "") -> None:
    """Write the settings of the run to its folder: `cfg`, but what other stages were made or begun with stays as it was.

    accepted: the stage whose settings are known to be those of `cfg`.
    """
    values = yaml.safe_load(config.dump(cfg))
    for name in [*(name for name in PIPELINE if name != accepted), accepted]:
        begun = run.partial(name) / "begun.json"
        made = run.manifest(name) or (read_json(begun) if name and begun.is_file() else {"config": {}})
        for key, value in made["config"].items():
            if key in values and isinstance(value, dict):
                values[key].update({field: item for field, item in value.items() if field in values[key]})
            elif key in values:
                values[key] = value
    run.root.mkdir(parents=True, exist_ok=True)
    write_atomic(run.root / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=130))
