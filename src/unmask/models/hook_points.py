"""Where a site lies on a Hugging Face model: which module holds the activation, at its input or its output.

Sites mean what TransformerLens 4's `TransformerBridge` means by their names:

- `embed`: the token embedding as the model uses it, so with Gemma's scale, and without GPT-2's position embedding
- `attn_out`, `mlp_out`: what is added to the residual stream, so behind the norms that Gemma 2 and 3 put after attention and MLP:
  `resid_pre + attn_out = resid_mid`, `resid_mid + mlp_out = resid_post`
- `z`: the input of attention's output projection, heads side by side
- `pattern`: attention's weights after the softmax
- `normalized`: the final norm's input, normalised; the norm's weight and bias are not applied yet

Shapes: B rows, T tokens, D width of the residual stream, H heads, Q queries, K keys.

The stack of layers, the attention in a layer and the final norm are found by structure. How attention and MLP are joined to the
stream cannot be told from a layer's parts (Granite's are called as Llama's, and it scales what it adds), so `_LAYOUTS` names the
architectures of which tests have shown the sums above. Of others `attn_out`, `resid_mid` and `mlp_out` are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from unmask.errors import ModelError, listed
from unmask.models.loading import without_weights
from unmask.models.sites import check_sites, decoder_layers, unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unmask.records import Site


@dataclass(frozen=True, slots=True)
class HookPoint:
    """What is hooked for a site, and how the activation is read from what that module is given or gives back."""

    module: torch.nn.Module
    side: Literal["input", "output"]
    read: Callable[[Any], torch.Tensor]

    def at_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """The activation among the module's arguments."""
        return self.read(args[0] if args else kwargs["hidden_states"])


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the layers of some architectures (`model_type` of their text model) are made, dropouts aside.

    `middle` is given the stream between attention and MLP; None where both read the stream that enters the layer. The norms
    `behind_attention` and `behind_mlp` are applied to what is then added to the stream.
    """

    architectures: tuple[str, ...]
    attention: str
    mlp: str
    before: str | None
    middle: str | None
    behind_attention: str | None = None
    behind_mlp: str | None = None

    @property
    def parts(self) -> set[str]:
        names = (self.attention, self.mlp, self.before, self.middle, self.behind_attention, self.behind_mlp)
        return {name for name in names if name is not None}


_AS_LLAMA = (
    "llama", "gemma", "mistral", "ministral", "mixtral", "olmo", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
    "stablelm", "starcoder2",
)  # fmt: skip
_LAYOUTS = (
    _Layout(_AS_LLAMA, "self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
    _Layout(
        ("gemma2", "gemma3_text"), "self_attn", "mlp", "input_layernorm", "pre_feedforward_layernorm",
        behind_attention="post_attention_layernorm", behind_mlp="post_feedforward_layernorm",
    ),
    _Layout(
        ("olmo2", "olmo3"), "self_attn", "mlp", None, "mlp",
        behind_attention="post_attention_layernorm", behind_mlp="post_feedforward_layernorm",
    ),
    _Layout(("phi", "cohere", "cohere2", "stablelm"), "self_attn", "mlp", "input_layernorm", None),
    _Layout(("gpt2", "gpt_bigcode"), "attn", "mlp", "ln_1", "ln_2"),
    _Layout(("gpt_neox",), "attention", "mlp", "input_layernorm", "post_attention_layernorm"),
)  # fmt: skip
FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma", "Mistral", "Phi", "OLMo", "Cohere", "GPT-2", "GPT-NeoX")
"""What people call the architectures of `_LAYOUTS`."""

_PROJECTIONS = ("o_proj", "dense", "c_proj", "out_proj", "wo")
"""What attention's output projection is called."""


def hook_points(model: PreTrainedModel, sites: Iterable[Site]) -> dict[Site, HookPoint]:
    """Where sites lie, each once. PEFT's wrappers are seen through: what an adapter adds is part of what is read.

    Raises ModelError for a site that the model lacks, or that is not known to be found in its architecture.
    """
    model = unwrapped(model)
    layers = decoder_layers(model)
    return {site: _hook_point(model, layers, site) for site in sites}


def hook_point(model: PreTrainedModel, site: Site) -> HookPoint:
    """Where one site lies, as `hook_points` finds it."""
    return hook_points(model, [site])[site]


def _hook_point(model: PreTrainedModel, layers: torch.nn.ModuleList, site: Site) -> HookPoint:
    if site.point == "embed":
        return HookPoint(model.get_input_embeddings(), "output", _first)
    if site.point == "normalized":
        return _before_final_weight(model, layers, site)
    check_sites([site], num_layers=len(layers), model_name=type(model).__name__)
    layer = layers[site.layer or 0]
    if site.point in ("resid_pre", "resid_post"):
        return HookPoint(layer, "input" if site.point == "resid_pre" else "output", _first)
    if site.point in ("z", "pattern"):
        return _in_attention(layer, site)
    return _beside_the_stream(model, layer, site)


def check_on_architecture(config: Any, sites: Iterable[Site], *, trust_remote_code: bool = False) -> None:
    """Raise ModelError for the first site that a model of this configuration lacks.

    The model is built without weights: tens of milliseconds.
    """
    hook_points(without_weights(config, trust_remote_code=trust_remote_code), sites)


def _in_attention(layer: torch.nn.Module, site: Site) -> HookPoint:
    """A site in the one part of a layer that is called attention or attn, or whose class is."""
    attention = _only(
        (
            part
            for name, part in layer.named_children()
            if any(word.lower().endswith(("attention", "attn")) for word in (name, type(part).__name__))
        ),
        _not_found(layer, site),
    )
    if site.point == "pattern":
        return HookPoint(attention, "output", _weights)
    named = attention.named_modules()
    projections = (part for name, part in named if name.rpartition(".")[2] in _PROJECTIONS)
    return HookPoint(_only(projections, _not_found(attention, site)), "input", _first)


def _only(parts: Iterable[torch.nn.Module], otherwise: ModelError) -> torch.nn.Module:
    found = list(parts)
    if len(found) != 1:
        raise otherwise
    return found[0]


def _beside_the_stream(model: PreTrainedModel, layer: torch.nn.Module, site: Site) -> HookPoint:
    """What attention or MLP add to the stream, or the stream between them."""
    architecture = model.config.get_text_config().model_type
    parts = {name for name, part in layer.named_children() if not isinstance(part, torch.nn.Dropout)}
    fitting = [layout for layout in _LAYOUTS if architecture in layout.architectures and parts == layout.parts]
    if not fitting:
        raise _not_found(layer, site)
    layout = fitting[0]
    if site.point == "attn_out":
        return HookPoint(layer.get_submodule(layout.behind_attention or layout.attention), "output", _first)
    if site.point == "mlp_out":
        return HookPoint(layer.get_submodule(layout.behind_mlp or layout.mlp), "output", _first)
    if layout.middle is None or getattr(layer, "use_parallel_residual", False):
        raise ModelError(
            f"site {site.name} does not exist: in {type(model).__name__} attention and MLP read the stream side by side",
            mend="Choose hook_resid_pre or hook_resid_post of this layer",
        )
    return HookPoint(layer.get_submodule(layout.middle), "input", _first)


def _before_final_weight(model: PreTrainedModel, layers: torch.nn.ModuleList, site: Site) -> HookPoint:
    """The input, normalised, of the last norm that stands beside the stack of layers."""
    for parent in model.modules():
        siblings = list(parent.children())
        norms = [part for part in siblings if "norm" in type(part).__name__.lower()]
        if norms and any(part is layers for part in siblings):
            epsilon = getattr(norms[-1], "eps", getattr(norms[-1], "variance_epsilon", None))
            if isinstance(epsilon, float):
                centred = "rms" not in type(norms[-1]).__name__.lower()
                return HookPoint(norms[-1], "input", partial(_normalised, centred=centred, epsilon=epsilon))
    raise _not_found(model, site)


def _not_found(module: torch.nn.Module, site: Site) -> ModelError:
    return ModelError(
        f"site {site.name} was not found: how {type(module).__name__} is made is not known",
        mend=f"Choose hook_resid_pre or hook_resid_post, or a model of one of these families: {listed(FAMILIES)}",
    )


def _first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, (tuple, list)) else value


def _weights(output: Any) -> torch.Tensor:
    """The weights (B x H x Q x K) behind the hidden states (B x Q x D) in what attention gave back."""
    hidden, weights = output[:2] if isinstance(output, tuple) and len(output) > 1 else (output, None)
    if not isinstance(weights, torch.Tensor) or weights.ndim != 4 or weights.shape[2] != hidden.shape[1]:
        raise ModelError(
            "hook_pattern cannot be read: this attention gives back no weights", mend="Leave hook_pattern out"
        )
    return weights


def _normalised(given: Any, *, centred: bool, epsilon: float) -> torch.Tensor:
    """What a LayerNorm (`centred`) or RMSNorm makes of its input before it applies weight and bias (B x T x D, float32)."""
    hidden_BTD = _first(given).float()
    if centred:
        hidden_BTD = hidden_BTD - hidden_BTD.mean(dim=-1, keepdim=True)
    return hidden_BTD * torch.rsqrt(hidden_BTD.pow(2).mean(dim=-1, keepdim=True) + epsilon)
