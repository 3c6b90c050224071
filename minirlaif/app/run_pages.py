"""The pages about a run, from its files to HTML: progress, curves, test answers, verdicts of the judge, votes. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.app import run_reader
from minirlaif.app.run_reader import Row
from minirlaif.app.views import empty, note, root
from minirlaif.errors import UserError
from minirlaif.reports import run_results
from minirlaif.reports.html import Html, bar, bars, curve, frames, number, strip_styles, table, tag
from minirlaif.runs.run import Run
from minirlaif.runs.status import status_rows
from minirlaif.stages.registry import MODELS, PIPELINE, STAGES

CARDS_PER_PAGE = 8
GROUPS = {"all": "all", **{title: kind for kind, title in run_results.KINDS.items() if kind}}  # titles of groups of answers
DEFAULT_FRAMES = 16  # where the settings of a run cannot be read


def progress(run: Run | None) -> Html:
    """The stages with their state, and how far the running one is."""
    if run is None:
        return no_run()
    try:
        rows = [[name, state, time, result] for name, state, time, result in status_rows(run, PIPELINE)]
    except UserError as error:
        return root(tag("p", str(error), class_="notice warn"))
    running = run_reader.running_stage(run)
    parts: list[object] = [bars([_progress_bar(run, running)], "running stage")] if running else []
    for row in rows:
        row[1] = tag("span", row[1], class_=f"state {str(row[1]).split(':')[0]}")
        row[3] = "report.html" if row[0] == "report" and row[3] else row[3]
    parts.append(table(["Stage", "State", "Time", "Result"], rows))
    return root(*parts)


def _progress_bar(run: Run, stage: str) -> Html:
    settings, rows = run_reader.config_of(run), run_reader.rows(run, stage, "metrics.jsonl")
    step = int(rows[-1]["step"]) if rows and "step" in rows[-1] else 0
    total = getattr(getattr(settings, stage, None), "iterations", None)
    text = f"step {number(step)} of {number(total)}" if total else f"step {number(step)}"
    return bar(f"{stage} is running", step / total if total else 0.0, "rlaif", value=text, note="updates automatically")


def curves(run: Run | None) -> Html:
    """The metrics of all training stages so far, the last stage first."""
    if run is None:
        return Html("")
    figures = []
    for stage in reversed(STAGES.values()):
        rows = _metrics(run, stage.name) if stage.curves else []
        for each in stage.curves:
            points = [(row["step"], row.get(each.field)) for row in rows]
            if any(y is not None for _, y in points):
                figures.append(curve(each.title, points, stage.tone, note=each.note, span=each.span))
    return root(tag("div", *figures, class_="curves")) if figures else empty("No stage has logged metrics yet.")


def _metrics(run: Run, stage: str) -> list[Row]:
    """Rows of metrics.jsonl; without those of feedback that only describe dev clips."""
    return [row for row in run_reader.rows(run, stage, "metrics.jsonl") if "step" in row and row.get("pairs") != 0]


def gallery(run: Run | None, group: str, page: int) -> tuple[Html, int]:
    """A page (from 1) of test answers with frames, and the number of pages. group: a key of GROUPS."""
    if run is None:
        return no_run(), 1
    all_rows = run_reader.rows(run, "evaluate", "answers.jsonl")
    answers = run_reader.answers(run, GROUPS.get(group, "all"))
    if not answers:
        return empty("No test answers in this group." if all_rows else "`evaluate` has not finished."), 1
    pages = -(-len(answers) // CARDS_PER_PAGE)
    start = (min(max(1, page), pages) - 1) * CARDS_PER_PAGE
    rows, strips = answers[start : start + CARDS_PER_PAGE], {}
    for row in rows:
        path = run.dir("evaluate") / (row["strip"] or "none")
        strips[row["video"]] = path.read_bytes() if path.is_file() else run_reader.strip(run, row["video"], _frame_count(run))
    names = {video: f"g{number}" for number, video in enumerate(strips) if strips[video]}
    pictures = {row["id"]: _frames(run, names[row["video"]], strips[row["video"]]) for row in rows if row["video"] in names}
    style = Html(f"<style>{strip_styles({name: strips[video] for video, name in names.items()})}</style>")
    kinds = [run_results.kind(row) for row in all_rows]
    numbers = {"cases": {name: kinds.count(name) for name in run_results.KINDS if name}, "answered_items": sum(map(bool, kinds))}
    cards = run_results.gallery([{**row, "strip": row["id"]} for row in rows], pictures, numbers)
    return root(style, cards), pages


def verdict(run: Run | None, group: str, number: int) -> tuple[Html, int]:
    """One verdict of the judge (number from 1) among those that match a filter, and how many match."""
    if run is None:
        return no_run(), 0
    verdicts = run_reader.verdicts(run, group)
    if not verdicts:
        any_row = run_reader.rows(run, "feedback", "verdicts.jsonl")
        return empty("No verdict matches this filter." if any_row else "No verdicts yet."), 0
    row = verdicts[min(max(1, number), len(verdicts)) - 1]
    strip, style = run_reader.strip(run, row["video"], _frame_count(run)), Html("")
    picture = note("The frames of this clip are no longer in the run's cache.")
    if strip:
        style, picture = Html(f"<style>{strip_styles({'v0': strip})}</style>"), _frames(run, "v0", strip)
    lines = [tag("li", line) for line in row["context"].strip().splitlines()]
    context = tag("ul", *lines, class_="plain context") if lines else note("No descriptions, only the frames.")
    sides = tag("div", *(_side(row, letter) for letter in "AB"), class_="sides")
    left = tag("div", picture, tag("h3", "Context of the judge"), context)
    right = tag("div", tag("p", tag("strong", row["question"]), class_="prompt"), sides, _verdict_table(row))
    return root(style, tag("div", left, right, class_="two")), len(verdicts)


def _side(row: Mapping[str, Any], letter: str) -> Html:
    won = row["choice"] == letter
    heading = [tag("span", f"Answer {letter}", class_="letter"), *([tag("span", "chosen", class_="ok")] if won else [])]
    text = row[f"answer_{letter.lower()}"] or tag("em", "no answer")
    parts = tag("div", *heading, class_="who"), tag("div", text, class_="bubble")
    return tag("div", *parts, class_=f"side answer{' won' if won else ''}")


def _verdict_table(row: Mapping[str, Any]) -> Html:
    """The verdict in both orders, then the other readouts of the same pair."""
    names = {"verdict": row, "without context": row.get("without_context"), "as letters": row.get("letter")}
    lines = [[name, *each["orders"], each["choice"], f"{each['margin']:.3f}"] for name, each in names.items() if each]
    parts = [table(["", "A first", "B first", "combined", "margin"], lines)]
    if row.get("scores"):
        chosen, rejected = row["scores"]
        relation = "agrees" if row["reward_says"] == "same" else "disagrees"
        parts.append(note(f"Reward model: chosen {chosen:+.2f}, rejected {rejected:+.2f}; it {relation}."))
    return tag("div", *parts)


def vote_cards(rows: Sequence[Row], only_different: bool, most: int = 20) -> Html:
    """The latest votes, or those for which people and the judge chose differently."""
    if only_different:
        shown = [row for row in rows if row.get("judge") and row["judge"] != row.get("preference")]
    else:
        shown = list(rows)
    if not shown:
        return empty("None.") if rows else Html("")
    words: dict[Any, str] = {1: "A", 2: "B"}
    cards = []
    for row in reversed(shown[-most:]):
        vote, judge = (words.get(row.get(name), row.get(name) or "no verdict") for name in ("preference", "judge"))
        sides = []
        for n in (1, 2):
            model = str(row.get(f"model_{n}"))
            name = tag("dt", tag("i", class_=f"key {model}"), f"{words[n]}: {MODELS.get(model, '?')}")
            sides.append(tag("div", name, tag("dd", row.get(f"output_{n}") or tag("em", "no answer"))))
        choices = note(f"Vote: {vote} · judge: {judge}")
        cards.append(tag("article", tag("h4", row.get("prompt", "")), tag("dl", *sides), choices, class_="card"))
    return root(tag("div", *cards, class_="cards"))


def no_run() -> Html:
    """The page without a run: the command that makes one."""
    command = "OMP_NUM_THREADS=1 python -m minirlaif run --config configs/tiny.yaml --run tiny"
    text = "There is no run in this folder yet. This command makes a small one in about 15 minutes, without a GPU:"
    return empty(text, tag("pre", command))


def _frame_count(run: Run) -> int:
    settings = run_reader.config_of(run)
    return settings.video.frames if settings else DEFAULT_FRAMES


def _frames(run: Run, name: str, jpeg: bytes) -> Html:
    from PIL import Image

    count = _frame_count(run)
    with Image.open(io.BytesIO(jpeg)) as picture:
        return frames(name, count, picture.width / count / picture.height)
