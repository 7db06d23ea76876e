"""Loading: local folders, adapters folded in, and what does not fit refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.artifact import listing
from unmask.errors import ArtifactError, ModelError
from unmask.models.loading import (
    LoadedModel,
    fingerprint,
    load_base,
    load_config,
    load_tokenizer,
    locate,
    looks_local,
    pick_dtype,
    steady_allocator,
)
from unmask.models.organisms import (
    check_adapter_base,
    load_organism,
    organism_source,
    read_adapter_config,
)
from unmask.models.quiet import quiet_libraries
from unmask.records import ModelSource

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])

PROBE = """
from pathlib import Path
Path({sentinel!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM

class ProbeConfig(LlamaConfig):
    model_type = "unmask-probe"

class Probe(LlamaForCausalLM):
    config_class = ProbeConfig
"""


@torch.inference_mode()
def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(IDS).logits


def source(folder: Path) -> ModelSource:
    return ModelSource(str(folder))


def copied(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of a model's folder with fields of its config.json changed."""
    shutil.copytree(folder, target)
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


# Where a model lies


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no-such-model does not exist\. Name an existing folder"):
        load_base(source(tmp_path / "no-such-model"))


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds neither config\.json nor adapter_config\.json"):
        load_base(source(tmp_path))


@pytest.mark.parametrize(
    ("name", "local"),
    [("./a", True), ("/a/b", True), ("~/a", True), ("../a", True), ("Qwen/Qwen3-4B", False), ("gpt2", False)],
)
def test_a_path_is_told_from_an_id(name: str, local: bool) -> None:
    assert looks_local(name) is local
    assert local or locate(name) == name


def test_an_id_shaped_like_a_folder_that_is_there_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert locate("org/model") == str(Path("org/model"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/org/model") == str(tmp_path / "org" / "model")


def test_an_id_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="'unmask-tests/no-such-model' cannot be loaded") as caught:
        load_base(ModelSource("unmask-tests/no-such-model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_broken_file_is_a_model_error(tiny_llama: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    (folder / file).write_bytes((folder / file).read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(source(folder))


def test_a_model_without_weights_is_a_model_error(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(source(folder))


def test_a_model_that_lacks_some_weights_is_not_made_up(tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "partial"
    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.3." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights of LlamaForCausalLM: model\.layers\.3\.\S+ and \d+ more"):
        load_base(source(folder))


# What is loaded


def test_a_local_folder_is_the_model_that_transformers_loads(architecture: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = load_base(source(architecture))
    own = AutoModelForCausalLM.from_pretrained(architecture).eval()
    with torch.inference_mode():
        assert torch.equal(own(IDS).logits, logits(loaded))
    assert not loaded.model.training
    assert (loaded.num_layers, loaded.width) == (own.config.num_hidden_layers, own.config.hidden_size)
    assert load_config(source(architecture)).num_hidden_layers == loaded.num_layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_what_was_asked(tiny_llama: Path, dtype: Any) -> None:
    loaded = load_base(ModelSource(str(tiny_llama), dtype=dtype))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("device", "wanted"), [("cpu", torch.float32), ("cuda", torch.bfloat16), ("mps", torch.float32)]
)
def test_auto_is_half_precision_where_it_is_fast(device: str, wanted: torch.dtype) -> None:
    assert pick_dtype(ModelSource("x"), torch.device(device)) == wanted


def test_code_of_a_model_runs_only_when_trusted(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    auto_map = {"AutoConfig": "probe.ProbeConfig", "AutoModelForCausalLM": "probe.Probe"}
    folder = copied(tiny_llama, tmp_path / "custom", model_type="unmask-probe", auto_map=auto_map)
    sentinel = tmp_path / "the_code_ran"
    (folder / "probe.py").write_text(PROBE.format(sentinel=str(sentinel)))
    for load in (load_base, load_config):
        with pytest.raises(ModelError, match=r"brings its own code.*base\.trust_remote_code"):
            load(source(folder))
        assert not sentinel.exists()
    trusted = load_base(ModelSource(str(folder), trust_remote_code=True))
    assert sentinel.exists()
    assert type(trusted.model).__name__ == "Probe"
    assert torch.equal(logits(trusted), logits(load_base(source(tiny_llama))))


# Organisms


def test_an_adapter_folded_in_is_the_model_that_peft_runs(tiny_llama: Path, tiny_adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, organism = load_base(source(tiny_llama)), load_organism(source(tiny_llama), source(tiny_adapter))
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(tiny_adapter)).eval()
    with torch.inference_mode():
        wanted = peft(input_ids=IDS).logits
    torch.testing.assert_close(logits(organism), wanted, rtol=1e-4, atol=1e-4)
    assert (logits(base) - wanted).abs().max() > 0.1, "the adapter must change the model"
    assert type(organism.model) is type(base.model)
    assert not organism.model.training
    assert dict(organism.model.named_parameters()).keys() == dict(base.model.named_parameters()).keys()


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1, 2]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_kind_of_lora_is_folded_in(
    tiny_llama: Path, make_adapter: Callable[..., Path], fields: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = make_adapter(tiny_llama, **fields)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(adapter)).eval()
    with torch.inference_mode():
        wanted = peft(input_ids=IDS).logits
    torch.testing.assert_close(logits(load_organism(source(tiny_llama), source(adapter))), wanted, rtol=1e-4, atol=1e-4)


def test_a_full_model_is_an_organism_with_the_bases_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    tuned = load_base(source(tiny_llama))
    with torch.no_grad():
        tuned.model.get_input_embeddings().weight.add_(0.01)
    tuned.model.save_pretrained(tmp_path / "full")  # without a tokenizer
    organism = load_organism(source(tiny_llama), source(tmp_path / "full"))
    assert torch.equal(logits(organism), logits(tuned))
    assert organism.tokenizer.chat_template == tuned.tokenizer.chat_template


def test_both_models_of_a_study_have_the_bases_dtype(tiny_llama: Path, tiny_adapter: Path) -> None:
    base = ModelSource(str(tiny_llama), dtype="bfloat16")
    for organism in (tiny_adapter, tiny_llama):
        assert load_organism(base, source(organism)).model.dtype == torch.bfloat16


def test_loading_an_organism_changes_no_file(tiny_llama: Path, tiny_adapter: Path) -> None:
    before = [listing(folder) for folder in (tiny_llama, tiny_adapter)]
    load_organism(source(tiny_llama), source(tiny_adapter))
    assert [listing(folder) for folder in (tiny_llama, tiny_adapter)] == before


def test_an_adapter_recorded_for_another_base_is_refused() -> None:
    base, organism = ModelSource("Qwen/Qwen3-4B"), ModelSource("someone/organism")
    with pytest.raises(ModelError, match=r"trained on base 'Qwen/Qwen3-8B'.*Set base\.model to Qwen/Qwen3-8B"):
        check_adapter_base(base, organism, {"base_model_name_or_path": "Qwen/Qwen3-8B"})


@pytest.mark.parametrize("recorded", ["Qwen/Qwen3-4B", "unsloth/qwen3-4b", "/home/them/qwen", "./qwen", "", None])
def test_an_adapter_recorded_for_this_base_or_a_path_is_taken(recorded: str | None) -> None:
    base, organism = ModelSource("Qwen/Qwen3-4B"), ModelSource("someone/organism")
    check_adapter_base(base, organism, {"base_model_name_or_path": recorded})


def with_base_sizes(tiny_llama: Path, folder: Path, **changes: int) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_llama, **changes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 64}, {"intermediate_size": 96}, {"num_hidden_layers": 3}, {"num_hidden_layers": 6}],
    ids=["width", "mlp width", "deeper than the base", "shallower than the base"],
)
def test_an_adapter_of_another_shape_is_refused(
    tiny_llama: Path, tmp_path: Path, make_adapter: Callable[..., Path], changes: dict[str, int]
) -> None:
    other = with_base_sizes(tiny_llama, tmp_path / "other", **changes)
    adapter = make_adapter(tiny_llama)
    shutil.copytree(tiny_llama, tmp_path / "base", ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(other / name, tmp_path / "base" / name)
    with pytest.raises(ModelError, match=r"does not fit base .*Set base\.model"):
        load_organism(source(tmp_path / "base"), source(adapter))


def test_an_adapter_for_another_architecture_is_refused(tiny_models: Callable[[str], Path], tiny_adapter: Path) -> None:
    with pytest.raises(ModelError, match="does not fit base"):
        load_organism(source(tiny_models("gpt2")), source(tiny_adapter))


def test_an_adapter_whose_tensors_have_foreign_names_is_refused(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    # As when it was trained on the text part of a larger model: nothing would be loaded, and the organism be the base.
    from safetensors.torch import load_file, save_file

    adapter = tmp_path / "foreign"
    shutil.copytree(tiny_adapter, adapter)
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace(".layers.", ".language_model.layers."): t for name, t in load_file(path).items()}, path)
    with pytest.raises(ModelError, match="does not fit base"):
        load_organism(source(tiny_llama), source(adapter))


@pytest.mark.parametrize("content", [None, b"", b"\x08\x00\x00\x00"], ids=["missing", "empty", "cut"])
def test_an_adapter_without_whole_weights_is_refused(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, content: bytes | None
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny_adapter, adapter, ignore=shutil.ignore_patterns("*.safetensors"))
    if content is not None:
        (adapter / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="adapter"):
        load_organism(source(tiny_llama), source(adapter))


def test_a_broken_adapter_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json cannot be read"):
        read_adapter_config(source(tmp_path))


def test_an_adapter_is_told_from_a_model(tiny_llama: Path, tiny_adapter: Path) -> None:
    assert read_adapter_config(source(tiny_llama)) is None
    config = read_adapter_config(source(tiny_adapter))
    assert config is not None and config["r"] == 4


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ({"kind": "existing", "name": "a/b", "revision": "v1"}, ModelSource("a/b", revision="v1")),
        ({"kind": "trained", "method": "lora"}, "adapter"),
        ({"kind": "trained", "method": "full"}, "model"),
    ],
)
def test_the_organism_of_a_stage_is_found(tmp_path: Path, recipe: dict[str, str], wanted: Any) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    found = organism_source(tmp_path)
    assert found == (wanted if isinstance(wanted, ModelSource) else ModelSource(str(tmp_path.resolve() / wanted)))


def test_a_stage_without_a_recipe_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"recipe\.json.*unmask run STUDY --force organism"):
        organism_source(tmp_path)


# Fingerprints


def test_a_folders_fingerprint_is_its_contents(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "copy")
    changed = copied(tiny_llama, tmp_path / "changed", rms_norm_eps=1e-3)
    assert fingerprint(str(tmp_path / "copy")) == fingerprint(str(tiny_llama)) != fingerprint(str(changed))


def test_a_folder_changed_while_the_program_runs_has_another_fingerprint(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama, tmp_path / "model")
    before = fingerprint(str(folder))
    (folder / "generation_config.json").write_text("{}")
    assert fingerprint(str(folder)) != before


def test_an_ids_fingerprint_names_its_revision_and_an_embedded_ones_its_weights() -> None:
    assert fingerprint("a/b") == "a/b@main"
    assert fingerprint("a/b", revision="v1") == "a/b@v1"
    assert fingerprint("smollm2").startswith("smollm2@b179c952")


# The surroundings


def test_the_allocator_can_be_steadied_twice() -> None:
    steady_allocator()
    steady_allocator()


def test_the_tokenizer_comes_without_the_model(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(source(tiny_llama))
    assert tokenizer.chat_template and tokenizer.eos_token == "<|im_end|>"


def test_loading_says_nothing(tiny_llama: Path, tiny_adapter: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_organism(source(tiny_llama), source(tiny_adapter))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_quiet_gives_back_what_it_found() -> None:
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with quiet_libraries():
        with quiet_libraries():
            pass
        assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.ERROR
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    logging.disable_progress_bar()
    try:
        with pytest.raises(KeyboardInterrupt), quiet_libraries():
            raise KeyboardInterrupt
        assert not logging.is_progress_bar_enabled()
    finally:
        if before[1]:
            logging.enable_progress_bar()
