"""The verb `start`: what it says of a folder of clips, which settings it chooses, and that a run takes the config it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from minirlaif import config
from minirlaif.cli import main
from minirlaif.cli import start as verb
from minirlaif.cli.plan import plan_of
from minirlaif.cli.start import FolderOfClips, chosen
from minirlaif.memory import fit, planner
from minirlaif.video.frame_sampling import segment_spans
from minirlaif.video.reader import ClipInfo
from tests.fixtures import clips as fixture


def write_clip(path: Path, seconds: float) -> None:
    fixture.write_clip(path, times=[number / 10 for number in range(round(10 * seconds))])


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "gpu_is_here", lambda: False)


def start(*words: str) -> int:
    return main.main(["start", *words])


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five clips of two seconds, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my clips" / "more").mkdir(parents=True)
    for number in range(5):
        write_clip(tmp_path / "my clips" / ("more" if number else "") / f"{number}.mp4", seconds=2.0)
    return tmp_path / "my clips"


def test_three_words_write_a_config_that_a_run_takes(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start("my clips", "--base", "tiny") == 0
    out = capsys.readouterr().out
    assert "5 clips, 10 s in all; 2.0 to 2.0 s, 2.0 s in the middle; " in out and "5 clips are few" in out
    assert "parts of 1 s: 2 to 2 for each clip" in out and "tiny knows the tiny world alone" in out
    plan = "  python -m minirlaif plan --config 'my clips.yaml'"
    assert f"{plan}\n{plan} --hours\n" in out
    assert out.endswith("  python -m minirlaif run --config 'my clips.yaml' --run 'my clips'\n")
    cfg = config.load("my clips.yaml")
    assert cfg.distill.dev_every == 1  # of 60 questions 8 epochs are 7 steps of 64
    assert cfg.data.clips == "my clips" and cfg.data.writes_questions and not cfg.sft.enabled
    assert config.stages_of(cfg) == ("world", "questions", "feedback", "distill", "evaluate", "report")
    text = Path("my clips.yaml").read_text(encoding="utf-8")
    assert text.count("# ") >= 12 and yaml.safe_load(text)["model"]["base"] == "tiny"
    assert main.main(["plan", "--config", "my clips.yaml"]) == 0


@pytest.mark.parametrize(
    ("card", "base", "batch"),
    [("24", "Qwen/Qwen3-VL-4B-Instruct", 32), ("6", "Qwen/Qwen3-VL-2B-Instruct", 4), ("2", "SmolVLM2-500M-Video-Instruct", 1)],
)
def test_the_best_model_that_fits_a_card_with_the_largest_batches(
    clips: Path, card: str, base: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the planner: what was chosen fits, and twice the batch, or the better model, does not."""
    assert start("my clips", "--card", card, "--out", "x.yaml") == 0
    out = capsys.readouterr().out
    assert f"plan --config x.yaml --gpu-gib {card}\n" in out and "there is no GPU here" in out
    cfg = config.load("x.yaml")
    assert cfg.model.base.endswith(base) and cfg.model.quantization == "nf4"
    assert cfg.feedback.batch_size == cfg.evaluate.batch_size >= batch
    assert main.main(["plan", "--config", "x.yaml", "--gpu-gib", card]) == 0
    if cfg.feedback.batch_size < 32:
        double = [f"{name}={2 * cfg.feedback.batch_size}" for name in ("feedback.batch_size", "evaluate.batch_size")]
        double.append(f"distill.micro_batch_size={2 * cfg.feedback.batch_size}")
        assert main.main(["plan", "--config", "x.yaml", "--gpu-gib", card, "--set", *double]) == 1


@pytest.mark.parametrize(("seconds", "length"), [(1.5, 1.0), (3.0, 1.0), (12.0, 3.0), (26.0, 6.5), (300.0, 8.0)])
def test_parts_fit_the_clips(
    seconds: float, length: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minirlaif.video.reader import ClipInfo

    infos = [ClipInfo(f"{number}.mp4", "0" * 16, seconds, 640, 480, 25.0, "av") for number in range(3)]
    seen = verb.FolderOfClips(Path("clips"), infos, [], "")
    video = verb._usual(seen, "tiny", False, 1)["video"]
    assert video["segment_seconds"] == length
    parts = segment_spans(seconds, length, video["max_segments"], 2)
    assert 2 <= len(parts) <= 8


def test_settings_of_ones_own_win_and_stay(clips: Path) -> None:
    assert (
        start("my clips", "--base", "tiny", "--set", "video.frames=6", "optimize.methods=[bestofn]", "seed=3", "ppo.clip=0.1")
        == 0
    )
    cfg = config.load("my clips.yaml")
    assert (cfg.video.frames, cfg.optimize.methods, cfg.seed, cfg.ppo.clip) == (6, ("bestofn",), 3, 0.1)


def test_it_says_what_is_odd_about_clips(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clips / "bad.mp4").write_bytes(b"no clip")
    write_clip(clips / "short.mp4", seconds=0.2)
    (clips / "questions.txt").write_text("What happens?\n", encoding="utf-8")
    assert start("my clips", "--base", "tiny") == 0
    out = capsys.readouterr().out
    assert "cannot be read, left out: " in out and "bad.mp4" in out and "1 clip of a second or less" in out
    assert "questions.txt: its questions are asked, none are written" in out
    assert config.load("my clips.yaml").video.max_unreadable == 0.15  # one of seven


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder of clips"),
        (["empty"], "empty: no clips; 3 are needed at least"),
        (["two"], "two: 2 clips that can be read; 3 are needed"),
        (["my clips", "--card", "0"], "--card 0: must be above 0"),
        (["my clips", "--card", "0.5"], "does not fit into 0.5 GiB"),
        (["my clips", "--out", "none/x.yaml"], "--out none/x.yaml: no file can be written there"),
        (["my clips", "--set", "video.frame=3"], "unknown setting video.frame"),
        (["my clips", "--base", "no-such-model", "--card", "24"], "no-such-model"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], message: str, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("two").mkdir()
    for name in "ab":
        write_clip(Path("two") / f"{name}.mp4", seconds=2.0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert start(*words) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("start: clips:")]
    assert len(error) == 1 and message in error[0] and not list(Path().glob("*.yaml"))


def test_a_config_is_not_overwritten_by_mistake(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my clips.yaml").write_text("seed: 5\n", encoding="utf-8")
    assert start("my clips", "--base", "tiny") == 2
    assert "my clips.yaml: exists already; overwrite it with --yes" in capsys.readouterr().err
    assert Path("my clips.yaml").read_text(encoding="utf-8") == "seed: 5\n"
    assert start("my clips", "--base", "tiny", "--yes") == 0 and config.load("my clips.yaml").model.base == "tiny"


@pytest.mark.parametrize("gib", [8, 12, 16, 24])
def test_the_config_of_each_card_is_what_is_written_for_it(gib: int) -> None:
    """For 300 clips of ten seconds; its header states the planned memory."""
    infos = [ClipInfo("a.mp4", "", 10.0, 1280, 720, 30.0, "av")] * 300
    card = fit.find_card(float(gib), "auto")
    values = chosen(FolderOfClips(Path("clips"), infos, [], ""), "", card, [])
    path = Path(__file__).parents[2] / "configs" / f"{gib}gb-own-clips.yaml"
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == values
    step, most = planner.peak(plan_of(config.load(path), True))
    assert f"# Memory: {most / 2**30:.1f} GiB planned ({step}). Hours: not measured;" in text and most <= card.room
