"""The verbs of a run: `run`, one verb per stage, `status` and `path`."""

import argparse
import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from minirlaif import config, distributed
from minirlaif.algorithms.reward_file import ENDING, RewardFile
from minirlaif.cli import evaluate, export, plan
from minirlaif.cli.flags import add_flags, run_folder, verb
from minirlaif.config.loader import parse_yaml
from minirlaif.errors import UserError
from minirlaif.judges.config import feedback_describer, feedback_judge
from minirlaif.runs import gains, rounds
from minirlaif.runs.io import plain, private_folder, read_text, without_folders, write_atomic
from minirlaif.runs.plan import with_rounds
from minirlaif.runs.progress import stages_after
from minirlaif.runs.records import differences
from minirlaif.runs.run import Run
from minirlaif.runs.status import report_state, status_table
from minirlaif.stages.registry import METHODS, PIPELINE, REPEATED, SAMPLING, STAGES

MADE_FIRST = ("world", "sft", "questions", "feedback")  # stages that a run's later ones were made from
TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX")}  # packages; the others are named as accelerate names them


def add(verbs: Any) -> None:
    """Add the parsers of these verbs."""
    all_stages = verb(verbs, "run", "run all stages in order", "run --config configs/tiny.yaml --run tiny", run)
    text = f"run only these ({', '.join(STAGES)}; of a further round round-2/feedback …)"
    text += "; default: all but pretrain, skipping finished ones"
    all_stages.add_argument("stages", nargs="*", metavar="STAGE", help=text)
    add_flags(all_stages, "config", "run", "runs-dir", "set", "redo", config={"required": True})
    dry = "print the settings, the rows of the data and the planned memory, and make nothing"
    all_stages.add_argument("--dry-run", action="store_true", help=dry)
    for stage in STAGES.values():
        one = verb(verbs, stage.name, stage.help, f"{stage.name} --config configs/tiny.yaml --run tiny", run)
        add_flags(one, "config", "run", "runs-dir", "set", "redo", config={"required": stage.name != "evaluate"})
        if stage.name == "evaluate":
            evaluate.add_benchmark_flags(one)
    add_flags(verb(verbs, "status", "show the state of each stage", "status --run tiny", show), "run", "runs-dir", "config")
    path = verb(verbs, "path", "print the folder of a finished stage, or the file of the report", "path ppo --run tiny", show)
    path.add_argument("stage", metavar="STAGE", help=", ".join(STAGES))
    add_flags(path, "run", "runs-dir", "config")


def show(options: argparse.Namespace) -> int:
    """Print the table of stages, or one stage's folder."""
    run = _usable(options)
    if not run.root.is_dir():
        others = sorted(path.name for path in options.runs_dir.glob("*") if path.is_dir())
        raise UserError(f"{run.root}: no such run folder; existing ones: {', '.join(others) or 'none'}")
    print(status_table(run, list(STAGES)) if options.verb == "status" else _path(run, _known(options.stage)))
    return 0


def run(options: argparse.Namespace) -> int:
    """Run the chosen stages, or evaluate on a benchmark."""
    run = _usable(options)
    if getattr(options, "benchmark", None):
        return evaluate.evaluate(options)
    if not options.config:
        raise UserError(f"{options.verb}: name the settings with --config; see `python -m minirlaif {options.verb} --help`")
    cfg = config.load(options.config, options.set)
    run.stages, run.rounds = config.stages_of(cfg), cfg.optimize.rounds
    names = _chosen(options, cfg, run.stages)
    exports = cfg.export.enabled and options.verb == "run" and not options.stages
    _check_settings(options.config, cfg, names)
    if "questions" in names and cfg.data.writes_questions:
        from minirlaif.stages import questions  # loads torch, as the first stage would

        questions.check(cfg.model.base, cfg.data, cfg.questions)
    if {"feedback", *METHODS} & {gains.split_name(name)[1] for name in names}:
        feedback_judge(cfg.feedback)  # before the stages that come first take hours
        feedback_describer(cfg.feedback)
    if not options.redo:
        _check_made(cfg, run, names)
    _check_base_is_there(cfg, run, names, options.redo)
    if cfg.optimize.reward.endswith(ENDING) and set(SAMPLING) & {gains.split_name(name)[1] for name in names}:
        RewardFile(cfg.optimize.reward)
    if getattr(options, "dry_run", False):
        check_base(run, cfg)
        return plan.dry_run(cfg, options.config, run, [*names, *(["export"] if exports else [])], options.redo)
    distributed.start(on_cpu=cfg.model.device == "cpu")
    if distributed.leads():
        check_base(run, cfg)
        if not (run.root / "config.yaml").is_file():
            record_config(run, cfg)
        run.accepted = lambda name: record_config(run, cfg, name)
        if options.redo and len(names) > 1:  # all at once, so that after a kill the command without --redo resumes
            for name in [*names, *(["export"] if exports else [])]:
                run.set_aside(name)
        if options.verb == "run":
            plan.before_run(cfg, run, names, options.redo)
            if any(run.manifest(name) is None for name in names):
                print(plan.time_line(cfg, options.config), flush=True)
    distributed.wait()
    _make(cfg, run, names, options.redo)
    distributed.stop()
    if "report" in names and distributed.leads():
        print(f"report: {run.root / 'report.html'}")
    if exports and distributed.leads():
        rounds.make_room(run, "export", run.export_inputs())
        with distributed.alone():
            export.after_run(cfg, run, options.redo)
        print(f"GGUF: {run.dir('export')}")
    return 0


def _check_made(cfg: config.Config, run: Run, names: Sequence[str]) -> None:
    """UserError where a finished stage would be refused by its settings: before the stages in front of it are made, and the
    run's own config is replaced. Only values that stand in both are compared; the stage itself compares all."""
    for name in MADE_FIRST:
        manifest = run.manifest(name) if name in names else None
        sides: list[dict[str, Any]] = [{}, {}]
        for section, made in manifest["config"].items() if manifest else ():
            if isinstance(made, dict) and section in config.Config.__dataclass_fields__:
                wanted = plain(config.recorded(getattr(cfg, section)))
                # Files of the data are recorded by other names; a read-out that was tried stands for "auto"; see check_base.
                keys = {"world"} if section == "data" else made.keys() & wanted.keys() - {"readout", "base"}
                for side, values in zip(sides, (made, wanted), strict=True):
                    side[section] = without_folders({key: values[key] for key in keys})
        if changes := differences(*({"config": side, "inputs": {}} for side in sides)):
            raise UserError(
                f"{run.dir(name)}: made with other settings or inputs ({changes}); make it again: `{run.remake(name)}`"
                ", or keep it and name another run with --run"
            )


def _make(cfg: config.Config, run: Run, names: Sequence[str], redo: bool) -> None:
    """Make stages in order, those of further rounds as long as the round before gained."""
    shown, known = "", plan.known_hours(cfg)
    for place, name in enumerate(names, start=1):
        if why := distributed.from_leader(partial(_before, run, name, redo)):
            if distributed.leads() and why != shown:
                print(f"{name}: not made, {why}", flush=True)
            shown = why
            continue
        stage = STAGES[gains.split_name(name)[1]]
        if len(names) > 1 and distributed.leads():
            print(f"[{place}/{len(names)}] {name}: {stage.help}", flush=True)
        with stages_after(plan.seconds_left(known, names[place:])):
            if stage.distributed:
                _make_one(cfg, run, name, redo)
            elif distributed.leads():
                with distributed.alone():
                    _make_one(cfg, run, name, redo)
        distributed.wait()
    if distributed.leads():
        rounds.record(run)


def _before(run: Run, name: str, redo: bool) -> str:
    """Record the rounds that are finished now. Why a stage is not made, or ""."""
    rounds.record(run)
    if name == "evaluate" and not redo:
        rounds.make_room(run, name, run.inputs(name))
    return rounds.held_back(run, name)


def _make_one(cfg: config.Config, run: Run, name: str, redo: bool) -> None:
    """Make a stage. UserError: of a further round it also names the setting that ends the run a round earlier."""
    stage, where, seed = rounds.place(run, name, cfg.seed)
    try:
        STAGES[stage].load()(replace(cfg, seed=seed), where, redo=redo)
    except UserError as error:
        if where is run or type(error) is not UserError:  # stopped: the same command goes on
            raise
        number, _ = gains.split_name(name)
        raise UserError(f"{error}; to go on without round {number}: `--set optimize.rounds={number - 1}`") from None


def _usable(options: argparse.Namespace) -> Run:
    """The run that the flags name. UserError when a file is in the way of its folder."""
    run = run_folder(options)
    for path in (run.root, *run.root.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file, so it cannot hold run folders; choose another --run or --runs-dir")
    return run


def _chosen(options: argparse.Namespace, cfg: config.Config, stages: Sequence[str]) -> list[str]:
    """The stages to run, in the order of the run's own. stages: those that the settings give the run."""
    order = with_rounds(("pretrain", *stages), cfg.optimize.rounds)
    if options.verb == "run" and not options.stages:
        return [name for name in order[1:] if name != "world" or cfg.data.world]
    names = [_known(name) for name in options.stages] if options.verb == "run" else [options.verb]
    for full in names:
        number, name = gains.split_name(full)
        if number > cfg.optimize.rounds:
            more = f"`--set optimize.rounds={number}`"
            raise UserError(f"{full}: this run has rounds 1 to {cfg.optimize.rounds} (optimize.rounds); for another one: {more}")
        if name in METHODS and name not in stages:
            listed = ",".join((*cfg.optimize.methods, name))
            raise UserError(f"{name}: not among optimize.methods; add it: `--set optimize.methods=[{listed}]`")
        if name == "questions" and name not in stages:
            raise UserError(
                "questions: this run writes none; name a folder of clips with data.clips, and leave data.prompts empty"
            )
        if name == "sft" and name not in stages:
            raise UserError("sft: off, sft.enabled is false; to train on written answers: `--set sft.enabled=true`")
        if name == "reward" and name not in stages:
            raise UserError(f"reward: no method of this run scores with it (optimize.methods: {', '.join(cfg.optimize.methods)})")
    if "world" in names and not cfg.data.world:
        raise UserError(f'{options.config}: data.world is empty, so there is no world to generate; set data.world to "tiny"')
    return [name for name in order if name in names]


def _known(name: str) -> str:
    number, stage = gains.split_name(name)
    if "/" in name and stage in REPEATED:
        return gains.name_of(number, stage)
    if name not in STAGES:
        nearest = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.0)[0]
        raise UserError(f"{name}: no such stage (did you mean {nearest}?)")
    return name


def _path(run: Run, stage: str) -> Path:
    if stage == "report" and report_state(run)[0] != "missing":
        return run.root / "report.html"
    if run.manifest(stage) is None:
        raise UserError(f"{run.dir(stage)}: not finished; run `{run.command(stage)}` first")
    return run.dir(stage)


def _check_settings(path: str, cfg: config.Config, names: Sequence[str]) -> None:
    """UserError for what can be checked before the first stage starts: missing data sources, a missing tracker."""
    stages = [STAGES[gains.split_name(name)[1]] for name in names]
    missing = [f"data.{part}" for stage in stages for part in stage.needs if not cfg.data.has(part)]
    if len(names) > 1 and missing:  # a single stage reports this itself
        fields = " and ".join(dict.fromkeys(missing))
        raise UserError(f"{path}: {fields} names no file; set it, or run only stages that do not need it: `run sft …`")
    if cfg.data.clips and not cfg.data.writes_questions:
        print(f"{path}: data.clips is not read, because data.prompts names questions", flush=True)
    if cfg.data.sft and not cfg.sft.enabled:
        print(f"{path}: data.sft is not read, because sft.enabled is false", flush=True)
    trackers = TRACKERS.get(cfg.report_to, (cfg.report_to,))
    # A folder of logs in the working folder, such as wandb/, is found too, but has no origin.
    installed = any(getattr(importlib.util.find_spec(name), "origin", None) for name in trackers)
    if cfg.report_to != "none" and not installed:
        raise UserError(f"{path}: report_to is {cfg.report_to}, which is not installed; `pip install {trackers[0]}`, or set none")


def _check_base_is_there(cfg: config.Config, run: Run, names: Sequence[str], redo: bool) -> None:
    """UserError for a base that is no folder and that the hub does not give, before a stage that needs it."""
    left = [name for name in names if redo or run.manifest(name) is None]
    if cfg.model.base == "tiny" or not any("model" in STAGES[gains.split_name(name)[1]].sections for name in left):
        return
    from minirlaif.models.loading import read_config  # loads torch, as the first stage would

    read_config(cfg.model, standard=False)


def check_base(run: Run, cfg: config.Config) -> None:
    """UserError when the run folder was made with another base model."""
    path = run.root / "config.yaml"
    if path.is_file():
        try:
            base = parse_yaml(read_text(path), str(path))["model"]["base"]
        except (UserError, ValueError, TypeError, KeyError):
            what = "cannot be read as this run's settings; delete it and repeat the command, or choose another --run"
            raise UserError(f"{path}: {what}") from None
        if base != cfg.model.base:
            raise UserError(f"{path}: made with model.base {base}, the settings now say {cfg.model.base}; choose another --run")


def record_config(run: Run, cfg: config.Config, accepted: str = "") -> None:
    """Write the settings of the run to its folder: `cfg`, except what other stages were started or finished with.

    accepted: the stage whose settings are known to be those of `cfg`.
    """
    values = yaml.safe_load(config.dump(cfg))
    for name in [*(name for name in PIPELINE if name != accepted), accepted]:
        for key, value in (run.settings(name) if name else {}).items():
            if key in values and isinstance(value, dict):
                values[key].update({field: item for field, item in value.items() if field in values[key]})
            elif key in values:
                values[key] = value
    private_folder(run.root)
    path, text = run.root / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=130)
    if not path.is_file() or path.read_bytes() != text.encode():  # a run that only looks may lie on a read-only disk
        write_atomic(path, text)
