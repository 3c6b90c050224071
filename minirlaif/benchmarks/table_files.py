"""The files of a table: table.json, table.md, table.html and the pictures, from every file of marks of a benchmark in a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from minirlaif.benchmarks import page as tablepage
from minirlaif.benchmarks import plots
from minirlaif.benchmarks.dataset import Benchmark, Item
from minirlaif.benchmarks.generate import Answer, read_answers
from minirlaif.benchmarks.page import Example
from minirlaif.benchmarks.scores import Scores, load_all
from minirlaif.benchmarks.tables import examples, judge_head, table_json
from minirlaif.judges.rubric import HIGHEST, LABELS, SHARES, chosen_option
from minirlaif.runs.io import plain, write_atomic
from minirlaif.runs.run import Run
from minirlaif.video.reader import ClipReader, UnreadableClip, clip_strip

FRAMES = 8  # of an example
EXAMPLES = 6  # worst ones, and as many best ones
RANKED = 3  # candidates of a ranking that an example shows


def write_tables(run: Run, benchmark: Benchmark, shown: Sequence[Scores], timeout: float) -> str:
    """Write the files beside the scores; returns the Markdown.

    shown: what the command in progress has marked, best model last; the examples are that model's.
    """
    folder = run.root / "benchmarks" / benchmark.name
    table = plain(table_json(load_all(run, benchmark.name), [scores.title for scores in shown]))
    drawn = draw(table)
    for name, svg in drawn.items():
        write_atomic(folder / name, svg)
    text = tablepage.markdown(table, list(drawn))
    heads, judge = [judge_head(each["judge"]) for each in table["tables"]], ""
    if len(heads) > 1:  # the same judge may have been asked in several ways
        head = judge_head(vars(shown[-1].judge))
        judge = head if heads.count(head) == 1 else shown[-1].judge.title
    worst, best, strips = _examples(run, benchmark, shown, timeout, judge)
    page = tablepage.document(table, f"run {run.root.name}", drawn, worst, best, strips)
    write_atomic(folder / "table.json", json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.html", page)
    return text


def draw(table: Mapping[str, Any]) -> dict[str, str]:
    """File name -> SVG, for the pictures that the table has figures for."""
    found = plots.panels(table)
    drawn = {"radar.svg": plots.radar(found), "bars.svg": plots.bars(found)}
    return {name: svg for name, svg in drawn.items() if svg}


def _examples(
    run: Run, benchmark: Benchmark, shown: Sequence[Scores], timeout: float, judge: str
) -> tuple[list[Example], list[Example], dict[str, bytes]]:
    """Worst and best items of the last model, with what every model of the command said. judge: named with every mark, "" where
    the page has one judge alone."""
    items = {item.id: item for item in benchmark.items}
    answers = {s.model["title"]: read_answers(run.dir(f"benchmarks/{benchmark.name}/{s.model['title']}"))[0] for s in shown}
    sides = examples(shown[-1], EXAMPLES)
    strips = _strips([items[id_].video for side in sides for id_ in side], timeout)

    def example(item: Item) -> Example:
        said = []
        for scores in shown:
            found = answers[scores.model["title"]].get(item.id)
            marks = _marks(scores, item.id)
            said.append((scores.title, told_answer(item, found), f"{marks}, by {judge}" if judge and marks else marks))
        key, _, aspect = strips.get(item.video, ("", b"", 1.0))
        return Example(told_question(item), told_truth(item), said, key, FRAMES, aspect)

    worst, best = ([example(items[id_]) for id_ in side] for side in sides)
    return worst, best, {key: jpeg for key, jpeg, _ in strips.values()}


def told_question(item: Item) -> str:
    """What was asked, on lines: two questions of consistency with their names, options with their letters."""
    if len(item.questions) == 2:
        return f"First question: {item.questions[0]}\nSecond question: {item.questions[1]}"
    asked = " ".join(item.questions) or {"action": "Which action?", "retrieval": "Which clip?"}[item.part]
    options = [f"{chr(ord('A') + place)}. {option}" for place, option in enumerate(item.options)] if item.part == "choice" else []
    return "\n".join([asked, *options])


def told_truth(item: Item) -> str:
    """The right answer, with its letter where there are letters."""
    if item.part == "choice" and item.answer in item.options:
        return f"{chr(ord('A') + item.options.index(item.answer))}. {item.answer}"
    return item.answer


def told_answer(item: Item, answer: Answer | None) -> str:
    """What was said, on lines: both answers of consistency by name, a letter with its option, candidates in their order."""
    if answer is None:
        return ""
    if answer.rank is not None:
        first = [f"{place}. {said}" for place, said in enumerate(answer.said[:RANKED], 1)]
        beyond = [f"(the right one is number {answer.rank})"] if answer.rank > RANKED else []
        return "\n".join(["Likeliest candidates in order:", *first, *beyond])
    if len(item.questions) == 2:
        return "\n".join(f"{name} answer: {said}" for name, said in zip(("First", "Second"), answer.said, strict=True))
    chosen = chosen_option(answer.said[0], item.options) if item.part == "choice" else None
    text = answer.said[0]
    return text if chosen is None or item.options[chosen] in text else f"{text} ({item.options[chosen]})"


def _marks(scores: Scores, id_: str) -> str:
    """An item's marks in words."""
    told = []
    for mark in scores.marks:
        if mark.id == id_:
            value = "no mark" if mark.value is None else f"{mark.value:g}" + ("" if mark.metric in SHARES else f" of {HIGHEST}")
            told.append(f"{LABELS[mark.metric].lower()} {value}")
    return ", ".join(told)


def _strips(videos: Sequence[str], timeout: float) -> dict[str, tuple[str, bytes, float]]:
    """Frames of clips: key for the page, JPEG, width by height; clips that cannot be read are left out."""
    found: dict[str, tuple[str, bytes, float]] = {}
    with ClipReader(timeout) as reader:
        for video in dict.fromkeys(filter(None, videos)):
            with suppress(UnreadableClip):
                found[video] = (f"s{len(found)}", *clip_strip(reader, video, FRAMES))
    return found
