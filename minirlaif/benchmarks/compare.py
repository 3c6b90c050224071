"""Compare two runs on whatever both were evaluated on: benchmarks with a judge in common, and their own test questions.

RUN stands for all its models, RUN:MODEL for one. Models of the same name are compared, and the only ones of their sides.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minirlaif.benchmarks import page
from minirlaif.benchmarks.kinds.base import Grade
from minirlaif.benchmarks.tables import ORDER, Scores, judged, load_all
from minirlaif.errors import UserError
from minirlaif.judges.grade import MATCH_NAMES
from minirlaif.runs.io import plain, write_atomic
from minirlaif.runs.run import Run
from minirlaif.stats import exact_match, grouped

OWN_TEST = "test questions of the runs"  # of the stage evaluate


def compare(runs_dir: Path, first: str, second: str, out: str) -> int:
    """Print the tables and write compare.json, compare.md and compare.html. UserError when nothing can be compared."""
    names = (first, second)
    (root, _, model), (other_root, _, other) = (name.partition(":") for name in names)
    if (runs_dir / root).resolve() == (runs_dir / other_root).resolve() and (model == other or not model or not other):
        raise UserError(
            f"{first} and {second}: a run on both sides, so the same on both sides; name two runs, or two models as in"
            f" {root}:sft {root}:rlaif"
        )
    tables, notes = compared(_scores(runs_dir, first), _scores(runs_dir, second), names)
    if not tables:
        reason = "; ".join(notes) or "they have no benchmark and no finished stage evaluate in common"
        raise UserError(f"{first} and {second}: nothing to compare ({reason})")
    folder = Path(out) if out else runs_dir / f"compare-{'-'.join(re.sub(r'[:/]+', '-', name).strip('-') for name in names)}"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(page.markdown(table) for table in tables) + "".join(f"\nNot compared: {note}.\n" for note in notes)
    write_atomic(folder / "compare.json", json.dumps(plain({"tables": tables, "not_compared": notes}), indent=1) + "\n")
    write_atomic(folder / "compare.md", text)
    write_atomic(folder / "compare.html", page.comparison(tables, f"{first} and {second}", notes))
    print(text)
    print(f"comparison: {folder / 'compare.html'}")
    return 0


def compared(first: Sequence[Scores], second: Sequence[Scores], names: tuple[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Tables in the form of `tables.table_json`, one per benchmark, and what was not compared, in words. names: of the sides."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    notes: list[str] = []
    for name in sorted({s.benchmark for s in (*first, *second)}):
        sides = [[s for s in side if s.benchmark == name] for side in (first, second)]
        if not all(sides):
            notes.append(f"{name}: evaluated only in {names[0] if sides[0] else names[1]}")
            continue
        by_key, files = [grouped((s.key, s) for s in side) for side in sides], [{s.sha256 for s in side} for side in sides]
        if not files[0] & files[1]:
            notes.append(f"{name}: the two files differ")
            continue
        if not by_key[0].keys() & by_key[1].keys():
            judges = ["; ".join(dict.fromkeys(s.judge.title for s in side)) for side in sides]
            notes.append(f"{name}: graded by {judges[0]} on one side and by {judges[1]} on the other")
            continue
        for key in {**by_key[0], **by_key[1]}:
            mine, others = (groups.get(key, []) for groups in by_key)
            pairs = [(a, b) for a in mine for b in others if a.model["title"] == b.model["title"]]
            pairs = pairs or ([(mine[0], others[0])] if len(mine) == len(others) == 1 else [])
            if not mine or not others:
                side, scores = (names[0], mine[0]) if mine else (names[1], others[0])
                both = scores.sha256 in files[0] & files[1]
                notes.append(f"{name}: {f'graded by {scores.judge.title}' if both else 'grades of another file'} only in {side}")
            elif not pairs:
                notes.append(f"{name}: several models and none of the same name; name one on each side, as in RUN:MODEL")
            else:
                head = {"benchmark": name, "kind": mine[0].kind, "sha256": mine[0].sha256, "published": []}
                table = tables.setdefault((name, mine[0].sha256), {**head, "tables": []})
                table["tables"].append(judged([a for a, _ in pairs] + [b for _, b in pairs], pairs))
                for side, group, compared_ones in zip(names, (mine, others), zip(*pairs, strict=True), strict=True):
                    if left := [s.model["title"] for s in group if s not in compared_ones]:
                        notes.append(f"{name}, judge {mine[0].judge.title}: {', '.join(left)} only in {side}")
    return list(tables.values()), notes


def _scores(runs_dir: Path, name: str) -> list[Scores]:
    """Every score of a run, or of one of its models."""
    root, _, model = name.partition(":")
    run = Run(runs_dir / root)
    if not root or not run.root.is_dir():
        raise UserError(f"{run.root}: no such run folder; name two runs below {runs_dir}, or another --runs-dir")
    folders = sorted(path.parent.name for path in (run.root / "benchmarks").glob("*/scores"))
    scores = [*_own_test(run), *(each for folder in folders for each in load_all(run, folder))]
    if not model:
        return scores
    of_model = [each for each in scores if each.model["title"] == model]
    if not of_model:
        known = ", ".join(dict.fromkeys(each.model["title"] for each in scores)) or "none"
        raise UserError(f"{name}: run {root} has no evaluated model {model}; it has {known}")
    return of_model


def _own_test(run: Run) -> list[Scores]:
    """The answers of the stage evaluate, graded as there."""
    manifest = run.manifest("evaluate")
    if manifest is None:
        return []
    rows = [row for row in run.rows("evaluate", "answers.jsonl", "id", "question", "video", *ORDER) if row.get("truth")]
    questions = json.dumps(sorted([row["id"], row["question"], row["truth"]] for row in rows))
    digest = hashlib.sha256(questions.encode()).hexdigest()
    scores = []
    for title in ORDER if rows else ():
        right = [float(exact_match(row[title], row["truth"])) for row in rows]
        grades = tuple(Grade(r["id"], Path(r["video"]).name, "accuracy", v) for r, v in zip(rows, right, strict=True))
        model = {"run": run.root.name, "title": title, "answers": manifest["identity"]}
        scores.append(Scores(OWN_TEST, "test", digest, model, MATCH_NAMES["exact"], grades, {}))
    return scores
