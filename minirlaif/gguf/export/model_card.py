"""What an export says of itself: README.md with lines to paste, an Ollama Modelfile, and the table of figures. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minirlaif.gguf.export.template import ollama_template
from minirlaif.gguf.export_info import ExportInfo


def table(figures: Mapping[str, Any]) -> str:
    """Markdown: a row per type with its size, logit differences, accuracy and agreement.

    told: entries of the manifest, as the stage `export` makes them.
    """
    accuracy, agreement = figures.get("accuracy", {}), figures.get("agreement", {})
    sizes = figures.get("sizes", {})
    rows = [("file", "MB", "text", "frames", "same first word", "accuracy", "same answer")]
    if "text_f32" in figures["parity"]:
        parity = figures["parity"]
        rows.append(("f32", "", _small(parity["text_f32"]), _small(parity["frames_f32"]), "", "", ""))
    if accuracy:
        rows.append(("transformers", "", "", "", "", _share(accuracy.get("hf")), ""))
    for kind, differences in figures["parity"]["types"].items():
        ends = f"-{kind.upper()}.gguf"
        size = next((many for name, many in sizes.items() if name.endswith(ends) and not name.startswith("mmproj")), 0)
        row = (
            kind,
            f"{size / 1e6:.1f}",
            _small(differences["text"]),
            _small(differences["frames"]),
            _share(differences["same_choice"]),
        )
        rows.append((*row, _share(accuracy.get(kind)), _share(agreement.get(kind))))
    rows += [
        (name, "", "", "", "", _share(value), _share(agreement.get(name))) for name, value in accuracy.items() if "blind" in name
    ]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    return "\n".join(lines)


def _small(number: float | None) -> str:
    return "" if number is None else f"{number:.2g}"


def _share(number: float | None) -> str:
    return "" if number is None else f"{number:.3f}"


def write(folder: Path, final: Path, info: ExportInfo, figures: Mapping[str, Any]) -> None:
    """README.md and Modelfile into `folder`, which will be called `final`."""
    (folder / "Modelfile").write_text(modelfile(info), encoding="utf-8")
    (folder / "README.md").write_text(readme(final, info, figures), encoding="utf-8")


def _smallest(info: ExportInfo) -> str:
    return list(info.text.values())[-1]


def modelfile(info: ExportInfo) -> str:
    """For `ollama create`, to be run in the export's folder."""
    lines = [f"FROM ./{_smallest(info)}", f"FROM ./{info.mmproj}"]
    if adapter := info.adapters.get(info.models[0]):
        lines.append(f"ADAPTER ./{adapter}")
    lines += [f'TEMPLATE """{ollama_template(info.layout)}"""', f'PARAMETER stop "{info.layout.end}"']
    lines += [f"PARAMETER temperature {info.options.temperature:g}", f"PARAMETER num_predict {info.options.max_new_tokens}"]
    return "\n".join(lines) + "\n"


def lines(final: Path, info: ExportInfo) -> dict[str, str]:
    """Commands to paste, by program."""
    text, mmproj = shlex.quote(str(final / _smallest(info))), shlex.quote(str(final / info.mmproj))
    adapter = info.adapters.get(info.models[0])
    lora = f" --lora {shlex.quote(str(final / adapter))}" if adapter else ""
    files = f"-m {text} --mmproj {mmproj}{lora}"
    studio = f"~/.lmstudio/models/minirlaif/{info.run}"
    return {
        "minirlaif (frames and prompt as in training)": (
            f'python -m minirlaif chat --gguf {shlex.quote(str(final))} --video CLIP.mp4 "What happens?"'
        ),
        "llama-mtmd-cli": f'llama-mtmd-cli {files} --image FRAME.jpg -p "What is in the picture?" --temp 0 --jinja',
        "llama-server": f"llama-server {files} --temp 0 --jinja --port 8080",
        "Ollama": f"cd {shlex.quote(str(final))} && ollama create {shlex.quote(info.run.lower())} -f Modelfile",
        "LM Studio": f"mkdir -p {studio} && cp {text} {mmproj} {studio}/",
    }


def readme(final: Path, info: ExportInfo, figures: Mapping[str, Any]) -> str:
    """What these files are, how they were checked, how to open them."""
    commands = "\n\n".join(f"{name}:\n\n```bash\n{command}\n```" for name, command in lines(final, info).items())
    merge, parity = figures["merge"], figures["parity"]
    fallen = {kind: len(names) for kind, names in figures["fell_back"].items() if names}
    notes = [
        f"- Converted with the converter of llama-cpp-python {figures['converter']}, pre-tokenizer `{figures['pre_tokenizer']}`.",
        f"- {'Base with adapters' if info.adapters else 'Merged model'} in {merge['dtype']}; largest logit difference to the"
        f" policy as it was trained (quantization: {merge['trained_on']}): {merge['logit_difference']:.2g}.",
        f"- Token ids equal. Largest logit difference to transformers in float32: text {parity['text_f32']:.2g}, with frames"
        f" {parity['frames_f32']:.2g}; other frames change the logits by at least {parity['control']:.2g}.",
        f"- A clip is shown as {info.frames} frames, spread evenly, scaled before llama.cpp sees them.",
    ]
    if not merge["template_fits"]:
        notes.append(
            "- The base's own chat template writes another prompt than training did; only `minirlaif chat` writes the same."
        )
    if fallen:
        counts = ", ".join(f"{number} in {kind}" for kind, number in fallen.items())
        notes.append(f"- Rows that do not divide into a type's blocks kept a larger type: weights {counts} (see manifest.json).")
    if info.adapters:
        notes.append(f"- One base for {', '.join(info.models)}: the chat chooses by `--model`, llama.cpp by `--lora`.")
    return f"""# {info.run}, exported

{table(figures)}

Columns: largest difference of next-token logits to transformers, for text and for prompts with frames; share of prompts whose
first word is the same; exact match with the truth and share of equal answers on {figures.get("questions", 0)} questions of
`evaluate`; `_blind`: with blank frames.

{chr(10).join(notes)}

## Open them

{commands}

Only the first one shows a clip as in training. The others put pictures into the prompt in their own way (SmolVLM: a tile beside
the overview; Qwen: every frame by itself), so their answers about frames may differ.
"""
