"""The process executor: several threads, waiting and large messages."""

import os
import signal
import threading
import time

import pytest

from specbranch.executors.base import PingRequest
from specbranch.executors.process import ProcessExecutor
from tests.integration.executor_workers import (
    CPUS,
    CountRequest,
    Echo,
    EchoRequest,
    KillRequest,
)


def test_requests_under_way_fail_when_their_process_is_closed(process):
    assert process.submit(PingRequest()).result() is None
    counting = process.submit(CountRequest(100))
    waiting = threading.Thread(target=counting.exception)
    waiting.start()
    process.close()
    waiting.join(20)
    assert not waiting.is_alive()
    assert str(counting.exception()) == "the draft executor was closed"


def test_a_result_can_be_awaited_for_a_while(process):
    assert process.submit(PingRequest()).result() is None
    counting = process.submit(CountRequest(30_000))
    with pytest.raises(TimeoutError):
        counting.result(timeout=0.05)
    counting.stop()
    assert counting.result(timeout=30) < 30_000
    assert not counting.cancel()


def test_large_messages_in_both_directions_do_not_block_each_other(process):
    values = [bytes([i]) * 2_000_000 for i in range(4)]
    futures = [process.submit(EchoRequest(value)) for value in values]
    assert [future.result() for future in futures] == values


def test_many_threads_share_one_process(process):
    found = {}

    def work(thread):
        futures = [process.submit(EchoRequest((thread, i))) for i in range(200)]
        # In another order than that of the replies, so that one receives for others.
        later = [future.result() for future in futures[::-2]]
        sooner = [future.result() for future in futures[::2]]
        alone = [process.submit(EchoRequest((thread, i))).result() for i in range(200)]
        found[thread] = later, sooner, alone

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for n in range(6):
        pairs = [(n, i) for i in range(200)]
        assert found[n] == (pairs[::-2], pairs[::2], pairs)


def test_a_thread_gets_its_reply_while_another_receives(process):
    """The receiver waits for a request that ends only after the other thread has its reply."""
    assert process.submit(PingRequest()).result() is None
    quick, endless = process.submit(CountRequest(50)), process.submit(CountRequest(1_000_000))
    receiver = threading.Thread(target=endless.exception, daemon=True)
    receiver.start()
    assert quick.result() == 50
    endless.stop()
    receiver.join(60)
    assert endless.result() < 1_000_000


def test_an_error_reaches_all_threads(process):
    assert process.submit(PingRequest()).result() is None
    futures = [process.submit(KillRequest()), *(process.submit(PingRequest()) for _ in range(3))]
    found = []
    threads = [
        threading.Thread(target=lambda f=future: found.append(f.exception()), daemon=True)
        for future in futures
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [str(error) for error in found] == [
        "the draft executor died: its process was killed (out of memory?)"
    ] * 4


def test_a_fork_does_not_keep_the_process_alive(tmp_path):
    executor = ProcessExecutor(Echo, "draft", CPUS, timeout=30)
    assert executor.submit(PingRequest()).result() is None
    process = executor._process
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        executor._channel.close()  # as the end of this program would
        assert process.wait(timeout=20) == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        executor._process.wait()
