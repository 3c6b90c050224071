"""What values settings may have, beside their types. No disk, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """What values settings allow. Numbers are finite and at least 0 unless listed here."""

    choices: Mapping[str, Sequence[str]]  # section.field -> the allowed texts
    positive: frozenset[str]  # field names: above 0
    shares: frozenset[str]  # field names: 0 to 1
    any_sign: frozenset[str]  # field names: negative values too
    not_empty: frozenset[str]  # section.field of texts that must not be empty


# Numbers are finite and at least 0; positive, shares and any_sign hold field names of any section with another rule.
RULES = Rules(
    choices={
        "report_to": (
            "none tensorboard wandb mlflow comet_ml clearml aim dvclive swanlab trackio"  # accelerate 1.15's, which skips others
        ).split(),
        "model.dtype": ("auto", "float32", "bfloat16"),
        "model.quantization": ("none", "nf4"),
        "model.device": ("auto", "cpu", "cuda"),
        "model.optimizer": ("adamw", "paged_adamw_8bit"),
        "data.world": ("", "tiny"),
        "sft.schedule": ("cosine", "linear", "constant"),
        "reward.schedule": ("cosine", "linear", "constant"),
        "ppo.schedule": ("cosine", "linear", "constant"),
        "feedback.readout": ("letter", "likelihood"),
        "feedback.disagreement": ("drop", "average"),
        "reward.rest": ("cpu", "device"),
        "reference.kind": ("adapter", "model"),
        "reference.rest": ("cpu", "device"),
        "rollout.kl_estimator": ("k1", "k3"),
    },
    positive=frozenset(
        (
            "frames segment_frames frame_pixels segment_seconds max_segments timeout_seconds lora_r lora_alpha"
            " questions_per_clip prompt_clips dev_clips test_clips"
            " steps learning_rate epochs batch_size micro_batch_size minibatch_size"
            " max_length save_steps save_every dev_every max_grad_norm pairs_per_prompt temperature top_p"
            " max_new_tokens describe_tokens rollouts iterations clip value_clip bootstrap"
        ).split()
    ),
    shares=frozenset("max_unreadable still_share shuffled_share warmup_ratio top_p held_out min_accuracy gamma lam".split()),
    any_sign=frozenset({"reward_scale"}),  # a negative one turns score and KL term round together
    not_empty=frozenset({"model.base", "model.lora_targets"}),
)
