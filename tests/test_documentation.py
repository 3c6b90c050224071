"""Every command of README and the pages runs: in one folder, in the order of the pages, with configs made small.

A command that cannot run here is named in NOT_RUN with the reason, and in its page where it needs another system.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from minirlaif.cli import main
from tests import test_run_from_clips as from_clips
from tests.convert import test_llava
from tests.fixtures import benchmark_files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / ".github" / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
LONGEST = 150  # lines of README
NOT_RUN = {
    "bash .ci/run": "runs these tests",
    "python app.py": "a server, started by tests/app",
    "python3.11 -m venv": "the installation, made by .ci/run",
    ".venv/bin/pip install": "the same",
    "accelerate launch": "two GPUs; tests/test_distributed.py starts two processes on a CPU",
    "python -m minirlaif audit": "a page that waits for a person; tests/benchmarks fill it in",
    "python -m minirlaif evaluate --run tiny --benchmark MSVD_Zero_Shot_QA/": "a judge's weights; tests/judges have one",
    "python -m minirlaif evaluate --run tiny --benchmark msvd_qa.json": "a server; tests/judges start one",
}
# What is typed in place of a part of a command, to make it small.
SHRUNKEN = (
    (r"^python3\.11 -m venv \.venv && .* && ", ""),  # the installation before README's first run
    (r"--card 24$", "--card 24 --yes"),  # the second page writes the same file again
    (r"bench --config \S+ --gpu-gib 24", "bench --model tiny --stages sft"),
    (r"^for f in .*; do (.*); done$", r"\1"),
    (r"--seeds [\d,]+", "--seeds 0"),
    (r"--arms main,\S+", "--arms main"),
    (r"--jobs 2", "--jobs 1"),
    (r"world.prompt_clips=1000", "world.prompt_clips=8"),
    (r"--verify \[FOLDER\]", "--verify"),
    (r"FOLDER_OR_HUB_ID", "llava"),
)
SMALL = """
video: {frames: 4, segment_frames: 2}
world: {sft_clips: 6, sft_short_clips: 6, prompt_clips: 8, dev_clips: 3, test_clips: 4}
sft: {epochs: 1.0, batch_size: 4, micro_batch_size: 4}
feedback: {batch_size: 12}
distill: {epochs: 1.0, batch_size: 8, micro_batch_size: 8, dev_every: 100}
reward: {epochs: 1.0, batch_size: 4, micro_batch_size: 4, min_accuracy: 0.0, held_out: 0.3}
rollout: {rollouts: 8, batch_size: 8}
ppo: {iterations: 1, minibatch_size: 4, micro_batch_size: 4, dev_every: 100}
group: {iterations: 1, minibatch_size: 4, micro_batch_size: 4, dev_every: 100}
evaluate: {bootstrap: 50, batch_size: 12}
"""


def commands(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks, without comments."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.sub(r"(^|\s)# .*", "", line).strip():
                yield command


def typed(command: str) -> list[str]:
    """The words of `python -m minirlaif` of a command made small."""
    for part, other in SHRUNKEN:
        command = re.sub(part, other, command)
    words = shlex.split(command)
    start = words.index("-m")
    assert words[start + 1] == "minirlaif", command
    return words[start + 2 :]


def small(name: str) -> None:
    """Make a config small, in place."""
    values, less = yaml.safe_load(Path(name).read_text(encoding="utf-8")), yaml.safe_load(SMALL)
    merged = {part: {**values.get(part, {}), **less.get(part, {})} for part in values if isinstance(values[part], dict)}
    Path(name).write_text(yaml.safe_dump({**values, **merged}), encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user: the project's configs, a folder of clips, a clip, an old LLaVA checkpoint."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    from_clips.folder_of_clips(tmp_path)
    shutil.copyfile(tmp_path / "clips" / "c01.mp4", tmp_path / "clips" / "a.mp4")
    shutil.copyfile(tmp_path / "clips" / "a.mp4", tmp_path / "clip.mp4")
    test_llava.write_old(tmp_path / "llava", test_llava.Parts().weights())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the processes of `ablate`
    for path in sorted(Path("configs").glob("tiny*.yaml")):
        small(str(path))
    return tmp_path


@pytest.mark.learning  # three minutes
def test_every_command_runs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed, count = [], 0
    for page in PAGES:
        for command in commands(page):
            if command.startswith(tuple(NOT_RUN)) and not command.endswith("--run tiny"):  # README's first also runs
                continue
            words, count = typed(command), count + 1
            if "VideoInstruct/" in words:
                world = [json.loads(line) for line in Path("runs/tiny/world/test.jsonl").read_text().splitlines()]
                benchmark_files.videoinstruct(Path("VideoInstruct"), world)
                words[words.index("clips/")] = "runs/tiny/world/clips"
            try:
                code = main.main(words)
            except SystemExit as end:  # --help
                code = end.code
            message = capsys.readouterr().err
            if code:
                failed.append(f"{page.name}: {command} ({shlex.join(words)}): {message[-300:]}")
            if words[0] == "start":  # the weights of the model that it chose are on the hub
                assert main.main(["start", "clips", "--base", "tiny", "--yes"]) == 0
                small("clips.yaml")
    assert not failed, "\n".join(failed)
    assert count >= 35


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_headings_that_a_page_links_to_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}"
        if heading:
            names = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in names}
            assert heading in known, f"{page.name}: {link}"


def test_every_exception_still_stands_in_a_page() -> None:
    lines = [line for page in PAGES for line in commands(page)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
