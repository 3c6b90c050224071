"""Settings: defaults < YAML < --set; every problem at once, each with its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from minirlaif import config
from minirlaif.config import Config
from minirlaif.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def problem(tmp_path: Path):
    """The complaint about a YAML text and overrides."""

    def complain(text: str, *overrides: str) -> str:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            config.load(path, overrides)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(path) if text or "pairs_per_prompt" in overrides[0] else "--set ")
        return str(caught.value)

    return complain


def test_set_wins_over_yaml_and_yaml_over_defaults(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nppo:\n  clip: 0.1\n  epochs: 4\nsft:\n  # all commented out\n")
    cfg = config.load(path, ["ppo.clip=0.3", "data.sft=[a.json, b.json]", "data.videos="])
    assert (cfg.seed, cfg.ppo.clip, cfg.ppo.epochs, cfg.ppo.iterations) == (3, 0.3, 4, 100)
    assert cfg.data.sft == ("a.json", "b.json")
    assert cfg.data.videos == ""
    assert cfg.sft == config.SftSection()
    assert config.load(None) == Config()


def test_numbers_as_people_write_them(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("sft:\n  learning_rate: 1e-4\n  epochs: 2\n")  # YAML reads the first as text, the second as an int
    sft = config.load(path, ["ppo.learning_rate=3e-5", "data.sft=one.json"])
    assert sft.sft.learning_rate == 0.0001 and sft.ppo.learning_rate == 0.00003
    assert sft.sft.epochs == 2.0 and type(sft.sft.epochs) is float
    assert sft.data.sft == ("one.json",)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("ppo:\n  clp: 0.1\n", "ppo.clip"),
        ("ppoo:\n  clip: 0.1\n", "ppo"),
        ("ppo:\n  kl_coef: 0.1\n", "rollout.kl_coef"),  # right name, wrong section
        ("sede: 1\n", "seed"),
    ],
)
def test_unknown_settings_name_the_nearest(problem, text: str, near: str):
    assert f"did you mean {near}?" in problem(text)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.base=4", 'model.base must be text, not 4 (if it is a name, quote it: "4")'),
        ("model.base=", "model.base is empty"),
        ("model.dtype=float16", "model.dtype must be 'auto' or 'float32' or 'bfloat16', not 'float16'"),
        ("model.gradient_checkpointing=1", "model.gradient_checkpointing must be true or false, not 1"),
        ("ppo.iterations=2.5", "ppo.iterations must be a whole number, not 2.5"),
        ("ppo.iterations=true", "ppo.iterations must be a whole number, not True"),
        ("ppo.clip=high", "ppo.clip must be a number, not 'high'"),
        ("ppo.clip=true", "ppo.clip must be a number, not True"),
        ("ppo.clip=.nan", "ppo.clip must be a finite number"),
        ("data.test=[1, 2]", "data.test must be a list of texts"),
        ("video.frames=0", "video.frames must be above 0"),
        ("ppo.learning_rate=-1e-4", "ppo.learning_rate must be above 0"),
        ("rollout.kl_coef=-0.1", "rollout.kl_coef must not be negative"),
        ("world.still_share=1.2", "world.still_share is a share"),
        ("feedback.readout=words", "feedback.readout must be 'auto' or 'letter' or 'likelihood'"),
        ("sft.schedule=step", "sft.schedule must be"),
        ("feedback.pairs_per_prompt=2", "feedback.pairs_per_prompt is 2, but 2 answers form 1"),
        ("report_to=foo", "report_to must be 'none' or 'tensorboard'"),
        ("model.lora_targets=[]", "model.lora_targets is empty"),
        ("world.dev_clips=0", "world.dev_clips must be above 0"),
        ("world.prompt_clips=0", "world.prompt_clips must be above 0"),
        ("model=tiny", "model is a section"),
        ("ppo.clip", "--set ppo.clip: write section.field=value"),
        ("=3", "--set =3: write section.field=value"),
        ("video.frames=[", "video.frames must be a whole number, not '['"),
    ],
)
def test_wrong_values(problem, setting: str, words: str):
    assert words in problem("", setting)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("rollout.normalize_score=true", "rollout.rollouts=1"), "raise rollout.rollouts, which is 1"),
        (("data.world=tiny", "data.sft=[a]", "data.test=[b]"), "data.world is tiny, so data.sft, data.test would not be read"),
        (("data.world=tiny", "world.sft_clips=0", "world.sft_short_clips=0"), "both 0: raise one"),
        # Letters compare two answers at a time.
        (("optimize.methods=[bestofn]", "feedback.answers=3"), "to know the best of 3, set feedback.pairs_per_prompt to 3"),
    ],
)
def test_settings_that_do_not_go_together(settings: tuple[str, ...], words: str):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        config.load(None, settings)
    assert "\n" not in str(caught.value)
    for kept in range(len(settings)):  # each of the two is right without the other
        if "data.test" not in words:
            config.load(None, [s for i, s in enumerate(settings) if i != kept])
    config.load(None, ["data.world=tiny", "data.preferences=[a]"])


def test_what_only_together_cannot_be():
    world = ["data.world=tiny", "rollout.normalize_score=true"]
    with pytest.raises(UserError, match="rollout.normalize_by is typo, but prompts of the tiny world have type alone"):
        config.load(None, [*world, "rollout.normalize_by=typo"])
    config.load(None, [*world, "rollout.normalize_by=type"])
    best = ["optimize.methods=[bestofn]", "feedback.answers=4"]
    for more in (["feedback.pairs_per_prompt=6"], ["feedback.readout=likelihood"]):
        config.load(None, [*best, *more])
    with pytest.raises(UserError, match="to know the best of 4"):  # a judge that reads text ranks none, whatever the read-out
        config.load(None, [*best, "feedback.readout=likelihood", "feedback.judge=gguf:judge.gguf"])


def test_data_beside_the_config(tmp_path: Path, monkeypatch):
    """From the current folder where they exist there, else from the config's; what exists nowhere keeps its name."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, names in ((here, "both.json"), (there, "both.json only.json more.json")):
        folder.mkdir()
        for name in names.split():
            (folder / name).touch()
    (there / "clips").mkdir()
    monkeypatch.chdir(here)
    data = "data: {videos: clips, sft: [both.json, only.json], prompts: owner/name, preferences: [more.json]}\n"
    (there / "c.yaml").write_text(data)
    actual = config.load("../there/c.yaml", ["data.test=only.json"]).data
    assert actual.sft == ("both.json", "../there/only.json") and actual.videos == "../there/clips"
    assert actual.prompts == ("owner/name",) and actual.dev == () and actual.preferences == ("../there/more.json",)
    assert actual.test == ("../there/only.json",)
    assert config.load(None, ["data.sft=only.json"]).data.sft == ("only.json",)
    (here / "dumped.yaml").write_text(config.dump(config.load("../there/c.yaml")))  # as in a run folder
    assert config.load("dumped.yaml").data.sft == actual.sft


def test_only_the_file_s_problems_name_the_file(problem):
    assert problem("", "ppo.clp=1").startswith("--set ppo.clp=1: unknown setting ppo.clp (did you mean ppo.clip?)")
    both = problem("ppo: {clp: 1}\n", "sede=1")
    assert "2 problems: unknown setting ppo.clp" in both and "--set sede=1: unknown setting" in both


def test_a_negative_reward_scale_is_allowed():
    assert config.load(None, ["rollout.reward_scale=-1"]).rollout.reward_scale == -1.0


def test_all_problems_at_once(problem):
    text = problem("ppo:\n  clp: 0.1\nmodel:\n  base: 4\n", "video.frames=-2", "nonsense")
    assert "4 problems" in text
    for name in ("ppo.clp", "model.base", "video.frames", "nonsense"):
        assert name in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ppo: [1\n", "not valid YAML"),
        ("- a\n", "must hold sections"),
        ("ppo:\n  clip: 0.1\n  clip: 0.2\n", "clip is set twice"),
        ("seed: 1\nseed: 2\n", "seed is set twice"),
        ("a: 2021-13-45\n", "not valid YAML"),
        ("a: !!float _\n", "not valid YAML"),
    ],
)
def test_broken_files(problem, text: str, words: str):
    assert words in problem(text)


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere.yaml: cannot be read"):
        config.load(tmp_path / "nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="not a text file"):
        config.load(tmp_path / "b.yaml")


def test_dump_loads_back(tmp_path: Path):
    cfg = config.load(None, ["sft.learning_rate=2e-5", "data.sft=[a, b]", "data.videos=clips", "rollout.reward_scale=-3"])
    (tmp_path / "c.yaml").write_text(config.dump(cfg))
    assert config.load(tmp_path / "c.yaml") == cfg


def test_section_is_plain_json():
    section = config.plain(config.load(None, ["data.sft=[a]"]).data)
    assert section["sft"] == ["a"] and section["videos"] == ""


def test_recorded_leaves_out_what_changes_no_result():
    """Manifests of runs that are older than a setting must stay equal to those made with it at its old behaviour."""
    reward, defaults = config.recorded(Config().reward), config.plain(Config().reward)
    assert list(reward) == [name for name in defaults if name != "rest"]
    assert set(config.plain(Config().sft)) - set(config.recorded(Config().sft)) == {"curriculum", "enabled"}
    unrecorded = {"limit", "context_answers", "describer", "judge"}
    assert set(config.plain(Config().feedback)) - set(config.recorded(Config().feedback)) == unrecorded
    changed = config.load(None, ["sft.curriculum=false", "feedback.limit=16", "data.preference_limit=5"])
    assert config.recorded(changed.sft)["curriculum"] is False
    assert config.recorded(changed.feedback)["limit"] == 16
    assert config.recorded(changed.data)["preference_limit"] == 5
    new = {"clips", "ignore_columns", "max_bad_rows", "max_rows"}
    assert set(config.plain(changed.data)) - set(config.recorded(changed.data)) == new
    passed_over = config.load(None, ["data.ignore_columns=duration"]).data
    assert config.recorded(passed_over)["ignore_columns"] == ["duration"]


def test_defaults_keep_their_own_rules(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(config.dump(Config()))
    config.load(tmp_path / "c.yaml")


def test_every_shipped_config_loads():
    paths = sorted((ROOT / "configs").rglob("*.yaml"))
    assert {"tiny.yaml", "paper.yaml", "own-clips.yaml", "24gb-smolvlm2-500m.yaml"} <= {path.name for path in paths}
    assert len(paths) == 15
    for path in paths:
        assert yaml.safe_load(path.read_text()), f"{path} sets nothing"
        config.load(path)


def test_a_run_made_before_a_setting_was_read_as_it_behaved(tmp_path: Path):
    """A run without video.reader was read by decord, and its manifests stay as they are."""
    (tmp_path / "sft").mkdir()
    (tmp_path / "config.yaml").write_text("video: {frames: 4}\n")
    assert config.load(tmp_path / "config.yaml").video.reader == "av"  # a user's own file
    (tmp_path / "sft" / "manifest.json").write_text("{}")
    old = config.load(tmp_path / "config.yaml")
    assert old.video.reader == "decord" and not {"reader", "max_damaged"} & set(config.recorded(old.video))
    assert config.recorded(config.load(None).video)["reader"] == "av"
    (tmp_path / "config.yaml").write_text("video: {reader: av}\n")
    assert config.load(tmp_path / "config.yaml").video.reader == "av"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sft: {epochs: 1}\nsft.epochs: 2\n", "sft.epochs is set twice, in its section and beside it"),
        ("seed: 12:30:45\n", "seed must be a whole number, not '12:30:45'"),
        ("seed: 010\n", "seed must be a whole number, not '010'"),
        ("seed: 0x1F\n", "seed must be a whole number, not '0x1F'"),
        ("ppo: {iterations: 1000000000000}\n", "ppo.iterations must be at most 10,000,000,000, this has 13 digits"),
        (f"seed: {'9' * 4000}\n", "seed must be at most 10,000,000,000, this has 4000 digits"),
        (f"seed: {'9' * 5000}\n", "not valid YAML"),
        ("ppo: {clip: 1e300}\n", "ppo.clip must be at most 1e+36, this has 301 digits"),
        (f"model: {{base: {'x' * 20000}}}\n", "model.base is too long: 20,000 letters"),
        (f"data: {{sft: [{'a, ' * 20000}a]}}\n", "data.sft is too long: 20,001 letters or items"),
        (f"sft: {'[' * 3000}{']' * 3000}\n", "nested too deeply"),
        (f"sft: {'[' * 500_000}\n", "nested too deeply"),
        (f"ppo:\n  clip: 1{'0' * 400}\n", "ppo.clip must be a number"),
        ("a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n", "has an alias"),
        ("seed: 1\n" + "# filler\n" * 200_000, "characters are no config"),
        ("a: 1\n" * 50_000, "values are no config"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
    ],
)
def test_bounds_of_a_config(problem, text: str, words: str):
    assert words in problem(text)


def test_numbers_of_a_command_line_have_the_same_forms(problem):
    assert "seed must be a whole number, not '12:30:45'" in problem("", "seed=12:30:45")
    assert "seed must be a whole number" in problem("", f"seed={'[' * 3000}")


def test_numbers_that_yaml_and_json_share(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1_000\nppo: {clip: .25, iterations: +7}\nsft: {learning_rate: 1e-4}\nrollout: {temperature: 1.5e0}\n")
    cfg = config.load(path)
    assert (cfg.seed, cfg.ppo.clip, cfg.ppo.iterations, cfg.sft.learning_rate, cfg.rollout.temperature) == (
        1000,
        0.25,
        7,
        1e-4,
        1.5,
    )
