"""The disk that a run takes, and a run that is refused where too little is free."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from minirlaif import config
from minirlaif.cli import main
from minirlaif.cli.plan import plan_of
from minirlaif.memory import disk
from tests.fixtures import small_config
from tests.memory.test_hours import MEASURED


def test_the_disk_by_hand() -> None:
    """Qwen3-VL-4B: 4.4 billion weights, at 5.8 bytes for four exported formats; LoRA of rank 32 on 252 linear layers."""
    settings = ["model.base=Qwen/Qwen3-VL-4B-Instruct", "model.lora_r=32", "export.enabled=true"]
    parts = disk.needed(plan_of(config.load(None, settings), gpu=True), MEASURED)
    assert parts["export"] == pytest.approx(4.44e9 * 5.8 / 2**30, rel=0.02)
    assert parts["features"] == 0.25 and 1 < parts["adapters"] < 4
    few = disk.needed(plan_of(config.load(None, [*settings[:2], "export.enabled=false"]), gpu=True), None)
    assert few.keys() == {"adapters", "other files"}


def test_a_full_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    runs, places = tmp_path / "new" / "runs", []
    words = ["run", "--config", str(small_config.TINY), "--run", "a", "--runs-dir", str(runs), "--set", *small_config.SETTINGS]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: places.append(path) or SimpleNamespace(free=2**28))
    for command in ([*words[:1], "--dry-run", *words[1:]], words):
        assert main.main(command) == 2
        message = capsys.readouterr().err
        assert f"{runs / 'a'}: too little disk: about 0.5 GiB (other files 0.5, adapters 0.0), 0.2 GiB free; free some" in message
    assert places[0] == tmp_path and not (runs / "a" / "world").exists()
