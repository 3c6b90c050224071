"""What the columns of a row are called, and the columns whose name means something that nothing here uses.

No column that changes the meaning of a row is dropped: one whose name stands in MEANING (in any case of letters), that holds
something and that no format has taken, stops the row with its name. `data.ignore_columns` lists those to pass over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from minirlaif.data.cells import CLIP_SUFFIXES, BadRow, clip_name, first, holds, seconds
from minirlaif.video.spans import name_of, named_span

CONVERSATIONS = ("messages", "conversations", "conversation")  # with a place for the clip
QUESTIONS = (*CONVERSATIONS, "QA", "prompt", "question", "q", "Q", "problem", "query", "instruction")
ANSWERS = (
    *("answer", "a", "A", "completion", "response", "solution", "output", "correct_answer", "correct_choice", "right_answer"),
    *("answer_key", "ground_truth", "truth", "answer_text", "gt_answer", "gold_answer", "reference_answer"),
)
PLACES = ("answer_id", "answer_idx", "answer_index", "correct_idx", "correct_answer_idx")  # of the right option
VIDEOS = (
    *("video", "videos", "video_path", "video_file", "videoID", "video_id", "video_idx", "video_name", "images", "path"),
    *("vid_name", "gif_name", "clip", "clip_path", "file", "file_path", "filepath", "file_name", "filename", "media"),
)
# Names that other things have as well: a clip where the cell names one and no other column does.
_LOOSE = frozenset(VIDEOS[VIDEOS.index("clip") :])
FILES = ("video", "videos", "video_path", "video_file", "path")  # of these, columns that name a file rather than a recording

# A part of the clip as two columns, or as one list of two.
_ENDS = (
    ("start", "end"),
    ("start_time", "end_time"),
    ("video_start", "video_end"),
    ("start_sec", "end_sec"),
    ("start_second", "end_second"),
    ("start_seconds", "end_seconds"),
    ("clip_start", "clip_end"),
    ("start_timestamp", "end_timestamp"),
    ("begin", "end"),
)
_PAIRS = ("timestamp", "timestamps", "time", "times", "ts", "span", "segment", "time_range", "time_span", "clip_span", "clip")
_PATHS = ("path", "video", "url", "video_url")  # of an object that names a clip
_RANGE = re.compile(r"\s*([\d:.]+)\s*-\s*([\d:.]+)\s*")  # TVQA: 76.01-84.2
_LIST = re.compile(r"\s*\[[^\[\]]*\]\s*")  # [1.0, 3.0] in a cell of text

MEANING = frozenset(
    (
        # which part of the clip
        "start end begin start_time end_time video_start video_end start_sec end_sec start_second end_second start_seconds"
        " end_seconds clip_start clip_end start_timestamp end_timestamp start_frame end_frame timestamp timestamps time times ts"
        " span spans segment segments time_range time_span clip_span moment moments duration length dur len t0 t1 offset"
        # what there is to choose from, and what is not the answer
        " options option candidates candidate choices choice answer_choices distractors negative negatives hard_negative"
        " hard_negatives counterfactual counterfactuals chosen rejected rejected_response rejected_messages rejected_videos"
        " rejected_answer negative_messages positive_messages wrong_answer wrong_answers incorrect_answers answers responses"
        " output_1 output_2 preference"
        # further input of the model
        " subtitle subtitles subtitle_path subs srt transcript asr speech context input history system system_prompt instructions"
        " tools functions objects image images audio audios bbox bboxes box boxes region regions hint response output"
        " ocr passage evidence knowledge rotation rotate crop roi flip mirror template placeholders answer_number"
        # what is learned from it
        " loss loss_mask loss_scale weight weights sample_weight kto_tag kto_label train trainable training correct"
    ).split()
)
# Answers of a preference: of no meaning to a row that is read for its question alone.
PREFERRED = ("chosen", "rejected", "rejected_response", "rejected_messages", "output_1", "output_2", "preference")
# A column for each option, as option_a, choice1, opa, a0, distractor2, (B); another clip, as video2.
ONE_OPTION = re.compile(
    r"(?:options?|choices?|candidates?|opt?|ans|answer)[ _]?(?:\d+|[a-f])|a\d+|\(?[b-h]\)?|\(a\)", re.IGNORECASE
)
_ANOTHER_CLIP = re.compile(r"(?:video|clip)s?_?\d|(?:second|other|negative)_(?:video|clip)s?", re.IGNORECASE)
_ANOTHER_QUESTION = re.compile(r"(?:question|prompt)[ _]?\d+", re.IGNORECASE)
# Columns that have a use under another spelling: Video beside video.
_KNOWN = frozenset((*QUESTIONS, *ANSWERS, *FILES))
_SPELLED = frozenset(name.lower() for name in _KNOWN if len(name) > 1)
# time_stamp, startTime, "start time", video_start_sec, distractor_1: the words of a name, whatever joins them
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_JOINED = frozenset(name.replace("_", "") for name in MEANING)
_TIMES = frozenset(
    (
        "start starts tstart end ends tend begin stop finish until timestamp timestamps times timecode timespan timeframe span"
        " spans segment segments moment moments window windows interval intervals"
    ).split()
)
_WORDS = _TIMES | frozenset(
    (
        "time duration option options opts candidate candidates choice choices alternatives distractor distractors foil foils"
        " negative negatives neg counterfactual counterfactuals wrong incorrect false bad chosen rejected answers subtitle"
        " subtitles subs sub srt transcript asr speech dialogue dialog system history context instruction instructions prompt"
        " loss mask masks masked weight weights training learn learned ignore reversed reasoning rationale cot thinking thought"
        " thoughts reject correct ocr passage rotation rotated crop cropped reverse mirrored flipped"
    ).split()
)
# Times and frames without a word for them: t0, sec_from, in_point, last_frame.
_CUT = re.compile(
    "(?i:(t|ts|time|secs?|s)_?(0|1|in|out|from|to)|(in|out)_?point|(first|last|from|to)_?frame|speed"
    "|frames?_?(index|indices|idxs?|ids|numbers|stride|step))"
)
_INSTEAD = {"from": "start", "to": "end", "correct": "answer"}  # names under which a column is read
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[T ].*)?")


def unused(row: Mapping[str, Any]) -> list[str]:
    """The columns left of a row that mean something."""
    return [name for name, value in row.items() if _means(name, value)]


def refuse_unused(row: Mapping[str, Any], ignore: Sequence[str] = (), video: str = "") -> None:
    """BadRow that names the columns left of a row that mean something. ignore: what the settings pass over already; video: the
    row's clip, than which no column may name another."""
    if names := unused(row):
        columns = " and ".join(f"`{name}`" for name in names)
        known = ", ".join(dict.fromkeys([*ignore, *names]))
        better = "".join(f"name it `{_INSTEAD[name]}` for `{name}`, " for name in names if name in _INSTEAD)
        raise BadRow(
            f"column{'s' * (len(names) > 1)} {columns} would change what the row means and {'are' if len(names) > 1 else 'is'}"
            f" not used: {better}take {'them' if len(names) > 1 else 'it'} out, or pass over with data.ignore_columns: [{known}]"
        )
    _refuse_others(row, video)


def _means(name: str, value: Any) -> bool:
    lower = name.lower()
    if not holds(value):
        return False
    if lower == "label":  # KTO's: whether the answer is a good one. Other labels are classes, which pass on as tags
        return str(value).strip().lower() in ("true", "false", "0", "1", "yes", "no", "good", "bad")
    if lower in ("loss", "weight", "sample_weight", "loss_scale", "train", "trainable", "training", "speed") and value == 1:
        return False  # learned from as every row is
    if lower in ("rotation", "rotate", "crop", "flip", "mirror") and value in (0, False):
        return False
    if lower in ("from", "to", "sec", "second") or _CUT.fullmatch(name):
        return isinstance(value, int | float | list | tuple) and not isinstance(value, bool)
    if lower in ("is_train", "do_train"):
        return value in (0, False)
    if lower == "i":  # VideoChat2's instruction; a number is a row's
        return isinstance(value, str) and not value.strip().isdecimal()
    if name not in _KNOWN and lower in _SPELLED:
        return True
    if lower in ("time", "timestamp") and isinstance(value, str) and _DATE.fullmatch(value.strip()):
        return False  # when the row was written
    if isinstance(value, str) and _DATE.fullmatch(value.strip()):
        return lower in MEANING
    if isinstance(value, Mapping):  # such as metadata: its times alone
        return any(holds(each) and not _TIMES.isdisjoint(_words(str(key))) for key, each in value.items()) or named(name)
    return named(name) or _is_times(value)


def named(name: str) -> bool:
    """Whether the name of a column means something, whatever it holds."""
    words = _words(name)
    joined = "".join(words) in _JOINED or not _WORDS.isdisjoint(words)
    of_answers = "answer" in words and not {"list", "choices", "possible"}.isdisjoint(words)
    return joined or of_answers or any(pattern.fullmatch(name) for pattern in (ONE_OPTION, _ANOTHER_CLIP))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _is_times(value: Any) -> bool:
    """Whether a cell is two ascending numbers, which may be times or frames."""
    value = _listed(value)
    numbers = [each for each in value if isinstance(each, int | float) and not isinstance(each, bool)] if _is_pair(value) else []
    return len(numbers) == 2 and 0 <= numbers[0] < numbers[1]


def take_part(row: dict[str, Any], video: str, inside: str = "") -> str:
    """The name of the part of a clip that a row, or a video part of a message, means by its columns, which are taken out.

    video: the clip as the row names it; a part given in two ways is a BadRow. inside: what holds the columns, for messages.
    """
    for name in {name for pair in _ENDS for name in pair if name in row and not holds(row[name])}:
        del row[name]
    names = max(_ENDS, key=lambda names: sum(name in row for name in names))
    pair = next((name for name in _PAIRS if _names_part(name, row.get(name))), "")
    others = [name for name in names if name in row]
    others += [name for name in _PAIRS if name != pair and _names_part(name, row.get(name))]
    if not pair and not others:
        return video
    if pair and others:
        raise BadRow(f"{inside}two columns may be the part of the clip, `{pair}` and `{others[0]}`: take one out")
    end: float | None
    if pair:
        start, end = (seconds(value, pair) for value in _ends(row.pop(pair)))
        shown = f"`{pair}`"
    else:
        start = seconds(row.pop(names[0]), names[0]) if names[0] in row else 0.0
        end = seconds(row.pop(names[1]), names[1]) if names[1] in row else None
        shown = f"`{names[0]}` and `{names[1]}`"
    if end is not None and end <= start:
        raise BadRow(f"{inside}{shown}: the part ends at {end:g} s and starts at {start:g} s; the end must lie behind the start")
    if named_span(video).is_part:
        raise BadRow(f"{inside}{shown} and the name {video} both give a part of the clip: take one out")
    return name_of(video, start, end)


def _ends(value: Any) -> tuple[Any, Any]:
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    pair = (match[1], match[2]) if match else _listed(value)
    return pair[0], pair[1]


def _is_pair(value: Any) -> bool:
    if isinstance(value, str) and _RANGE.fullmatch(value):
        return True
    value = _listed(value)
    return isinstance(value, list | tuple) and len(value) == 2 and not any(isinstance(item, list | dict) for item in value)


def _names_part(name: str, value: Any) -> bool:
    """Whether a cell of _PAIRS is a start and an end. `clip: "3-7"` may be a name."""
    return _is_pair(value) and not (isinstance(value, str) and name in ("clip", "segment"))


def _listed(value: Any) -> Any:
    """A list without another around it, or from its text."""
    if isinstance(value, str) and _LIST.fullmatch(value):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def clip_names(value: Any, column: str) -> list[str]:
    """Clip names of a video column: text, a number, an object such as {"path"}, which may have a start and an end, or a list of
    these."""
    if isinstance(value, list):
        return [name for item in value for name in clip_names(item, column)]
    if not isinstance(value, Mapping):
        return [clip_name(value, column)]
    rest = {str(name): cell for name, cell in value.items() if cell is not None and name != "type"}
    key = next((name for name in _PATHS if rest.get(name)), "")
    if not key and rest.get("bytes"):
        raise BadRow(f"`{column}` holds the clip itself; write it to a file and name that file")
    names = clip_names(rest.pop(key, None), column)
    if len(names) == 1:
        names = [take_part(rest, names[0], f"`{column}`: ")]
    try:
        refuse_unused(rest)
    except BadRow as problem:
        raise BadRow(f"`{column}`: {problem}") from None
    return names


def _plain(name: str) -> str:
    """A name by which one clip is known in two columns: ./videos/a.mp4 and a."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in CLIP_SUFFIXES else path.name


def _is_other(value: Any, file: str) -> bool:
    """Whether a text names another clip file: by its name, or by folders that both of them have."""
    if not isinstance(value, str) or not value.lower().endswith(CLIP_SUFFIXES) or " " in value:
        return False
    parents = [PurePosixPath(each.replace("\\", "/")).parent.parts[::-1] for each in (value, file)]
    return _plain(value) != _plain(file) or any(one != two for one, two in zip(*parents, strict=False))


def _refuse_others(row: Mapping[str, Any], video: str) -> None:
    """BadRow for a column left of a row that is another question, or names another clip file than the row's."""
    file = named_span(video).file
    for name, value in row.items() if video else ():
        if _ANOTHER_QUESTION.fullmatch(name) and isinstance(value, str) and value.strip():
            raise BadRow(f"`{name}` is another question: make a row of it, or pass over with data.ignore_columns: [{name}]")
        other = next((each for each in value if _is_other(each, file)), "") if isinstance(value, list) else value
        if _is_other(other, file):
            raise BadRow(
                f"`{name}` names another clip ({other[:60]}) than the row's ({file[:60]}): take one out, or pass over with"
                f" data.ignore_columns: [{name}]"
            )


def _names_clips(row: Mapping[str, Any], name: str) -> bool:
    """Whether a column names clips: of _LOOSE those whose cell is the name of a clip file."""
    value = row.get(name)
    return holds(value) and (name not in _LOOSE or (isinstance(value, str) and value.lower().endswith(CLIP_SUFFIXES)))


def take_videos(row: dict[str, Any]) -> tuple[str, list[str]]:
    """The column that names clips, and the clips; takes it out of the row."""
    for name in [name for name in VIDEOS if name in row and not holds(row[name])]:
        if any(holds(row.get(other)) for other in VIDEOS):  # as merged tables fill up what a row does not have
            del row[name]
    column = next((name for name in VIDEOS if _names_clips(row, name)), first(row, [n for n in VIDEOS if n not in _LOOSE]))
    names = clip_names(row.pop(column), column) if column else []
    for other in [name for name in FILES if row.get(name) not in (None, "", [])]:
        if other == "path" and not str(row[other]).lower().endswith(CLIP_SUFFIXES):
            continue
        others = clip_names(row.pop(other), other)
        if [*map(_plain, others)] != [*map(_plain, names)] or any(map(_is_other, others, names)):
            raise BadRow(
                f"two columns may be the clip, `{column}` and `{other}`: take one out, or name it in data.ignore_columns"
            )
    return column, names
