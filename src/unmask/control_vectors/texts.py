"""What stands beside exported directions: a README, and a script that needs nothing of this package."""

README = """# Directions

Made by {tool} from `{study}`: at {site} of {base}, whose residual stream there has the typical norm {typical_norm:.6g}.

- `directions.safetensors`: each direction (D, float32) under its id, as long as it was found; an eraser is `ID.left` (D x K),
  `ID.right` (K x D) and `ID.centre` (D): x becomes x - (x - centre) right^T left^T. The header's `provenance` is JSON.
- `use_directions.py`: adds a direction to a Hugging Face model. It needs torch, transformers and safetensors, and not unmask.
- `*.gguf`: control vectors, for llama.cpp (`--control-vector-scaled`) and repeng (`ControlVector.import_gguf`). Each is the unit
  direction times the typical norm: strength 1 adds one typical norm, as coefficient 1 does in unmask and in `use_directions.py`.
"""

SCRIPT = '''"""Add an exported direction to a Hugging Face model while it runs. Needs torch, transformers and safetensors.

    python use_directions.py MODEL DIRECTION COEFFICIENT "A question"

or `with steered(model, "DIRECTION", COEFFICIENT): model.generate(...)`. A coefficient of 1 adds the unit direction times the
typical norm of the residual stream at the site, at every position.
"""

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

FILE = Path(__file__).with_name("directions.safetensors")


@contextmanager
def steered(model, name, coefficient):
    with safe_open(FILE, framework="pt") as file:
        about = json.loads(file.metadata()["provenance"])
        vector = file.get_tensor(name)
    found = re.fullmatch(r"blocks\\.(\\d+)\\.hook_resid_(pre|post)", about["site"])
    if found is None:
        raise ValueError(f"{about['site']} is inside a block: this script adds before or behind one")
    unit = vector / vector.norm()
    delta = (coefficient * about["typical_norm"] * unit).to(model.device, model.dtype)

    def before(module, args, kwargs):
        if args:
            return (args[0] + delta, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + delta}

    def behind(module, args, output):
        return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta

    block = blocks(model)[int(found[1])]
    if found[2] == "pre":
        handle = block.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = block.register_forward_hook(behind)
    try:
        yield
    finally:
        handle.remove()


def blocks(model):
    """The stack of decoder blocks: the shallowest list of as many modules as the model has layers."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return min(stacks, key=lambda stack: stack[0])[1]


def main(name, direction, coefficient, question):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    with steered(model, direction, float(coefficient)):
        answer = model.generate(**prompt, max_new_tokens=200)
    print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
'''
