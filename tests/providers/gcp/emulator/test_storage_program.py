"""fake-gcs-server is a third party's program: only the known one is run, on loopback alone, and it ends with the emulator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from polyserve_gcp.emulator import gcs_server
from polyserve_gcp.emulator.gcs_server import FakeGcs, find_program


def test_a_program_that_is_not_the_known_one_is_not_run(
    ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs_server, "KNOWN", dict.fromkeys(gcs_server.KNOWN, "0" * 64))
    with pytest.raises(OSError, match=r"is not the known fake-gcs-server .*, and is not run"):
        ground.run(FakeGcs(tmp_path).start())
    assert not list(tmp_path.iterdir())


def test_a_machine_for_which_there_is_none_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_server.platform, "machine", lambda: "s390x")
    with pytest.raises(OSError, match="this machine is linux-s390x"):
        find_program()


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads what Linux says of sockets")
def test_it_listens_on_loopback_and_ends_when_it_is_told_to(ground: Any, tmp_path: Path) -> None:
    server = FakeGcs(tmp_path)
    ground.run(server.start())
    assert server._process is not None
    pid = server._process.pid
    sockets = {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir() if one.is_symlink()}
    heard = []
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                heard.append(fields[1].partition(":")[0])
    assert heard == ["0100007F"]
    ground.run(server.stop())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
