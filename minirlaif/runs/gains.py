"""Which round of a run counts: the rule, and the record of the rounds, `rounds.json` in the run's folder. No torch.

Round 1 has its stages in the run's folder, round 2 in `round-2/` there, and so on. The record is written by `run` after each
round; a run of one round has none.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.runs.records import NUMBER, has_fields, read_sealed, write_sealed
from minirlaif.stages.registry import METHODS, MOST_ROUNDS

FILE = "rounds.json"
FOLDER = "round-"
METHOD = {"identity": str, "chosen_iteration?": int, "dev_win_rate?": NUMBER}
_NAME = re.compile(rf"{FOLDER}([1-9][0-9]{{0,2}})/(.*)", re.DOTALL)
Rounds = Sequence[Mapping[str, Any]]  # as in the record: round, methods in order with their figures, gained


def name_of(number: int, stage: str) -> str:
    """The name of a round's stage, which is also its place in the run's folder."""
    return stage if number == 1 else f"{FOLDER}{number}/{stage}"


def split_name(name: str) -> tuple[int, str]:
    """The round of a stage and the stage: 2 and "feedback" of "round-2/feedback". A name without a round is of the first."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match and int(match[1]) <= MOST_ROUNDS else (1, name)


def gained(methods: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether a round made the model better on dev prompts: the judge preferred the chosen checkpoint of one of its methods to
    what that method started from, which is a win rate of 0.5. None: that was not measured, as without dev prompts."""
    rates = [(each.get("chosen_iteration"), each.get("dev_win_rate")) for each in methods.values()]
    if any(chosen and rate is not None and rate > 0.5 for chosen, rate in rates):
        return True
    return None if any(rate is None for _, rate in rates) else False


def counting(rounds: Rounds) -> int:
    """The round whose model is the run's aligned model: the last one that did not fail to gain; 1 where none did."""
    return max([1, *(int(each["round"]) for each in rounds if each["gained"] is not False)])


def outcome(rounds: Rounds, wanted: int) -> str:
    """For people: how the rounds ended, or "" while there are some to make."""
    if not rounds:
        return ""
    last = rounds[-1]
    if last["gained"] is False:
        rates = [each["dev_win_rate"] for each in last["methods"].values() if each.get("dev_win_rate") is not None]
        why = "none better beyond the standard error" if rates else "the judge decided no pair"
        rest = f", so round {last['round'] + 1} was not begun" if last["round"] < wanted else ""
        return f"round {last['round']} gained nothing on the dev prompts ({why}){rest}"
    if len(rounds) < wanted:
        return ""
    how = "each gained on the dev prompts" if all(each["gained"] for each in rounds) else "without dev prompts the last counts"
    return f"all {wanted} rounds were made; {how}"


def read(root: Path) -> list[dict[str, Any]]:
    """The finished rounds of a run's record; none without one. UserError: it is damaged."""
    path = root / FILE
    if not path.is_file():
        return []
    try:
        rows = read_sealed(path).get("rounds")
    except UserError:
        rows = None
    if not isinstance(rows, list) or not all(_is_round(number, row) for number, row in enumerate(rows, 1)):
        raise UserError(f"{path}: damaged; delete it, the next `run` of this folder writes it again")
    return rows


def write(root: Path, rounds: Rounds) -> None:
    """Write the record, if it has changed."""
    known: Rounds = []
    with suppress(UserError):  # a damaged one is replaced: all of it stands in the manifests
        known = read(root)
    if list(rounds) != known:
        write_sealed(root / FILE, {"counts": counting(rounds), "rounds": list(rounds)}, indent=1)


def _is_round(number: int, row: Any) -> bool:
    fields = {"round": int, "methods": dict}
    if not has_fields(row, fields) or row["round"] != number or row.get("gained") not in (True, False, None):
        return False
    return all(name in METHODS and has_fields(each, METHOD) for name, each in row["methods"].items())
