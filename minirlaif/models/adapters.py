"""Named LoRA adapters and scalar heads on one base model, and switching between them. The only module that touches PEFT.

Roles are "sft", "policy", "reference", "reward" and "value"; the role "base" is the model without any adapter. Which adapter is
active is set for a block (`inference_as`, `training_as`) and restored afterwards, also after an error. The weights of a role
with `enable_offload` are in host memory except inside `on_device`.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minirlaif.config import ModelSection
from minirlaif.errors import UserError
from minirlaif.models.backbones.base import VisionLanguageModel
from minirlaif.models.loading import base_folder
from minirlaif.models.offload import OffloadableWeights
from minirlaif.runs.io import open_file, read_json
from minirlaif.runs.records import NUMBER, has_fields
from minirlaif.runs.run import Run
from minirlaif.stages.registry import STAGES

HEAD_FILE = "head.safetensors"


def import_peft() -> None:
    """Load PEFT now rather than with the first adapter, so that the memory of the library itself can be measured before."""
    import peft  # noqa: F401


class ScalarHead(nn.Module):
    """hidden -> one number, weight and bias zero or small at the start; `beta`: weight of the answer's mean log-likelihood."""

    def __init__(self, width: int, start: float, beta: float | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.normal_(self.linear.weight, std=start) if start else nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.beta = None if beta is None else nn.Parameter(torch.tensor(float(beta)))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., D] -> [...], in float32 also under autocast: bfloat16 scores have three digits."""
        with torch.autocast(hidden.device.type, enabled=False):
            result: Tensor = self.linear(hidden.float()).squeeze(-1)
        return result


class AdapterSet:
    """The adapters and heads on one backbone."""

    def __init__(self, backbone: VisionLanguageModel, section: ModelSection) -> None:
        self.backbone = backbone
        self.section = section
        self.heads: dict[str, ScalarHead] = {}
        self._peft: Any = None
        self._offloaded: dict[str, OffloadableWeights] = {}

    def add(self, role: str, seed: int, start_from: str | Path | None = None) -> None:
        """Create an adapter: fresh (it changes nothing yet), a copy of another role, or loaded from a folder.
        UserError: the folder's adapter has another rank or other targets than the config asks for."""
        from peft import LoraConfig, get_peft_model

        # Only the language model: the vision tower has projections of the same names, and a vision adapter would silently make
        # cached features and a separately exported projector wrong.
        targets = target_pattern(self.backbone.text_prefix, self.backbone.lora_targets(self.section.lora_targets))
        config = LoraConfig(
            r=self.section.lora_r,
            lora_alpha=self.section.lora_alpha,
            lora_dropout=0.0,  # dropout would make the first PPO ratio differ from 1
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT uses a name that transformers has deprecated.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            torch.manual_seed(seed)
            if self._peft is None:
                self._peft = get_peft_model(self.backbone.model, config, adapter_name=role)
            else:
                self._peft.add_adapter(role, config)
        self._peft.eval()
        if isinstance(start_from, Path):
            self._load_adapter(role, start_from)
        elif start_from is not None:
            with self._on_device(start_from):
                source = self.named(start_from)
                for name, parameter in self.named(role).items():
                    parameter.data.copy_(source[name.replace(f".{role}.", f".{start_from}.")])
        self._freeze()
        if self.section.gradient_checkpointing:
            self.backbone.text_model.activation_checkpointing_enable({"use_reentrant": False})

    def add_head(self, role: str, seed: int, start: float = 0.0, beta: float | None = None) -> None:
        """Give a role a scalar head. start: deviation of its first weights, 0: all zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads[role] = ScalarHead(self.backbone.width, start, beta).to(self.backbone.device)
        self._freeze()

    def named(self, role: str) -> dict[str, Tensor]:
        """Adapter weights of a role by name."""
        return {n: p for n, p in self._peft.named_parameters() if f".{role}." in n}

    def parameters(self, role: str) -> list[nn.Parameter]:
        """Trained parameters of a role: its adapter, and its head where it has one. Chosen by name, never by flags."""
        adapter: list[Any] = list(self.named(role).values())
        return [*adapter, *(self.heads[role].parameters() if role in self.heads else ())]

    @contextmanager
    def inference_as(self, role: str) -> Iterator[None]:
        """Switch to the adapter of `role` for a block, without gradients; every flag is restored, also after an error."""
        with self._switched(role), torch.no_grad():
            yield

    @contextmanager
    def training_as(self, role: str) -> Iterator[None]:
        """Switch to the adapter of `role` for a block; backward passes inside make gradients for its weights alone."""
        with self._switched(role):
            for parameter in self.parameters(role):
                parameter.requires_grad_(True)
            if self.section.gradient_checkpointing:  # works only in train mode; no dropout, so the mode changes nothing else
                self.backbone.text_model.train()
            yield

    @contextmanager
    def _switched(self, role: str) -> Iterator[None]:
        flags = {p: p.requires_grad for p in self._all_parameters()}
        training = self.backbone.text_model.training
        active = self._active()
        offloaded = [name for name in ("base", role) if name in self._offloaded and self._offloaded[name].offloaded]
        if offloaded:
            raise ValueError(f"role {offloaded[0]} is offloaded to host memory; use on_device() to bring it back")
        # The same low precision for inference as for training, or the first PPO ratio would not be 1.
        device, dtype = self.backbone.device.type, self.backbone.dtype
        low = torch.autocast(device, dtype) if device == "cuda" and dtype == torch.bfloat16 else nullcontext()
        try:
            self._activate(role)
            with low:
                yield
        finally:
            self._activate(active)
            self.backbone.text_model.train(training)
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)

    def _all_parameters(self) -> list[nn.Parameter]:
        model = self.backbone.model if self._peft is None else self._peft
        return [*model.parameters(), *(p for head in self.heads.values() for p in head.parameters())]

    def _lora_layers(self) -> list[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return [] if self._peft is None else [m for m in self._peft.modules() if isinstance(m, BaseTunerLayer)]

    def _active(self) -> str:
        layers = self._lora_layers()
        return "base" if not layers or layers[0].disable_adapters else str(layers[0].active_adapters[0])

    def _activate(self, role: str) -> None:
        if role != "base" and (self._peft is None or role not in self._peft.peft_config):
            raise ValueError(f"there is no role {role}")
        for layer in self._lora_layers():
            layer.enable_adapters(role != "base")
            if role != "base":
                layer.set_adapter(role)

    def _freeze(self) -> None:
        for parameter in self._all_parameters():
            parameter.requires_grad_(False)

    def enable_offload(self, role: str) -> None:
        """From now on a role, head included, is in host memory except inside `on_device`. "base": the base model itself, which
        `on_device` of any role brings back too; its vision modules are moved by the feature cache."""
        if role == "base":
            vision = {id(p) for part in self.backbone.vision_modules for p in (*part.parameters(), *part.buffers())}
            named = [*self.backbone.model.named_parameters(), *self.backbone.model.named_buffers()]
            base = (tensor for name, tensor in named if ".lora_" not in name and id(tensor) not in vision)
            self._offloaded[role] = OffloadableWeights(base, frozen=True)
        else:
            self._offloaded[role] = OffloadableWeights(self.parameters(role))
        self._offloaded[role].offload()

    @contextmanager
    def on_device(self, *roles: str) -> Iterator[None]:
        """Bring offloaded roles to the device for a block; a role without `enable_offload` is there already."""
        with ExitStack() as stack:
            for role in dict.fromkeys(("base", *roles)):
                stack.enter_context(self._on_device(role))
            yield

    def _on_device(self, role: str) -> AbstractContextManager[None]:
        return self._offloaded[role].on_device() if role in self._offloaded else nullcontext()

    def merge(self, role: str) -> Any:
        """Add an adapter to the base's weights for good; returns the model, now without any adapter. No role is left then."""
        model = self._peft.merge_and_unload(adapter_names=[role])
        self._peft = None
        return model

    def save(self, role: str, folder: Path) -> None:
        """A plain PEFT folder (opens with PeftModel.from_pretrained), with the head beside it. Safetensors only."""
        folder.mkdir(parents=True, exist_ok=True)
        with self._on_device(role):
            weights = {n.replace(f".{role}.", "."): p.detach().to("cpu").contiguous() for n, p in self.named(role).items()}
            save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            if role in self.heads:
                state = self.heads[role].state_dict()
                save_file({n: p.to("cpu").contiguous() for n, p in state.items()}, folder / HEAD_FILE)
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in self._peft.peft_config[role].to_dict().items()}
        config |= {"base_model_name_or_path": self.base_name, "inference_mode": True}
        config["revision"] = self.section.revision if self.base_name.count("/") == 1 else None
        # AutoPeftModel opens the class named here; a task type would make it look for a language model alone.
        made = type(self._peft.get_base_model())
        config |= {"task_type": None, "auto_mapping": {"base_model_class": made.__name__, "parent_library": made.__module__}}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str))

    @property
    def base_name(self) -> str:
        """What others open the base by: a hub id or a folder; "tiny" for the base that ships with the package."""
        return self.section.base if self.section.base == "tiny" else base_folder(self.section)

    def load_head(self, role: str, folder: Path) -> None:
        """Read a head back; its form (with or without beta) follows the file."""
        state = read_weights(folder / HEAD_FILE)
        head = ScalarHead(self.backbone.width, 0.0, 0.0 if "beta" in state else None)
        if _shapes(state) != _shapes(head.state_dict()):
            raise UserError(f"{folder / HEAD_FILE}: does not fit the base; {_again(folder)}")
        head.load_state_dict(state)
        self.heads[role] = head.to(self.backbone.device)
        self._freeze()

    def _load_adapter(self, role: str, folder: Path) -> None:
        weights = read_weights(folder / "adapter_model.safetensors")
        own = {n.replace(f".{role}.", "."): p for n, p in self.named(role).items()}
        if _shapes(weights) != _shapes(own):
            raise UserError(
                f"{folder}: the adapter does not fit model.lora_r/lora_targets or the base; set them as in its config, or"
                f" {_again(folder)}"
            )
        config = read_json(folder / "adapter_config.json", _again(folder))
        if not has_fields(config, {"lora_alpha": NUMBER}):
            raise UserError(f"{folder / 'adapter_config.json'}: lora_alpha is not a number; {_again(folder)}")
        if (scale := config["lora_alpha"]) != self.section.lora_alpha:  # no shape shows it
            raise UserError(f"{folder}: the adapter was trained with lora_alpha {scale}; set model.lora_alpha to it")
        for name, parameter in own.items():
            parameter.data.copy_(weights[name])


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. UserError: it cannot be read, or a weight is no finite number."""
    try:
        open_file(path).close()  # a pipe would be waited for
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split()):.150}); {_again(path.parent)}") from None
    for name, weight in weights.items():
        if not weight.is_floating_point() or not bool(weight.isfinite().all()):
            raise UserError(f"{path}: {name:.100} has other values than finite numbers of floating point; {_again(path.parent)}")
    return weights


def _again(folder: Path) -> str:
    """What to do about a damaged adapter: it is made again with the stage in whose folder it lies."""
    stage = folder.absolute().parent
    if stage.name in STAGES and (stage / "manifest.json").is_file():
        return f"make the stage again: `{Run(stage.parent).remake(stage.name)}`"
    return "name another adapter, or train this one again"


def target_pattern(text_prefix: str, targets: Sequence[str]) -> str:
    """PEFT's `target_modules` for layers of these names in the language model alone, as a regular expression."""
    return rf"{re.escape(text_prefix)}\..*\.({'|'.join(targets)})"
