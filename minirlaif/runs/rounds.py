"""A further round of a run: the same run, whose stage names lead into the folder of the round; when a round is begun.
No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from minirlaif.config.seeds import seed_of
from minirlaif.errors import UserError
from minirlaif.runs import gains
from minirlaif.runs.io import read_json
from minirlaif.runs.run import Run
from minirlaif.stages.registry import REPEATED


class Round(Run):
    """A round from the second on. Its start model, which answers, describes and judges, and from which its first method starts,
    is the aligned model of the round before; data, world, caches and the list of what is left out are those of the run.

    UserError: something else lies where its folder has to be.
    """

    def __init__(self, full_run: Run, number: int) -> None:
        super().__init__(full_run.root, full_run.given)
        self._full_run, self._number = full_run, number
        self.stages = full_run.stages
        folder = full_run.root / f"{gains.FOLDER}{number}"
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            what = "a link, which is not followed" if folder.is_symlink() else "a file, so it cannot hold a round"
            raise UserError(f"{folder}: {what}; delete it, then run the command again")

    @property
    def full_run(self) -> Run:
        return self._full_run

    def name(self, stage: str) -> str:
        """See `Run.name`: stages that each round has are the round's own."""
        return gains.name_of(self._number, stage) if stage in REPEATED else super().name(stage)

    @property
    def start_model(self) -> str:
        """The last method of the round before."""
        return f"{gains.FOLDER}{self._number - 1}/{self.methods[-1]}"

    def producer(self, model: str) -> str:
        """See `StagePlan.producer`; what reads the SFT model reads the start model here."""
        if model == "sft":
            return self.start_model
        return model if model in REPEATED else super().producer(model)

    def command(self, stage: str) -> str:
        """See `Run.command`."""
        return self.full_run.command(self.name(stage))

    def remake(self, stage: str, *settings: str, report: bool = False) -> str:
        """See `Run.remake`."""
        return self.full_run.remake(self.name(stage), *settings, report=report)


def record(run: Run) -> None:
    """Write which rounds are finished, and with it which one counts, as far as the run's settings want rounds. A round that was
    made from another one before is not finished. Nothing is written of a run of one round."""
    rounds: list[dict[str, Any]] = []
    for number in range(1, run.rounds + 1):
        if rounds and rounds[-1]["gained"] is False:
            break
        made = None
        with suppress(UserError):  # a damaged manifest: the stage says so when it is its turn
            made = _finished(run, number)
        if made is None:
            break
        rounds.append(made)
    if (rounds and run.rounds > 1) or (run.root / gains.FILE).exists():
        gains.write(run.root, rounds)


def _finished(run: Run, number: int) -> dict[str, Any] | None:
    """The record of a finished round, or None."""
    names = [name for name in run.stages if name in REPEATED]
    manifests = {name: run.manifest(gains.name_of(number, name)) for name in names}
    if number > 1 and _undecided(manifests["feedback"]) and not run.outdated(gains.name_of(number, "feedback")):
        return {"round": number, "methods": {}, "gained": False}
    methods: dict[str, dict[str, Any]] = {}
    for name, manifest in manifests.items():
        if manifest is None or run.outdated(gains.name_of(number, name)):
            return None
        if name in run.methods:
            figures = {key: manifest["metrics"].get(key) for key in ("chosen_iteration", "dev_win_rate")}
            methods[name] = {"identity": manifest["identity"], **figures}
    return {"round": number, "methods": methods, "gained": gains.gained(methods)}


def _undecided(feedback: Mapping[str, Any] | None) -> bool:
    """Whether the judge preferred no answer, so that there is nothing to learn."""
    return feedback is not None and feedback["metrics"].get("decided") == 0


def place(run: Run, name: str, seed: int) -> tuple[str, Run, int]:
    """Where a stage is made: its own name, the run or the round of it, and the seed, of a further round another one, so that
    other answers are sampled. seed: the run's."""
    number, stage = gains.split_name(name)
    return (stage, run, seed) if number == 1 else (stage, Round(run, number), seed_of(seed, "round", number))


def held_back(run: Run, name: str) -> str:
    """Why a stage of a further round is not made, in words, or "": the rounds before have ended. Needs the record of now."""
    number, stage = gains.split_name(name)
    rounds = gains.read(run.root)
    last = next((each for each in rounds if each["gained"] is False), None)
    if last is None or number < last["round"] or (number == last["round"] and (last["methods"] or stage == "feedback")):
        return ""
    return gains.outcome(rounds, run.rounds)


def make_room(run: Run, stage: str, inputs: Sequence[str]) -> None:
    """Set a stage aside that was made, or begun, before rounds were added or taken away: that was asked for, so the stage is
    made again without --redo. inputs: what it would be made from now."""
    manifest, started = run.manifest(stage), run.partial(stage) / "begun.json"
    recorded = manifest or (read_json(started) if started.is_file() else None)
    if not isinstance(recorded, dict) or not isinstance(recorded.get("inputs"), dict):
        return
    before = {gains.split_name(name)[1] for name in recorded["inputs"]}
    changed = set(recorded["inputs"]) ^ set(inputs)
    if changed and all(gains.split_name(name)[1] in before for name in changed) and any("/" in name for name in changed):
        print(f"{stage}: the rounds are others now; it is made again", flush=True)
        run.set_aside(stage)
