"""``specbranch generate``: continue prompts, streamed, coloured by where each token came from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from specbranch.cli.checks import check_counts
from specbranch.cli.held_back import hold_back_warnings
from specbranch.cli.pair import load_llm, sampling_params
from specbranch.engine import timeline
from specbranch.engine.inputs import Prompt, chat_prompt
from specbranch.engine.intake import samples
from specbranch.engine.request import EngineRequest
from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.logprobs import PlaceLogprobs
from specbranch.metrics import Metrics, Round
from specbranch.outputs import RequestOutput
from specbranch.prompts import read_prompts, read_rows
from specbranch.sampling_params import SamplingParams
from specbranch.token_sequence import Origin

STYLES = {Origin.CHAIN: "green", Origin.BRANCH: "cyan", Origin.TARGET: "yellow"}
MEANINGS = {
    Origin.CHAIN: "accepted from the chain",
    Origin.BRANCH: "survivor of a branch",
    Origin.TARGET: "the target's own",
}


def _prompts(options: argparse.Namespace) -> list[str | InputError]:
    """The prompts that the options name; in place of a bad row what is wrong with it."""
    check_counts(options, "limit")
    if options.file is not None and options.file.suffix == ".jsonl":
        return read_rows(options.file, options.limit)
    if options.file is not None:
        return [*read_prompts(options.file)]
    if options.prompt not in (None, "-"):
        return [options.prompt]
    if sys.stdin is None or (options.prompt is None and sys.stdin.isatty()):
        raise InputError("no prompt: give it as an argument, with --file, or on standard input")
    try:
        return [sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")]
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text") from None


def _valid(prompts: Sequence[Prompt | InputError]) -> list[Prompt]:
    """The prompts without the bad rows, which are reported on standard error.

    Raises:
        InputError: there are only bad rows; it is of the last one.
    """
    valid = [prompt for prompt in prompts if not isinstance(prompt, InputError)]
    errors = [prompt for prompt in prompts if isinstance(prompt, InputError)]
    for error in errors if valid else errors[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if not valid:
        raise errors[-1]
    return valid


def _check(
    llm: LLM,
    row: int,
    prompt: str | InputError,
    params: SamplingParams,
    options: argparse.Namespace,
) -> Prompt | InputError:
    """The prompt as it is given to the model, or why this pair cannot continue it."""
    if isinstance(prompt, InputError):
        return prompt
    file: Path | None = options.file
    try:
        given: Prompt = prompt
        if options.chat:
            given = chat_prompt(conversation(prompt, options.system), llm.tokenizer)
        llm.request(given, samples(params)[0])
    except InputError as error:
        if file is None:
            return error
        place = f"{file}, row {row}" if file.suffix == ".jsonl" else str(file)
        return InputError(f"{place}: {error}")
    return given


def conversation(said: str, system: str | None = None) -> list[dict[str, str]]:
    """What is said to a model, as messages."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": said}]


def summary(metrics: Metrics) -> str:
    return (
        f"{metrics.committed} tokens in {metrics.seconds:.2f} s · "
        f"{metrics.tokens_per_second:.1f} tokens/s · M {metrics.mean_accepted_length:.2f} · "
        f"RB {metrics.rollback_rate:.2f} · {metrics.target_calls} target calls"
    )


def _places(place: PlaceLogprobs) -> dict[int, dict[str, Any]]:
    return {token: asdict(found) for token, found in place.items()}


def _as_json(output: RequestOutput, method: str) -> dict[str, Any]:
    completion = output.outputs[0]
    told: dict[str, Any] = {}
    if output.prompt_logprobs is not None:
        told["prompt_logprobs"] = [place and _places(place) for place in output.prompt_logprobs]
    if completion.logprobs is not None:
        told["cumulative_logprob"] = completion.cumulative_logprob
        told["logprobs"] = [_places(place) for place in completion.logprobs]
    if len(output.outputs) > 1:
        told["outputs"] = [
            {name: getattr(each, name) for name in ("index", "text", "token_ids", "finish_reason")}
            for each in output.outputs
        ]
    return told | {
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "origins": completion.origins,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "method": method,
        "seed": output.params.seed,
        "metrics": output.metrics.as_dict(),
        "rounds": [asdict(done) for done in output.rounds],
    }


def emit(console: Console, text: str, style: str) -> None:
    """Print text as it is, coloured where there is colour; rich would expand the tabs of a pipe."""
    if console.color_system is None:
        console.file.write(text)
    else:
        console.print(Text(text, style=style), end="", soft_wrap=True)
    console.file.flush()


def stream(llm: LLM, request: EngineRequest, console: Console) -> None:
    """Print the text of a request as it comes, and how it went."""
    with hold_back_warnings():
        try:
            for piece in llm.stream_request(request):
                emit(console, piece.text, STYLES[piece.origin])
        finally:
            emit(console, f"\n{summary(request.metrics)}\n", "bold")
    if request.reason is not None:
        print(f"without the draft at the end: {request.reason}", file=sys.stderr)
    if console.color_system is not None:
        legend = [Text(MEANINGS[o], style=STYLES[o]) for o in Origin]
        console.print(Text(" · ").join(legend))


def _compare(
    llm: LLM, prompts: list[Prompt], params: SamplingParams, as_json: bool, console: Console
) -> int:
    """Decode every prompt plainly and by the method; 1 if any token differs."""
    plain = llm.plain()
    sums = {"plain": Metrics(), "method": Metrics()}
    identical, tokens = 0, 0
    hidden = as_json or len(prompts) == 1
    for prompt in tqdm(prompts, desc="prompts", disable=hidden, file=sys.stderr):
        ours = llm.generate(prompt, params)[0]
        # The drawn seed, so that sampling is compared on the same noise.
        reference = llm.generate(prompt, ours.params, method="autoregressive")[0]
        timed = plain.generate(prompt, ours.params)[0] if llm.padding.aligned else reference
        same = ours.outputs[0].token_ids == reference.outputs[0].token_ids
        identical += same
        tokens += len(reference.outputs[0].token_ids)
        sums["plain"] += timed.metrics
        sums["method"] += ours.metrics
        if as_json:
            print(json.dumps(_as_json(ours, llm.method) | {"identical": same}), flush=True)
        elif len(prompts) == 1:
            shown = prompt if isinstance(prompt, str) else ""
            console.print(Text(shown + ours.outputs[0].text), soft_wrap=True)
    if as_json:
        return int(identical < len(prompts))
    table = Table(title=f"{len(prompts)} prompts, {tokens} tokens")
    for heading in ("method", "tokens/s", "speed-up", "M", "RB", "target calls"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, metrics in (("autoregressive", sums["plain"]), (llm.method, sums["method"])):
        table.add_row(
            name,
            f"{metrics.tokens_per_second:.1f}",
            f"{metrics.tokens_per_second / sums['plain'].tokens_per_second:.2f}",
            f"{metrics.mean_accepted_length:.2f}",
            f"{metrics.rollback_rate:.2f}",
            str(metrics.target_calls),
        )
    console.print(table)
    verdict = f"token-identical to plain decoding: {identical} of {len(prompts)} prompts"
    console.print(Text(verdict, style="green" if identical == len(prompts) else "bold red"))
    return int(identical < len(prompts))


def run_generate(options: argparse.Namespace) -> int:
    """Load the pair, continue each prompt, and say how it went."""
    params = sampling_params(options)
    prompts = _prompts(options)
    if all(isinstance(prompt, InputError) for prompt in prompts):
        _valid(prompts)  # says so before anything is loaded
    if options.compare and params.n > 1:
        raise InputError("--compare takes one sample of a prompt: leave out --n")
    if options.compare and not params.greedy and params.acceptance == "rejection":
        raise InputError(
            "--compare needs --acceptance coupled: rejection sampling equals plain decoding in "
            "distribution, not token by token"
        )
    if options.system is not None and not options.chat:
        raise InputError("--system needs --chat")
    if options.timeline:
        if options.compare:
            raise InputError("--compare draws nothing: use `specbranch compare --timeline`")
        timeline.check_file(options.timeline)
    with load_llm(options) as llm:
        checked = [
            _check(llm, row, prompt, params, options) for row, prompt in enumerate(prompts, start=1)
        ]
        valid = _valid(checked)
        code = _generate(llm, valid, params, options)
        return code if len(valid) == len(prompts) else 1


def _generate(
    llm: LLM, prompts: list[Prompt], params: SamplingParams, options: argparse.Namespace
) -> int:
    console = Console(color_system=None if options.no_color else "auto", highlight=False)
    if options.compare:
        return _compare(llm, prompts, params, options.json, console)
    total = Metrics()
    drawn: dict[str, list[Round]] = {}
    for number, prompt in enumerate(prompts, start=1):
        if options.json:
            output = llm.generate(prompt, params)[0]
            print(json.dumps(_as_json(output, llm.method)), flush=True)
            drawn[f"prompt {number}"] = output.rounds
        else:
            for sample in samples(params):
                request = llm.request(prompt, sample)
                if isinstance(prompt, str):  # the template of a conversation is nothing to read
                    emit(console, prompt, "dim")
                stream(llm, request, console)
                total += request.metrics
                drawn.setdefault(f"prompt {number}", []).extend(request.rounds)
    if options.timeline:
        timeline.save(drawn, options.timeline)
        idle = 100 * timeline.target_idle(drawn.values())
        print(f"wrote {options.timeline}; target executor idle {idle:.0f} %", file=sys.stderr)
    if len(prompts) > 1 and not options.json:
        console.print(Text(f"all {len(prompts)} prompts: {summary(total)}", style="bold"))
    return 0
