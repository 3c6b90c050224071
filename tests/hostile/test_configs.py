"""Three hundred mutated configs: `plan` reads each, or refuses it in one line."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml

from minirlaif.cli import main
from tests.fixtures import forked
from tests.fixtures.mutations import mutated, mutated_value

pytestmark = pytest.mark.hostile
CONFIGS = 300
LIMIT = 30.0  # seconds
SOURCES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
LINES = (
    *("sft:", "sft.epochs: 2", "model: tiny", "seed: 010", "seed: 12:30:45", "seed: 99999999999999999999999", "\tx: 1", "? a"),
    *("x: &a [*a]", "a: *b", "<<: {seed: 1}", "seed: !!python/object/apply:os.system ['true']", "seed: !!binary x", "--- {}"),
    *(
        "seed: .nan",
        "ppo: {clip: .inf}",
        "data: {sft: [/dev/zero]}",
        "model: {base: ../..}",
        "[" * 5000,
        "{a: " * 300,
        "\0",
        "\ufeff",
    ),
    *("2001-99-99: 1", "seed: 2001-99-99", "x: |", "'", '"\\uD800"', "!", "%YAML 9.9", "- 1", "null: null", "true: true", "1: 2"),
)


def changed(number: int) -> tuple[str, bytes]:
    """How a config was changed, and its new content."""
    dice = random.Random(f"config {number}")
    text = dice.choice(SOURCES).read_text(encoding="utf-8")
    how = dice.choice(("values", "values", "lines", "bytes", "encoding"))
    if how == "values":
        value = mutated_value(yaml.safe_load(text), dice)
        try:
            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=dice.random() < 0.5)
        except (yaml.YAMLError, RecursionError):
            text = str(value)
    elif how == "lines":
        lines = text.splitlines()
        for _ in range(dice.choice((1, 2, 5))):
            place = dice.randrange(len(lines))
            lines[place : place + dice.choice((0, 0, 1))] = [dice.choice(LINES) if dice.random() < 0.7 else dice.choice(lines)]
        text = "\n".join(lines)
    elif how == "bytes":
        return how, mutated(text.encode(), dice, SOURCES[0].read_bytes())[1]
    else:
        return how, text.encode(dice.choice(("utf-16", "utf-8-sig", "utf-32", "utf-8"))).replace(
            b"\n", dice.choice((b"\r", b"\n\n", b"\r\n"))
        )
    return how, text.encode("utf-8", "surrogatepass")


def planned(path: Path) -> int:
    """Exit code of `plan`; 0 also where it says that nothing fits."""
    code = main.main(["plan", "--config", str(path), "--gpu-gib", "24"])
    return 0 if code == 1 else code


def outcome_of(case: tuple[int, Path]) -> tuple[str, str]:
    """ "read" or "refused", and what is wrong with that."""
    number, folder = case
    path = folder / f"{number}.yaml"
    how, content = changed(number)
    path.write_bytes(content)
    outcome = forked.forked(functools.partial(planned, path), 2 * LIMIT)
    lines = [line for line in outcome.text.splitlines() if line.startswith("minirlaif: ")]
    problem = outcome.fault or (f"took {outcome.seconds:.0f} s" if outcome.seconds > LIMIT else "")
    if not problem and outcome.code == 2 and len(lines) != 1:
        problem = outcome.text[-500:]
    if not problem:
        path.unlink()
    return "refused" if outcome.code else "read", f"{path} ({how}): {problem}" if problem else ""


def test_mutated_configs_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    forked.preload()
    results = forked.each(outcome_of, [(number, tmp_path) for number in range(CONFIGS)])
    counts, problems = Counter(kind for kind, _ in results), [problem for _, problem in results if problem]
    print(f"{CONFIGS} configs: {dict(counts)}; {len(problems)} faults")
    assert not problems, "\n\n".join(problems)
    assert min(counts["read"], counts["refused"]) >= 0.1 * CONFIGS, counts
