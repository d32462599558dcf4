"""``specbranch chat``: talk to a model in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from specbranch.cache_folder import cache_folder
from specbranch.cli.generate import stream, summary
from specbranch.cli.pair import load_llm, sampling_params
from specbranch.engine.inputs import chat_prompt
from specbranch.errors import InputError
from specbranch.llm import LLM
from specbranch.metrics import Metrics
from specbranch.sampling_params import SamplingParams

HELP = "/stats: speed so far · /reset: forget the conversation · /quit, or Ctrl-D: leave"
PROMPT = "\001\033[1m\002you> \001\033[0m\002"  # readline must not count the colours


class Chat:
    """A conversation with a model.

    Args:
        llm: whose target has a chat template.
        params: of every answer.
        system: what the model is told before, or None.
        console: where the answers go.

    Raises:
        InputError: the target has no chat template.
    """

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None, console: Console
    ) -> None:
        self.llm = llm
        self.params = params
        self.console = console
        self.total = Metrics()
        self._before = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._before)
        # Says so at once, if there is no template.
        chat_prompt([{"role": "user", "content": "?"}], llm.tokenizer)

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = list(self._before)

    def answer(self, said: str) -> None:
        """Stream an answer. An interrupted one stays in the conversation as far as it went.

        Raises:
            InputError: the conversation no longer fits into the context.
        """
        asked = [*self.messages, {"role": "user", "content": said}]
        request = self.llm.request(chat_prompt(asked, self.llm.tokenizer), self.params)
        try:
            stream(self.llm, request, self.console)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
        self.total += request.metrics
        written = request.output().outputs[0].text
        self.messages = [*asked, {"role": "assistant", "content": written}]


def _lines(interactive: bool) -> str | None:
    """What the user types next; None at the end."""
    try:
        return input(PROMPT if interactive else "")
    except EOFError:
        return None


def run_chat(options: argparse.Namespace) -> int:
    """Talk until the user leaves."""
    interactive = sys.stdin.isatty()
    console = Console(color_system=None if options.no_color else "auto", highlight=False)
    with load_llm(options) as llm, _history(interactive):
        chat = Chat(llm, sampling_params(options), options.system, console)
        if interactive:
            console.print(f"{llm.target.name}, {llm.method}. {HELP}", style="dim", markup=False)
        while (said := _lines(interactive)) is not None:
            word = said.strip()
            if word in ("/quit", "/exit"):
                break
            if word == "/stats":
                console.print(summary(chat.total), markup=False)
            elif word == "/reset":
                chat.reset()
            elif word.startswith("/"):
                console.print(HELP, markup=False)
            elif word:
                try:
                    chat.answer(said)
                except InputError as error:
                    print(f"error: {error}; /reset begins a new conversation", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _history(interactive: bool) -> Iterator[None]:
    """Lines typed before, with the arrow keys, where the platform has `readline`."""
    try:
        import readline
    except ImportError:
        readline = None  # type: ignore[assignment]
    if readline is None or not interactive:
        yield
        return
    file: Path = cache_folder() / "chat-history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        readline.set_history_length(1000)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
