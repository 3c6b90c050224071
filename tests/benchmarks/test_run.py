"""`evaluate --benchmark` from end to end: every layout, every kind of judge, kills, models of every kind, and `compare`."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minirlaif import config, session
from minirlaif.benchmarks import layouts, models, tables
from minirlaif.benchmarks import run as evaluation
from minirlaif.cli import main
from minirlaif.inference import engine as chat_engine
from minirlaif.inference.engine import LoadedClip
from minirlaif.judges import rubric
from minirlaif.models import generation, loading
from minirlaif.models.adapters import AdapterSet
from minirlaif.models.loading import TINY
from minirlaif.runs.run import Run
from minirlaif.video.frame_sampling import uniform_plan
from minirlaif.video.reader import ClipReader
from tests.benchmarks.test_dataset import official_input
from tests.fixtures import benchmark_files, chat_run, endpoints, fixed_reply, gguf_files, small_config, tiny
from tests.fixtures.endpoints import Server, answer

QUICK = ["model.device=cpu", "evaluate.max_new_tokens=10", "evaluate.batch_size=16", "video.frames=4", "model.lora_r=2"]
REPLY = '{"pred": "yes", "score": 4}'
KEY = "sk-test-0123456789"


class Home:
    """A folder with a run `a` (settings, random adapters, no training), ten clips and every benchmark file about them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        world = small_config.make(folder / "made", ["world"], f"world.test_clips={benchmark_files.CLIPS}") / "world"
        self.rows = [json.loads(line) for line in (world / "test.jsonl").read_text().splitlines()]
        self.videos = folder / "videos"
        self.videos.mkdir()
        for clip in sorted((world / "clips").glob("test*.mp4")):
            shutil.copy(clip, self.videos / clip.name)
        (self.runs / "a").mkdir(parents=True)
        cfg = config.load(small_config.TINY, QUICK)
        (self.runs / "a" / "config.yaml").write_text(config.dump(cfg))
        roles = AdapterSet(loading.open_backbone(cfg.model), cfg.model)
        for seed, (stage, role) in enumerate((("sft", "sft"), ("ppo", "policy"))):
            roles.add(role, seed)
            tiny.stir(roles, role, seed, size=0.05)
            tiny.finished(Run(self.runs / "a"), stage, lambda path, role=role: roles.save(role, path / "adapter"))  # type: ignore[misc]

    def words(self, benchmark: Path, *more: str) -> list[str]:
        where = ["--run", "a", "--runs-dir", str(self.runs)]
        return ["evaluate", *where, "--benchmark", str(benchmark), "--videos", str(self.videos), *more]

    def call(self, benchmark: Path, *more: str) -> int:
        return main.main(self.words(benchmark, *more))

    def table(self, name: str) -> dict[str, Any]:
        folder = self.runs / "a" / "benchmarks" / name
        assert (folder / "table.html").is_file() and (folder / "table.md").is_file()
        return json.loads((folder / "table.json").read_text())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere; here they only take time."""
    monkeypatch.setattr(tables, "RESAMPLES", 100)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*acts: Any) -> Server:
        servers.append(Server(*acts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def cells(table: dict[str, Any], block: int = 0, row: int = 0) -> dict[str, Any]:
    return table["tables"][block]["rows"][row]["cells"]


LAYOUTS = {
    "videoinstruct": (benchmark_files.videoinstruct, "", ["correctness", "detail", "context", "temporal", "consistency", "mean"]),
    "hub": (benchmark_files.repack, "", ["correctness", "detail", "context", "temporal", "consistency", "mean"]),
    "zeroshot": (benchmark_files.two_files, "", ["accuracy", "score"]),
    "anet_qa": (benchmark_files.merged, ".json", ["accuracy", "score"]),
    "tgif": (benchmark_files.tgif, ".csv", ["accuracy", "score"]),
    "activitynet": (benchmark_files.activitynet, ".json", ["accuracy", "score"]),
    "shards": (benchmark_files.sharded, "", ["correctness", "detail", "context"]),
    "mvbench": (benchmark_files.mvbench, ".json", ["accuracy"]),
    "videomme": (benchmark_files.choice, ".json", ["accuracy"]),
    "nextqa": (benchmark_files.choice_csv, ".csv", ["accuracy"]),
    "msrvtt": (benchmark_files.retrieval, ".csv", ["r1", "r5", "r10"]),
    "ucf101": (benchmark_files.ucf101, "", ["top1", "top5"]),
    "hmdb51": (benchmark_files.hmdb51, "", ["top1", "top5"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name: str, home: Home, capsys: pytest.CaptureFixture[str]):
    make, suffix, metrics = LAYOUTS[name]
    source = make(home.folder / f"{name}{suffix}", home.rows)
    more = ["--readout", "likelihood"] if name == "nextqa" else []
    assert home.call(source, "--model", "base", *more) == 0
    table = home.table(name)
    result = cells(table)
    assert list(result) == metrics
    for metric, cell in result.items():
        assert metric == "mean" or (cell["rows"] == cell["marked"] == 20 and cell["low"] <= cell["mean"] <= cell["high"])
    assert f"table: {home.runs / 'a' / 'benchmarks' / name / 'table.html'}" in capsys.readouterr().out
    folder = home.runs / "a" / "benchmarks" / name / "base"
    if name in ("videoinstruct", "hub", "zeroshot"):
        for path in folder.glob("*qa.json"):
            assert len(official_input(path.name, json.loads(path.read_text()))) == 20
    if name == "msrvtt":  # twenty rows are about seven clips: the right one is among the first ten, whatever the model knows
        assert result["r10"]["mean"] == 1.0 and result["r1"]["mean"] <= result["r5"]["mean"]
        assert {len(row["ranked"]) for row in json.loads((folder / "retrieval.json").read_text())} == {7}
    if name == "hmdb51":  # two classes
        assert result["top5"]["mean"] == 1.0
    if name == "videomme":
        (row,) = table["tables"][0]["rows"]
        assert table["tables"][0]["judge"]["kind"] == "letter" and set(row["without_mark"]) <= {"names no option"}
    strips = (home.runs / "a" / "benchmarks" / name / "table.html").read_text().count("data:image/jpeg")
    assert strips > 0


@pytest.mark.parametrize(
    ("make", "called"), [(benchmark_files.original_two_files, "vid{}.mp4"), (benchmark_files.original_two_files, "-Abc_{}_9.mp4"),
                         (benchmark_files.msrvtt_qa, "video{}.mp4"), (benchmark_files.original_msvd, "vid{}.mp4")]
)  # fmt: skip
def test_clips_that_their_benchmark_counts(
    make: Callable[[Path, Any], Path], called: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """MSVD's clips, by number or under their names on YouTube, and MSRVTT's: what is said is what is said of the same clips and
    questions in a plain list."""
    videos = tmp_path / "videos"
    videos.mkdir()
    numbers = sorted({benchmark_files.number_of(row) for row in home.rows})
    for number in numbers:
        shutil.copy(home.videos / f"test{number:04d}.mp4", videos / called.format(number))
    (videos / "youtube_mapping.txt").write_text("".join(f"-Abc_{number}_9 vid{number}\n" for number in numbers))
    name = re.sub(r"\W", "", called).lower() + make.__name__
    source = (
        make(tmp_path / name, home.rows)
        if make is benchmark_files.original_two_files
        else make(tmp_path / f"{name}.json", home.rows)
    )
    assert home.call(source, "--videos", str(videos), "--model", "sft") == 0
    assert home.call(benchmark_files.merged(tmp_path / f"plain-{name}.json", home.rows), "--model", "sft") == 0
    rows = [json.loads((home.runs / "a" / "benchmarks" / b / "sft" / "qa.json").read_text()) for b in (name, f"plain-{name}")]
    contents = [[(row["question"], row["answer"], row["pred"]) for row in side] for side in rows]
    assert len(contents[0]) == 20 and sorted(contents[0]) == sorted(
        (q.removeprefix("<image>\n"), a, p) for q, a, p in contents[1]
    )
    assert cells(home.table(name)) == cells(home.table(f"plain-{name}"))
    assert f"benchmark {name}: qa, 20 rows about" in capsys.readouterr().out


def test_egoschema(home: Home):
    source = benchmark_files.egoschema(home.folder / "EgoSchema", home.rows)
    assert home.call(source / "questions.json", "--model", "base") == 0
    assert cells(home.table("egoschema"))["accuracy"]["rows"] == 5


def test_letters_and_likelihoods_of_one_model_stand_side_by_side(home: Home, tmp_path: Path):
    source = benchmark_files.choice(tmp_path / "both.json", home.rows)
    assert home.call(source, "--model", "base", "sft") == 0
    assert home.call(source, "--model", "base", "sft", "--readout", "likelihood") == 0
    tables = {each["judge"]["kind"]: [row["model"] for row in each["rows"]] for each in home.table("both")["tables"]}
    assert tables == {"letter": ["a base", "a sft"], "likelihood": ["a base-likelihood", "a sft-likelihood"]}


def test_as_likely_as_all_others_is_not_right(home: Home, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(models.SessionModel, "likelihoods", lambda self, candidates: [-1.0] * len(candidates))
    assert home.call(benchmark_files.choice(tmp_path / "tied.json", home.rows), "--model", "base", "--readout", "likelihood") == 0
    assert cells(home.table("tied"))["accuracy"]["mean"] == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_likelihood_that_is_no_number_gives_no_mark(value: float, home: Home, tmp_path: Path, monkeypatch):
    """Neither a hit nor a miss, and no letter of a reply that nobody gave."""

    def likelihoods(self: Any, candidates: Any) -> list[float]:
        broken = candidates[0][1] == home.rows[3]["question"]
        return [value if broken and number == 1 else -float(number) for number in range(len(candidates))]

    monkeypatch.setattr(models.SessionModel, "likelihoods", likelihoods)
    source = benchmark_files.choice(tmp_path / f"likelihood{value}.json", home.rows)
    assert home.call(source, "--model", "base", "--readout", "likelihood") == 0
    lost = sum(row["question"] == home.rows[3]["question"] for row in home.rows[: benchmark_files.ROWS])
    assert 0 < lost < 20
    (table,) = home.table(layouts.find_source(str(source)).name)["tables"]
    (row,) = table["rows"]
    assert table["judge"]["kind"] == "likelihood"
    assert row["without_mark"] == {"the likelihood of a candidate is not a number": lost}
    assert (row["cells"]["accuracy"]["rows"], row["cells"]["accuracy"]["marked"]) == (20, 20 - lost)


def test_predictions_about_all_rows_serve_a_part_of_them(home: Home, tmp_path: Path):
    source = benchmark_files.merged(tmp_path / "parts.json", home.rows)
    rows = [{**row, "pred": row["answer"]} for row in json.loads(source.read_text())]
    (tmp_path / "pred.json").write_text(json.dumps(rows))
    given = ("--predictions", str(tmp_path / "pred.json"), "--model", "other", "--limit", "6")
    assert home.call(source, *given) == 0
    (name,) = [path.name for path in (home.runs / "a" / "benchmarks").glob("parts-*")]
    (row,) = home.table(name)["tables"][0]["rows"]
    assert row["cells"]["accuracy"]["mean"] == 1.0 and 6 <= row["cells"]["accuracy"]["rows"] < len(rows)


def test_likelihoods_that_are_all_no_numbers_are_not_called_letters(home: Home, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(models.SessionModel, "likelihoods", lambda self, candidates: [math.nan] * len(candidates))
    source = benchmark_files.choice(tmp_path / "nothing.json", home.rows)
    assert home.call(source, "--model", "base", "--readout", "likelihood") == 0
    (table,) = home.table("nothing")["tables"]
    assert table["judge"]["kind"] == "likelihood" and table["rows"][0]["cells"]["accuracy"]["marked"] == 0


def test_likelihoods_find_what_the_base_can_see(home: Home):
    """The base was trained on this world: of its own answers' texts it finds the right one far more often than a guess would."""
    source = benchmark_files.choice(home.folder / "seen.json", home.rows)
    more = ["--readout", "likelihood", "--set", "video.frames=12"]
    assert home.call(source, "--model", "base", *more) == 0
    assert cells(home.table("seen"))["accuracy"]["mean"] >= 0.6  # of four options; a guess is right in 0.25


@pytest.fixture(scope="module")
def judged(home: Home) -> dict[str, Path]:
    """Two benchmarks with answers of the base already there."""
    sources = {
        "five": benchmark_files.videoinstruct(home.folder / "five", home.rows),
        "msvd_qa": benchmark_files.merged(home.folder / "msvd_qa.json", home.rows),
    }
    for source in sources.values():
        assert home.call(source, "--model", "base", "--judge", "none") == 0
    return sources


def flags(kind: str, folder: Path, server: str) -> list[str]:
    """Judges that read every letter as a token get short prompts, to save time."""
    prompts = folder / "prompts.yaml"
    one, two = "{question} | {answer} | {pred}", "{question1} {question2} | {answer} | {pred1} {pred2}"
    texts = {metric: {"system": metric, "user": two if metric == "consistency" else one} for metric in rubric.default_prompts()}
    prompts.write_text(json.dumps(texts))
    if kind == "hf":
        where = [f"hf:{fixed_reply.write_folder(folder / 'parrot', REPLY)}", "--judge-set", "device=cpu"]
    elif kind == "gguf":
        where = [f"gguf:{fixed_reply.write_gguf(folder / 'parrot.gguf', REPLY)}", "--judge-set", "context=1024", "threads=1"]
    elif kind == "openai":
        where = ["openai:parrot", "--judge-set", f"url={server}", "retries=1"]
    else:
        return ["--judge", kind]
    return ["--judge", *where, f"prompts={prompts}"]


@pytest.mark.parametrize("kind", ["exact", "normalised", "hf", "gguf", "openai"])
def test_every_judge(kind: str, home: Home, judged: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """openai: llama.cpp's own server; the three that are models say the same, and stand in tables of their own all the same."""
    if kind == "openai":
        with endpoints.llama_server(fixed_reply.write_gguf(tmp_path / "parrot.gguf", REPLY)) as url:
            assert [home.call(source, "--model", "base", *flags(kind, tmp_path, url)) for source in judged.values()] == [0, 0]
    else:
        assert [home.call(source, "--model", "base", *flags(kind, tmp_path, "")) for source in judged.values()] == [0, 0]
    output = capsys.readouterr().out
    for name, metrics in (("five", 6), ("msvd_qa", 2)):
        tables = [each for each in home.table(name)["tables"] if each["judge"]["kind"] == kind]
        (row_cells,) = [row["cells"] for each in tables for row in each["rows"]]
        assert len(row_cells) == metrics and all(cell["rows"] == cell["marked"] for cell in row_cells.values())
        if kind in ("hf", "gguf", "openai"):
            assert {m: c["mean"] for m, c in row_cells.items()} == {m: 1.0 if m == "accuracy" else 4.0 for m in row_cells}
            assert tables[0]["judge"]["dates"] and tables[0]["judge"]["prompt"]
    if kind in ("hf", "gguf", "openai"):
        counts = re.findall(r"judge parrot\S*: (\d+) questions, 0 replies kept, (\d+) to ask", output)
        assert len(counts) == 2 and all(first == second for first, second in counts) and 80 <= int(counts[0][0]) <= 100


def test_judges_never_share_a_column(home: Home, judged: dict[str, Path], tmp_path: Path):
    for words in (["--judge", "exact"], ["--judge", "normalised"], flags("gguf", tmp_path, "")):
        assert home.call(judged["msvd_qa"], "--model", "base", *words) == 0
    prompts = tmp_path / "kind.yaml"
    prompts.write_text("qa: {system: Be kind., user: '{question}{answer}{pred}'}\n")
    assert home.call(judged["msvd_qa"], "--model", "base", *flags("gguf", tmp_path, ""), f"prompts={prompts}") == 0
    judges = [tuple(each["judge"][k] for k in ("kind", "name", "version", "prompt")) for each in home.table("msvd_qa")["tables"]]
    assert len(judges) == len(set(judges)) >= 4
    assert sum(judge[0] == "gguf" for judge in judges) == 2


def test_rows_without_a_mark_are_told(home: Home, judged: dict[str, Path], serve, capsys: pytest.CaptureFixture[str]):
    """Every third reply is no mark, twice over; one row is refused."""

    def act(handler: Any, body: dict[str, Any]) -> None:
        prompt = body["messages"][1]["content"]
        number = next(n for n, row in enumerate(home.rows) if row["question"] in prompt and f">{row['answer']}<" in prompt)
        if number == 1:
            endpoints.send(handler, b"too long", 400)
        else:
            answer(handler, '{"pred": "yes", "score": 7}' if number % 3 == 0 else REPLY, model="third-1")

    server = serve(act)
    words = ["--judge", "openai:third", "--judge-set", f"url={server.url}", "retries=0"]
    assert home.call(judged["msvd_qa"], "--model", "base", *words) == 0
    (result,) = [each for each in home.table("msvd_qa")["tables"] if each["judge"]["name"] == "third"]
    row = result["rows"][0]
    lost = row["cells"]["accuracy"]["rows"] - row["cells"]["accuracy"]["marked"]
    assert lost >= 3 and row["cells"]["accuracy"]["mean"] == 1.0
    assert row["cells"]["accuracy"]["worst"] == pytest.approx((20 - lost) / 20) and row["cells"]["accuracy"]["best"] == 1.0
    assert sum(row["without_mark"].values()) == 2 * lost  # under accuracy and under score
    assert set(row["without_mark"]) == {"unreadable", "refused"}
    output = capsys.readouterr().out
    assert "could not be read" in output and f"{lost} of 20 rows have no grade" in output


def test_faults_of_a_server_leave_the_table_as_it_is(home: Home, judged: dict[str, Path], serve):
    """Busy, broken, silent, cut off, no JSON, the wrong JSON: each passes, and the marks are those of a server without faults."""

    def marked(handler: Any, body: dict[str, Any]) -> None:
        score = len(body["messages"][1]["content"]) % 6
        answer(handler, json.dumps({"pred": "yes" if score > 2 else "no", "score": score}), model="flaky-1")

    def cut(handler: Any, body: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "500")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [')

    def silent(handler: Any, body: Any) -> None:
        time.sleep(1.5)

    faults = [lambda h, _, code=code: endpoints.send(h, b"no", code) for code in (429, 500, 503)]
    faults += [lambda h, _, data=data: endpoints.send(h, data) for data in (b"<html>", b'{"choices": []}')]
    faults += [cut, silent]
    result = {}
    for name, acts in (("flaky", [act for fault in faults for act in (fault, marked)]), ("sound", [marked])):
        server = serve(*acts)
        words = [
            "--judge",
            f"openai:{name}",
            "--judge-set",
            f"url={server.url}",
            "parallel=1",
            "timeout_seconds=1",
            "backoff_seconds=0.05",
        ]
        assert home.call(judged["msvd_qa"], "--model", "base", *words) == 0
        (table,) = [each for each in home.table("msvd_qa")["tables"] if each["judge"]["name"] == name]
        result[name] = table["rows"][0]["cells"], len(server.bodies)
    assert result["flaky"][0] == result["sound"][0] and result["sound"][0]["score"]["marked"] == 20
    assert result["flaky"][1] == result["sound"][1] + len(faults)


def test_a_judge_that_says_nothing_of_use_fails_after_the_tables(home: Home, judged: dict[str, Path], serve, capsys):
    server = serve(lambda handler, body: answer(handler, "I would say 4", model="vague-1"))
    words = ["--judge", "openai:vague", "--judge-set", f"url={server.url}"]
    assert home.call(judged["msvd_qa"], "--model", "base", *words) == 2
    printed = capsys.readouterr()
    assert "table.html" in printed.out
    complaint = f"judge vague: none of its {len(server.bodies)} replies could be read, the last one was 'I would say 4'; "
    assert complaint in printed.err and len(server.bodies) > 20  # each row twice, but equal rows once
    (result,) = [each for each in home.table("msvd_qa")["tables"] if each["judge"]["name"] == "vague"]
    assert result["rows"][0]["cells"]["accuracy"]["marked"] == 0


def test_a_judge_that_is_not_there_is_told_before_models_answer(home: Home, judged: dict[str, Path], monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "_answers", lambda *arguments: pytest.fail("models were asked"))
    assert home.call(judged["msvd_qa"], "--model", "base", "--judge", f"gguf:{home.folder}") == 2
    assert "is a folder; name the .gguf file in it" in capsys.readouterr().err


def test_the_key_is_in_no_file_and_on_no_screen(home: Home, judged: dict[str, Path], serve, monkeypatch, capfd):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(lambda handler, body: answer(handler, REPLY, model="keyed-1"))
    words = ["--judge", "openai:keyed", "--judge-set", f"url={server.url}", "key_env=JUDGE_KEY"]
    assert home.call(judged["msvd_qa"], "--model", "base", *words) == 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    broken = serve(lambda handler, body: endpoints.send(handler, f"bad key {KEY}".encode(), 401))
    assert home.call(judged["msvd_qa"], "--model", "base", "--judge", "openai:k", "--judge-set", f"url={broken.url}",
                     "key_env=JUDGE_KEY") == 2  # fmt: skip
    printed = capfd.readouterr()
    assert "bad key [key]" in printed.err and KEY not in printed.out + printed.err
    for path in home.runs.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


# --- kills


def test_killed_while_judging_asks_only_for_what_is_missing(home: Home, judged: dict[str, Path], serve, tmp_path: Path, capsys):
    """kill -9 in the middle; the server counts. The table is that of a run that was never killed."""

    def act(handler: Any, body: dict[str, Any]) -> None:
        if len(server.bodies) > 30 and child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
        answer(handler, json.dumps({"score": len(body["messages"][1]["content"]) % 6}), model="slow-1")

    runs = tmp_path / "runs"
    shutil.copytree(home.runs / "a", runs / "a", ignore=shutil.ignore_patterns("cache"))
    server = serve(act)
    words = home.words(judged["five"], "--model", "base", "--judge", "openai:slow", "--judge-set", f"url={server.url}")
    elsewhere = [str(runs) if word == str(home.runs) else word for word in words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen([sys.executable, "-m", "minirlaif", *elsewhere], env=environment, stdout=log, stderr=log)
        assert child.wait(120) == -signal.SIGKILL, (tmp_path / "log").read_text()
    time.sleep(0.3)  # requests that were under way are counted too
    before = len(server.bodies)
    assert main.main(elsewhere) == 0
    questions, kept, missing = map(
        int, re.search(r"(\d+) questions, (\d+) replies kept, (\d+) to ask", capsys.readouterr().out).groups()
    )
    prompts = [json.dumps(body["messages"]) for body in server.bodies]
    assert len(set(prompts)) == questions and len(prompts) - before == missing == questions - kept
    assert 0 <= before - kept <= 4  # four requests at once may each have had a reply on its way that nobody was there to keep
    assert kept > 20
    killed = json.loads((runs / "a" / "benchmarks" / "five" / "table.json").read_text())
    assert main.main(words) == 0  # in another folder of runs: everything asked anew, never killed
    uninterrupted = home.table("five")
    result = [
        [t["rows"][0]["cells"] for t in table["tables"] if t["judge"]["name"] == "slow"] for table in (killed, uninterrupted)
    ]
    assert result[0] == result[1] and len(result[0]) == 1
    count = len(server.bodies)
    assert main.main(words) == 0 and len(server.bodies) == count  # a re-run costs nothing


def test_killed_while_answering_goes_on(home: Home, monkeypatch, tmp_path: Path):
    source = benchmark_files.merged(tmp_path / "stop.json", home.rows)
    real, calls = generation.sample, []

    def stop_at(last: int) -> None:
        def sample(*arguments: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        monkeypatch.setattr(generation, "sample", sample)

    small = ["--model", "sft", "--set", "evaluate.batch_size=5"]
    stop_at(3)
    assert home.call(source, *small) == 130
    calls.clear()
    stop_at(99)
    assert home.call(source, *small) == 0 and len(calls) == 2  # of four batches two were there
    folder = home.runs / "a" / "benchmarks" / "stop" / "sft"
    went_on = (folder / "answers.jsonl").read_bytes()
    assert home.call(source, *small, "--redo") == 0 and len(calls) == 6
    assert (folder / "answers.jsonl").read_bytes() == went_on and went_on.count(b"\n") == 20


# --- models


def test_models_of_every_kind(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """SFT and aligned model of the run, the aligned model again by its adapter folder, and the base again by its folder."""
    source = benchmark_files.merged(tmp_path / "kinds.json", home.rows)
    folder = shutil.copytree(TINY, tmp_path / "copy")
    adapter = home.runs / "a" / "ppo" / "adapter"
    assert home.call(source, "--model", "base", "sft", "rlaif", str(adapter), str(folder)) == 0
    texts = {
        path.parent.name: [line["said"] for line in map(json.loads, path.read_text().splitlines())]
        for path in (home.runs / "a" / "benchmarks" / "kinds").glob("*/answers.jsonl")
    }
    assert texts["ppo-adapter"] == texts["rlaif"] != texts["sft"] != texts["base"] == texts["copy"]
    (table,) = home.table("kinds")["tables"]
    assert [row["model"] for row in table["rows"]] == ["a base", "a sft", "a rlaif", "a copy", "a ppo-adapter"]
    names = [(change["first"], change["second"]) for change in table["differences"]]
    assert names == [("a base", f"a {other}") for other in ("sft", "rlaif", "copy", "ppo-adapter")]
    same = next(c for c, pair in zip(table["differences"], names, strict=True) if pair == ("a base", "a copy"))
    wanted = {"rows": 20, "left_out": 0, "mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "clips": 7}
    assert same["changes"]["accuracy"] == wanted
    assert main.main(["compare", "a:rlaif", "a:ppo-adapter", "--runs-dir", str(home.runs), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    (table,) = [t for t in result["tables"] if t["benchmark"] == "kinds"]
    assert table["tables"][0]["differences"][0]["changes"]["accuracy"] == wanted


class Echo:
    """An engine that says what it is asked; see ChatEngine."""

    models, title, frames, sampling = ("rlaif", "sft"), "echo.gguf", 4, chat_engine.SamplingParams()

    def __init__(self, *where: Any, **how: Any) -> None:
        self.loaded: list[str] = []
        self.closed = False
        self.counters: dict[str, int] = {"decodes": 0, "encodes": 0, "prefilled_tokens": 0, "reused_tokens": 0}

    def load_clip(self, video: str, frames: int = 0) -> LoadedClip:
        self.loaded.append(video)
        self.counters["decodes"] += 1
        return LoadedClip(video, 1.0, (0.5,), None, 1.0, video)  # type: ignore[arg-type]

    def stream(
        self, clip: LoadedClip, turns: Any, question: str, sampling: chat_engine.SamplingParams, model: str = ""
    ) -> Iterator[str]:
        assert sampling.temperature == 0 and not turns
        yield from (f"{model or 'first'} ", f"{Path(clip.video).stem} ", question)

    def score(self, clip: LoadedClip, question: str, text: str) -> None:
        return None

    def close(self) -> None:
        self.closed = True


def test_an_engine_answers_through_the_same_command(home: Home, monkeypatch, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / "engine.json", home.rows)
    (tmp_path / "tiny-Q8_0.gguf").write_bytes(b"GGUF")
    engine = Echo()
    monkeypatch.setattr("minirlaif.gguf.runtime.engine.GgufEngine", lambda *_, **__: engine)
    assert home.call(source, "--model", f"{tmp_path / 'tiny-Q8_0.gguf'}:sft") == 0
    folder = home.runs / "a" / "benchmarks" / "engine" / "tiny-q8_0.gguf-sft"
    rows = json.loads((folder / "qa.json").read_text())
    assert rows[4]["pred"] == f"sft {rows[4]['video_name']} {rows[4]['question']}"
    assert len(engine.loaded) == len({row["video_name"] for row in rows}) and engine.closed  # once at each clip
    assert json.loads((folder / "manifest.json").read_text())["counters"]["decodes"] == len(engine.loaded)
    assert home.call(source, "--model", f"{tmp_path / 'tiny-Q8_0.gguf'}:best") == 2
    assert "holds no model best; it has rlaif, sft" in capsys.readouterr().err
    choice = benchmark_files.choice(tmp_path / "mc.json", home.rows)
    assert home.call(choice, "--model", str(tmp_path / "tiny-Q8_0.gguf"), "--readout", "likelihood") == 2
    assert "gives no likelihoods" in capsys.readouterr().err


def test_an_engine_looks_once_at_a_clip_whose_rows_are_apart(home: Home, monkeypatch, tmp_path: Path):
    rows = [home.rows[n] for side in (0, 1) for n in range(side, benchmark_files.ROWS, 2)]
    source = benchmark_files.merged(tmp_path / "apart.json", rows)
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    engine = Echo()
    monkeypatch.setattr("minirlaif.gguf.runtime.engine.GgufEngine", lambda *_, **__: engine)
    assert home.call(source, "--model", str(tmp_path / "one.gguf")) == 0
    assert len(engine.loaded) == len(set(engine.loaded)) < 20


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export of the base with another text model beside it, which says other things; and "sft" by an adapter."""
    folder = chat_run.exported(tmp_path / "export")
    weights = gguf_files.load_file(gguf_files.TINY / "model.safetensors")
    rng = np.random.default_rng(0)
    stirred = {name: value + rng.normal(0, 0.05, value.shape).astype(value.dtype) for name, value in weights.items()}
    text = gguf_files.TEXT | gguf_files.vocabulary()
    gguf_files.write(folder / "other.gguf", text, gguf_files.text_tensors(stirred))
    return folder


def predicted_texts(home: Home, name: str) -> dict[str, list[str]]:
    """What each model said, row by row."""
    return {
        path.parent.name: [row["pred"] for row in json.loads(path.read_text())]
        for path in (home.runs / "a" / "benchmarks" / name).glob("*/qa.json")
    }


def test_exported_files_and_the_model_that_they_are_of(home: Home, export: Path, tmp_path: Path, capsys):
    """Through one command: llama.cpp says what transformers says, so that the difference between them is none. With other frames
    both say something else, and again the same."""
    for frames, more in ((4, []), (2, ["--set", "video.frames=2"])):
        source = benchmark_files.merged(tmp_path / f"real{frames}.json", home.rows)
        models = ["base", str(export / "text.gguf"), str(export / "other.gguf"), f"{export / 'text.gguf'}:sft"]
        assert home.call(source, "--model", *models, *more) == 0
        texts = predicted_texts(home, f"real{frames}")
        assert texts["text.gguf"] == texts["base"] and len(set(texts["base"])) > 3
        assert texts["other.gguf"] != texts["base"] != texts["text.gguf-sft"]
        (table,) = home.table(f"real{frames}")["tables"]
        (change,) = [c for c in table["differences"] if (c["first"], c["second"]) == ("a base", "a text.gguf")]
        score = change["changes"]["score"]
        assert (score["rows"], score["mean"], score["low"], score["high"]) == (20, 0.0, 0.0, 0.0)
        (other,) = [c for c in table["differences"] if {c["first"], c["second"]} == {"a base", "a other.gguf"}]
        assert other["changes"]["score"]["low"] <= other["changes"]["score"]["mean"] <= other["changes"]["score"]["high"]
        manifest = json.loads((home.runs / "a" / "benchmarks" / f"real{frames}" / "text.gguf" / "manifest.json").read_text())
        assert manifest["config"]["frames"] == frames
    assert predicted_texts(home, "real2")["text.gguf"] != predicted_texts(home, "real4")["text.gguf"]
    assert "different numbers of frames" not in capsys.readouterr().out
    assert home.call(tmp_path / "real4.json", "--model", str(export / "text.gguf"), "--set", "video.frames=2") == 2
    assert "frames 4 -> 2" in capsys.readouterr().err


def test_models_that_look_at_different_frames_are_told(home: Home, export: Path, tmp_path: Path, capsys):
    shutil.copytree(home.runs / "a", tmp_path / "runs" / "b", ignore=shutil.ignore_patterns("benchmarks", "cache"))
    text = (tmp_path / "runs" / "b" / "config.yaml").read_text()
    (tmp_path / "runs" / "b" / "config.yaml").write_text(text.replace("frames: 4\n", "frames: 3\n", 1))
    source = benchmark_files.merged(tmp_path / "differ.json", home.rows)
    words = home.words(source, "--run", "b", "--runs-dir", str(tmp_path / "runs"), "--model", "base", str(export / "text.gguf"))
    assert main.main([*words, "--limit", "1", "--judge", "none"]) == 0
    assert "different numbers of frames (base 3, text.gguf 4)" in capsys.readouterr().out


def test_what_an_exported_model_is_made_of_is_in_its_settings(home: Home, export: Path):
    """Every file that it is read from: one that was changed makes other answers."""
    name, run = f"{export / 'text.gguf'}:sft", Run(home.runs / "a")
    seen = [models.resolve_model(name, run, None, []).settings]
    for file in ("text.gguf", "mmproj.gguf", "sft.gguf", "minirlaif.json"):
        with (export / file).open("ab") as out:
            out.write(b"\n")
        seen.append(models.resolve_model(name, run, None, []).settings)
    assert all(one != two for one, two in zip(seen, seen[1:], strict=False)) and seen[0]["frames"] == gguf_files.FRAMES


@pytest.mark.parametrize("part", ["mmproj.gguf", "sft.gguf", "gone.gguf", "broken.gguf"])
def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(part: str, home: Home, export: Path, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / f"no-{part}.json", home.rows)
    (export / "broken.gguf").write_bytes(b"GGUF")
    assert home.call(source, "--model", str(export / part)) == 2
    if part in ("mmproj.gguf", "sft.gguf"):
        assert f"name the text model: --model {export / 'text.gguf'}" in capsys.readouterr().err
    assert not (home.runs / "a" / "benchmarks" / f"no-{part}").exists()


# --- predictions of others, faults, comparing


def predicted(path: Path, home: Home, count: int) -> Path:
    """A file of right answers to the first so many rows of `merged`."""
    return benchmark_files.put(
        path, [{"id": f"q{n}", "question": row["question"], "pred": row["answer"]} for n, row in enumerate(home.rows[:count])]
    )


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["scores", "///", "..", "sft", "RLAIF", "base", "table.json", "base.old", "base.partial"])
@pytest.mark.parametrize("more", [[], ["--redo"]])
def test_predictions_take_no_name_that_is_taken(name: str, more: list[str], home: Home, judged, tmp_path: Path, capsys):
    before = everything(home.runs / "a" / "benchmarks" / "msvd_qa")
    words = ["--predictions", str(predicted(tmp_path / "p.json", home, 5)), "--model", name, *more]
    assert home.call(judged["msvd_qa"], *words) == 2
    assert "choose another name" in capsys.readouterr().err
    assert everything(home.runs / "a" / "benchmarks" / "msvd_qa") == before


def test_predictions_and_models_do_not_overwrite_each_other(home: Home, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / "names.json", home.rows)
    folder = shutil.copytree(TINY, tmp_path / "mine")
    theirs = ["--predictions", str(predicted(tmp_path / "p.json", home, 5)), "--model"]
    assert home.call(source, "--model", str(folder)) == 0 and home.call(source, *theirs, "other") == 0
    capsys.readouterr()
    before = everything(home.runs / "a" / "benchmarks" / "names")
    for more in ([], ["--redo"]):
        for words in (
            [*theirs, "mine", *more],
            ["--model", str(shutil.copytree(folder, tmp_path / str(len(more)) / "other")), *more],
        ):
            assert home.call(source, *words) == 2
            complaint = capsys.readouterr().err
            assert "the name is taken" in complaint and "--redo" not in complaint
    assert everything(home.runs / "a" / "benchmarks" / "names") == before


def test_predictions_need_no_clips_and_a_folder_of_this_program_is_one_of_predictions(home: Home, judged, capsys):
    made = home.runs / "a" / "benchmarks" / "msvd_qa" / "base"
    where = ["--run", "a", "--runs-dir", str(home.runs), "--benchmark", str(judged["msvd_qa"])]
    assert main.main(["evaluate", *where, "--predictions", str(made), "--model", "again"]) == 0
    capsys.readouterr()
    assert home.call(judged["msvd_qa"], "--model", "base") == 0
    rows = {row["model"]: row["cells"] for row in cells_of(home.table("msvd_qa"), "normalised")}
    assert rows["a again"] == rows["a base"]


def cells_of(table: dict[str, Any], judge: str) -> list[dict[str, Any]]:
    (result,) = [each for each in table["tables"] if each["judge"]["kind"] == judge]
    return result["rows"]


def test_rows_without_a_prediction_stay_in_the_table(home: Home, serve, tmp_path: Path):
    """Of a judged kind, of choice, and of actions (whose clip is missing)."""
    server = serve(lambda handler, body: answer(handler, REPLY, model="all-1"))
    source = benchmark_files.merged(tmp_path / "some.json", home.rows)
    words = ["--predictions", str(predicted(tmp_path / "p.json", home, 15)), "--model", "others"]
    assert home.call(source, *words, "--judge", "openai:all", "--judge-set", f"url={server.url}") == 0
    (row,) = cells_of(home.table("some"), "openai")
    assert [(c["rows"], c["marked"], c["mean"]) for c in row["cells"].values()] == [(20, 15, 1.0), (20, 15, 4.0)]
    assert row["without_mark"] == {"not in the file of predictions": 10}

    source = benchmark_files.choice(tmp_path / "somemc.json", home.rows)
    answered = [{**row, "pred": row["answer"]} for row in json.loads(source.read_text())[:15]]
    benchmark_files.put(tmp_path / "mc-p.json", answered)
    assert home.call(source, "--predictions", str(tmp_path / "mc-p.json"), "--model", "others") == 0
    (row,) = cells_of(home.table("somemc"), "letter")
    assert (row["cells"]["accuracy"]["rows"], row["cells"]["accuracy"]["marked"], row["cells"]["accuracy"]["mean"]) == (
        20,
        15,
        1.0,
    )
    assert row["without_mark"] == {"not in the file of predictions": 5}

    folder = benchmark_files.ucf101(tmp_path / "someucf", home.rows)
    lines = (folder / "testlist01.txt").read_text()
    (folder / "testlist01.txt").write_text(lines + "Typing/never.avi\n")
    assert home.call(folder, "--model", "base", "--set", "video.max_unreadable=0.5") == 0
    (row,) = cells_of(home.table("someucf"), "likelihood")
    assert [(c["rows"], c["marked"]) for c in row["cells"].values()] == [(21, 20), (21, 20)]
    assert row["without_mark"] == {"no such clip": 2}


def test_a_redo_of_several_models_that_was_stopped_goes_on_without_redo(home: Home, monkeypatch, tmp_path: Path):
    """Also when they were made with other settings: those not yet made again must not be in the way."""
    source = benchmark_files.merged(tmp_path / "twice.json", home.rows)
    assert home.call(source, "--model", "base", "sft") == 0
    real, calls = generation.sample, []

    def sample(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(generation, "sample", sample)
    words = ["--model", "base", "sft", "--set", "evaluate.max_new_tokens=3"]
    assert home.call(source, *words, "--redo") == 130
    assert home.call(source, *words) == 0 and len(calls) == 1 + 2 * 2
    assert not [*(home.runs / "a" / "benchmarks" / "twice").glob("*.old")]


def test_a_redo_that_cannot_begin_leaves_what_is_there(home: Home, judged, tmp_path: Path, capsys):
    before = everything(home.runs / "a" / "benchmarks" / "msvd_qa" / "base")
    (tmp_path / "empty").mkdir()
    assert home.call(judged["msvd_qa"], "--model", "base", "--videos", str(tmp_path / "empty"), "--redo") == 2
    assert "is it the right folder?" in capsys.readouterr().err
    assert everything(home.runs / "a" / "benchmarks" / "msvd_qa" / "base") == before


def test_another_file_of_the_same_name(home: Home, tmp_path: Path, capsys):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        benchmark_files.merged(tmp_path / folder / "same.json", home.rows if folder == "one" else home.rows[::-1])
    assert home.call(tmp_path / "one" / "same.json", "--model", "base") == 0
    assert home.call(tmp_path / "two" / "same.json", "--model", "base") == 2
    complaint = capsys.readouterr().err
    assert "benchmarks/same/base: holds answers to another file of the name same; rename one of the two files" in complaint
    assert home.call(tmp_path / "two" / "same.json", "--model", "base", "--redo") == 0


def test_retrieval_is_among_all_clips(home: Home, tmp_path: Path, capsys):
    """A clip that is missing would make it easier without a word, whatever share of clips may be bad elsewhere."""
    source = benchmark_files.retrieval(tmp_path / "pool.csv", home.rows)
    videos = shutil.copytree(home.videos, tmp_path / "videos")
    clip = videos / f"{benchmark_files.stem(home.rows[0])}.mp4"
    words = ["--model", "base", "--videos", str(videos), "--set", "video.max_unreadable=0.9"]
    clip.write_bytes(b"no clip")
    assert home.call(source, *words) == 2
    complaint = capsys.readouterr().err
    assert f"clips cannot be read: {clip.stem}" in complaint and "In retrieval every clip is a candidate" in complaint
    clip.unlink()
    assert home.call(source, *words) == 2
    complaint = capsys.readouterr().err
    assert f"({clip.stem}; frame folders are not read). In retrieval every clip is a candidate" in complaint
    assert not (home.runs / "a" / "benchmarks" / "pool").exists()


def test_no_clip_is_there(home: Home, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / "none.json", home.rows)
    (tmp_path / "empty").mkdir()
    assert home.call(source, "--videos", str(tmp_path / "empty"), "--model", "base") == 2
    complaint = capsys.readouterr().err
    assert "none of the 7 clips is below --videos" in complaint and "is it the right folder?" in complaint
    assert "max_unreadable" not in complaint and not (home.runs / "a" / "benchmarks" / "none").exists()


def test_answers_with_other_ends_of_lines(home: Home, tmp_path: Path):
    source = benchmark_files.merged(tmp_path / "ends.json", home.rows)
    benchmark_files.put(tmp_path / "p.json", [{"id": "q0", "pred": "one\u2028two\x85three"}])
    assert home.call(source, "--predictions", str(tmp_path / "p.json"), "--model", "ends") == 0
    (row,) = home.table("ends")["tables"][0]["rows"]
    assert row["cells"]["accuracy"]["marked"] == 1


def test_predictions_of_another_program(home: Home, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / "others.json", home.rows)
    rows = [{"id": f"q{n}", "question": row["question"], "pred": row["answer"]} for n, row in enumerate(home.rows[:15])]
    benchmark_files.put(tmp_path / "p.json", rows)
    words = ["--predictions", str(tmp_path / "p.json"), "--model", "Other Model"]
    assert home.call(source, *words) == 0
    (row,) = home.table("others")["tables"][0]["rows"]
    accuracy = row["cells"]["accuracy"]
    assert (row["model"], accuracy["rows"], accuracy["marked"], accuracy["mean"]) == ("a other-model", 20, 15, 1.0)
    assert accuracy["worst"] == 0.75 and row["without_mark"] == {"not in the file of predictions": 10}
    benchmark_files.put(tmp_path / "p.json", rows[:3])
    assert home.call(source, *words) == 2
    assert "made with other settings" in capsys.readouterr().err


def test_clips_that_are_missing(home: Home, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / "gone.json", home.rows)
    benchmark_files.put(source, [*json.loads(source.read_text()), {"video_name": "never", "question": "who?", "answer": "x"}])
    assert home.call(source, "--model", "base") == 2
    assert "1 of 8 clips are not below --videos (never; frame folders are not read)" in capsys.readouterr().err
    assert home.call(source, "--model", "base", "--set", "video.max_unreadable=0.2") == 0
    (row,) = home.table("gone")["tables"][0]["rows"]
    assert row["without_mark"] == {"no such clip": 2} and row["cells"]["accuracy"]["rows"] == 21


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "policy"], "--model policy: no such file or folder"),
        (["--judge", "gpt4"], "no such judge"),
        (["--limit", "-1"], "must not be negative"),
        (["--predictions", "x.json"], "give these answers one name with --model"),
        (["--model", "base", "base"], "two models are called base"),
    ],
)
def test_wrong_flags(more: list[str], words: str, home: Home, judged: dict[str, Path], capsys):
    assert home.call(judged["msvd_qa"], *more) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("minirlaif: ") and words in complaint


def test_a_benchmark_needs_clips_and_a_stage_needs_settings(home: Home, judged: dict[str, Path], capsys):
    assert main.main(["evaluate", "--run", "a", "--benchmark", str(judged["msvd_qa"])]) == 2
    assert "name the folder of its clips with --videos" in capsys.readouterr().err
    assert main.main(["evaluate", "--run", "a"]) == 2
    assert "name the settings with --config" in capsys.readouterr().err


def test_candidates_need_no_judge(home: Home, tmp_path: Path, capsys):
    source = benchmark_files.retrieval(tmp_path / "r.csv", home.rows)
    assert home.call(source, "--model", "base", "--judge", "exact") == 2
    assert "(retrieval) needs no judge; leave --judge out" in capsys.readouterr().err


def test_a_subset(home: Home, judged: dict[str, Path]):
    assert home.call(judged["msvd_qa"], "--model", "base", "--limit", "5") == 0
    (folder,) = (home.runs / "a" / "benchmarks").glob("msvd_qa-*-of-20")
    table = json.loads((folder / "table.json").read_text())
    assert 5 <= cells(table)["accuracy"]["rows"] <= 7 and table["benchmark"] == folder.name


def test_compare(home: Home, tmp_path: Path, capsys):
    source = benchmark_files.merged(tmp_path / "common.json", home.rows)
    assert home.call(source, "--model", "sft", "rlaif") == 0
    shutil.copytree(home.runs / "a", home.runs / "b", ignore=shutil.ignore_patterns("cache"))
    out = ["--runs-dir", str(home.runs), "--out", str(tmp_path / "out")]
    assert main.main(["compare", "a:sft", "a:rlaif", *out]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    (table,) = [t for t in result["tables"] if t["benchmark"] == "common"]
    (change,) = table["tables"][0]["differences"]
    assert (change["first"], change["second"]) == ("a sft", "a rlaif") and change["changes"]["accuracy"]["rows"] == 20
    assert (tmp_path / "out" / "compare.html").read_text().startswith("<!doctype html>")
    assert "a rlaif minus a sft" in capsys.readouterr().out
    assert main.main(["compare", "a", "b", *out]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    (table,) = [t for t in result["tables"] if t["benchmark"] == "common"]
    assert [c["changes"]["accuracy"]["mean"] for c in table["tables"][0]["differences"]] == [0.0, 0.0]
    for words, complaint in (
        (["a", "nowhere"], "no such run folder"),
        (["a", "a"], "the same on both sides"),
        (["a:sft", "b:gpt"], "run b has no evaluated model gpt"),
    ):
        assert main.main(["compare", *words, *out]) == 2
        assert complaint in capsys.readouterr().err


def test_a_part_of_a_clip_is_what_a_model_of_the_run_is_shown(home: Home, tmp_path: Path, monkeypatch):
    """Frames of each part alone, in letters and in likelihoods; captions by likelihood through the same command."""
    clip = Path(home.rows[0]["video"]).name
    row = {"video": clip, "question": "What moves?", "candidates": ["a red circle", "a blue square"], "answer": "a red circle"}
    spans = [{}, {"start": 0.0, "end": 1.0}, {"start": 0.5}]
    source = benchmark_files.put(tmp_path / "spans.json", [{**row, **span} for span in spans])
    shown: list[tuple[float, ...]] = []
    original = session.ModelSession.video_input

    def video_input(self: Any, video: str) -> Any:
        result = original(self, video)
        shown.append(result.times)
        return result

    monkeypatch.setattr(session.ModelSession, "video_input", video_input)
    for readout in ("letter", "likelihood"):
        assert home.call(source, "--model", "base", "--readout", readout) == 0
    seconds = ClipReader(60).info(home.videos / clip).seconds
    # times count from the part's start, as if the clip had been cut there
    plans = [uniform_plan(seconds, 4).times, uniform_plan(1.0, 4).times, uniform_plan(seconds - 0.5, 4).times]
    # in order of start and end; each option's likelihood is about the part too
    order = [plans[1], plans[0], plans[2]]
    assert shown == [*order, *(times for times in order for _ in range(2))]
    pairs = [{"video_name": clip, "caption": "a red circle moves left.", "counterfactual": "no.", "aspect": "Direction"}]
    captions = benchmark_files.put(tmp_path / "vitatecs.json", pairs)
    assert home.call(captions, "--model", "base", "sft") == 0
    assert all(cell["marked"] == 1 for row in home.table("vitatecs")["tables"][0]["rows"] for cell in row["cells"].values())
