"""Stage `export`: write the policy as GGUF files for llama.cpp, LM Studio, Ollama and `chat --gguf`, and compare them with it.

Out: hf/ (the merged model in transformers' layout), NAME-TYPE.gguf, mmproj-NAME-F16.gguf, minirlaif.json (settings of the
runtime), Modelfile, README.md, answers.jsonl (answers of the files to the questions of `evaluate`). With --adapters: the base as
GGUF and one small LoRA file per model instead. It runs on the CPU.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from minirlaif.config import Config, DataSection, ModelSection, VideoSection
from minirlaif.errors import UserError
from minirlaif.gguf import export_info
from minirlaif.gguf.export import merge, model_card, verify
from minirlaif.gguf.export.converter import VERSION, Job, check_installed, convert, fetch
from minirlaif.gguf.export.parity import Parity, measure
from minirlaif.gguf.export.quantize import TYPES, fell_back, quantize
from minirlaif.gguf.export.reference import AnsweredQuestion, Reference, evaluated_questions, of_run
from minirlaif.gguf.runtime.engine import GgufEngine
from minirlaif.inference.engine import SamplingParams
from minirlaif.models.backbones import FAMILIES, family_of
from minirlaif.models.loading import base_folder, model_type
from minirlaif.reports import adapter_card
from minirlaif.runs.io import read_jsonl, without_folders
from minirlaif.runs.progress import progress
from minirlaif.runs.run import Run
from minirlaif.runs.stage_dir import StageDir
from minirlaif.session import settings_of
from minirlaif.stages.registry import METHODS, MODELS

NEVER = 1 << 62  # commits depend on the time alone, so no number of steps is enough


@dataclass(frozen=True)
class ExportOptions:
    """What to export. types: of the text model, best first; adapters: do not merge; questions: maximum for each file."""

    types: tuple[str, ...]
    adapters: bool = False
    questions: int = 500


def run(cfg: Config, run: Run, options: ExportOptions, redo: bool = False) -> None:
    """Write the export in five steps, then README and manifest. An interrupted one resumes after the last finished step."""
    check(cfg.model, run, options)
    settings = settings_of(cfg.seed, cfg.data, model=cfg.model, video=cfg.video)
    settings |= {"types": list(options.types), "adapters": options.adapters}
    settings |= {"questions": options.questions, "converter": VERSION}
    with run.stage("export", without_folders(settings), inputs=run.export_inputs(), redo=redo) as out:
        if out is None:
            return
        out.identity_name = partial(_identity_name, run.root.name)
        work = Work(run, out, options, cfg.model, cfg.video, cfg.data, cfg.evaluate.max_new_tokens)
        steps: dict[str, Callable[[], Mapping[str, Any]]] = {
            "merge the policy into the base": work.merge,
            "convert text model and projector": work.convert,
            "quantise": work.quantize,
            "compare logits with transformers": work.compare,
            "answer the questions of evaluate": work.answer_questions,
        }
        resume_point = out.resume()
        if resume_point:
            work.results.update(json.loads((resume_point[1] / "results.json").read_text(encoding="utf-8")))
        for number, (title, step) in enumerate(steps.items(), 1):
            if resume_point is None or number > resume_point[0]:
                print(f"export {number}/{len(steps)}: {title}", flush=True)
                work.results.update(step())
                work.commit(number)
        work.finish()


def _identity_name(run_name: str, file: str) -> str:
    """Without the run's name, which some files have in their names, and others only tell beside the results."""
    if file in ("README.md", "hf/README.md", "Modelfile", export_info.FILE):
        return ""
    return re.sub(rf"^(mmproj-)?{re.escape(run_name)}-", r"\1", file)


def check(model: ModelSection, run: Run, options: ExportOptions) -> None:
    """UserError for problems that can be found before any work: family, adapters, llama-cpp-python, converter, disk space."""
    family = family_of(model_type(model))
    if family.gguf is None:
        supported = ", ".join(other.title for other in map(family_of, FAMILIES) if other.gguf)
        raise UserError(
            f"model.base {model.base}: {family.title} cannot be written as GGUF (llama.cpp has no counterpart of its vision"
            f" input); export supports {supported}"
        )
    check_installed()
    for name in run.adapters():
        merge.check_adapter(run.adapter(name), family.text_prefix)
    need = merge.bytes_needed(model, [TYPES[kind].bytes for kind in options.types])
    free = shutil.disk_usage(run.root).free
    if free < need:
        raise UserError(f"{run.root}: the export needs about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; make room")
    fetch()


@dataclass(eq=False)
class Work:
    """An export in progress. results: figures so far, as they go into the manifest."""

    run: Run
    out: StageDir
    options: ExportOptions
    model: ModelSection
    video: VideoSection
    data: DataSection
    max_new_tokens: int
    results: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hf, self.temporary = self.out.path / "hf", self.out.path / "work"

    def commit(self, number: int) -> None:
        """Save the results; after an interruption the export resumes after this step."""
        results = json.dumps(self.results)
        self.out.commit_state(number, lambda folder: (folder / "results.json").write_text(results, encoding="utf-8"))

    def text(self, kind: str) -> Path:
        """The text model's file of a type."""
        name = f"{self.run.root.name}{'-base' if self.options.adapters else ''}-{kind.upper()}.gguf"
        return (self.out.path if kind in self.options.types else self.temporary) / name

    def projector(self, kind: str) -> Path:
        """The projector's file in f32 or f16. F16 is published, and F32 beside a text model in F32."""
        keep = kind == "f16" or kind in self.options.types
        return (self.out.path if keep else self.temporary) / f"mmproj-{self.run.root.name}-{kind.upper()}.gguf"

    def adapter(self, model: str) -> Path | None:
        """A model's LoRA file; None where it is merged, and for the base."""
        apart = self.options.adapters and model in self.run.adapters()
        return self.out.path / f"{self.run.root.name}-{model}-LoRA-F32.gguf" if apart else None

    @cached_property
    def reference(self) -> Reference:
        """Prompts, ids and logits of transformers, which the files must reproduce."""
        return of_run(self.run, self.model, self.video, self.data, None if self.options.adapters else self.hf)

    def merge(self) -> Mapping[str, Any]:
        """Write hf/; returns the difference of its logits to those of the trained policy."""
        shutil.rmtree(self.hf, ignore_errors=True)
        return {"merge": merge.merged(self.run, self.model, self.video, self.data, self.hf, keep_apart=self.options.adapters)}

    def convert(self) -> Mapping[str, Any]:
        """Write the text model in float32, the projector in float32 and F16, and the adapters."""
        self.temporary.mkdir(exist_ok=True)
        hf, script = str(self.hf), "convert_hf_to_gguf.py"
        gguf = family_of(model_type(self.model)).gguf
        assert gguf is not None  # see `check`
        jobs = [Job(script, (hf, "--outfile", str(self.text("f32")), "--outtype", "f32", *gguf.converter_flags))]
        for kind in ("f32", "f16"):
            jobs.append(Job(script, (hf, "--outfile", str(self.projector(kind)), "--outtype", kind, "--mmproj")))
        for model in self.run.adapters() if self.options.adapters else ():
            args = ("--base", hf, "--outfile", str(self.adapter(model)), "--outtype", "f32", str(self.run.adapter(model)))
            jobs.append(Job("convert_lora_to_gguf.py", args))
        name = convert(gguf.pre_tokenizers, jobs, self.reference.texts, self.reference.control)
        return {"pre_tokenizer": name, "converter": VERSION}

    def quantize(self) -> Mapping[str, Any]:
        """Write the text model in every type; returns which of its weights got another type."""
        weights = {}
        for kind in progress(self.options.types, len(self.options.types), "quantise"):
            if kind != "f32":
                quantize(self.text("f32"), self.text(kind), kind)
            weights[kind] = fell_back(self.text(kind), kind)
        return {"fell_back": weights}

    def compare(self) -> Mapping[str, Any]:
        """Compare token ids and logits: float32 with the bounds, every type for the table. UserError: a bound is exceeded."""
        parities: dict[str, Parity] = {}
        for model in self.reference.logits:
            parity = measure(self.text("f32"), self.projector("f32"), self.reference, model, "f32", self.adapter(model))
            if faults := parity.faults():
                raise UserError(f"{self.out.path}: {model} in GGUF differs from the model in transformers: {'; '.join(faults)}")
            parities[model] = parity
        model = next(iter(parities))
        types = {
            kind: asdict(measure(self.text(kind), self.projector("f16"), self.reference, model, "f16", self.adapter("rlaif")))
            for kind in progress(self.options.types, len(self.options.types), "compare")
        }
        worst = {name: max(getattr(p, name) for p in parities.values()) for name in ("text", "frames")}
        control = min(parity.control for parity in parities.values() if parity.control is not None)
        return {"parity": {"text_f32": worst["text"], "frames_f32": worst["frames"], "control": control, "types": types}}

    def answer_questions(self) -> Mapping[str, Any]:
        """Answer the test questions with every type, and with blank frames with the first. Resumes after the last answer."""
        self.write_export_info()
        rows = evaluated_questions(self.run, self.options.questions)
        if not rows:
            print("`evaluate` is not finished, so no questions were answered; only logits were compared", flush=True)
            return {}
        jobs = [(kind, False) for kind in self.options.types] + [(self.options.types[0], True)]
        scores = {kind + "_blind" * blank: verify.score(rows, self._answers(kind, blank, rows)) for kind, blank in jobs}
        hf = verify.score(rows, [row.answer for row in rows])
        accuracy = {"hf": hf.accuracy} | {name: score.accuracy for name, score in scores.items()}
        if hf.accuracy is not None:
            blind = evaluated_questions(self.run, self.options.questions, "rlaif_blind")
            accuracy["hf_blind"] = verify.score(rows, [row.answer for row in blind]).accuracy
        for name, score in scores.items():
            for fault in verify.accuracy_faults(name, score, hf.accuracy):
                print(f"warning: {fault}", flush=True)
        agreement = {name: score.agreement for name, score in scores.items()}
        return {"accuracy": accuracy, "agreement": agreement, "questions": len(rows)}

    def _answers(self, kind: str, blank: bool, rows: list[AnsweredQuestion]) -> list[str]:
        """Answers of one file, those of answers.jsonl first; each new one is written there at once."""
        name, path = kind + "_blind" * blank, self.out.path / "answers.jsonl"
        answers = [row["answer"] for row in read_jsonl(path, missing_ok=True) if row["file"] == name]
        done, left = len(answers), rows[len(answers) :]
        with closing(GgufEngine(self.out.path, kind=kind)) as engine, path.open("a", encoding="utf-8") as file:
            texts = verify.answers(engine, left, self.max_new_tokens, blank)
            for row, text in zip(left, progress(texts, len(rows), f"answer {name}", initial=done), strict=True):
                answers.append(text)
                video = os.path.basename(row.video)  # it is published: no folders
                line = {"file": name, "video": video, "question": row.question, "truth": row.truth, "hf": row.answer}
                file.write(json.dumps(line | {"answer": text}, ensure_ascii=False) + "\n")
                if self.out.due(1, NEVER):
                    file.flush()
                    self.commit(4)
        return answers

    def write_export_info(self) -> None:
        """Write minirlaif.json, the settings of the runtime."""
        info = export_info.ExportInfo(
            run=self.run.root.name,
            family=model_type(self.model),
            layout=self.reference.layout,
            sizing=self.reference.sizing,
            frames=self.video.frames,
            frame_pixels=self.video.frame_pixels,
            text={kind: self.text(kind).name for kind in self.options.types},
            mmproj=self.projector("f16").name,
            options=SamplingParams(max_new_tokens=self.max_new_tokens),
            models=tuple(self.reference.logits),
            adapters={model: path.name for model in self.run.adapters() if (path := self.adapter(model))},
        )
        export_info.write(self.out.path, info)

    def finish(self) -> None:
        """Write README and Modelfile, fill the manifest, delete temporary files."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        if self.options.adapters:
            shutil.rmtree(self.hf, ignore_errors=True)
        else:
            self.write_card()
        info = export_info.read(self.out.path)
        self.results["frame_grid"] = asdict(info.sizing) | {"frames": info.frames, "frame_pixels": info.frame_pixels}
        self.results["sizes"] = {path.name: path.stat().st_size for path in sorted(self.out.path.glob("*.gguf"))}
        if note := not_kept(self.run):
            self.results["note"] = note
            print(f"export: {note}", flush=True)
        self.out.extra.update(self.results)
        parity = self.results["parity"]
        self.out.summary.update({"frames_f32": parity["frames_f32"], "text_f32": parity["text_f32"]})
        model_card.write(self.out.path, info, self.results)
        print(model_card.table(self.results))

    def write_card(self) -> None:
        """README.md of hf/."""
        base = adapter_card.Base("tiny" if self.model.base == "tiny" else base_folder(self.model), self.model.revision)
        measured = (self.run.manifest("evaluate") or {"metrics": {}})["metrics"].get("accuracy") or {}
        right = {f"{title}, test questions right (exact match)": measured[n] for n, title in MODELS.items() if n in measured}
        methods = [name for name in self.run.stages if name == "sft" or name in METHODS]
        adapter_card.write_merged(self.hf, base, methods, right, self.results["merge"]["question"])


def not_kept(run: Run) -> str:
    """That the exported model has learned nothing from the last method, or ""."""
    method = run.producer("rlaif")
    made = run.manifest(method)
    if made is None or made["metrics"].get("chosen_iteration") != 0:
        return ""
    return f"No checkpoint of {method} was kept on the dev questions: this is the model that {method} started from."
