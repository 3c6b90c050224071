"""Stage `export`: the policy as files that llama.cpp, LM Studio, Ollama and the chat here open, compared with the model itself.

Out: hf/ (the merged model in transformers' layout), NAME-TYPE.gguf, mmproj-NAME-F16.gguf, minirlaif.json (what the runtime has to
know), Modelfile, README.md, answers.jsonl (what the files said to `evaluate`'s questions). With adapters: the base as GGUF and
one small LoRA file per model instead. Not a part of `run`. It runs on the CPU.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minirlaif.config import Config
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.export import merge, model_card, task_check
from minirlaif.gguf.export.converter import VERSION, Job, check_installed, convert, fetch, free_or_refuse
from minirlaif.gguf.export.parity import measure
from minirlaif.gguf.export.quantize import BYTES, fell_back, quantize
from minirlaif.gguf.export.reference import ADAPTERS, Reference, of_run
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.inference.engine import SamplingParams
from minirlaif.models.loading import family_of, model_type
from minirlaif.runs.io import read_jsonl
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import settings_of

NEVER = 1 << 62  # a step's number that is never due by itself: commits go by the clock


@dataclass(frozen=True)
class Wanted:
    """What to export. types: of the text model, best first; adapters: keep them apart; questions: most to ask each file."""

    types: tuple[str, ...]
    adapters: bool = False
    questions: int = 500


def run(cfg: Config, run: Run, wanted: Wanted, redo: bool = False) -> None:
    """1. merge 2. convert 3. quantise 4. compare logits 5. ask the task's questions 6. say what it is."""
    check(cfg, run, wanted)
    settings = settings_of(cfg, "model", "video") | {"types": list(wanted.types), "adapters": wanted.adapters}
    settings |= {"questions": wanted.questions, "converter": VERSION}
    inputs = ["sft", "ppo", *(["evaluate"] if run.manifest("evaluate") else [])]
    with run.stage("export", settings, inputs=inputs, redo=redo) as out:
        if out is None:
            return
        work = Work(cfg, run, out, wanted)
        steps: dict[str, Callable[[], Mapping[str, Any]]] = {
            "merge the policy into the base": work.merge,
            "convert text model and projector": work.convert,
            "quantise": work.quantize,
            "compare logits with transformers": work.compare,
            "ask the questions of evaluate": work.ask,
        }
        begun = out.resume()
        if begun:
            work.told.update(json.loads((begun[1] / "told.json").read_text(encoding="utf-8")))
        for number, (title, step) in enumerate(steps.items(), 1):
            if begun is None or number > begun[0]:
                print(f"export {number}/{len(steps)}: {title}", flush=True)
                work.told.update(step())
                work.commit(number)
        work.finish()


def check(cfg: Config, run: Run, wanted: Wanted) -> None:
    """UserError for everything that can be known before any work: family, adapters, llama-cpp-python, converter, room."""
    kind = model_type(cfg.model)
    if kind == "llava":
        raise UserError(
            f"model.base {cfg.model.base}: LLaVA with video tokens pooled over frames cannot be written as GGUF (llama.cpp sees"
            " one picture at a time); export is for SmolVLM2, Qwen3-VL and Qwen3.5"
        )
    check_installed()
    for stage in ADAPTERS.values():
        merge.check_adapter(run.require(stage) / "adapter", family_of(kind)[1].text_prefix)
    need = merge.bytes_needed(cfg.model, [BYTES[kind] for kind in wanted.types])
    free_or_refuse(run.root, need)
    fetch()


class Work:
    """An export in progress. told: results so far, as they go into the manifest."""

    def __init__(self, cfg: Config, run: Run, out: StageDir, wanted: Wanted) -> None:
        self.cfg, self.run, self.out, self.wanted = cfg, run, out, wanted
        self.told: dict[str, Any] = {}
        self.hf, self.temporary = out.path / "hf", out.path / "work"

    def commit(self, number: int) -> None:
        """From here on the export goes on behind this step."""

        def write(folder: Path) -> None:
            (folder / "told.json").write_text(json.dumps(self.told), encoding="utf-8")

        self.out.commit_state(number, write)

    def text(self, kind: str) -> Path:
        """The text model's file of a type."""
        name = f"{self.run.root.name}{'-base' if self.wanted.adapters else ''}-{kind.upper()}.gguf"
        return (self.out.path if kind in self.wanted.types else self.temporary) / name

    def eyes(self, kind: str) -> Path:
        """The projector's file in f32 or f16; users get F16, and F32 beside a text model in F32."""
        kept = kind == "f16" or kind in self.wanted.types
        return (self.out.path if kept else self.temporary) / f"mmproj-{self.run.root.name}-{kind.upper()}.gguf"

    def adapter(self, model: str) -> Path:
        """A model's LoRA file."""
        return self.out.path / f"{self.run.root.name}-{model}-LoRA-F32.gguf"

    @cached_property
    def reference(self) -> Reference:
        """What the files have to equal."""
        return of_run(self.cfg, self.run, None if self.wanted.adapters else self.hf)

    def merge(self) -> Mapping[str, Any]:
        """Save hf/, and say how far its logits are from the policy's as it was trained."""
        shutil.rmtree(self.hf, ignore_errors=True)
        return {"merge": merge.merged(self.cfg, self.run, self.hf, keep_apart=self.wanted.adapters)}

    def convert(self) -> Mapping[str, Any]:
        """Text model in float32 and projector in float32 and F16; adapters."""
        self.temporary.mkdir(exist_ok=True)
        whole, script = str(self.hf), "convert_hf_to_gguf.py"
        more = ["--no-nextn"] if model_type(self.cfg.model) == "qwen3_5" else []  # transformers saves no such head
        jobs = [Job(script, (whole, "--outfile", str(self.text("f32")), "--outtype", "f32", *more))]
        for kind in ("f32", "f16"):
            jobs.append(Job(script, (whole, "--outfile", str(self.eyes(kind)), "--outtype", kind, "--mmproj")))
        for model, stage in ADAPTERS.items() if self.wanted.adapters else ():
            folder = str(self.run.require(stage) / "adapter")
            words = ("--base", whole, "--outfile", str(self.adapter(model)), "--outtype", "f32", folder)
            jobs.append(Job("convert_lora_to_gguf.py", words))
        name = convert(model_type(self.cfg.model), jobs, self.reference.texts, self.reference.control)
        return {"pre_tokenizer": name, "converter": VERSION}

    def quantize(self) -> Mapping[str, Any]:
        """The text model in every type, and which of its weights got another type than was asked for."""
        fallen = {}
        for kind in progress(self.wanted.types, len(self.wanted.types), "quantise"):
            if kind != "f32":
                quantize(self.text("f32"), self.text(kind), kind)
            fallen[kind] = fell_back(self.text(kind), kind)
        return {"fell_back": fallen}

    def compare(self) -> Mapping[str, Any]:
        """Ids and logits, in float32 for the gates and of every type for the table. UserError when a gate is not held."""
        found: dict[str, Any] = {}
        for model in self.reference.logits:
            adapter = self.adapter(model) if self.wanted.adapters and model in ADAPTERS else None
            parity = measure(self.text("f32"), self.eyes("f32"), self.reference, model, "f32", adapter)
            if faults := parity.faults():
                raise UserError(f"{self.out.path}: {model} in GGUF is not the model in transformers: {'; '.join(faults)}")
            found[model] = parity
        model = next(iter(found))
        types = {
            kind: asdict(measure(self.text(kind), self.eyes("f16"), self.reference, model, "f16", self.first_adapter))
            for kind in progress(self.wanted.types, len(self.wanted.types), "compare")
        }
        worst = {name: max(getattr(p, name) for p in found.values()) for name in ("text", "frames")}
        control = min(parity.control for parity in found.values())
        return {"parity": {"text_f32": worst["text"], "frames_f32": worst["frames"], "control": control, "types": types}}

    @property
    def first_adapter(self) -> Path | None:
        """The LoRA file of the policy, where it is one."""
        return self.adapter("rlaif") if self.wanted.adapters else None

    def ask(self) -> Mapping[str, Any]:
        """The test questions, of every type, and with blank frames of the first one. A killed one goes on behind a commit."""
        self.write_facts()
        rows = task_check.questions(self.run, self.wanted.questions)
        if not rows:
            print("no finished evaluate, so there is no question to ask; logits were compared", flush=True)
            return {}
        path = self.out.path / "answers.jsonl"
        known = read_jsonl(path, missing_ok=True)
        jobs = [(kind, False) for kind in self.wanted.types] + [(self.wanted.types[0], True)]
        results: dict[str, task_check.Result] = {}
        for kind, blank in jobs:
            name = kind + "_blind" * blank
            told = [row["answer"] for row in known if row["file"] == name]
            results[name] = task_check.result(rows, told + self._asked(kind, blank, rows, told, path))
        hf = task_check.result(rows, [row.answer for row in rows])
        accuracy = {"hf": hf.accuracy} | {name: found.accuracy for name, found in results.items()}
        if hf.accuracy is not None:
            blind = task_check.questions(self.run, self.wanted.questions, "rlaif_blind")
            accuracy["hf_blind"] = task_check.result(rows, [row.answer for row in blind]).accuracy
        for name, found in results.items():
            for fault in task_check.faults(name, found, hf.accuracy):
                print(f"warning: {fault}", flush=True)
        agreement = {name: found.agreement for name, found in results.items()}
        return {"accuracy": accuracy, "agreement": agreement, "questions": len(rows)}

    def _asked(self, kind: str, blank: bool, rows: list[task_check.Asked], told: list[str], path: Path) -> list[str]:
        """Answers of one file to the rows behind those that were told already; each is written down at once."""
        name, new = kind + "_blind" * blank, []
        engine = GgufEngine(self.out.path, kind=kind)
        with engine, path.open("a", encoding="utf-8") as file:
            left = rows[len(told) :]
            texts = task_check.answers(engine, left, self.cfg.evaluate.max_new_tokens, blank)
            for row, text in zip(left, progress(texts, len(rows), f"ask {name}", initial=len(told)), strict=True):
                new.append(text)
                line = {"file": name, "video": row.video, "question": row.question, "truth": row.truth, "hf": row.answer}
                file.write(json.dumps(line | {"answer": text}, ensure_ascii=False) + "\n")
                if self.out.due(1, NEVER):
                    file.flush()
                    self.commit(4)
        return new

    def write_facts(self) -> None:
        """minirlaif.json: what the runtime has to know."""
        cfg, kept = self.cfg, self.wanted.adapters
        found = export_info.Facts(
            run=self.run.root.name,
            family=model_type(cfg.model),
            layout=self.reference.layout,
            sizing=self.reference.sizing,
            frames=cfg.video.frames,
            frame_pixels=cfg.video.frame_pixels,
            text={kind: self.text(kind).name for kind in self.wanted.types},
            mmproj=self.eyes("f16").name,
            options=SamplingParams(max_new_tokens=cfg.evaluate.max_new_tokens),
            models=tuple(self.reference.logits),
            adapters={model: self.adapter(model).name for model in ADAPTERS} if kept else {},
        )
        export_info.write(self.out.path, found)

    def finish(self) -> None:
        """README, Modelfile, manifest; what nobody needs any more is deleted."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        if self.wanted.adapters:
            shutil.rmtree(self.hf, ignore_errors=True)
        found = export_info.read(self.out.path)
        self.told["frame_grid"] = asdict(found.sizing) | {"frames": found.frames, "frame_pixels": found.frame_pixels}
        self.told["sizes"] = {path.name: path.stat().st_size for path in sorted(self.out.path.glob("*.gguf"))}
        self.out.told.update(self.told)
        parity = self.told["parity"]
        self.out.summary.update({"frames_f32": parity["frames_f32"], "text_f32": parity["text_f32"]})
        model_card.write(self.out.path, self.run.dir("export"), found, self.told)
        print(model_card.table(self.told))
