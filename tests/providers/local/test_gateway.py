"""The gateway: nothing is lost when it is killed, there is one, and it leaves when there is nothing to do."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from polyserve.driver import ErrorCode, Phase, Scaling
from polyserve_local.control import alive
from polyserve_local.errors import GatewayError
from polyserve_local.inventory import inventory
from polyserve_local.places import Places


def test_a_killed_gateway_loses_no_request_and_the_next_one_adopts_what_runs(world: Any) -> None:
    world.deploy()
    address = world.provider.invoker.resolve("actor")
    before, over, answers = world.instance_pids(), threading.Event(), []

    def ask() -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not over.is_set():
                answers.append(world.send(address.url, address.headers, client=client).status_code)

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        for _ in range(3):
            seen = len(answers)
            world.until(lambda seen=seen: len(answers) > seen + 20)
            world.kill_gateway()
            assert world.status().revision(1).instances == 1
        over.set()
        for each in asking:
            each.result()

    assert set(answers) == {200}
    assert world.instance_pids() == before
    assert world.provider.invoker.resolve("actor").url == address.url


def test_instances_answer_new_callers_while_there_is_no_gateway(world: Any) -> None:
    world.deploy()
    address = world.provider.invoker.resolve("actor")
    world.kill_gateway()

    with httpx.Client(trust_env=False) as fresh:
        assert world.send(address.url, address.headers, client=fresh).status_code == 200
    assert not alive(Places(world.home))


def test_callers_of_a_split_are_answered_while_there_is_no_gateway(world: Any) -> None:
    world.deploy(1)
    world.functions.apply(world.spec(2))
    assert world.settled(2).phase is Phase.READY
    world.functions.route("actor", {1: 50, 2: 50})
    address = world.provider.invoker.resolve("actor")
    world.kill_gateway()

    with httpx.Client(trust_env=False, timeout=30) as fresh:
        assert world.send(address.url, address.headers, client=fresh).status_code == 200


def test_after_a_reboot_the_next_call_finds_everything_as_it_was(world: Any) -> None:
    world.deploy()
    url = world.provider.invoker.resolve("actor").url
    gateway, instances = world.gateway_pid, world.instance_pids()
    for pid in (gateway, *instances):
        world.kill(pid)

    assert world.call().status_code == 200
    assert world.provider.invoker.resolve("actor").url == url
    assert world.status().weights == {1: 100}
    assert world.instance_pids() != instances


def test_a_stale_contact_file_that_names_another_process_is_not_believed(world: Any) -> None:
    world.deploy()
    contact = json.loads((world.home / "local/gateway.json").read_bytes())
    world.kill_gateway()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        contact["port"] = stranger.getsockname()[1]
        (world.home / "local/gateway.json").write_text(json.dumps(contact))

        assert world.status().name == "actor"
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.accept()


def test_two_gateways_that_are_started_at_once_become_one(world: Any) -> None:
    command = [sys.executable, "-m", "polyserve_local.gateway", str(world.home), "--linger", "0.2"]
    log = world.home / "racing.log"
    with log.open("w") as output:
        racing = [subprocess.Popen(command, stdout=output, stderr=output) for _ in range(4)]
        assert [process.wait(timeout=30) for process in racing] == [0] * 4

    assert log.read_text().count("gateway of") == 1
    world.deploy()
    world.functions.delete("actor")


def test_the_control_interface_needs_its_token(world: Any) -> None:
    world.deploy()
    contact = json.loads((world.home / "local/gateway.json").read_bytes())
    url = f"http://127.0.0.1:{contact['port']}/list"

    assert world.client.post(url, json={}).status_code == 401
    assert world.client.post(url, json={}, headers={"authorization": "Bearer no"}).status_code == 401
    assert (world.home / "local/gateway.json").stat().st_mode & 0o777 == 0o600


def test_the_function_needs_its_token(world: Any) -> None:
    world.deploy()
    address = world.provider.invoker.resolve("actor")

    assert world.send(address.url, {}).status_code == 401


def test_nothing_is_left_after_the_last_function_is_deleted(world: Any) -> None:
    world.deploy()
    assert world.call().status_code == 200
    world.functions.delete("actor")

    assert [line for line in inventory(world.home) if not line.startswith(("bucket", "object"))] == []
    assert [path.name for path in (world.home / "local").rglob("*")] == ["gateway.log"]
    with pytest.raises(GatewayError) as caught:
        world.status()
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_a_gateway_that_cannot_start_is_an_error_with_the_end_of_its_log(world: Any) -> None:
    world.deploy()
    world.functions.delete("actor")
    (world.home / "local/functions").mkdir()
    (world.home / "local/functions/broken.json").write_text("{")

    with pytest.raises(GatewayError, match=r"could not start(.|\n)*JSONDecodeError"):
        world.status()
    (world.home / "local/functions/broken.json").unlink()


def test_an_instance_without_a_gateway_ends_when_it_is_idle(make_world: Callable[..., Any]) -> None:
    world = make_world(idle_timeout_s=0.3)
    world.deploy(scaling=Scaling(min_instances=1))
    pid = world.until(world.instance_pids)[0]
    world.kill_gateway()

    world.until(lambda: not (world.home / f"local/run/{_instance(world, pid)}.sock").exists(), within=10)
    assert world.call().status_code == 200


def test_nothing_runs_on_where_the_home_was_removed(world: Any) -> None:
    world.deploy()
    handles = [os.pidfd_open(pid) for pid in (world.gateway_pid, *world.instance_pids())]
    shutil.rmtree(world.home)
    try:
        for handle in handles:
            assert select.select([handle], [], [], 10)[0]
    finally:
        for handle in handles:
            os.close(handle)


def test_a_caller_waits_for_the_start_of_a_gateway_no_longer_than_needed(world: Any) -> None:
    world.deploy()
    world.kill_gateway()
    begun = time.perf_counter()
    world.status()

    assert time.perf_counter() - begun < 5.0


def _instance(world: Any, pid: int) -> str:
    for path in (world.home / "local/run").glob("*.json"):
        if json.loads(path.read_bytes())["pid"] == pid:
            return path.stem
    return "gone"
