"""Instances are copies of a process that has imported the framework's packages, and cannot tell."""

import os
import signal
import sys

import pytest
from google.api_core.exceptions import GoogleAPICallError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends copies with what they are copies of")

TELLER = '''
"""Tells what an instance finds out about itself."""
import json, logging, os, random, signal, site, sys, tempfile, time, uuid

MODULES = sorted(sys.modules)
DESCRIPTORS = sorted(os.listdir("/proc/self/fd"), key=int)
TIME = logging.LogRecord("", 0, "", 0, "", (), None).relativeCreated


def act(request):
    main = sys.modules["__main__"]
    loaded = {name: str(getattr(found, "__file__", "")) for name, found in list(sys.modules.items())}
    return json.dumps({
        "alike": {
            "arguments": sys.argv, "original": sys.orig_argv, "executable": sys.executable, "prefix": sys.prefix, "search": sys.path,
            "main": {name: str(value).partition(" object at ")[0] for name, value in vars(main).items() if name != "__builtins__"},
            "modules": MODULES, "files": loaded, "descriptors": DESCRIPTORS, "flags": str(sys.flags), "directory": os.getcwd(),
            "output": [sys.stdout.seekable(), sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering],
            "input": os.readlink("/proc/self/fd/0"), "umask": os.umask(0o022), "zone": time.tzname,
            "signals": {str(one): str(signal.getsignal(one)) for one in (signal.SIGCHLD, signal.SIGPIPE)},
            "site": site.USER_SITE.removeprefix(os.environ["HOME"]), "young": TIME < 30000,
            "leads": os.getsid(0) == os.getpgid(0) == os.getppid(),
        },
        "pid": os.getpid(), "instance": os.getppid(), "environment": dict(os.environ), "temporary": tempfile.gettempdir(),
        "drawn": [random.random(), str(uuid.uuid4())], "seed": hash("seed"), "outputs": [os.readlink(f"/proc/self/fd/{n}") for n in (1, 2)],
    })
'''
DEPRECATION = "WHOSE = 'mine'\ndef deprecated(**details):\n    return lambda function: function\n"
SINCE_START = {"_ctypes", "ctypes", "ctypes._endian", "gc", "signal"}
"""What a placeholder needs itself; gunicorn imports it later than a function can look."""


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def placeholder_of(emulator, made):
    """Return the process that a function's only instance is a copy of; 0 where it was started from nothing."""
    (instance,) = emulator.instances(made.service)
    above = parent(instance)
    return 0 if above == os.getpid() else above


def printed(cloud, name):
    """Return the lines that a service's instances have printed to the other stream."""
    wanted = f'resource.labels.service_name="{name}" AND logName:"stderr"'
    body = {"resourceNames": ["projects/polyserve-emulated"], "filter": wanted}
    return [
        entry["textPayload"] for entry in cloud.rest("logging", "POST", "/v2/entries:list", json=body).json()["entries"]
    ]


@pytest.fixture(scope="module")
def layered(pack):
    """Return what makes a function that asks for a package of its own in place of one of the framework's."""

    def make(text, **files):
        start = "deprecation-9.0.dist-info"
        wheel = pack(
            {
                "deprecation.py": text,
                f"{start}/METADATA": "Metadata-Version: 2.1\nName: deprecation\nVersion: 9.0\n",
                f"{start}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                f"{start}/RECORD": "",
                **files,
            }
        )
        main = "import cloudevents.http, deprecation\ndef act(request):\n    return deprecation.WHOSE"
        name = "deprecation-9.0-py3-none-any.whl"
        return pack({"main.py": main, "requirements.txt": f"./{name}\n", name: wheel})

    return make


@pytest.fixture(scope="module")
def copied(cloud, pack):
    """Return a function whose instance is a copy."""
    return cloud.make(pack({"main.py": TELLER}), environment_variables={"WHO": "copied", "TZ": "Asia/Tokyo"})


def test_a_copy_cannot_tell_that_it_was_not_started_from_nothing(cloud, emulator, pack, copied):
    # Python reads such variables when it starts, so this one is no copy.
    variables = {"WHO": "started", "TZ": "Asia/Tokyo", "PYTHONNOTHING": "1"}
    started = cloud.make(pack({"main.py": TELLER}), environment_variables=variables)
    assert placeholder_of(emulator, started) == 0
    assert placeholder_of(emulator, copied) > 0
    one, other = copied.call().json(), started.call().json()
    assert set(one["alike"].pop("modules")) - SINCE_START == set(other["alike"].pop("modules")) - SINCE_START
    for name in SINCE_START:
        one["alike"]["files"].pop(name, ""), other["alike"]["files"].pop(name, "")
    assert one["alike"] == other["alike"]
    assert one["alike"]["zone"] == ["JST", "JST"]
    assert len(one["environment"]) == len(other["environment"]) - 1
    assert {link.partition(":")[0] for link in one["outputs"]} == {"pipe"}
    assert len(set(one["outputs"])) == 2


def test_copies_of_one_process_have_nothing_of_one_another(cloud, emulator, pack, copied):
    second = cloud.make(pack({"main.py": TELLER}), environment_variables={"ONLY": "second"})
    assert placeholder_of(emulator, second) == placeholder_of(emulator, copied) > 0
    one, other = copied.call().json(), second.call().json()
    assert one["seed"] == other["seed"]
    assert set(one["drawn"]).isdisjoint(other["drawn"])
    assert (one["environment"]["WHO"], other["environment"]["ONLY"]) == ("copied", "second")
    assert {"WHO", "TZ"}.isdisjoint(other["environment"])
    assert other["alike"]["zone"] == ["UTC", "UTC"]
    for found in (one, other):
        assert found["environment"]["TMPDIR"] == found["environment"]["HOME"] == found["temporary"]
    assert one["temporary"] != other["temporary"]
    assert one["outputs"][0] != other["outputs"][0]


def test_an_update_is_a_copy_with_what_is_new(cloud, emulator, pack):
    made = cloud.make(pack({"main.py": TELLER}), environment_variables={"ROUND": "1"})
    before = made.call().json()
    made.update(environment_variables={"ROUND": "2"})
    after = made.call().json()
    assert (before["environment"]["ROUND"], after["environment"]["ROUND"]) == ("1", "2")
    assert before["environment"]["K_REVISION"] != after["environment"]["K_REVISION"]
    assert before["instance"] != after["instance"]
    assert before["drawn"] != after["drawn"]


def test_what_a_function_raises_when_it_is_imported_is_printed_as_python_does(cloud, pack):
    name = cloud.name()
    with pytest.raises(GoogleAPICallError, match=r"Container called exit\(1\)\."):
        cloud.make(pack({"main.py": "raise ValueError('broken at once')\ndef act(request): ..."}), name)
    lines = printed(cloud, name)
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].strip().endswith('bin/functions-framework", line 8, in <module>')
    assert lines[-1] == "ValueError: broken at once"


def test_a_copy_that_ends_by_itself_says_how(cloud, pack):
    with pytest.raises(GoogleAPICallError, match=r"Container called exit\(7\)\."):
        cloud.make(pack({"main.py": "import sys\nsys.exit(7)\ndef act(request): ..."}))


def test_packages_that_a_function_asks_for_come_before_the_frameworks(cloud, emulator, layered):
    made = cloud.make(layered(DEPRECATION))
    assert placeholder_of(emulator, made) > 0
    assert made.call().text == "mine"


def test_another_process_takes_the_place_of_one_that_has_ended(cloud, emulator, layered, eventually):
    made = cloud.make(layered(DEPRECATION))
    before = placeholder_of(emulator, made)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: not emulator.instances(made.service))
    assert made.call().text == "mine"
    assert placeholder_of(emulator, made) not in {0, before}


def test_an_instance_starts_from_nothing_where_what_it_would_copy_does_not_answer(
    cloud, emulator, layered, monkeypatch
):
    first = cloud.make(layered(DEPRECATION))
    os.kill(placeholder_of(emulator, first), signal.SIGSTOP)
    monkeypatch.setattr("polyserve.emulation.placeholders.PATIENCE_S", 0.2)
    second = cloud.make(layered(DEPRECATION))
    assert placeholder_of(emulator, second) == 0
    assert second.call().text == "mine"
    assert first.call().text == "mine"


def test_an_instance_starts_from_nothing_where_nothing_can_be_made_ready(cloud, emulator, layered):
    # It ends in a process that is no instance yet.
    made = cloud.make(layered(f"import os\n'PORT' in os.environ or os._exit(3)\n{DEPRECATION}"))
    assert placeholder_of(emulator, made) == 0
    assert made.call().text == "mine"


def test_an_instance_starts_from_nothing_where_python_is_customised(cloud, emulator, layered):
    made = cloud.make(layered(DEPRECATION, **{"sitecustomize.py": "import os\nos.environ['PORT'] + '0'"}))
    assert placeholder_of(emulator, made) == 0
    assert made.call().text == "mine"
