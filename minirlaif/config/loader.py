"""From YAML and `section.field=value` texts to a frozen record of frozen sections: names, types and ranges.

Which settings exist and what they allow is in schema.py. Standard library and yaml only.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from minirlaif.config.conflicts import conflicts
from minirlaif.config.rules import RecordedAt, Rule, UnrecordedAt, check, parts
from minirlaif.config.schema import Config, DataSection
from minirlaif.errors import UserError
from minirlaif.stages.registry import pipeline

R = TypeVar("R")
RUN_FILE = "config.yaml"  # of a run folder, which may be a stranger's: a pipe there is not waited for
LONGEST_FILE = 1 << 20  # characters
MOST_VALUES = 30_000  # of a file, with its keys: reading those takes seconds
DEEPEST = 20  # blocks and lists in one another


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML with the numbers of JSON: in YAML 1.1, 12:30:45 is 45045 and 010 is 8."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"^(?:{_INT.pattern})$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
_WORDS: Mapping[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def parse_yaml(text: str, where: str) -> Mapping[Any, Any]:
    """The top-level mapping of a YAML text ({} for an empty one). UserError, naming `where`, for anything else."""
    if len(text) > LONGEST_FILE:
        raise UserError(f"{where}: more than {LONGEST_FILE:,} characters are no config")
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
            if number > MOST_VALUES:
                raise UserError(f"{where}: more than {MOST_VALUES:,} values are no config")
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{where}: has an alias (*name), which is not read here: write the value in its place")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # before the rest is read: thousands of brackets take a minute
                raise RecursionError
        values, root = yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # ValueError: a date that does not exist, and the like
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())[:300]})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; a config has sections with settings") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must hold sections such as `model:` and `sft:`, not {values!r:.60}")
    # YAML itself would silently keep the last of two equal keys.
    for block in [root, *(value for _, value in root.value if isinstance(value, yaml.MappingNode))]:
        names = Counter(str(key.value) for key, _ in block.value)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise UserError(f"{where}: {', '.join(twice)} is set twice in one block; keep one")
    return values


def build(kind: type[R], values: Mapping[Any, Any], overrides: Sequence[str]) -> tuple[R | None, list[str]]:
    """A record of class `kind` from its defaults, then `values`, then `overrides`; or None and every problem."""
    sections, hints = _sections(kind), _hints(kind)
    given: dict[str, object] = {}
    typed: dict[str, str] = {}  # name -> the override it comes from
    problems: list[str] = []
    for key, value in values.items():
        if key in sections and (value is None or isinstance(value, Mapping)):  # `sft:` with all lines commented out is empty
            items = {f"{key}.{name}": item for name, item in (value or {}).items()}
        else:
            items = {str(key): value}
        problems += [f"{name} is set twice, in its section and beside it; keep one" for name in items if name in given]
        given.update(items)
    for item in overrides:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not name or not equals:
            problems.append(f"--set {item}: write section.field=value, such as ppo.clip=0.1")
            continue
        try:
            given[name] = yaml.load(text, Loader=_Loader) if text else ""
        except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            given[name] = text
        typed[name] = f"--set {item}: "

    accepted: dict[str, dict[str, Any]] = {name: {} for name in ["", *sections]}
    for name, value in given.items():
        try:
            if name not in hints:
                raise ValueError(_unknown(name, list(hints), list(sections)))
            owner, _, leaf = name.rpartition(".")
            of_type, choices, markers = parts(hints[name])
            accepted[owner][leaf] = _typed(name, of_type, value)
            check(name, accepted[owner][leaf], choices, markers)
        except ValueError as error:
            problems.append(f"{typed.get(name, '')}{error}")
    if problems:
        return None, problems
    return kind(**accepted[""], **{name: record(**accepted[name]) for name, record in sections.items()}), []


def _sections(kind: Any) -> dict[str, Any]:
    return {name: record for name, record in get_type_hints(kind).items() if is_dataclass(record)}


def _hints(kind: Any) -> dict[str, Any]:
    """Dotted name -> annotation, for every setting."""
    hints = {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if not is_dataclass(hint)}
    for name, record in _sections(kind).items():
        hints.update({f"{name}.{leaf}": hint for leaf, hint in get_type_hints(record, include_extras=True).items()})
    return hints


def _unknown(name: str, known: Collection[str], sections: Collection[str]) -> str:
    if name in sections:
        return f"{name} is a section: give it a block of settings, or set {name}.FIELD"
    same = [other for other in known if other.split(".")[-1] == name.split(".")[-1]]  # right field, wrong section
    near = same if len(same) == 1 else difflib.get_close_matches(name, [*known, *sections], n=1, cutoff=0.0)
    return f"unknown setting {name} (did you mean {near[0]}?)"


def _typed(name: str, kind: Any, value: object) -> Any:
    # YAML reads 1e-4 as text, because it has no dot; a whole number may be too large for a float.
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    if kind in _WORDS and type(value) is kind:
        return value
    if kind not in _WORDS:  # the others are tuples of text; one text stands for a list of one
        items = ([value] if value else []) if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) for item in items):
            return tuple(items)
    hint = f' (if it is a name, quote it: "{value}")' if kind is str and isinstance(value, int | float) else ""
    raise ValueError(f"{name} must be {_WORDS.get(kind, 'a list of texts')}, not {value!r:.60}{hint}")


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then `section.field=value` overrides, whose values are read as YAML too.

    A file named config.yaml beside the stages of a run was written whole: a setting that it lacks is younger than the run and has
    the value at which it leaves no trace.

    Raises one UserError that lists every problem of the file and the overrides.
    """
    values: Mapping[Any, Any] = {}
    if path is not None:
        try:
            if Path(path).name == RUN_FILE and Path(path).exists() and not Path(path).is_file():
                raise UserError(f"{path}: not a file; delete it, and name a config with --config")
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(LONGEST_FILE + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); name a config with --config") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a text file; name a YAML config with --config") from None
        values = parse_yaml(text, str(path))
        if Path(path).name == RUN_FILE and any(Path(path).parent.glob("*/manifest.json")):
            values = _with_old_values(values)
    cfg, problems = build(Config, values, overrides)
    if cfg is not None:
        problems = conflicts(cfg)
    if cfg is None or problems:
        count = "" if len(problems) == 1 else f"{len(problems)} problems: "
        where = "" if all(each.startswith("--set ") for each in problems) else f"{path or 'settings'}: "
        raise UserError(f"{where}{count}{'; '.join(problems)}")
    if path is None:
        return cfg
    folder = Path(path).parent
    reward = _located(cfg.optimize.reward, folder) if cfg.optimize.reward.endswith(".py") else cfg.optimize.reward
    questions = replace(cfg.questions, templates=_located(cfg.questions.templates, folder))
    return replace(cfg, data=_resolved(cfg.data, folder), questions=questions, optimize=replace(cfg.optimize, reward=reward))


def _with_old_values(values: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The settings of a run with those that it did not know yet, as it behaved."""
    filled = dict(values)
    for name, kind in get_type_hints(Config).items():
        if isinstance(own := values.get(name), Mapping):
            hints = get_type_hints(kind, include_extras=True)
            marked = [(field, marker) for field, hint in hints.items() for marker in parts(hint)[2]]
            old = {field: marker.value for field, marker in marked if isinstance(marker, UnrecordedAt)}
            filled[name] = {**old, **own}
    return filled


def _resolved(data: DataSection, folder: Path) -> DataSection:
    """The sources as `_located` has them."""
    resolve = partial(_located, folder=folder)
    lists = {name: value for name, value in vars(data).items() if isinstance(value, tuple) and name != "ignore_columns"}
    sources: dict[str, Any] = {name: tuple(map(resolve, value)) for name, value in lists.items()}
    return replace(data, videos=resolve(data.videos), clips=resolve(data.clips), **sources)


def _located(name: str, folder: Path) -> str:
    """A path below the config's folder where it exists there and not in the current one."""
    return str(folder / name) if name and not Path(name).exists() and (folder / name).exists() else name


def stages_of(cfg: Config) -> tuple[str, ...]:
    """The stages of a run, in order."""
    return pipeline(cfg.optimize.methods, cfg.sft.enabled, cfg.optimize.reward == "model", cfg.data.writes_questions)


def dump(cfg: Config) -> str:
    """The whole config as YAML; `load` of it gives an equal config."""
    return str(yaml.safe_dump(plain(cfg), sort_keys=False, allow_unicode=True, width=130))


def recorded(section: Any) -> dict[str, Any]:
    """One section as a manifest has it: without what changes no result, and without newer settings at their old behaviour."""
    values = plain(section)
    for field, hint in get_type_hints(type(section), include_extras=True).items():
        _, _, markers = parts(hint)
        # As in plain values: a tuple is a list there.
        old = [list(m.value) if isinstance(m.value, tuple) else m.value for m in markers if isinstance(m, UnrecordedAt)]
        kept = any(isinstance(m, RecordedAt) and values[field] == m.value for m in markers)
        if (Rule.NO_EFFECT in markers and not kept) or values[field] in old:
            del values[field]
    return values


def plain(section: Any) -> dict[str, Any]:
    """A section, or a whole config, as plain JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(section)))  # tuples become lists
    return values
