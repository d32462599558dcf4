"""llama.cpp's own server: plain, or with its speculative decoding by a draft model.

Times are those of the whole request over the loopback interface.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing

from serving import Generate, read_options, serve


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """The process, and what it is asked."""

    def __init__(self, command: list[str]) -> None:
        port = free_port()
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        self._address = f"127.0.0.1:{port}"
        while not self._ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self._process.returncode}")
            time.sleep(0.1)

    def ask(self, what: dict[str, object]) -> dict[str, list[int]]:
        status, said = self._request("POST", "/completion", json.dumps(what))
        if status != http.client.OK:
            raise RuntimeError(f"llama-server: {said}")
        return json.loads(said)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _ready(self) -> bool:
        try:
            return self._request("GET", "/health")[0] == http.client.OK
        except OSError:
            return False

    def _request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        # A connection for each: the server closes one that was silent while this peer was stopped.
        with closing(http.client.HTTPConnection(self._address)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


def load(command: list[str], stack: ExitStack) -> tuple[str, Generate]:
    server = stack.enter_context(closing(Server(command)))
    told = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=True)
    version = told.stderr.splitlines()[0].removeprefix("version: ")

    def generate(ids: list[int], count: int) -> list[int]:
        asked = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True}
        return server.ask(asked | {"cache_prompt": False})["tokens"]

    return version, generate


def main() -> None:
    options = read_options(
        __doc__, "binary", "target", "--draft", "--count", "--cache", "--context", "--threads"
    )
    threads = str(options.threads)
    command = [options.binary, "-m", options.target, "-c", str(options.context), "-np", "1"]
    command += ["-t", threads, "-ctk", options.cache, "-ctv", options.cache, "--no-ui"]
    command += ["--cache-ram", "0"]  # no copies of earlier prompts' keys and values
    if options.draft:
        command += ["-md", options.draft, "--spec-type", "draft-simple", "-td", threads]
        command += ["-ctkd", options.cache, "-ctvd", options.cache]
        command += ["--spec-draft-n-max", str(options.count)]
    with ExitStack() as stack:
        serve(lambda: load(command, stack))


if __name__ == "__main__":
    main()
