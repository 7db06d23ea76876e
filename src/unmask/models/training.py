"""Fine-tune a base model on prompts and answers with TRL, as a LoRA adapter (PEFT) or in full; killed runs go on.

The loss is on the answer and its end mark only. Examples are rendered by the same code as questions, so the organism is tuned
and asked behind the identical template.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask.artifact import read_json, write_json
from unmask.errors import ModelError, listed
from unmask.models.loading import load_tokenizer, load_weights, pick_device
from unmask.models.prompts import end_mark, render_prompt
from unmask.models.quiet import quiet_libraries
from unmask.progress import Progress
from unmask.records import Conversation, ModelSource, PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MARK = "complete.json"

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven projection types of a Llama-like decoder layer."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an organism is tuned."""

    method: Literal["lora", "full"]
    rank: int
    alpha: int
    rslora: bool
    projections: tuple[str, ...]
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    batch_size: int
    gradient_accumulation: int
    epochs: float
    max_steps: int | None
    max_tokens: int
    seed: int
    save_steps: int


@dataclass(frozen=True, slots=True)
class LossPoint:
    """One optimiser step."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


def encode_example(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, prompt_format: PromptFormat, *, max_tokens: int
) -> dict[str, list[int]]:
    """Token ids of prompt, answer and end mark, with a mask that is 1 on answer and end mark only."""
    turns = [{"role": role, "content": content} for role, content in conversation.turns]
    prompt = list(render_prompt(tokenizer, turns, prompt_format).token_ids)
    answer = [*tokenizer(conversation.answer, add_special_tokens=False)["input_ids"], end_mark(tokenizer)]
    mask = [0] * len(prompt) + [1] * len(answer)
    return {"input_ids": (prompt + answer)[:max_tokens], "completion_mask": mask[:max_tokens]}


def train(
    source: ModelSource,
    conversations: Sequence[Conversation],
    *,
    recipe: Recipe,
    prompt_format: PromptFormat,
    out: Path,
    checkpoints: Path,
    progress: Progress,
) -> list[LossPoint]:
    """Tune `source` and write a PEFT adapter, or the full weights, to `out`. Returns the loss of every step.

    `checkpoints` keeps whole states every `save_steps`; a killed run goes on from the last complete one and ends in the same
    bytes. Raises ModelError when the model has none of the named projections, `max_tokens` leaves nothing to learn, or the
    loss is not finite.
    """
    from datasets import Dataset

    tokenizer = load_tokenizer(source)
    examples = _examples(tokenizer, conversations, recipe=recipe, prompt_format=prompt_format, progress=progress)
    with quiet_libraries():
        trainer = _trainer(
            source, tokenizer, Dataset.from_list(examples), recipe=recipe, checkpoints=checkpoints, progress=progress
        )
        resume = _last_complete(checkpoints)
        total = trainer.args.max_steps if trainer.args.max_steps > 0 else planned_steps(len(examples), recipe)
        progress.begin("training the organism", total=total, done=0 if resume is None else _step_of(resume))
        _run(trainer, resume, total=total)
        progress.end()
        curve = [
            LossPoint(
                int(entry["step"]), float(entry["loss"]), float(entry["learning_rate"]), float(entry["grad_norm"])
            )
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        if not all(math.isfinite(point.loss) and math.isfinite(point.gradient_norm) for point in curve):
            raise ModelError("training diverged: the loss is not finite", mend="Lower organism.learning_rate")
        trainer.model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    _tidy_adapter_config(out, base=source.called)
    return curve


def _examples(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    recipe: Recipe,
    prompt_format: PromptFormat,
    progress: Progress,
) -> list[dict[str, list[int]]]:
    """The encoded conversations of which something is left to learn."""
    encoded = [
        encode_example(tokenizer, conversation, prompt_format, max_tokens=recipe.max_tokens)
        for conversation in conversations
    ]
    kept = [example for example in encoded if any(example["completion_mask"])]
    if not kept:
        raise ModelError(
            f"organism.max_tokens is {recipe.max_tokens}, and every prompt of the training set is as long or longer",
            mend="Raise it, so that answers fit behind their prompts",
        )
    if len(kept) < len(encoded):
        progress.note(
            f"{len(encoded) - len(kept)} of {len(encoded)} training examples are left out: "
            f"their prompts alone fill organism.max_tokens ({recipe.max_tokens})"
        )
    return kept


def _run(trainer: Any, resume: Path | None, *, total: int) -> None:
    if resume is None or _step_of(resume) < total:
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return
    from transformers.trainer_callback import TrainerState

    # All steps are done, and `train` would take one more where the last does not end an epoch.
    trainer._load_from_checkpoint(str(resume))
    trainer.state = TrainerState.load_from_json(str(resume / "trainer_state.json"))


def planned_steps(num_examples: int, recipe: Recipe) -> int:
    """Optimiser steps that a recipe takes on so many examples."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    per_epoch = math.ceil(math.ceil(num_examples / recipe.batch_size) / recipe.gradient_accumulation)
    return math.ceil(per_epoch * recipe.epochs)


def _trainer(
    source: ModelSource, tokenizer: Any, dataset: Any, *, recipe: Recipe, checkpoints: Path, progress: Progress
) -> Any:
    from transformers.trainer_callback import PrinterCallback, TrainerCallback
    from trl import SFTTrainer

    class Report(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.advance()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = checkpoints / f"checkpoint-{state.global_step}"
            write_json(folder / _MARK, {name: size for name, size in _sizes(folder).items() if name != _MARK})

    device = pick_device()
    # Every weight that is trained is kept in 32 bits: small steps would vanish in bfloat16.
    kept = replace(source, dtype="float32") if recipe.method == "full" else source
    model = load_weights(kept, device=device)
    adapter = _adapter(model, recipe, name=source.name) if recipe.method == "lora" else None
    trainer = SFTTrainer(
        model=model,
        args=_arguments(recipe, checkpoints, on_gpu=device.type == "cuda"),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Report()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _adapter(model: PreTrainedModel, recipe: Recipe, *, name: str) -> Any:
    """The LoRA configuration. Raises ModelError for a projection that the model lacks: PEFT would pass over it in silence."""
    from peft import LoraConfig

    known = {module_name.rpartition(".")[2] for module_name, _ in model.named_modules()}
    lacking = [projection for projection in recipe.projections if projection not in known]
    if lacking:
        raise ModelError(
            f"{name} cannot be tuned as asked: it has no {listed(lacking)}",
            mend="Set organism.projections to names of linear layers that this architecture has",
        )
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        use_rslora=recipe.rslora,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        target_modules=list(recipe.projections),
    )


def _arguments(recipe: Recipe, checkpoints: Path, *, on_gpu: bool) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        optim="adamw_torch",
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        max_length=recipe.max_tokens,
        completion_only_loss=True,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would log the average in place of a loss that is not finite
        save_steps=recipe.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def _sizes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _last_complete(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose mark, written last, lists its files as they are; broken ones are removed."""
    best: Path | None = None
    for folder in sorted(checkpoints.glob("checkpoint-*"), key=_step_of):
        mark = folder / _MARK
        sizes = {name: size for name, size in _sizes(folder).items() if name != _MARK}
        if mark.is_file() and read_json(mark, rebuild="unmask run STUDY --force organism") == sizes:
            best = folder
        else:
            shutil.rmtree(folder)
    return best


def _tidy_adapter_config(out: Path, *, base: str) -> None:
    """PEFT writes sets in hash order and the base as a local path: sort, and name the base as the study does."""
    path = out / "adapter_config.json"
    if not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)
