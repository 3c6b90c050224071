"""The sections of report.html: pure functions of report.json's numbers. Their text stands in templates/run_report.html."""

from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.reports.html import Html, bar, curve, interval, number, percent, points, run_block, share, tile
from minirlaif.runs import gains
from minirlaif.stages.registry import MODELS, REPEATED, STAGES
from minirlaif.stats import exact_match

KINDS = {  # before: the model that RLAIF started from, SFT or the base
    "worse": "Right before RLAIF, wrong after it",
    "better": "Wrong before RLAIF, right after it",
    "both wrong": "Wrong before and after RLAIF",
    "both right": "Right before and after RLAIF",
    "": "Answers side by side",
}
COUNTS = {
    "decodes": "Decodes",
    "encodes": "Encodes",
    "plans": "Clip × frame plan",
    "encoded_frames": "Frames encoded",
    "opened": "Clips opened to check",
    "prefilled_tokens": "Tokens prefilled",
}
Numbers = Mapping[str, Any]
FEW = 30  # below so many a share says little: its 95 % interval is wider than 30 points


def compared(gain: Mapping[str, float], n: int) -> str:
    """ "above", "below" or "level" (the 95 % interval holds zero, or it has no width because fewer than FEW questions, n, were
    asked)."""
    if gain["ci95_low"] == gain["ci95_high"] and n < FEW:
        return "level"
    return "above" if gain["ci95_low"] > 0 else "below" if gain["ci95_high"] < 0 else "level"


def kind(row: Mapping[str, Any]) -> str:
    """How one answer changed from SFT (or, without SFT, from the base) to RLAIF: a key of KINDS; "" without truth."""
    if not row.get("truth"):
        return ""
    before, after = exact_match(start_answer(row), row["truth"]), exact_match(row["rlaif"], row["truth"])
    if before == after:
        return "both right" if after else "both wrong"
    return "better" if after else "worse"


def start_answer(row: Mapping[str, Any]) -> str:
    """The answer of the model that RLAIF started from."""
    return str(row["base"] if row.get("sft") is None else row["sft"])


def not_kept(numbers: Numbers) -> str:
    """That the method's own start was its best checkpoint."""
    method = numbers["method"]
    return f"No checkpoint of {method} was kept: the RLAIF model is the model that {method} started from."


def headline(name: str, numbers: Numbers) -> Html:
    """The result in one sentence, with intervals, and the comparison with the base; then the main figures."""
    seen, without = numbers["test_clips_seen_before"], numbers["test_items"] - numbers["answered_items"]
    held_out, clips = "held-out" if seen == 0 else "test", number(numbers["test_clips"])
    questions = f"{number(numbers['test_items'])} {held_out} questions about {clips} clips"
    sentences: list[tuple[str, str]] = []
    start = numbers["start"]
    if numbers["accuracy"].get(start) is None:
        title = f"Answers to {questions}, side by side"
        lead = f"These questions have no true answers, so no accuracy was measured. {_new_clips(seen)}"
    else:
        gain, label = numbers["accuracy_gain" if start == "sft" else "gain_over_base"], {"sft": "SFT", "base": "base"}[start]
        before, after = (f"{percent(numbers['accuracy'][m])} ({n})" for m, n in ((start, label), ("rlaif", "RLAIF")))
        words = {"above": "Accuracy rose from {} to {}", "below": "Accuracy fell from {} to {}"}
        words["level"] = "No clear change in accuracy: {}, {}"
        title = words[compared(gain, numbers["answered_items"])].format(before, after)
        over = "SFT" if start == "sft" else "the base"
        ends = _interval(gain, numbers["answered_items"])
        lead = f"That is {points(gain['mean'])} points over {over} ({ends}), on {questions}. {_new_clips(seen)}"
        if without:
            lead += f" {number(without)} of the questions have no true answer and are left out of every accuracy."
        if start == "sft":
            sentences.append(_against_base(numbers))
        else:
            sentences.append(("Supervised fine-tuning is off", ": RLAIF started from the base."))
    if numbers.get("base") == "tiny" and not numbers.get("world"):
        sentences.append(("The tiny base knows the tiny world alone", ": about clips of anything else it makes things up."))
    if ended := numbers.get("rounds_ended"):
        sentences.append((f"The RLAIF model is that of round {numbers['round']}", f": {ended}."))
    if numbers[numbers["method"]]["chosen_iteration"] == 0:
        text = " On the dev questions no later checkpoint was better by more than the standard error of its win rate."
        sentences.append((not_kept(numbers), text))
    return run_block("headline", name, numbers["seed"], title, lead, sentences, _tiles(numbers))


def _against_base(numbers: Numbers) -> tuple[str, str]:
    """The comparison with the base before SFT."""
    over, figure = numbers["gain_over_base"], percent(numbers["accuracy"]["base"])
    n = numbers["answered_items"]
    figures, against = f" ({figure}): {points(over['mean'])} points, {_interval(over, n)}", compared(over, n)
    if against == "level":
        figures += "" if over["ci95_low"] == over["ci95_high"] else ", which includes zero"
    figures += "."
    if against == "below" and numbers.get("world") and numbers["accuracy"]["sft"] < numbers["accuracy"]["base"]:
        figures += " SFT is also below the base; the tiny world's labels are as wrong as world.still_share and"
        figures += " world.shuffled_share make them."
    strong = "No clear difference from" if against == "level" else f"RLAIF is {against}"
    return f"{strong} the base before SFT", figures


def models_of(numbers: Numbers) -> dict[str, str]:
    """The models of the run with their titles."""
    return {
        name: label if numbers["start"] == "sft" else label.split(",")[0]
        for name, label in MODELS.items()
        if name != "sft" or numbers["start"] == "sft"
    }


def _interval(gain: Mapping[str, float], n: int) -> str:
    low, high = gain["ci95_low"], gain["ci95_high"]
    return _no_width(n) if low == high else f"95 % interval {interval(low, high)}"


def _no_width(n: int) -> str:
    """Why an interval over n questions has no width."""
    return "too few questions for an interval" if n < FEW else "the same about every clip"


def _new_clips(seen: int | None) -> str:
    """Whether the test is one of unseen clips."""
    if seen is None:
        return "Whether an earlier stage used these clips could not be determined."
    if seen:
        return f"Earlier stages used {number(seen)} of these clips, so accuracy on new clips was not measured."
    return "No earlier stage used these clips."


def _tiles(numbers: Numbers) -> list[Html]:
    def counted(label: str, value: float, n: int | None, what: str, note: str = "", tone: str = "") -> Html:
        return tile(label, percent(value), run_block("counted", n, what, note, FEW), tone)

    right, judge, model, method = (numbers[key] for key in ("accuracy", "judge", "reward_model", numbers["method"]))
    tiles = []
    if right.get(numbers["start"]) is not None:
        for name, label in models_of(numbers).items():
            low, high = numbers["accuracy_ci95"][name]
            ends = f"95 % interval {100 * low:.1f} to {100 * high:.1f}" if low != high else _no_width(numbers["answered_items"])
            tiles.append(counted(label, right[name], numbers["answered_items"], "questions", ends, name))
    if judge["with_context"] is not None:
        tiles.append(counted("Judge agrees with truth", judge["with_context"], judge["with_context_n"], "decided pairs"))
    else:
        tiles.append(counted("Judge decided", judge["decided_share"], judge["pairs"], "pairs"))
    if model is None:
        pass
    elif model["accuracy"] is not None:
        tiles.append(counted("Reward model", model["accuracy"], model["n"], "held-out pairs", "against truth"))
    else:
        n = model["held_out_pairs"]
        tiles.append(counted("Reward model", model["against_judge"], n, "held-out pairs", "against the judge"))
    if method["dev_win_rate"] is not None:
        note = "over its start, by the judge" if method["chosen_iteration"] != 0 else "the start itself: nothing later was kept"
        tiles.append(counted("Dev win rate", method["dev_win_rate"], method["dev_questions"], "dev questions", note))
    return tiles


def accuracy(numbers: Numbers) -> Html:
    """A bar per model, and a table by type of question."""
    right, ends, kinds = numbers["accuracy"], numbers["accuracy_ci95"], numbers["accuracy_by_type"]
    models, gains = models_of(numbers), {"sft": "accuracy_gain", "base": "gain_over_base"}
    rows = [bar(label, right[name], name, ends[name], right["guess"]) for name, label in models.items()]
    others = [name for name in gains if name in models]
    lines = []
    for kind, row in sorted(kinds.items() if set(kinds) != {"all"} else ()):
        changes = [run_block("change", row["rlaif"] - row[other]) for other in others]
        lines.append([kind, number(row["n"]), *(share(row[name]) for name in models), *changes])
    changes = [run_block("change", numbers[gains[name]]["mean"]) for name in others]
    lines.append(["all", number(numbers["answered_items"]), *(share(right[name]) for name in models), *changes])
    head = [{"base": "Base", "sft": "SFT", "rlaif": "RLAIF"}[name] for name in models]
    over = [{"sft": "over SFT", "base": "over base"}[name] for name in others]
    return run_block("accuracy", rows, ["Question type", "n", *head, *over], lines, right["guess"])


def controls(numbers: Numbers) -> Html:
    """The same models on blank frames and on frames in a wrong order, beside guessing."""
    right, models = numbers["accuracy"], models_of(numbers)
    above = max(0.0, *(right[f"{name}_blind"] - right["guess"] for name in models))  # below guessing is no warning sign
    over = f"more than {100 * above:.1f} points above" if above else "better than"
    text = f"With blank frames no model is {over} guessing."
    if above > 0.05:
        text = f"With blank frames a model is still {100 * above:.1f} points above guessing:"
        text += " part of its right answers does not depend on the frames."
    blank = numbers.get("gain_over_blank") or {}
    gains = {name: gain for name, gain in blank.items() if name in models}
    unclear = [
        models[name].split(",")[0]
        for name, gain in gains.items()
        if compared(gain, numbers.get("answered_items", numbers["test_items"])) != "above"
    ]
    if gains and not unclear:
        least = min(gains.values(), key=lambda gain: gain["ci95_low"])
        text += f" With its own frames each model is at least {100 * least['ci95_low']:.1f} points better than with blank ones"
        text += " (lower end of the 95 % interval): right answers come from the frames."
    elif gains:
        text += (
            f" That the right answers come from the frames is not shown for {', '.join(unclear)}: with its own frames it is not"
        )
        text += " clearly better than with blank ones."
    n = numbers.get("answered_items", numbers["test_items"])
    if n < FEW:
        text += f" {number(n)} questions are too few to be sure."
    return run_block("controls", text, models, right)


def gallery(rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, Html], numbers: Numbers) -> Html:
    """Test questions with frames and answers, grouped by how the answer changed. pictures: by the row's strip."""
    groups: list[tuple[str, str, list[dict[str, Any]]]] = []
    marked = any(kind(row) for row in rows)
    titles = models_of({"start": numbers.get("start", "sft")})
    models = [(name, titles[name]) for name in ("sft", "rlaif", "base") if name in titles]
    for group, title in KINDS.items():
        cards = [dict(row) for row in rows if kind(row) == group]
        for row in cards:
            row["right"] = {n: exact_match(row[n], row["truth"]) if row.get("truth") else None for n, _ in models if n in row}
        if cards:
            count = f"{number(numbers['cases'][group])} of {number(numbers['answered_items'])} questions" if group else ""
            groups.append((title, count, cards))
        elif group == "worse" and numbers["cases"]["worse"] == 0 and marked:
            groups.append(("", "No test question was right before RLAIF and wrong after it.", []))
    started = numbers.get(str(numbers.get("method")), {}).get("chosen_iteration") == 0
    same = started and all(row["rlaif"] == start_answer(row) for row in rows)
    return run_block("gallery", groups, marked, models, pictures, same)


def judge(numbers: Numbers, settings: Mapping[str, Any]) -> Html:
    """How often the judge is right with and without the segment descriptions, and how many pairs it decides."""
    kinds = numbers["judge"].get("by_type") or {}
    by_type = [[kind, percent(share)] for kind, share in kinds.items()] if set(kinds) - {"all"} else []
    return run_block("judge", numbers["judge"], numbers["context"] or {}, settings, by_type, FEW)


def training(numbers: Numbers, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Html:
    """Curves of the stage that trained the RLAIF model, with the chosen iteration, then those of the stages before it."""
    best, full = numbers[numbers["method"]]["chosen_iteration"], gains.name_of(numbers.get("round", 1), numbers["method"])
    long = min((row["step"] for row in metrics.get("sft", ()) if row.get("stage") == "long"), default=None)
    dashed = {full: best, "sft": long}
    several = any("/" in stage for stage in metrics)

    def drawn(stage: str) -> list[Html]:
        (place, plain), rows = (
            gains.split_name(stage),
            [row for row in metrics[stage] if row.get("pairs") != 0],
        )  # of feedback: without chunks of dev clips
        note = "dashed: long answers begin" if stage == "sft" and long is not None else ""
        figures = []
        for each in STAGES[plain].curves:
            title = f"Round {place}: {each.title}" if several and plain in REPEATED else each.title
            points = [(row["step"], row.get(each.field)) for row in rows]
            figures.append(curve(title, points, STAGES[plain].tone, dashed.get(stage), note or each.note, each.span))
        return figures

    text = "There were no dev questions, so the weights after the last iteration were kept."
    if numbers[numbers["method"]]["dev_win_rate"] is not None:
        text = not_kept(numbers) if best == 0 else f"The dashed line marks iteration {number(best)}, whose weights were kept."
        text += " The checkpoint is chosen by the judge's win rate on dev questions; true answers are not used."
    return run_block("training", text, drawn(full), [each for stage in metrics if stage != full for each in drawn(stage)])


def counts(numbers: Numbers) -> Html:
    """Decodes, encodes and prefilled tokens."""
    c = numbers["counts"]
    rows = [
        [stage, *(number(row.get(name, 0)) for name in COUNTS)] for stage, row in {**c["by_stage"], "all": c["total"]}.items()
    ]
    return run_block("counts", c, ["Stage", *COUNTS.values()], rows)
