"""A draft for `transformers`' own ``generate``: ``python examples/transformers_hook.py``.

The models are the bundled pair's folders, loaded as any other checkpoint.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import specbranch
from specbranch.zoo import BUNDLED


def main() -> None:
    """Generate with and without the draft, and compare."""
    target = AutoModelForCausalLM.from_pretrained(BUNDLED["target"], dtype=torch.float32)
    draft = AutoModelForCausalLM.from_pretrained(BUNDLED["draft"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED["target"])
    inputs = tokenizer("def quicksort(xs):", return_tensors="pt")

    plain = target.generate(**inputs, max_new_tokens=48, do_sample=False)
    drafted = target.generate(
        **inputs,
        max_new_tokens=48,
        do_sample=False,
        draft_model=draft,
        custom_generate=specbranch.generate,
    )
    print(tokenizer.decode(drafted[0], skip_special_tokens=True))
    print()
    print("the same tokens as without the draft:", torch.equal(plain, drafted))


if __name__ == "__main__":
    main()
