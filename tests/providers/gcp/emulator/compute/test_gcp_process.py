"""The emulator as a program: `python -m polyserve_gcp.emulator DIRECTORY`."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from google.auth.transport.requests import Request
from google.cloud import functions_v2
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


@pytest.fixture
def program(tmp_path):
    """Yield a started program, and what it says in `ready.json`."""
    command = [sys.executable, "-m", "polyserve_gcp.emulator", str(tmp_path), "--settle", "0.02", "--idle", "5"]
    process = subprocess.Popen(command)
    ready = tmp_path / "ready.json"
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, "it ended before it was ready"
        assert time.monotonic() < deadline, "it does not start"
        select.select([], [], [], 0.01)
    yield process, json.loads(ready.read_bytes())
    process.kill()
    process.wait()


def deploy(options, source):
    """Deploy a function to an emulator of which nothing is known but its options; returns its process."""
    credentials = service_account.Credentials.from_service_account_file(options["credentials_file"], scopes=SCOPES)
    # What the account's credentials do beside that, google-auth does with Google.
    credentials.refresh(Request())
    credentials = Credentials(credentials.token)
    endpoint = options["endpoints"]["cloudfunctions.googleapis.com"]
    with functions_v2.FunctionServiceClient(
        credentials=credentials, transport="rest", client_options={"api_endpoint": endpoint}
    ) as client:
        parent = f"projects/{options['project']}/locations/{options['region']}"
        given = client.generate_upload_url(request={"parent": parent})
        httpx.put(given.upload_url, content=source(), headers={"content-type": "application/zip"}).raise_for_status()
        build = {
            "runtime": f"python{sys.version_info.major}{sys.version_info.minor}", "entry_point": "act",
            "source": {"storage_source": given.storage_source},
        }  # fmt: skip
        made = client.create_function(
            parent=parent, function_id="program", function=functions_v2.Function(build_config=build)
        ).result(timeout=60)
    token = service_account.IDTokenCredentials.from_service_account_file(
        options["credentials_file"], target_audience=made.url
    )
    token.refresh(Request())
    return int(httpx.post(made.url, headers={"authorization": f"Bearer {token.token}"}).json()["pid"])


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_the_program_serves_until_it_is_told_to_end_and_takes_its_instances_with_it(program, source, eventually):
    process, found = program
    assert found["pid"] == process.pid
    assert found["url"] == found["options"]["endpoints"]["cloudfunctions.googleapis.com"]
    assert found["grpc"].startswith("127.0.0.1:")
    assert {"storage", "cloudfunctions", "run", "logging", "oauth2", "iam", "iamcredentials"} <= {
        host.partition(".")[0] for host in found["options"]["endpoints"]
    }
    instance = deploy(found["options"], source)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    assert not [name for name in os.listdir(os.path.dirname(found["options"]["credentials_file"])) if "ready" in name]
    eventually(lambda: gone(instance))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_instances_do_not_outlive_a_program_that_is_killed(program, source, eventually):
    process, found = program
    instance = deploy(found["options"], source)
    process.kill()
    process.wait()
    eventually(lambda: gone(instance))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_what_instances_are_copies_of_does_not_outlive_a_program_that_is_killed(program, source, eventually):
    process, found = program
    line = [deploy(found["options"], source)]
    while line[-1] != process.pid:
        with open(f"/proc/{line[-1]}/stat") as file:
            line.append(int(file.read().rpartition(")")[2].split()[1]))
    # A worker, its instance, and what that is a copy of.
    assert len(line) == 4
    process.kill()
    process.wait()
    eventually(lambda: all(gone(one) for one in line))


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "polyserve_gcp.emulator", str(tmp_path), "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "cannot start" in ended.stderr
