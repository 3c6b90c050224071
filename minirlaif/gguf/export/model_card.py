"""Texts of an export: README.md with its table of results, an Ollama Modelfile, and chat templates. No torch.

The chat template is only for bases that have none of their own. The texts stand in templates/.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minirlaif.gguf.export_info import ExportInfo
from minirlaif.models.renderer import Layout


def write(folder: Path, info: ExportInfo, figures: Mapping[str, Any]) -> None:
    """README.md and Modelfile into `folder`. They name no other folder, as they are published. figures: see `table`."""
    text, adapter = list(info.text.values())[-1], info.adapters.get(info.models[0])  # the smallest type
    files = [shlex.quote(name) for name in (text, info.mmproj)]
    lora = f" --lora {shlex.quote(adapter)}" if adapter else ""
    values: dict[str, Any] = {
        "info": info,
        "figures": {"questions": 0, "note": "", **figures},
        "table": table(figures),
        "fell_back": [f"{len(names)} in {kind}" for kind, names in figures["fell_back"].items() if names],
        "ollama_template": ollama_template(info.layout),
        "files": files,
        "arguments": f"-m {files[0]} --mmproj {files[1]}{lora}",
        "text": text,
        "adapter": adapter,
    }
    for name in ("Modelfile", "README.md"):
        (folder / name).write_text(_render(name, values), encoding="utf-8")


def table(figures: Mapping[str, Any]) -> str:
    """Markdown: a row per type with its size, logit differences, accuracy and agreement.

    figures: entries of the manifest, as the stage `export` makes them.
    """
    accuracy, agreement = figures.get("accuracy", {}), figures.get("agreement", {})
    parity, sizes = figures["parity"], figures.get("sizes", {})
    rows = [("file", "MB", "text", "frames", "same next token", "accuracy", "same answer")]
    if "text_f32" in parity:
        rows.append(("f32", "", f"{parity['text_f32']:.2g}", f"{parity['frames_f32']:.2g}", "", "", ""))
    if accuracy:
        rows.append(("transformers", "", "", "", "", _number(accuracy.get("hf"), ".3f"), ""))

    def shares(name: str) -> tuple[str, str]:
        return _number(accuracy.get(name), ".3f"), _number(agreement.get(name), ".3f")

    for kind, differences in parity["types"].items():
        ends = f"-{kind.upper()}.gguf"
        size = next((size for name, size in sizes.items() if name.endswith(ends) and not name.startswith("mmproj")), 0)
        logits = (_number(differences["text"], ".2g"), _number(differences["frames"], ".2g"))
        rows.append((kind, f"{size / 1e6:.1f}", *logits, _number(differences["same_choice"], ".3f"), *shares(kind)))
    rows += [(name, "", "", "", "", *shares(name)) for name in accuracy if "blind" in name]
    lines = ["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def chat_template(layout: Layout) -> str:
    """Jinja that writes text conversations as `renderer.Renderer` does. A system message goes in front of the first question;
    an image becomes its placeholder (a template cannot write a clip's frames and times)."""
    values = {name: json.dumps(text, ensure_ascii=False) for name, text in _layout_texts(layout).items()}
    return "".join(line.strip() for line in _render("chat_template.jinja", values).split("\n"))


def ollama_template(layout: Layout) -> str:
    """The same in Go's templates, for an Ollama Modelfile."""
    values = {name: text.replace("\n", "\0") for name, text in _layout_texts(layout).items()}
    return _render("ollama_template", values).replace("\n", "").replace("\0", "\n")


def _layout_texts(layout: Layout) -> dict[str, str]:
    """Texts around questions and answers, by the names in the templates."""
    # As in Renderer: a header that ends with a colon has a space before text.
    header = layout.user.rstrip() + " " if layout.user.rstrip().endswith(":") else layout.user
    return {
        "start": layout.start,
        "user": layout.user,
        "next_user": layout.after_end + header,
        "question_end": layout.end + layout.after_end if layout.question_end is None else layout.question_end,
        "assistant": layout.assistant,
        "assistant_answer": layout.assistant + layout.answer,
        "end": layout.end,
        "image": layout.image,
    }


def _render(name: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        # Braces belong to the files that are written: they are templates too.
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template(name).render(values)
