"""Judges on this machine: a text or video-language model of transformers, or a GGUF file through llama.cpp. Text only.

Both answer with their most likely tokens, so a reply depends on the question alone and one attempt after the other is useless
unless the question changes; it does (see asking.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.judges.base import Refused, Reply
from minirlaif.judges.config import JudgeSettings, check_judge
from minirlaif.judges.rubric import Message
from minirlaif.models.loading import FAMILIES, base_folder, base_hash, model_type, open_backbone, pick_device, pick_dtype
from minirlaif.models.loading import quantization_config as quantization_of
from minirlaif.runs.io import sha256
from minirlaif.types import Turn

if TYPE_CHECKING:
    from minirlaif.models.backbones.base import Backbone


class HfJudge:
    """A folder or hub id of transformers: any causal language model with a chat template, or one of this package's families."""

    kind = "hf"
    parallel = 1  # one model, one question at a time

    def __init__(self, settings: JudgeSettings) -> None:
        check_judge(settings)
        section = ModelSection(
            base=settings.name, device=settings.device, dtype=settings.dtype, quantization=settings.quantization
        )
        self.name = Path(settings.name).name
        self._settings = settings
        self._version = base_hash(section)
        try:
            # auto is another number format on a GPU, and other numbers make other replies
            dtype = str(pick_dtype(section, pick_device(section.device))).removeprefix("torch.")
            self.signature: Mapping[str, Any] = {
                "kind": self.kind,
                "files": self._version,
                "max_tokens": settings.max_tokens,
                "quantization": settings.quantization,
                "dtype": dtype,
            }
            self._backbone, self._render = _open(section)
        except UserError as error:
            raise UserError(str(error).replace("model.base", "judge hf", 1)) from None

    def close(self) -> None:
        """The model is freed with the object."""

    def ask(self, messages: Sequence[Message]) -> Reply:
        """The most likely reply."""
        from minirlaif.models.generation import EncodedPrompt, sample

        ids = self._render(messages)
        ((said,),) = sample(self._backbone, [EncodedPrompt(ids)], temperature=0, max_new_tokens=self._settings.max_tokens)
        text = self._backbone.renderer.decode(said.ids)
        return Reply(text, self._version, _today(), len(ids), len(said.ids))


class GgufJudge:
    """A GGUF file of a text model, with the chat template that it carries."""

    kind = "gguf"
    parallel = 1

    def __init__(self, settings: JudgeSettings) -> None:
        check_judge(settings)
        path = Path(settings.name)
        try:
            import llama_cpp
        except ImportError:
            raise UserError(f"judge gguf:{settings.name}: needs llama.cpp; `pip install llama-cpp-python`") from None
        self.name, self._settings, self._version = path.name, settings, sha256(path)[:16]
        self._lock, self._closed = threading.Lock(), False
        self.signature: Mapping[str, Any] = {
            "kind": self.kind,
            "file": self._version,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "context": settings.context,
        }
        try:
            self._model = llama_cpp.Llama(
                str(path),
                n_ctx=settings.context,
                n_gpu_layers=-1,
                n_threads=settings.threads or None,
                n_threads_batch=settings.threads or None,
                seed=0,
                verbose=False,
            )
        except ValueError as error:
            raise UserError(f"judge gguf:{settings.name}: llama.cpp cannot load it ({error})") from None

    def close(self) -> None:
        """Free the model once no thread decodes any more: llama.cpp would read what is freed, and take the process along."""
        with self._lock:
            if not self._closed:
                self._model.close()
            self._closed = True

    def ask(self, messages: Sequence[Message]) -> Reply:
        """One reply. Refused when question and reply do not fit the context."""
        s = self._settings
        with self._lock:
            if self._closed:
                raise UserError(f"judge {self.name}: closed before this question was asked")
            try:
                found: Any = self._model.create_chat_completion(
                    list(messages),  # type: ignore[arg-type]
                    temperature=s.temperature,
                    max_tokens=s.max_tokens,
                    repeat_penalty=1.0,
                )
            except ValueError as error:  # longer than the context
                raise Refused(f"{error} (raise context, which is {s.context})") from None
        usage = found.get("usage", {})
        text = found["choices"][0]["message"]["content"] or ""
        tokens = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
        return Reply(text, self._version, _today(), *tokens)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _open(section: ModelSection) -> tuple[Backbone, Any]:
    """A model that can be sampled from, and how messages become its prompt ids."""
    try:
        kind = model_type(section)
    except UserError:
        kind = ""
    if kind in FAMILIES:
        backbone = open_backbone(section)
        return backbone, lambda messages: _family_ids(backbone, messages)
    return _open_text_model(section)


def _family_ids(backbone: Backbone, messages: Sequence[Message]) -> tuple[int, ...]:
    """Families of this package write system and question as one turn, as everywhere here."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    spoken = [m["content"] for m in messages if m["role"] != "system"]
    turns = [Turn(question, answer) for question, answer in zip(spoken[:-1:2], spoken[1::2], strict=True)]
    renderer = backbone.renderer
    if not turns:
        return renderer.prompt(None, spoken[-1], f"{system}\n\n")
    told = renderer.conversation(None, [*turns, Turn(spoken[-1], "")], f"{system}\n\n").ids
    end = renderer.answer("")
    return told[: len(told) - len(renderer.text_ids(renderer.layout.after_end)) - len(end)]


def _open_text_model(section: ModelSection) -> tuple[Backbone, Any]:
    """A causal language model dressed as a backbone without eyes, so that the one sampler of the package samples it too."""
    import torch
    from transformers import AutoModelForCausalLM

    from minirlaif.models.backbones.base import Backbone, load_tokenizer, load_weights

    folder, device = base_folder(section), pick_device(section.device)
    dtype = pick_dtype(section, device)
    quantization = quantization_of(section, dtype, ("lm_head",))
    tokenizer = load_tokenizer(folder, section.revision)
    if not tokenizer.chat_template:
        raise UserError(f"judge hf:{section.base}: its tokenizer has no chat template; name an instruction-tuned model")
    model = load_weights(AutoModelForCausalLM, folder, section.revision, dtype, quantization, device).eval()
    model.requires_grad_(False)
    end = _end_of_turn(tokenizer)

    class TextModel(Backbone):
        def __init__(self) -> None:  # nothing of Backbone's own start: there are no image tokens to look for
            self.model, self.tokenizer, self.name = model, tokenizer, folder
            self.text_model, self.lm_head, self.eyes = model.get_decoder(), model.get_output_embeddings(), ()
            self.width, self.vocabulary = model.config.hidden_size, model.config.vocab_size
            self.pad_id = int(end if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
            self.disallowed_V = torch.zeros(self.vocabulary, dtype=torch.bool)
            self.disallowed_V[len(tokenizer) :] = True
            self.renderer = SimpleNamespace(end_id=end, image_id=-1, decode=decode)  # type: ignore[assignment]

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def render(messages: Sequence[Message]) -> tuple[int, ...]:
        found = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
        return tuple(found)

    return TextModel(), render


def _end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer in the chat template; it need not be the one that ends a text."""
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    special = set(tokenizer.all_special_ids)
    after = ids[max(place for place, each in enumerate(ids) if each not in special and tokenizer.decode([each]).strip()) + 1 :]
    found = next((each for each in after if each in special), tokenizer.eos_token_id)
    if found is None:
        raise UserError("model.base: its chat template and its tokenizer name no token that ends an answer")
    return int(found)
