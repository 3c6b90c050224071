"""The report's sections on the result: headline, accuracy, controls, gallery. Pure functions from report.json's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.reports.html import (
    Html,
    answer,
    bar,
    bars,
    card,
    interval,
    join,
    number,
    percent,
    points,
    section,
    share,
    table,
    tag,
    tile,
)
from minirlaif.stats import exact_match

MODELS = {"base": "Base, before SFT", "sft": "SFT", "rlaif": "Aligned (RLAIF)"}
KINDS = {
    "worse": "Alignment made it worse",
    "better": "Alignment put it right",
    "both wrong": "Wrong before and after",
    "both right": "Right before and after",
    "": "Answers side by side",
}
Numbers = Mapping[str, Any]
FEW = 30  # below so many a share says little: its 95 % interval is wider than 30 points
NOT_KEPT = "PPO was not kept: the aligned model is the SFT model."


def compared(gain: Mapping[str, float]) -> str:
    """ "above", "below" or "level" (the 95 % interval holds zero, or so little was asked that it has no width)."""
    if gain["ci95_low"] == gain["ci95_high"]:
        return "level"
    return "above" if gain["ci95_low"] > 0 else "below" if gain["ci95_high"] < 0 else "level"


def kind(row: Mapping[str, Any]) -> str:
    """What alignment did to one answer: a key of KINDS; "" without truth."""
    if not row.get("truth"):
        return ""
    before, after = exact_match(row["sft"], row["truth"]), exact_match(row["rlaif"], row["truth"])
    return {(True, False): "worse", (False, True): "better", (False, False): "both wrong", (True, True): "both right"}[
        before, after
    ]


def headline(name: str, numbers: Numbers) -> Html:
    """The result in one sentence, with intervals, and whether the base is passed; then the figures worth a glance."""
    accuracy, clips = numbers["accuracy"], number(numbers["test_clips"])
    top = tag("p", f"minirlaif report · run {name} · seed {numbers['seed']}", class_="eyebrow")
    seen, without = numbers["test_clips_seen_before"], numbers["test_items"] - numbers["answered_items"]
    asked = f"{number(numbers['test_items'])} {'held-out' if seen == 0 else 'test'} questions about {clips} clips"
    if accuracy.get("sft") is None:
        told = "These questions come without true answers, so there is no accuracy here: read the answers and judge for yourself."
        return tag(
            "header",
            top,
            tag("h1", f"Answers to {asked}, side by side"),
            tag("p", f"{told} {_new_clips(numbers)}", class_="lead"),
            _not_kept(numbers),
            _tiles(numbers),
        )
    gain, sft, rlaif = numbers["accuracy_gain"], percent(accuracy["sft"]), percent(accuracy["rlaif"])
    title = {
        "above": f"AI feedback took accuracy from {sft} to {rlaif}",
        "below": f"AI feedback lowered accuracy from {sft} to {rlaif}",
        "level": f"No clear change: {sft} of answers right after SFT, {rlaif} after AI feedback",
    }[compared(gain)]
    lead = f"That is {points(gain['mean'])} points over SFT ({_surely(gain)}), on {asked}. {_new_clips(numbers)}"
    if without:
        lead += f" {number(without)} of the questions come without a true answer and count in no figure of accuracy."
    return tag(
        "header",
        top,
        tag("h1", title),
        tag("p", lead, class_="lead"),
        _against_base(numbers),
        _not_kept(numbers),
        _tiles(numbers),
    )


def _surely(gain: Mapping[str, float]) -> str:
    low, high = gain["ci95_low"], gain["ci95_high"]
    return "too few questions for an interval" if low == high else f"95 % interval {interval(low, high)}"


def _not_kept(numbers: Numbers) -> object:
    if numbers["ppo"]["chosen_iteration"] != 0:
        return ""
    return tag("p", tag("strong", NOT_KEPT), " The judge preferred none of its checkpoints on dev questions.", class_="lead")


def _new_clips(numbers: Numbers) -> str:
    """Whether the test is one of unseen clips."""
    seen = numbers["test_clips_seen_before"]
    if seen is None:
        return "Whether an earlier stage has used these clips can no longer be told."
    if seen:
        return f"Earlier stages have used {number(seen)} of these clips too, so this says little about clips that are new."
    return "No stage before this evaluation has looked at these clips."


def _against_base(numbers: Numbers) -> Html:
    over, base = numbers["gain_over_base"], percent(numbers["accuracy"]["base"])
    known = f"{points(over['mean'])} points, {_surely(over)}"
    zero = "" if over["ci95_low"] == over["ci95_high"] else ", which includes zero"
    poor = " That is no surprise here: the tiny world's SFT labels are poor on purpose, so SFT unlearns what the base knew."
    if not numbers.get("world"):
        poor = ""
    strong, rest = {
        "above": ("It passes the base before SFT", f" ({base}): {known}."),
        "below": ("It does not pass the base before SFT", f" ({base}): {known}.{poor}"),
        "level": ("It is not shown to pass the base before SFT", f" ({base}): {known}{zero}."),
    }[compared(over)]
    return tag("p", tag("strong", strong), rest, class_="lead")


def _tiles(numbers: Numbers) -> Html:
    right, judge, model, win = numbers["accuracy"], numbers["judge"], numbers["reward_model"], numbers["ppo"]["dev_win_rate"]
    tiles = []
    asked = numbers.get("answered_items", numbers["test_items"])
    if right.get("sft") is not None:
        for name, label in MODELS.items():
            tiles.append(
                tile(label, percent(right[name]), _counted(asked, "questions", _ends(numbers["accuracy_ci95"][name])), name)
            )
    if judge["with_context"] is not None:
        note = _counted(judge["with_context_n"], "decided pairs")
        tiles.append(tile("Judge agrees with truth", percent(judge["with_context"]), note))
    else:
        tiles.append(tile("Judge decided", percent(judge["decided_share"]), _counted(judge["pairs"], "pairs")))
    if model["accuracy"] is not None:
        note = _counted(model["n"], "held-out pairs", "against truth")
        tiles.append(tile("Reward model", percent(model["accuracy"]), note))
    else:
        note = _counted(model["held_out_pairs"], "held-out pairs", "against the judge")
        tiles.append(tile("Reward model", percent(model["against_judge"]), note))
    if win is not None:
        note = _counted(numbers["ppo"]["dev_questions"], "dev questions", "over SFT, by the judge")
        tiles.append(tile("Dev win rate", percent(win), note))
    return tag("dl", *tiles, class_="tiles")


def accuracy(numbers: Numbers) -> Html:
    """A bar per model, and a table by type of question."""
    right, ends, kinds = numbers["accuracy"], numbers["accuracy_ci95"], numbers["accuracy_by_type"]
    rows = [bar(label, right[name], name, ends[name], right["guess"]) for name, label in MODELS.items()]
    lines = []
    for kind, row in sorted(kinds.items() if set(kinds) != {"all"} else ()):
        changes = [_change(row["rlaif"] - row[other]) for other in ("sft", "base")]
        lines.append([kind, number(row["n"]), *(share(row[name]) for name in MODELS), *changes])
    gains = [_change(numbers[name]["mean"]) for name in ("accuracy_gain", "gain_over_base")]
    lines.append(["all", number(numbers["answered_items"]), *(share(right[name]) for name in MODELS), *gains])
    head = ["Question type", "n", "Base", "SFT", "Aligned", "over SFT", "over base"]
    note = (
        f"Exact match with the truth. Whiskers: 95 % intervals, whole clips drawn. Dashed: guessing, {percent(right['guess'])}."
    )
    by_type = table(head, lines, "% right, and the change in points", strong_last=True)
    return section("accuracy", "Accuracy", bars(rows, "Accuracy per model"), tag("p", note, class_="note"), by_type)


def controls(numbers: Numbers) -> Html:
    """The same models on blank frames and on frames in a wrong order, beside guessing."""
    right = numbers["accuracy"]
    far = max(0.0, *(right[f"{name}_blind"] - right["guess"] for name in MODELS))  # falling below it is no sign of cheating
    over = f"more than {100 * far:.1f} points above" if far else "better than"
    told = (
        f"With blank frames no model is {over} guessing: the answers come from the pictures."
        if far <= 0.05
        else f"With blank frames a model is still {100 * far:.1f} points above guessing:"
        " do not trust that all answers come from the pictures."
    )
    asked = numbers.get("answered_items", numbers["test_items"])
    if asked < FEW:
        told += f" {number(asked)} questions are too few to be sure."
    ways = {"": "frames as they are", "_shuffled": "frames in a wrong order", "_blind": "blank frames"}
    groups = [
        tag(
            "div",
            tag("h3", label),
            bars([bar(way, right[name + end], name, mark=right["guess"]) for end, way in ways.items()], label),
        )
        for name, label in MODELS.items()
    ]
    told_guess = "Knows only the type of the question, and always gives that type's most frequent true answer."
    guess = bars([bar("most frequent answer", right["guess"])], "Guessing")
    groups.append(tag("div", tag("h3", "Guessing"), guess, tag("p", told_guess, class_="note")))
    return section("controls", "Controls: is it really looking?", tag("p", told), tag("div", *groups, class_="two"))


def gallery(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, Html], numbers: Numbers) -> Html:
    """Test questions with frames and answers, grouped by what alignment did to them."""
    parts: list[object] = []
    for group, title in KINDS.items():
        some = [row for row in rows if kind(row) == group]
        if some:
            count = f"{number(numbers['cases'][group])} of {number(numbers['answered_items'])} questions" if group else ""
            parts += [
                tag("h3", title, " ", tag("small", count)),
                tag("div", *(_card(row, pictures) for row in some), class_="cards"),
            ]
        elif group == "worse" and numbers["cases"]["worse"] == 0 and any(kind(row) for row in rows):
            parts.append(tag("p", "No test question was right after SFT and wrong after alignment.", class_="note"))
    told = "Words that are not in the truth are underlined."
    if not any(kind(row) for row in rows):
        told = "These questions have no true answers, so nothing is marked right or wrong."
    note = f"Frames in order, row by row. {told}"
    return section("gallery", "Gallery", tag("p", note, class_="note"), *parts)


def _card(row: Mapping[str, Any], pictures: Mapping[str, Html]) -> Html:
    truth = row.get("truth") or ""
    told = [
        answer(label, row[name], exact_match(row[name], truth) if truth else None, name, truth)
        for name, label in (("sft", "SFT"), ("rlaif", "Aligned"), ("base", "Base, before SFT"))
        if name in row
    ]
    missing = tag("p", "Frames of this clip were not kept.", class_="note")
    return card(row["question"], row.get("type") or "", pictures.get(row.get("strip") or "", missing), truth, told)


def _counted(n: int | None, what: str, note: str = "") -> Html:
    """The note of a tile: out of how many, and whether that is too few."""
    words: list[object] = [note] if note else []
    if n is not None:
        words.append(f"{number(n)} {what}")
    if n is not None and n < FEW:
        words.append(tag("span", "too few to rely on", class_="no"))
    return join(words, " · ")


def _ends(ends: Sequence[float]) -> str:
    if ends[0] == ends[1]:
        return "too few questions for an interval"
    return f"95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _change(share: float) -> Html:
    return tag("span", points(share), class_="up" if share > 0 else "down" if share < 0 else None)
