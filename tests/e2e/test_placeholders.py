"""Processes that stand by for an emulator: how long they stay, and what becomes of a copy that nobody waits for."""

import asyncio
import os
import select
import signal
import sys

import pytest

from polyserve.emulation.placeholders import Placeholders

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends copies with what they are copies of")

PROGRAM = """
import json, os, select, socket, sys
control = socket.socket(fileno=int(sys.argv[1]))
made = {}
while True:
    readable, _, _ = select.select([control, *made], [], [])
    for handle in set(readable) - {control}:
        _, status = os.waitpid(made[handle], 0)
        control.sendall(json.dumps({"pid": made.pop(handle), "code": os.waitstatus_to_exitcode(status)}).encode() + b"\\n")
        os.close(handle)
    if control not in readable:
        continue
    data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not data:
        break
    pid = os.fork()
    if pid == 0:
        import ctypes
        ctypes.CDLL(None).prctl(1, 9)
        os.write(descriptors[0], b"1")
        select.select([], [], [])
    os.setpgid(pid, pid)
    os.close(descriptors[0])
    made[os.pidfd_open(pid)] = pid
    control.sendall(json.dumps({"pid": pid}).encode() + b"\\n")
"""
COMMAND = [sys.executable, "-I", "-c", PROGRAM]


@pytest.fixture
def told():
    """Yield a pipe to which each copy writes one byte."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def above(process):
    """Return the process that another is a copy of."""
    with open(f"/proc/{process.pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def copies(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return set(map(int, file.read().split()))


def ends(pid):
    """Wait until a process has ended; whether it has in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 20)[0])
    finally:
        os.close(handle)


def runs(pid):
    return os.path.exists(f"/proc/{pid}")


def test_copies_are_of_one_process_and_end_with_it(tmp_path, told):
    async def main():
        placeholders = Placeholders(tmp_path / "new")
        one, other = [await placeholders.take(COMMAND, {}, [told[1]]) for _ in range(2)]
        source = above(one)
        assert above(other) == source
        assert os.readlink(f"/proc/{source}/cwd") == str(tmp_path / "new")
        one.kill()
        assert await one.gone == -signal.SIGKILL
        assert not other.gone.done()
        await placeholders.close()
        assert other.gone.result() == -signal.SIGKILL
        assert not runs(source)

    asyncio.run(main())


def test_the_one_that_was_needed_least_lately_goes_when_nothing_is_a_copy_of_it(tmp_path, told):
    async def main():
        placeholders = Placeholders(tmp_path, most=2)
        made = [await placeholders.take(COMMAND, {"NUMBER": number}, [told[1]]) for number in "12"]
        sources = [above(one) for one in made]
        third = await placeholders.take(COMMAND, {"NUMBER": "3"}, [told[1]])
        assert all(map(runs, sources))
        for one in (*made, third):
            one.kill()
            await one.gone
        fourth = await placeholders.take(COMMAND, {"NUMBER": "1"}, [told[1]])
        assert above(fourth) == sources[0]
        assert not runs(sources[1])
        await placeholders.close()

    asyncio.run(main())


def test_a_copy_that_nobody_waits_for_any_more_is_ended(tmp_path, told):
    async def main():
        placeholders = Placeholders(tmp_path)
        first = await placeholders.take(COMMAND, {}, [told[1]])
        os.kill(above(first), signal.SIGSTOP)
        asking = asyncio.ensure_future(placeholders.take(COMMAND, {}, [told[1]]))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        os.kill(above(first), signal.SIGCONT)
        third = await placeholders.take(COMMAND, {}, [told[1]])
        # Asked for in order: where the third is there, the second is or was.
        for second in copies(above(first)) - {first.pid, third.pid}:
            assert await asyncio.to_thread(ends, second)
        assert not first.gone.done()
        assert not third.gone.done()
        await placeholders.close()

    asyncio.run(main())


def test_a_command_that_does_not_run_is_an_error(tmp_path, told):
    async def main():
        placeholders = Placeholders(tmp_path)
        with pytest.raises(OSError, match="missing does not start"):
            await placeholders.take(["/missing"], {}, [told[1]])
        await placeholders.close()

    asyncio.run(main())
