"""The house's laws, read off the syntax trees: layers, single places, budgets, imports without effect."""

from __future__ import annotations

import ast
import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

from minirlaif.config import Config
from minirlaif.gguf.export import converter

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minirlaif"
STAGE_HELPERS = {"stages.registry", "stages.method_loop", "stages.describers"}
# The import graph, once. A folder (or module of the package root) imports from rows above its own and from itself.
GRAPH = (
    ("base", "types errors stats config distributed registry"),
    ("input", "video runs"),
    ("model", "models data"),
    ("session", "session"),
    ("loop", "training feedback inference"),
    ("algorithms", "algorithms"),
    ("tools", "judges gguf reports tiny_world convert"),
    ("stages", "stages"),
    ("wings", "benchmarks memory ablation"),
    ("app", "app"),
    ("cli", "cli"),
    ("main", "__main__"),
)
ROW = {name: row for row, (_, names) in enumerate(GRAPH) for name in names.split()} | {"__init__": 0}
TOGETHER = {"base"}  # rows whose members may import each other
# Mathematics and records: no disk, clock, randomness, processes or logging.
PURE = (
    "types errors stats config.rules config.methods config.schema video.frame_sampling models.tokens feedback.verdicts"
    " training.schedules algorithms.losses algorithms.advantages algorithms.group"
    " feedback.text_judge judges.rubric memory.formulas"
).split()
IMPURE = (
    "os pathlib shutil tempfile time datetime random secrets logging subprocess socket threading multiprocessing numpy".split()
)
IMPURE_EXCEPT = {("stats", "random")}  # bootstraps seeded by an argument
NO_TORCH = ("types errors stats config runs video.frame_sampling cli __init__ __main__ stages.registry").split()
ONLY_INSIDE_FUNCTIONS = {"decord", "av", "bitsandbytes", "datasets"}


def sources() -> dict[str, ast.Module]:
    """Dotted name inside the package -> syntax tree."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


SOURCES = sources()


def top(module: str) -> str:
    return module.split(".")[0]


def imports(module: str, tree: ast.AST) -> Iterator[str]:
    """Absolute names of everything a tree imports; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # `.` is the package that the module lies in
                inside = ["minirlaif", *module.split(".")][: -node.level]
                base = ".".join([*inside, base] if base else inside)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(module: str, tree: ast.AST) -> set[str]:
    """Modules of this package that a module imports, as in SOURCES."""
    found = set()
    for name in imports(module, tree):
        parts = name.split(".")
        if parts[0] == "minirlaif":
            inner = parts[1:]
            while inner and ".".join(inner) not in SOURCES and ".".join([*inner, "__init__"]) not in SOURCES:
                inner = inner[:-1]
            found.add(".".join(inner) if inner else "__init__")
    return found - {module}


def place(module: str) -> str:
    """The entry of GRAPH that a module belongs to."""
    return "registry" if module == "stages.registry" else top(module)


def within(module: str, names: list[str]) -> bool:
    return module in names or top(module) in names


def graph_faults(module: str, tree: ast.AST) -> list[str]:
    own = place(module)
    if own not in ROW:
        return [f"{module}: in no row; add its folder to GRAPH"]
    faults = []
    for other in own_imports(module, tree):
        theirs = place(other)
        if theirs not in ROW:
            faults.append(f"{module} imports {other}, which is in no row")
        elif own == theirs:
            if own == "stages" and other.count(".") and other not in STAGE_HELPERS:
                faults.append(f"{module} imports the stage {other}")
        elif ROW[theirs] > ROW[own] or (ROW[theirs] == ROW[own] and GRAPH[ROW[own]][0] not in TOGETHER):
            faults.append(f"{module} imports {other} from a later row")
    roots = [(name, name.split(".")[0]) for name in imports(module, tree)]
    if within(module, PURE):
        faults += [
            f"{module} imports {name}: pure modules have no disk, clock or randomness"
            for name, root in roots
            if root in IMPURE and (module, root) not in IMPURE_EXCEPT
        ]
        faults += [
            f"{module} imports {other}, which is not pure"
            for other in own_imports(module, tree)
            if not within(other.removesuffix(".__init__"), PURE)
        ]
    if within(module, NO_TORCH):
        faults += [f"{module} imports {name}" for name, root in roots if root in ("torch", "transformers")]
    return faults


def test_the_lists_name_what_exists():
    assert {name for _, names in GRAPH for name in names.split()} == {place(module) for module in SOURCES} - {"__init__"}
    listed = {*PURE, *NO_TORCH, *(module for module, _ in IMPURE_EXCEPT), *STAGE_HELPERS}
    assert not {name for name in listed if name not in SOURCES and f"{name}.__init__" not in SOURCES}


@pytest.mark.parametrize("module", SOURCES)
def test_the_import_graph(module: str):
    assert not graph_faults(module, SOURCES[module])


@pytest.mark.parametrize(
    ("module", "code", "fault"),
    [
        ("algorithms.losses", "from minirlaif.stages.ppo import run", "later row"),
        ("video.reader", "from minirlaif.runs.io import sha256", "later row"),
        ("video.reader", "from ..runs import io", "later row"),
        ("types", "def f():\n    import random", "no disk, clock or randomness"),
        ("judges.rubric", "from minirlaif.judges.cache import Reply", "not pure"),
        ("runs.run", "import torch", "imports torch"),
        ("video.reader", "import minirlaif.cli.main", "later row"),
        ("data.dataset", "from minirlaif.stages import sft", "later row"),
        ("stages.sft", "from minirlaif.stages.ppo import collect", "imports the stage"),
        ("stages.sft", "from .ppo import collect", "imports the stage"),
        ("helpers", "import json", "in no row"),
    ],
)
def test_the_graph_test_sees_a_breach(module: str, code: str, fault: str):
    assert any(fault in text for text in graph_faults(module, ast.parse(code)))


def folder_graph() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, tree in SOURCES.items():
        graph.setdefault(place(module), set()).update(place(other) for other in own_imports(module, tree))
    return {name: others - {name, "__init__"} for name, others in graph.items() if name != "__init__"}


def test_folders_form_no_circle_and_lie_at_most_nine_deep():
    graph = folder_graph()
    depth: dict[str, int] = {}

    def deep(name: str, path: tuple[str, ...]) -> int:
        assert name not in path, f"circle of folders: {' -> '.join([*path, name])}"
        if name not in depth:
            depth[name] = 1 + max((deep(other, (*path, name)) for other in graph.get(name, ())), default=-1)
        return depth[name]

    assert deep("cli", ()) <= 9, depth


def test_sizes_of_folders():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 28, sorted(path.name for path in entries)
    over = {
        str(folder.relative_to(PACKAGE)): count
        for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
        if (count := len(list(folder.glob("*.py")))) > 14
    }
    assert not over


def test_no_circles():
    graph = {module: own_imports(module, tree) for module, tree in SOURCES.items()}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        if module not in finished:
            for other in graph.get(module, ()):
                visit(other, (*path, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def outside_functions(tree: ast.Module) -> ast.Module:
    """The part of a module that runs on import."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Cut().visit(ast.parse(ast.unparse(tree)))


@pytest.mark.parametrize("module", SOURCES)
def test_decoders_and_the_like_are_imported_inside_functions(module: str):
    found = {name.split(".")[0] for name in imports(module, outside_functions(SOURCES[module]))}
    assert not found & ONLY_INSIDE_FUNCTIONS


def names_of_config(tree: ast.AST) -> set[str]:
    """Names by which a module knows the class Config: its own, those that it is imported as, and those assigned from it."""
    names = {"Config"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.name == "Config" and alias.asname}
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).split(".")[-1] in names:
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def takers_of_a_config(module: str, tree: ast.AST) -> set[str]:
    """Functions with a parameter that is a whole Config, but for a stage's `run`, the command line and the config itself."""
    if top(module) in ("cli", "config"):
        return set()
    is_config = re.compile(rf"\b({'|'.join(names_of_config(tree))})\b")
    takers = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        name = "lambda" if isinstance(node, ast.Lambda) else node.name
        if top(module) == "stages" and name == "run":
            continue
        a = node.args
        for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))):
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            if argument.arg == "cfg" or is_config.search(annotation):
                takers.add(f"{module}.{name}")
    return takers


def test_a_whole_config_is_read_by_the_runs_of_stages_and_the_command_line():
    takers = {name for module, tree in SOURCES.items() for name in takers_of_a_config(module, tree)}
    assert takers == set()


def test_the_config_test_sees_a_breach():
    code = "def one(cfg): ...\ndef two(all: config.Config | None): ...\ndef three(section: SftSection): ...\ndef run(cfg): ..."
    assert takers_of_a_config("stages.sft", ast.parse(code)) == {"stages.sft.one", "stages.sft.two"}
    assert "session.run" in takers_of_a_config("session", ast.parse(code))
    code = """
from minirlaif import config
from minirlaif.config import Config as Settings
Whole = config.Config
def aliased(x: Settings): ...
def assigned(x: "Whole"): ...
def starred(*all: Settings): ...
def named(**all: Settings): ...
def none(x: SettingsOfClips): ...
f = lambda cfg: cfg.seed
"""
    names = {"aliased", "assigned", "starred", "named", "lambda"}
    assert takers_of_a_config("session", ast.parse(code)) == {f"session.{name}" for name in names}


def test_a_clip_passes_few_modules_from_its_row_to_the_loss():
    """The list of internals.md: at most 14 modules that exist, each imported by one of the list or by the stage."""
    text = (ROOT / ".github" / "docs" / "internals.md").read_text(encoding="utf-8")
    block = text.partition("## From a data row to the PPO loss\n")[2].partition("\n## ")[0]
    modules = [name.replace("/", ".") for name in re.findall(r"^\d+\. `(\S+)\.py`: \S", block, re.M)]
    assert 10 < len(modules) <= 14 and modules[-1] == "algorithms.losses" and set(modules) <= set(SOURCES)
    imported = set().union(*(own_imports(module, SOURCES[module]) for module in [*modules, "stages.ppo"]))
    assert set(modules) - {"stages.ppo"} <= imported


def places(wanted: str) -> set[str]:
    """Modules that have a name or attribute, or import a package."""
    found = set()
    for module, tree in SOURCES.items():
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if wanted in names | {name.split(".")[0] for name in imports(module, tree)}:
            found.add(module)
    return found


def test_one_place_for_peft_and_for_generating():
    assert places("peft") | places("set_adapter") | places("disable_adapter") <= {"models.adapters"}
    callers = {
        module
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "generate"
    }
    assert callers <= {"models.generation"}


def test_budgets():
    over = []
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 300:
            over.append(f"{path.name}: {lines} lines")
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 70:
                over.append(f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines")
    for name, section in sections().items():
        if len(fields(section)) > 17:
            over.append(f"{name}: {len(fields(section))} fields")
    assert not over


def sections() -> dict[str, type]:
    return {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}


def read_settings() -> set[str]:
    """section.field of what is read: an attribute of that name in a module that names the section or its class."""
    found = set()
    for module, tree in SOURCES.items():
        if top(module) == "config":
            continue
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {name.split(".")[-1] for name in imports(module, tree)}
        for name, section in sections().items():
            if name in attributes or section.__name__ in names:
                found |= {f"{name}.{field.name}" for field in fields(section) if field.name in attributes}
        found |= attributes & {"seed", "report_to"}
    return found


@pytest.mark.parametrize("section", [*sections(), "top level"])
def test_every_setting_is_read(section: str):
    if section == "top level":
        wanted = {field.name for field in fields(Config)} - set(sections())
    else:
        wanted = {f"{section}.{field.name}" for field in fields(sections()[section])}
    assert not sorted(wanted - read_settings())


# Names of earlier versions that needed a glossary, or said nothing. `asked` is a key of exported layouts, `rest` of the settings.
RETIRED = frozenset(
    (
        "told said asked some found begun eyes resting visiting park parked chances banned contestant contestants duel ballot"
        " desk shelf talk talks standin trial narrate speaker workings oldfiles facts exam look looks looked workbench roles_of"
        " reading_as kept_whole swap_consistent sequence_scores score_with_terms mark_all entered devjudge asking come opened"
        " whole mark marks story stories opening duels ballots desks narrated goes_on feature_store"
    ).split()
)
# Retired also as a part of a longer name.
RETIRED_PARTS = frozenset("told said asked eyes resting desk shelf duel ballot banned contestant narrate opened".split())
# Classes that were renamed; as names of values these are ordinary words.
RETIRED_CLASSES = frozenset(
    (
        "Asked Row View Shown Kept FeatureStore Resting Roles Workbench Pair Engine Options Look Entry Contestant Mark Duel"
        " Ballot Desk DevJudge _Read"
    ).split()
)
# Words of the same table that stay, because the code means their ordinary sense.
ORDINARY = {
    "row": "of a table or a file",
    "view": "of a tensor, and of a run in the app",
    "kept": "what a filter lets through",
    "shown": "what is printed, or put into a prompt or a page",
    "entry": "of a list or a mapping",
    "roles": "of a chat's messages, and of adapters",
    "prepare": "as in accelerate",
    "learner": "what PPO trains",
}


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.split(".")[-1]


def retired_words(tree: ast.AST) -> set[str]:
    words = {name: name.strip("_").removesuffix("_V").lower() for name in identifiers(tree)}
    found = {name for name, word in words.items() if word in RETIRED or RETIRED_PARTS & set(word.split("_"))}
    return found | {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name in RETIRED_CLASSES}


@pytest.mark.parametrize("module", SOURCES)
def test_no_retired_word_is_an_identifier(module: str):
    assert not retired_words(SOURCES[module])


def test_retired_words_are_seen():
    code = "import a as told\ndef looks(asked, *, x=0):\n    _found = f(said=1)\n    b.eyes = chances_V\nclass Duel: pass"
    assert retired_words(ast.parse(code)) == {"told", "looks", "asked", "_found", "said", "eyes", "chances_V", "Duel"}
    code = """
from a import look, b as eyes_of
class Row: row = 1
async def trial():
    try: ...
    except E as said: ...
    match x:
        case [1, *marks]: ...
        case {"a": asked_choice, **desk}: ...
        case str() as opened: ...
"""
    names = {"look", "eyes_of", "Row", "trial", "said", "marks", "asked_choice", "desk", "opened"}
    assert retired_words(ast.parse(code)) == names


def test_ordinary_words_are_used_and_not_retired():
    used = {name.strip("_").lower() for tree in SOURCES.values() for name in identifiers(tree)}
    assert ORDINARY.keys() <= used - RETIRED and all(ORDINARY.values())


IMPORT_ALL = """
import os, random, socket, sys, threading
import numpy, torch, transformers, peft, gradio  # their own effects are not ours

def closed(*_):
    raise RuntimeError("the network was touched on import")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = closed
def state():
    return {
        "threads": torch.get_num_threads(), "seed": torch.initial_seed(), "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(), "numpy": str(numpy.random.get_state()), "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(), "environment": dict(os.environ), "files": sorted(os.listdir(".")),
        "running": threading.active_count(), "folder": os.getcwd(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "level": transformers.logging.get_verbosity(),
    }

before = state()
import importlib
names = sys.argv[1:]
for name in names:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, f"importing changed {changed}"
print(len(names))
"""


def test_importing_everything_has_no_effect(python, tmp_path: Path):
    names = [f"minirlaif.{module}".removesuffix(".__init__") for module in SOURCES if module != "__main__"]
    home = tmp_path / "home"
    home.mkdir()
    done = python("-c", IMPORT_ALL, *names, HOME=str(home), HF_HOME=str(home), MPLCONFIGDIR=str(home))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(names)) and len(names) > 10
    assert not list(home.iterdir())


HELP = """
import runpy, sys
sys.argv = ["minirlaif", *sys.argv[1:]]
try:
    runpy.run_module("minirlaif", run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "transformers", "numpy", "av", "decord", "datasets", "peft", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_and_status_do_not_load_torch(python, tmp_path: Path):
    (tmp_path / "runs" / "a" / "ppo.partial").mkdir(parents=True)
    for words in (["--help"], ["run", "--help"], ["status", "--run", "a"]):
        done = python("-c", HELP, *words)
        assert done.returncode == 0, done.stderr


def test_help_answers_within_a_second(python):
    times: list[float] = []
    while not times or (min(times) >= 1.0 and len(times) < 10):  # the best of some: the machine may be busy
        started = time.monotonic()
        assert "examples:" in python("-m", "minirlaif", "--help").stdout
        times.append(time.monotonic() - started)
    assert min(times) < 1.0


def test_the_import_walker_knows_relative_names():
    tree = ast.parse(textwrap.dedent("from . import chat\nfrom ..video import x\nimport os.path"))
    assert list(imports("stages.sft", tree)) == ["minirlaif.stages.chat", "minirlaif.video.x", "os.path"]


GENERATED = {"imports": ROOT / ".github" / "CONTRIBUTING.md", "files": ROOT / ".github" / "docs" / "internals.md"}


def first_line(module: str) -> str:
    """First sentence of a module's docstring, in one line."""
    text = " ".join((ast.get_docstring(SOURCES[module]) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0].replace("|", "\\|")


def import_table() -> str:
    """The rows of GRAPH as CONTRIBUTING shows them."""
    rows = [f"| {row} | {' '.join(f'`{name}`' for name in names.split())} |" for row, names in GRAPH]
    return "\n".join(["| row | folders and modules of the package |", "| --- | --- |", *rows])


def file_map() -> str:
    """Every module below its folder, folders in the order of GRAPH, as internals.md shows them."""
    folders: dict[str, list[str]] = {}
    for module in SOURCES:
        folders.setdefault(module.rpartition(".")[0], []).append(module)
    lines = []
    for folder in sorted(folders, key=lambda name: (ROW.get(top(name), -1), name)):
        title = "minirlaif/" + folder.replace(".", "/") + "/" * bool(folder)
        package = first_line(f"{folder}.__init__" if folder else "__init__")
        lines += [f"### `{title}`", "", *([package, ""] if package else []), "| module | what it is |", "| --- | --- |"]
        modules = [module for module in folders[folder] if not module.endswith("__init__")]
        lines += [f"| `{module.rpartition('.')[2]}.py` | {first_line(module)} |" for module in modules] + [""]
    return "\n".join(lines).strip()


def with_generated(text: str, name: str, block: str) -> str:
    """A document with the block between its markers replaced. ValueError without markers."""
    head, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
    _, end, tail = rest.partition("\n<!-- end -->")
    if not (begin and end):
        raise ValueError(f"no block {name}")
    return head + begin + block + end + tail


def documents() -> dict[Path, str]:
    """The documents with generated blocks, as they should be."""
    blocks = {"imports": import_table(), "files": file_map()}
    return {path: with_generated(path.read_text(encoding="utf-8"), name, blocks[name]) for name, path in GENERATED.items()}


@pytest.mark.parametrize("path", GENERATED.values(), ids=lambda path: path.name)
def test_documents_list_the_modules_as_they_are(path: Path):
    if path.read_text(encoding="utf-8") != documents()[path]:
        pytest.fail(f"{path.name} is out of date: run `PYTHONPATH=. python tests/test_architecture.py`")


def test_a_block_is_replaced_between_its_markers():
    text = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n"
    assert with_generated(text, "x", "new") == "a\n<!-- generated: x -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(ValueError, match="no block y"):
        with_generated(text, "y", "new")


def test_the_security_page_names_tests_that_exist() -> None:
    text = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    names = re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)`", text)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert names and not [n for n in names if n not in files and ("/" in n or n not in {Path(file).name for file in files})]
    functions = {
        name for file in files for name in re.findall(r"^def (test_\w+)", (ROOT / file).read_text(encoding="utf-8"), re.M)
    }
    assert set(re.findall(r"`(test_\w+)`", text)) - functions == set()


def test_the_lock_has_every_pinned_package_with_hashes() -> None:
    pinned = dict(line.split("#")[0].split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    assert pinned.pop("torch"), "its builds differ, so it is in no lock"
    locked: dict[str, list[str]] = {}
    hashes: dict[str, list[str]] = {}
    for line in (ROOT / ".github" / "requirements.lock").read_text().splitlines():
        if "==" in line:
            name, version = re.split("==| ", line)[:2]
            locked.setdefault(name, []).append(version)
        elif "--hash=sha256:" in line:
            hashes.setdefault(name, []).append(line.strip(" \\").removeprefix("--hash=sha256:"))
    assert locked.keys() == hashes.keys() and all(len(digest) == 64 for each in hashes.values() for digest in each)
    assert {name.lower(): [version.strip()] for name, version in pinned.items()}.items() <= locked.items()
    assert hashes["llama-cpp-python"] == [converter.SOURCE_SHA256], "the converter is taken from the same file"


if __name__ == "__main__":
    for document, content in documents().items():
        document.write_text(content, encoding="utf-8")
