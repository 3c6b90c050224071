"""Tables of `plan` and `bench` as text."""

from collections.abc import Mapping, Sequence

from minirlaif.memory.formulas import LINES
from minirlaif.memory.planner import STEPS


def table(steps: Mapping[str, Mapping[str, float]]) -> str:
    """MiB by step and line."""
    lines = [line for line in LINES if any(values[line] for values in steps.values())]
    rows = [["MiB", *lines, "peak"]]
    for name, values in steps.items():
        cells = [values[line] for line in lines] + [sum(values.values())]
        rows.append([STEPS[name].title, *(f"{cell / 2**20:,.0f}" for cell in cells)])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table with its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
