"""Judges on this machine that read text: a model of transformers, or a GGUF file run by llama.cpp.

With transformers, replies are the most likely tokens, so the same question always gets the same reply; a second attempt differs
because the question then says what was wrong (see grade.py).
"""

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.feedback.text_judge import Message
from minirlaif.judges.cache import Refused, Reply, today
from minirlaif.judges.config import JudgeSettings, check_judge
from minirlaif.judges.grade import ChatJudge
from minirlaif.models.backbones import FAMILIES
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.chat_template import parts, render, tokens_of
from minirlaif.models.generation import sample
from minirlaif.models.language_model import EncodedPrompt, LanguageModel
from minirlaif.models.loading import base_hash, model_type, open_backbone, open_text_model, pick_device, pick_dtype
from minirlaif.models.renderer import token_ids
from minirlaif.runs.io import sha256
from minirlaif.types import Turn


class HfJudge(ChatJudge):
    """A folder or hub id of transformers: any causal language model with a chat template, or one of this package's families."""

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        check_judge(settings)
        section = ModelSection(settings.name, **{n: getattr(settings, n) for n in ("device", "dtype", "quantization")})
        self.kind, self.name = "hf", Path(settings.name).name
        try:
            self._version = base_hash(section)
            # auto is another number format on a GPU, and other numbers make other replies
            dtype = str(pick_dtype(section, pick_device(section.device))).removeprefix("torch.")
            fields = {"max_tokens": settings.max_tokens, "quantization": settings.quantization, "dtype": dtype}
            self.signature = {"kind": self.kind, "files": self._version, **fields}
            self._model, self._render = _open(section)
        except UserError as error:
            raise UserError(str(error).replace("model.base", "judge hf", 1)) from None
        super().__init__(settings, replies)

    def stop(self) -> None:
        """The model is freed with the object."""

    def ask(self, messages: Sequence[Message], grammar: str = "") -> Reply:
        """The most likely reply, in any form."""
        ids = self._render(messages)
        ((answer,),) = sample(self._model, [EncodedPrompt(ids)], temperature=0, max_new_tokens=self.settings.max_tokens)
        text = self._model.decode(answer.ids)
        return Reply(text, self._version, today(), len(ids), len(answer.ids))


def _open(section: ModelSection) -> tuple[LanguageModel, Any]:
    """A model that can be sampled from, and how messages become its prompt ids."""
    try:
        kind = model_type(section)
    except UserError:
        kind = ""
    if kind in FAMILIES:
        backbone = open_backbone(section)
        return backbone, lambda messages: _family_ids(backbone, messages)
    model = open_text_model(section, _end_of_turn)
    tokenizer = model.tokenizer
    tokenize = functools.partial(token_ids, tokenizer)
    return model, _TemplatePrompt(tokenizer.chat_template, tokens_of(tokenizer), tokenize, "model.base")


class _TemplatePrompt:
    """Messages as prompt ids: a chat template is tokenised with special tokens, texts without.

    template: of jinja; tokens: special tokens by name; tokenize: ids of a text, with special tokens in it read as such or not;
    where: begins an error.
    """

    def __init__(self, template: str, tokens: dict[str, str], tokenize: Callable[[str, bool], Sequence[int]], where: str) -> None:
        self._template, self._tokens, self._tokenize, self._where = template, tokens, tokenize, where
        self._known: dict[tuple[str, ...], list[str | int]] = {}

    def __call__(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """UserError when the template fails."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._known:
            try:
                self._known[roles] = parts(self._template, self._tokens, roles)
            except ValueError as error:
                raise UserError(f"{self._where}: its chat template cannot be used ({error}); name another model") from None
        ids: list[int] = []
        for part in self._known[roles]:
            text = part if isinstance(part, str) else messages[part]["content"].strip()
            ids += self._tokenize(text, isinstance(part, str))
        return tuple(ids)


def _family_ids(backbone: VisionLanguageModel, messages: Sequence[Message]) -> tuple[int, ...]:
    """Families of this package render the system text and the first question as one turn, as in every stage."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    texts = [m["content"] for m in messages if m["role"] != "system"]
    turns = [Turn(question, answer) for question, answer in zip(texts[:-1:2], texts[1::2], strict=True)]
    renderer = backbone.renderer
    if not turns:
        return renderer.prompt(None, texts[-1], f"{system}\n\n")
    ids = renderer.conversation(None, [*turns, Turn(texts[-1], "")], f"{system}\n\n").ids
    end = renderer.answer("")
    return ids[: len(ids) - len(renderer.text_ids(renderer.layout.after_end)) - len(end)]


def _end_of_turn(tokenizer: Any) -> int:
    """The token that ends an answer in the chat template; it need not be the one that ends a text."""
    if not tokenizer.chat_template:
        raise UserError("model.base: its tokenizer has no chat template; name an instruction-tuned model")
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    try:
        text = render(tokenizer.chat_template, turns, tokens_of(tokenizer), answer=False)
    except ValueError as error:
        raise UserError(f"model.base: its chat template cannot be used ({error}); name another model") from None
    ids = token_ids(tokenizer, text, special=True)
    special = set(tokenizer.all_special_ids)
    after = ids[max(place for place, each in enumerate(ids) if each not in special and tokenizer.decode([each]).strip()) + 1 :]
    end = next((each for each in after if each in special), tokenizer.eos_token_id)
    if end is None:
        raise UserError("model.base: its chat template and its tokenizer name no token that ends an answer")
    return int(end)


class GgufJudge(ChatJudge):
    """A GGUF file of a text model, with the chat template that it carries."""

    def __init__(self, settings: JudgeSettings, replies: Path | None = None) -> None:
        check_judge(settings)
        path = Path(settings.name)
        try:
            import llama_cpp
        except ImportError:
            raise UserError(f"judge gguf:{settings.name}: needs llama.cpp; `pip install llama-cpp-python`") from None
        self.kind, self.name, self._version = "gguf", path.name, sha256(path)[:16]
        self._lock, self._closed, self._library = threading.Lock(), False, llama_cpp
        fields = {name: getattr(settings, name) for name in ("temperature", "max_tokens", "context")}
        self.signature = {"kind": self.kind, "file": self._version, **fields, "replies": "by grammar"}
        threads = dict.fromkeys(("n_threads", "n_threads_batch"), settings.threads or None)
        options: dict[str, Any] = {"n_ctx": settings.context, "n_gpu_layers": -1, "seed": 0, "verbose": False, **threads}
        try:
            self._model: Any = llama_cpp.Llama(str(path), **options)
        except ValueError as error:
            raise UserError(f"judge gguf:{settings.name}: llama.cpp cannot load it ({error})") from None
        template = self._model.metadata.get("tokenizer.chat_template")
        if not template:  # in another model's format its replies would be noise
            self._model.close()
            raise UserError(f"judge gguf:{settings.name}: has no chat template; name the file of an instruction-tuned model")
        names = {"bos_token": self._model.token_bos(), "eos_token": self._model.token_eos()}
        known = {name: token for name, token in names.items() if token >= 0}
        tokens = {name: self._model.detokenize([token], special=True).decode() for name, token in known.items()}
        self._end = tokens.get("eos_token", "")
        self._ids = _TemplatePrompt(template, tokens, self._tokenize, f"judge gguf:{settings.name}")
        super().__init__(settings, replies)

    def stop(self) -> None:
        """Free the model once no thread decodes: llama.cpp would read freed memory and end the process."""
        with self._lock:
            if not self._closed:
                self._model.close()
            self._closed = True

    def ask(self, messages: Sequence[Message], grammar: str = "") -> Reply:
        """One reply, within the grammar. Refused when question and reply do not fit the context."""
        s = self.settings
        with self._lock:
            if self._closed:
                raise UserError(f"judge {self.name}: closed before this question was asked")
            sampling = {"temperature": s.temperature, "max_tokens": s.max_tokens, "repeat_penalty": 1.0}
            stop = [self._end] if self._end else []
            form = self._library.LlamaGrammar.from_string(grammar, verbose=False) if grammar else None
            try:
                completion = self._model.create_completion(list(self._ids(messages)), stop=stop, grammar=form, **sampling)
            except ValueError as error:  # longer than the context
                raise Refused(f"{error} (raise context, which is {s.context})") from None
            last = self._library.llama_get_logits_ith(self._model.ctx, -1)
            if not np.isfinite(np.ctypeslib.as_array(last, (self._model.n_vocab(),))).all():
                raise UserError(f"judge {self.name}: its logits are not finite, so it cannot judge; get the file again")
        usage = completion.get("usage", {})
        text = completion["choices"][0]["text"] or ""
        tokens = (int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
        return Reply(text, self._version, today(), *tokens)

    def _tokenize(self, text: str, special: bool) -> list[int]:
        return list(self._model.tokenize(text.encode(), add_bos=False, special=special))
