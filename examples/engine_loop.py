"""The engine's own loop: texts join while others run, take turns, and may be aborted."""

from specbranch import LLM, SamplingParams
from specbranch.methods.registry import METHODS

with LLM() as llm:
    engine, spec = llm.engine, METHODS["specbranch"]
    params = SamplingParams(max_tokens=32)
    first = engine.add_request("def quicksort(xs):", params, method=spec)
    second = engine.add_request("The city of", params, method=spec)
    steps = 0
    while engine.has_unfinished_requests:
        engine.step()  # one round of one text
        steps += 1
        if steps == 4:
            third = engine.add_request("import os\n", params, method=spec)
            engine.abort(second)
    for request in (first, second, third):
        done = request.output().outputs[0]
        print(f"{request.prompt!r}: {done.finish_reason}, {len(done.token_ids)} tokens")
