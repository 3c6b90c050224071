"""Qwen3.5: encodes frames as Qwen3-VL does, without DeepStack; most layers are linear attention. Thinking stays off.

Four bits cost this family more than others; bfloat16 (`model.quantization: none`, the default) is better where it fits.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from minirlaif.models.backbones import qwen3_vl

# The empty thought is how its chat template turns thinking off. In a conversation every answer is learned, so every answer
# stands behind the header that it will be generated after; the published template drops the thoughts of earlier turns.
LAYOUT = replace(qwen3_vl.LAYOUT, assistant=qwen3_vl.LAYOUT.assistant + "<think>\n\n</think>\n\n")


class Qwen35(qwen3_vl.Qwen3VL):
    title = "Qwen3.5"
    layout = LAYOUT
    # transformers saves no heads for several tokens at once (NextN)
    gguf = replace(qwen3_vl.GGUF, pre_tokenizers=("qwen35", *qwen3_vl.GGUF.pre_tokenizers), converter_flags=("--no-nextn",))
    output_gate = True
    extra_lora_targets = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")

    def new_cache(self) -> Any:
        """An empty cache: keys and values of the attention layers, states of the linear ones."""
        cache = super().new_cache()
        for layer in cache.layers:
            if not hasattr(layer, "batch_repeat_interleave"):  # transformers' linear layers have none
                layer.batch_repeat_interleave = partial(_repeat, layer)
        return cache


def _repeat(layer: Any, repeats: int) -> None:
    for states in (layer.conv_states, layer.recurrent_states):
        for index, state in states.items():
            states[index] = state.repeat_interleave(repeats, 0)


FAMILY = Qwen35
