"""The child process that makes one arm: `python -m minirlaif.ablation.run_arm FOLDER`. runner.py has written config.yaml and
arm.json there."""

from __future__ import annotations

import sys
from pathlib import Path

from minirlaif import config
from minirlaif.errors import UserError
from minirlaif.runs.io import read_json
from minirlaif.runs.run import Run
from minirlaif.stages.registry import STAGES


def main(folder: str) -> int:
    """Make the stages that are not finished. Exit code 2, with one line, for a UserError."""
    root = Path(folder)
    try:
        _make(root)
    except UserError as error:
        print(f"minirlaif: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    return 0


def _make(root: Path) -> None:
    from minirlaif.ablation import answers

    arm, cfg = read_json(root / "arm.json"), config.load(root / "config.yaml")
    run = Run(root, ("--config", str(root / "config.yaml")))
    for name in arm["makes"]:
        if name == "exam":
            answers.run(root / "config.yaml", run, arm["exam"])
        else:
            STAGES[name].load()(cfg, run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
