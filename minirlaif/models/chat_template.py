"""Renders chat templates, which come with other people's models, in a process of their own with limits of memory and time.

A template is a program: jinja's sandbox keeps it from Python, not from loops that never end or texts that fill the memory.
"""

import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from minirlaif.video import sandbox
from minirlaif.video.child_process import ChildLost, ChildProcess, serve

SECONDS = 20.0


def render(
    template: Any, turns: Sequence[Mapping[str, Any]], tokens: Mapping[str, str], answer: bool = True, seconds: float = SECONDS
) -> str:
    """The text that a chat template makes of turns. tokens: special tokens by name; answer: with the start of an answer behind
    them. ValueError: there is no template, or it fails or takes too long."""
    if not isinstance(template, str):
        raise ValueError("no chat template")
    child = ChildProcess((sys.executable, "-P", "-m", "minirlaif.models.chat_template"), only=sandbox.environment())
    try:
        reply = child.ask({"template": template, "turns": list(turns), "tokens": dict(tokens), "answer": answer}, seconds=seconds)
    except ChildLost as lost:
        raise ValueError(f"took more than {seconds:g} seconds" if lost.timed_out else "needed too much memory") from None
    finally:
        child.close()
    if "text" not in reply:
        raise ValueError(reply["problem"])
    return str(reply["text"])


def parts(template: str, tokens: Mapping[str, str], roles: Sequence[str]) -> list[str | int]:
    """A template around turns of these roles: its own text, and the number of a turn where the turn's text stands. Texts are put
    in after it has been tokenised, so that nothing in them becomes a turn or a special token. ValueError as `render`."""
    names = [f"[{secrets.token_hex(8)}]" for _ in roles]
    turns = [{"role": role, "content": name} for role, name in zip(roles, names, strict=True)]
    pieces = re.split("|".join(map(re.escape, names)).join("()"), render(template, turns, tokens))
    return [names.index(piece) if piece in names else piece for piece in pieces if piece]


def tokens_of(tokenizer: Any) -> dict[str, str]:
    """The special tokens of a tokenizer that templates may name."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [request["turns"]], chat_template=request["template"], add_generation_prompt=request["answer"], **request["tokens"]
        )
    except Exception as error:  # whatever a template raises
        return {"problem": " ".join(str(error).split())[:200] or type(error).__name__}
    return {"text": rendered[0][0]}


if __name__ == "__main__":
    sandbox.enter()
    serve(_answer)
