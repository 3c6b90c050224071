"""The kinds of judges and their settings: `--judge` names a judge or a YAML file, `--judge-set FIELD=VALUE` changes settings."""

import difflib
import json
import os
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from minirlaif.config import FeedbackSection
from minirlaif.config.loader import build, parse_yaml
from minirlaif.config.rules import PositiveFloat, PositiveInt
from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import TextJudge
from minirlaif.judges.rubric import CAPTIONING, Prompt, default_prompts
from minirlaif.models.backbones import FAMILIES
from minirlaif.runs.io import read_json

REPLIES = "judge-replies.sqlite"  # in the folder of runs: an equal request is answered from it at no cost
OF_THE_RUN = ("start", "base")  # judges of `feedback` that are the run's own models
DESCRIBES = {  # settings that a describer of a kind reads
    "hf": ("device", "dtype", "quantization"),
    "gguf": ("threads",),
    "openai": (
        *("url", "key_env", "temperature", "attempts", "timeout_seconds", "retries", "backoff_seconds", "per_minute", "parallel"),
        *("extra", "price_in", "price_out", "max_cost"),
    ),
}
OF_MODELS = ("prompts", "temperature", "max_tokens", "attempts")  # settings of every kind that is a chat model


@dataclass(frozen=True)
class JudgeKind:
    """One kind of judge. target: "module:Class" of a TextJudge that is made from (settings, file of replies), imported when it is
    opened; example: how `--judge` names one; settings: of this kind alone; chat_model: needs a name and has OF_MODELS; compares:
    can say which of two answers is better."""

    target: str
    example: str
    settings: tuple[str, ...] = ()
    chat_model: bool = False
    compares: bool = True


JUDGES = {
    "exact": JudgeKind("minirlaif.judges.grade:MatchJudge", "exact", compares=False),
    "normalised": JudgeKind("minirlaif.judges.grade:MatchJudge", "normalised", compares=False),
    "hf": JudgeKind("minirlaif.judges.local:HfJudge", "hf:FOLDER", ("device", "dtype", "quantization"), True),
    "gguf": JudgeKind("minirlaif.judges.local:GgufJudge", "gguf:FILE", ("context", "threads"), True),
    "openai": JudgeKind(
        "minirlaif.judges.openai:EndpointJudge",
        "openai:MODEL",
        ("url", "key_env", "timeout_seconds", "retries", "backoff_seconds", "per_minute", "parallel", "extra")
        + ("price_in", "price_out", "max_cost", "drop_version"),
        True,
    ),
}


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of all kinds of judges; those of one kind do nothing for the others."""

    kind: str = "normalised"  # a key of JUDGES, or none: predictions only
    name: str = ""  # hf: folder or hub id; gguf: file; openai: the model's name
    prompts: str = ""  # YAML file of other prompts: metric -> {system, user}; empty: our own
    temperature: float = 0.0  # hf: 0 only
    max_tokens: PositiveInt = 128  # longest reply
    attempts: PositiveInt = 2  # how often a question is asked until the reply can be read
    # openai
    url: str = ""  # such as http://127.0.0.1:8000/v1
    key_env: str = ""  # name of the environment variable that holds the key; empty: none is sent
    timeout_seconds: PositiveFloat = 60.0
    retries: int = 6  # after no reply, a busy or broken server
    backoff_seconds: PositiveFloat = 1.0  # before the first retry, doubled each time
    per_minute: float = 0.0  # most requests per minute; 0: no limit
    parallel: PositiveInt = 4  # requests under way at once
    extra: str = ""  # JSON object merged into each request; a null takes a field out
    price_in: float = 0.0  # per million tokens, for the estimate
    price_out: float = 0.0
    max_cost: float = 0.0  # refuse to start when the estimate is above it; 0: no limit
    drop_version: str = ""  # forget kept replies of a model that called itself so
    # hf and gguf
    device: Literal["auto", "cpu", "cuda"] = "auto"  # hf
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Literal["none", "nf4"] = "none"  # hf
    context: PositiveInt = 4096  # gguf: tokens of question and reply together
    threads: int = 0  # gguf: of the CPU; 0: as many as llama.cpp likes


SECRETS = "key apikey authorization auth token accesstoken authtoken bearer secret password".split()  # names without - and _


def judge_settings(spec: str, changes: Sequence[str] = ()) -> JudgeSettings:
    """Settings from `--judge` (a kind, kind:name, or a YAML file) and `--judge-set`. UserError with every problem."""
    values: Mapping[Any, Any] = {}
    where = f"--judge {spec}"
    kind, colon, name = spec.partition(":")
    if kind in ("none", *JUDGES):
        values = {"kind": kind, "name": name}
    elif Path(spec).suffix in (".yaml", ".yml"):
        values, where = _read_yaml(spec, "name a YAML file of judge settings"), spec
    else:
        known = ", ".join((*(row.example for row in JUDGES.values()), "none"))
        near = difflib.get_close_matches(kind, JUDGES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{where}: no such judge; {meant}known are {known}, or a YAML file")
    wrong = [change for change in changes if "=" not in change]
    if wrong:
        raise UserError(f"--judge-set {wrong[0]}: write FIELD=VALUE, such as timeout_seconds=120")
    # JSON is YAML too, and would be read as a mapping; it is text here.
    if isinstance(values.get("extra"), Mapping):
        values = {**values, "extra": json.dumps(values["extra"])}
    changed = {name.strip(): text.strip() for name, _, text in (change.partition("=") for change in changes)}
    texts = [f"{name}={json.dumps(text) if name == 'extra' else text}" for name, text in changed.items()]
    settings, problems = None, _unknown({**values, **changed})
    if not problems:
        settings, problems = build(JudgeSettings, values, texts)
    if settings is not None:
        problems = _conflicts(settings)
    if settings is None or problems:
        raise UserError(f"{where}: {'; '.join(problems).replace('--set ', '--judge-set ')}")
    return settings


def _read_yaml(path: str, remedy: str) -> Mapping[Any, Any]:
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None


def _unknown(given: Mapping[Any, Any]) -> list[str]:
    """Problems with names that are no setting; each suggests a similar one or lists those of this kind."""
    known = [each.name for each in fields(JudgeSettings)]
    kind = given.get("kind", "normalised")
    row = JUDGES.get(str(kind))
    problems = [] if row or kind == "none" else [f"kind must be one of none, {', '.join(JUDGES)}, not {kind!r}"]
    own = (*(OF_MODELS if row.chat_model else ()), *row.settings) if row else ()
    its = f"{kind} has {', '.join(own) or 'none'}"
    for name in map(str, given):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        if name not in known:
            problems.append(f"unknown setting {name} ({f'did you mean {near[0]}?' if near else its})")
    return problems


def open_judge(settings: JudgeSettings, replies: Path) -> TextJudge:
    """The judge that the settings name. replies: the file in which a chat model's replies are kept."""
    judge: TextJudge = pkgutil.resolve_name(JUDGES[settings.kind].target)(settings, replies)
    return judge


def feedback_judge(section: FeedbackSection) -> JudgeSettings | None:
    """The judge that reads text of `feedback.judge`; None where a model of the run judges. UserError, before anything is opened:
    there is no such judge, or it cannot compare answers."""
    settings = _of_feedback("judge", section.judge, "cannot say which of two answers is better")
    if settings is not None:
        check_judge(settings)
    return settings


def feedback_describer(section: FeedbackSection) -> JudgeSettings | None:
    """The settings of another model that describes, of `feedback.describer`; None where a model of the run does. UserError,
    before anything is opened: there is no such model."""
    settings = _of_feedback("describer", section.describer, "cannot describe a clip")
    if settings is None:
        return None
    path, standard = Path(settings.name), JudgeSettings()
    unread = [each.name for each in fields(JudgeSettings) if getattr(settings, each.name) != getattr(standard, each.name)]
    unread = [name for name in unread if name not in ("kind", "name", *DESCRIBES[settings.kind])]
    if unread:
        its = ", ".join(DESCRIBES[settings.kind])
        text = f"{', '.join(unread)} changes nothing for a describer of kind {settings.kind}, which reads {its}"
        raise UserError(f"feedback.describer {section.describer}: {text}; leave it out (feedback.describe_tokens limits a reply)")
    if settings.kind == "gguf":
        folder = path if path.is_dir() else path.parent
        if not path.exists() or not (folder / "minirlaif.json").is_file():
            what = "no such folder" if not path.exists() else "no minirlaif.json in it, so it is no export"
            raise UserError(f"feedback.describer gguf:{settings.name}: {what}; `python -m minirlaif export` makes one")
    else:
        check_judge(settings, "describer")
        if settings.kind == "hf" and path.is_dir() and not (path / "config.json").is_file():
            raise UserError(f"feedback.describer hf:{settings.name}: no config.json in it; name the folder of a model")
        if settings.kind == "hf" and path.is_dir():
            kind = read_json(path / "config.json").get("model_type")
            if kind not in FAMILIES:
                known = ", ".join(sorted(FAMILIES))
                text = f"is of the type {kind}, no vision-language model of a known family ({known})"
                raise UserError(f"feedback.describer hf:{settings.name}: {text}; name another folder")
    return settings


def _of_feedback(name: str, value: str, unable: str) -> JudgeSettings | None:
    """The settings of a model that `feedback` names. unable: what is wrong with kinds that only match answers."""
    if value in OF_THE_RUN:
        return None
    try:
        settings = judge_settings(value)
    except UserError as error:
        text = str(error).replace("--judge ", f"feedback.{name} ").replace("known are ", f"known are {', '.join(OF_THE_RUN)}, ")
        text = text.replace("no such judge", f"no such {name}")
        in_file = f"write kind, name and its settings into a YAML file and name that in feedback.{name}"
        raise UserError(text.partition(", as in --judge-set")[0] + (f"; {in_file}" if "--judge-set" in text else "")) from None
    if settings.kind not in JUDGES or not JUDGES[settings.kind].compares:
        able = ", ".join((*OF_THE_RUN, *(row.example for row in JUDGES.values() if row.compares)))
        able = able.replace("gguf:FILE", "gguf:FOLDER") if name == "describer" else able
        able = able.replace("openai:MODEL", "a YAML file with kind: openai")
        raise UserError(f"feedback.{name} {value}: {unable}; name one of {able}")
    return settings


def check_judge(settings: JudgeSettings, part: str = "judge") -> None:
    """Checks that need no model, made before models answer for hours. part: of the model that is named. UserError."""
    where, path = f"{part} {settings.kind}:{settings.name}", Path(settings.name)
    if settings.kind == "gguf" and not path.is_file():
        raise UserError(f"{where}: {'is a folder; name the .gguf file in it' if path.is_dir() else 'no such file'}")
    # A name with one slash may be one of the hub.
    if settings.kind == "hf" and not path.is_dir():
        if path.exists():
            raise UserError(f"{where}: is a file; name the folder of a model, or use gguf:FILE for a GGUF file")
        if settings.name.startswith((".", "/", "~")) or len(path.parts) > 2 or path.is_absolute():
            raise UserError(f"{where}: no such folder")
    if settings.kind == "openai" and settings.key_env and not os.environ.get(settings.key_env, "").strip():
        variable = f"the environment variable {settings.key_env} (key_env)"
        raise UserError(f"judge {settings.name}: {variable} is empty; put the key there")


def _url_fault(url: str) -> str:
    """What is wrong with an address, or an empty text."""
    if not url:
        return "url is empty: set the address, as in --judge-set url=http://127.0.0.1:8000/v1"
    if not url.startswith(("http://", "https://")) or "@" in url or "?" in url:
        return "url must begin with http:// or https:// and hold no name, password or query; the key goes to key_env"
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0 and not re.search(r"\s", url):  # port: ValueError where it is none
            return ""
    except ValueError:
        pass
    return f"url {url} is no address; write it as in http://127.0.0.1:8000/v1"


def _conflicts(s: JudgeSettings) -> list[str]:
    problems = []
    if s.kind in JUDGES and JUDGES[s.kind].chat_model and not s.name:
        problems.append(f"a judge of kind {s.kind} needs a name, as in {s.kind}:NAME")
    if s.kind == "openai" and (fault := _url_fault(s.url)):
        problems.append(fault)
    if s.kind == "hf" and s.temperature:
        problems.append(f"temperature is {s.temperature:g}: a judge of kind hf gives its most likely reply, so leave it at 0")
    if s.max_cost and not (s.price_in or s.price_out):
        problems.append("max_cost needs price_in and price_out (per million tokens)")
    try:
        extra = json.loads(s.extra or "{}")
        if not isinstance(extra, dict):
            raise ValueError
        names: list[str] = []  # at any depth
        json.loads(s.extra or "{}", object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs))
        if secret := next((name for name in names if re.sub("[^a-z]", "", name.lower()).removeprefix("x") in SECRETS), ""):
            problems.append(f"extra contains {secret} and is saved in files: put the key in a variable, set key_env to it")
    except (ValueError, RecursionError):
        problems.append("extra must be a JSON object, such as '{\"top_p\": 1}'")
    return problems


PLACES = {"consistency": "question1 question2 answer pred1 pred2", CAPTIONING: "question pred"}  # that a user's prompt must have


def judge_prompts(settings: JudgeSettings) -> Mapping[str, Prompt]:
    """The prompts that the settings name, ours where they name none. UserError for a file that lacks a metric or a place."""
    prompts = dict(default_prompts())
    if not settings.prompts:
        return prompts
    values = _read_yaml(settings.prompts, "name a YAML file in prompts")
    for name, texts in values.items():
        if name not in prompts:
            raise UserError(f"{settings.prompts}: {name} is no metric; known are {', '.join(prompts)}")
        places = PLACES.get(name, "question answer pred").split()
        if not isinstance(texts, Mapping) or not all(isinstance(texts.get(key), str) for key in ("system", "user")):
            raise UserError(f"{settings.prompts}: {name} needs two texts, system and user")
        lost = [place for place in places if f"{{{place}}}" not in texts["user"]]
        if lost:
            raise UserError(f"{settings.prompts}: {name}.user has no place for {{{lost[0]}}}")
        prompts[name] = Prompt(texts["system"], texts["user"])
    return prompts
