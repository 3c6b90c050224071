"""What a stage's manifest remembers, and rows of several files told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from minirlaif import config
from minirlaif.data.preflight import read_samples
from minirlaif.errors import UserError
from minirlaif.models.loading import TINY
from minirlaif.runs.run import Run
from minirlaif.session import open_session, settings_of
from tests.fixtures import small_config


def test_a_base_retrained_under_the_same_name_is_noticed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    cfg = config.load(None, [f"model.base={base}"])
    before = settings_of(cfg.seed, cfg.data, model=cfg.model, sft=cfg.sft)
    with Run(tmp_path / "a").stage("sft", before):
        pass
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    after = settings_of(cfg.seed, cfg.data, model=cfg.model, sft=cfg.sft)
    with pytest.raises(UserError, match="model.files.*--redo"), Run(tmp_path / "a").stage("sft", after):
        pass


def test_a_manifest_names_the_commit_of_a_base_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = 5 * "01234567"
    repository = tmp_path / "hub" / "models--some--model"
    shutil.copytree(TINY, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for base, commits in (("some/model", {"some/model": commit}), ("tiny", None)):
        run, cfg = Run(tmp_path / base), config.load(None, [f"model.base={base}", "model.device=cpu"])
        with run.stage("world", {}) as out, open_session(run, cfg.model, cfg.video) as session:
            assert out is not None
            session.add_counters(out)
        assert (run.manifest("world") or {}).get("hub_commits") == commits


def test_another_judge_makes_another_ppo() -> None:
    """The judge picks the checkpoint, so its settings are PPO's too."""
    from minirlaif.stages import ppo

    recorded: list[dict[str, object]] = []

    class Recorded(Exception):
        pass

    class Watched(Run):
        def stage(self, name, settings, inputs=(), redo=False):  # type: ignore[no-untyped-def, override]
            recorded.append(settings)
            raise Recorded

    for readout in ("letter", "likelihood"):
        with pytest.raises(Recorded):
            ppo.run(config.load(small_config.TINY, [f"feedback.readout={readout}"]), Watched("nowhere"))
    assert recorded[0] != recorded[1]


def test_files_that_number_their_rows_alike_keep_their_rows_apart(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name, question in (("one", "what happens?"), ("two", "who is there?")):
        row = {"id": "1", "video": "a.mp4", "question": question}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    files = [str(tmp_path / f"{name}.jsonl") for name in ("one", "two")]
    rows = read_samples(config.load(None, [f"data.prompts={files}"]).data, Run(tmp_path / "run"), "prompts", need_answers=False)
    assert [(row.id, row.turns[0].question) for row in rows] == [("1", "what happens?"), ("1@2", "who is there?")]


def test_a_limit_of_rows_takes_them_from_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    rows = [{"video": "a.mp4", "question": f"what happens {number}?"} for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(most: int) -> list[str]:
        data = config.load(None, [f"data.prompts=[{tmp_path / 'rows.jsonl'}]", f"data.max_rows={most}"]).data
        return [row.turns[0].question[-2] for row in read_samples(data, Run(tmp_path / "run"), "prompts", need_answers=False)]

    assert read(4) == ["0", "2", "5", "7"] and read(1) == ["0"] and read(0) == read(10) == read(99) == list("0123456789")


def test_columns_that_are_passed_over_and_a_limit_of_rows_stand_in_a_manifest() -> None:
    cfg = config.load(None, ["model.device=cpu"])
    settings = ["model.device=cpu", "data.ignore_columns=[duration]", "data.max_bad_rows=0.1", "data.max_rows=9"]
    before, after = (settings_of(each.seed, each.data, ["sft"], model=each.model) for each in (cfg, config.load(None, settings)))
    assert after["data"] == before["data"] | {"ignore_columns": ["duration"], "max_rows": 9}
