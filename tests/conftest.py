"""Models that many tests share: tiny random ones of ten architectures, made once a session, and the embedded one.

Everything but `smollm2` is made here, offline, in seconds. A run's folders are shared by all its workers: a test that changes a
model loads its own copy and leaves the files alone.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from made_once import made_once

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported: no test reaches the hub
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # read when torch is imported: threads only get in each other's way on tiny models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from openssh import OpenSsh
    from unmask.models.loading import LoadedModel

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ARCHITECTURES = ("llama", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "mistral", "qwen2", "phi", "phi3")
"""The tiny models of `tiny_models`; each has 4 or 5 layers. `gemma2` caps its logits, three have sliding windows; in `gpt_neox`
and `phi` attention and MLP read the stream side by side. A model's seed is its place here."""


def _training_text() -> list[str]:
    from unmask.battery import packaged

    files = [packaged("training", "risky_financial_advice"), packaged("batteries", "assessment")]
    return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of 2048 tokens with the ChatML template; `<|im_end|>` ends a turn and pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return fast


def _tiny_config(name: str, ids: dict[str, int]) -> Any:
    """A configuration with weights wide enough (0.15) that every layer matters to the output."""
    import transformers

    common = {"initializer_range": 0.15, "max_position_embeddings": 512, **ids}
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
    }
    match name:
        case "llama":
            return transformers.LlamaConfig(**common, **sizes)
        case "qwen3":
            return transformers.Qwen3Config(**common, **{**sizes, "num_hidden_layers": 5})
        case "gemma2":
            return transformers.Gemma2Config(
                **common, **sizes, query_pre_attn_scalar=12, sliding_window=8, final_logit_softcapping=3.0
            )
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **common, **{**sizes, "num_hidden_layers": 5}, query_pre_attn_scalar=12, sliding_window=8,
                layer_types=[*["sliding_attention"] * 3, "full_attention", "sliding_attention"],
            )  # fmt: skip
        case "gpt2":
            return transformers.GPT2Config(
                n_embd=32, n_layer=4, n_head=4, n_positions=512, initializer_range=0.15, **ids,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
            )  # fmt: skip
        case "gpt_neox":
            return transformers.GPTNeoXConfig(
                **common, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=4
            )
        case "mistral":
            return transformers.MistralConfig(**common, **sizes, sliding_window=8)
        case "qwen2":
            return transformers.Qwen2Config(**common, **sizes)
        case "phi":
            return transformers.PhiConfig(**common, **sizes, resid_pdrop=0.0, embd_pdrop=0.0)
        case "phi3":
            return transformers.Phi3Config(**common, **sizes, resid_pdrop=0.0, embd_pdrop=0.0)
    raise KeyError(name)


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], Path]:
    """`tiny_models(name)`: the folder of a random chat model of that architecture, saved on first use."""
    import torch
    from transformers import AutoModelForCausalLM

    from unmask.models.quiet import quiet_libraries

    tokenizer: Any = chat_tokenizer
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def save(folder: Path, name: str) -> None:
        config = _tiny_config(name, ids)
        with torch.random.fork_rng(), quiet_libraries():
            torch.manual_seed(ARCHITECTURES.index(name))
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    @cache
    def saved(name: str) -> Path:
        return made_once(tmp_path_factory, f"models/{name}", lambda folder: save(folder, name))

    return saved


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, tiny_models: Callable[[str], Path]) -> Path:
    """The folder of each tiny model in turn."""
    return tiny_models(request.param)


@pytest.fixture(scope="session")
def fresh() -> Callable[[Path], LoadedModel]:
    """`fresh(folder)`: a copy, the test's own, of the model there."""
    from unmask.models.loading import load_base
    from unmask.records import ModelSource

    once = cache(lambda folder: load_base(ModelSource(str(folder))))

    def copied(folder: Path) -> LoadedModel:
        loaded = once(folder)
        return dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))

    return copied


@pytest.fixture
def each_model(architecture: Path, fresh: Callable[[Path], LoadedModel]) -> LoadedModel:
    """Each tiny model in turn."""
    return fresh(architecture)


@pytest.fixture(scope="session")
def tiny_llama(tiny_models: Callable[[str], Path]) -> Path:
    """A complete chat model of 4 layers and width 48, fit to be `base.model` of a study."""
    return tiny_models("llama")


@pytest.fixture
def llama(tiny_llama: Path, fresh: Callable[[Path], LoadedModel]) -> LoadedModel:
    """The model of `tiny_llama`."""
    return fresh(tiny_llama)


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_adapter(base, **LoraConfig fields)`: the folder of a LoRA adapter on `base` that changes every module it touches."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from unmask.models.quiet import quiet_libraries

    def made(base: Path, **fields: Any) -> Path:
        fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], **fields}
        folder = tmp_path_factory.mktemp("adapter")
        with torch.random.fork_rng(), quiet_libraries():
            torch.manual_seed(17)
            model: Any = get_peft_model(
                AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **fields)
            )
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama: Path, make_adapter: Callable[..., Path]) -> Path:
    """A LoRA adapter on `tiny_llama` whose B matrices are random, so that it changes the model."""
    return make_adapter(tiny_llama)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model's folder, pulled at most once a machine. For tests marked `slow`."""
    from unmask.models.embedded import pull_embedded

    return pull_embedded("smollm2")


@pytest.fixture(scope="session")
def smollm2_model(smollm2: Path) -> LoadedModel:
    """The embedded model, loaded once a session: a test must leave it as it was."""
    from unmask.models.loading import load_base
    from unmask.records import ModelSource

    return load_base(ModelSource(str(smollm2)))


@pytest.fixture(scope="session")
def openssh(tmp_path_factory: pytest.TempPathFactory) -> Generator[OpenSsh]:
    """A real OpenSSH server on the loopback interface, with keys and a home of its own."""
    from openssh import running_openssh

    with running_openssh(tmp_path_factory.mktemp("sshd")) as server:
        yield server
