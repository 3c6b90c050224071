"""A `Layout` as other programs read it: a Jinja chat template and an Ollama template.

Only for bases that bring none of their own.
"""

from __future__ import annotations

import json

from minirlaif.models.renderer import Layout


def chat_template(layout: Layout) -> str:
    """Jinja that writes text conversations as `chat.Renderer` does. A system message goes in front of the first question;
    an image becomes its placeholder (a clip's frames and times are more than a template can say)."""
    return (
        f"{{{{- {_text(layout.start)} -}}}}"
        "{%- set seen = namespace(turns=0, system='') -%}"
        "{%- for message in messages -%}"
        "{%- set parts = namespace(text='') -%}"
        "{%- if message['content'] is string -%}{%- set parts.text = message['content'] -%}"
        "{%- else -%}{%- for part in message['content'] -%}"
        f"{{%- set parts.text = parts.text + (part['text'] if 'text' in part else {_text(layout.image)}) -%}}"
        "{%- endfor -%}{%- endif -%}"
        "{%- if message['role'] == 'system' -%}{%- set seen.system = parts.text + '\\n' -%}"
        "{%- elif message['role'] == 'user' -%}"
        f"{{{{- {_text(layout.user)} if seen.turns == 0 else {_text(layout.after_end + header(layout))} -}}}}"
        f"{{{{- seen.system + parts.text + {_text(question_end(layout))} -}}}}"
        "{%- set seen.turns = seen.turns + 1 -%}{%- set seen.system = '' -%}"
        f"{{%- else -%}}{{{{- {_text(layout.assistant + layout.answer)} + parts.text + {_text(layout.end)} -}}}}{{%- endif -%}}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {_text(layout.assistant)} -}}}}{{%- endif -%}}"
    )


def ollama_template(layout: Layout) -> str:
    """The same in Go's templates, for an Ollama Modelfile."""
    later = layout.after_end + header(layout)
    return (
        f"{layout.start}{{{{ range $i, $m := .Messages }}}}"
        f'{{{{ if eq $m.Role "assistant" }}}}{layout.assistant}{layout.answer}{{{{ $m.Content }}}}{layout.end}'
        f"{{{{ else }}}}{{{{ if $i }}}}{later}{{{{ else }}}}{layout.user}{{{{ end }}}}"
        f"{{{{ $m.Content }}}}{question_end(layout)}{{{{ end }}}}"
        f"{{{{ end }}}}{layout.assistant}"
    )


def question_end(layout: Layout) -> str:
    """What ends a question."""
    return layout.end + layout.after_end if layout.question_end is None else layout.question_end


def header(layout: Layout) -> str:
    """What starts a user turn that is not the first."""
    bare = layout.user.rstrip()
    return bare + " " if bare.endswith(":") else layout.user


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
