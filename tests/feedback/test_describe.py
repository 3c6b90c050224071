"""Descriptions of a clip's segments and the context made of them."""

from __future__ import annotations

from minirlaif.feedback.describe import context_text


def test_a_context_has_one_line_per_segment() -> None:
    assert context_text([((0.0, 7.6), "a ball rolls"), ((7.6, 15.0), " it\nstops ")]) == "0s: a ball rolls\n8s: it stops\n"
    assert context_text([]) == ""
