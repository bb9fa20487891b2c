"""What every test may touch, and the proof that it leaves nothing behind.

A test's tier is the first directory below `tests/`, and a tier is what its tests may touch:

    unit                                    no network, no child process
    contract, providers, e2e, architecture  loopback and Unix sockets
    benchmarks                              the same
    live                                    real accounts; opt-in with `-m live`

An audit hook watches this process, whatever library makes the call. Programs that a test starts are not watched, but
none may outlive its test. Every test has its own HOME, POLYSERVE_HOME and POLYSERVE_CACHE, so that none sees or changes
the developer's.
"""

import ipaddress
import os
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import hypothesis
import pytest

# onnxruntime calls its maker from the moment it is imported. polyserve turns that off, but tests import it by themselves too.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

TESTS = Path(__file__).resolve().parent
TIERS = {"unit", "contract", "providers", "e2e", "architecture", "benchmarks", "live"}
FRAMEWORKS = ("tensorflow", "torch")
"""What takes seconds to import; it is in the names of the modules of tests that do."""
ELSEWHERE = "it belongs into tests/contract, tests/providers or tests/e2e"
# What an emulator installs (Azurite: 190 MB in 20 s) is the same for every test: exact versions, which nothing changes.
_CACHE = os.environ.get("POLYSERVE_CACHE") or Path.home() / ".cache" / "polyserve"
EMULATORS = os.environ.get("POLYSERVE_EMULATORS") or str(Path(_CACHE).absolute() / "emulators")
PATIENCE_S = 10.0
"""How long a process that is on its way out may take before it counts as left behind."""

# Two cores that other processes share make any deadline a coin toss. In CI the examples are the same on every run.
hypothesis.settings.register_profile("polyserve", deadline=None, database=None)
hypothesis.settings.register_profile("ci", deadline=None, database=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "polyserve")


class ForbiddenTouch(BaseException):
    """A test touched what its tier may not. Not an `Exception`: code under test must not take it for a failed call."""


class Guard:
    """The rules of the tier that runs now, and what broke them."""

    def __init__(self) -> None:
        self.tier = ""
        self.broken: list[str] = []

    def watch(self, event: str, args: tuple[object, ...]) -> None:
        """Look at one audit event; everything but the few below leaves at once."""
        judge = _JUDGES.get(event)
        if judge is None or self.tier in {"", "live"}:
            return
        reason = judge(self.tier, args)
        if reason:
            self.broken.append(reason)
            raise ForbiddenTouch(reason)


def _loopback(host: object) -> bool:
    """Whether a host means this machine without asking anybody."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _judge_address(tier: str, args: tuple[object, ...]) -> str | None:
    address = args[1]
    if tier == "unit":
        return f"tests/unit touches no network, and this test used {address!r}: {ELSEWHERE}"
    if isinstance(address, tuple) and not _loopback(address[0]):
        return f"tests never leave loopback, and this test used {address!r}: bind and connect to 127.0.0.1 or ::1"
    return None


def _judge_name(tier: str, args: tuple[object, ...]) -> str | None:
    return None if _loopback(args[0]) else f"tests never leave loopback, and this test looked up {args[0]!r}"


def _judge_process(tier: str, args: tuple[object, ...]) -> str | None:
    if tier == "unit":
        return f"tests/unit starts no process, and this test did: {ELSEWHERE}"
    return None


_JUDGES: dict[str, Callable[[str, tuple[object, ...]], str | None]] = {
    "socket.bind": _judge_address,
    "socket.connect": _judge_address,
    "socket.sendto": _judge_address,
    "socket.getaddrinfo": _judge_name,
    "socket.gethostbyname": _judge_name,
    "subprocess.Popen": _judge_process,
    "os.posix_spawn": _judge_process,
    "os.fork": _judge_process,
    "os.system": _judge_process,
}
GUARD = Guard()
sys.addaudithook(GUARD.watch)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Hold a test, and the fixtures made for it, to the rules of its tier."""
    relative = item.path.relative_to(TESTS) if item.path.is_relative_to(TESTS) else Path("contract")
    GUARD.tier = relative.parts[0]
    try:
        return (yield)
    finally:
        GUARD.tier = ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Iterator[None]:
    """Let what belongs to the whole session be ended after the last test, of whichever tier that is."""
    if nextitem is None:
        GUARD.tier = ""
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one worker run all of a module: what its tests import and make first takes seconds, and is made once.

    The same goes for the modules of one framework. The suites that run over every provider are shared out test by test: each of them takes
    minutes, and every worker has its emulators.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = Path(nodeid.partition("::")[0])
            if "contract" in module.parts:
                return nodeid
            return next((framework for framework in FRAMEWORKS if framework in module.stem), str(module))

    return ByModule(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test outside the tiers: nobody could say what it may touch."""
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else "contract"
        if tier not in TIERS:
            raise pytest.UsageError(f"{item.nodeid} is in no tier: move it to one of {', '.join(sorted(TIERS))}")


def _environment(root: Path) -> dict[str, str]:
    """Make the directories of a home and return the variables that lead there."""
    variables = {
        "HOME": root / "u",
        "POLYSERVE_HOME": root / "h",
        "POLYSERVE_CACHE": root / "c",
        "TMPDIR": root / "t",
        "XDG_CACHE_HOME": root / "u" / ".cache",
        "XDG_CONFIG_HOME": root / "u" / ".config",
        # PyTorch's compiler makes its directory below TMPDIR else, whenever something first asks for it.
        "TORCHINDUCTOR_CACHE_DIR": root / "u" / ".cache" / "torchinductor",
    }
    for name in ("HOME", "TMPDIR"):
        variables[name].mkdir(parents=True)
    # scikit-learn counts physical cores by running lscpu; told how many it may use, it starts no process.
    return {name: str(path) for name, path in variables.items()} | {
        "LOKY_MAX_CPU_COUNT": "1",
        "POLYSERVE_EMULATORS": EMULATORS,
    }


def _replace_environment(root: Path) -> dict[str, str]:
    """Point this process at a home; returns the environment as it was."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("POLYSERVE_")]:
        del os.environ[name]
    os.environ.update(_environment(root))
    tempfile.tempdir = None  # it remembers the first TMPDIR it saw
    return before


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)
    tempfile.tempdir = None


@pytest.fixture(scope="session", autouse=True)
def session_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the directory below which this run happens; short, because a Unix socket's path has 107 bytes at most."""
    tmp_path_factory.getbasetemp()  # pytest's own directories stay where they are kept after the run
    root = Path(tempfile.mkdtemp(prefix="ps-", dir="/tmp" if Path("/tmp").is_dir() else None))
    before = _replace_environment(root / "s")
    yield root
    _restore_environment(before)
    left = _end_processes(str(root))
    shutil.rmtree(root, ignore_errors=True)
    if left:
        pytest.fail("the run left these processes behind: " + "; ".join(left))


_numbers = count(1)


@pytest.fixture(autouse=True)
def isolation(session_root: Path) -> Iterator[Path]:
    """Give the test a home of its own; fail it where it leaves a process or a temporary file, or broke its tier."""
    del GUARD.broken[:]
    root = session_root / str(next(_numbers))
    before, others = _replace_environment(root), _pids()
    yield root
    temporary = sorted(path.name for path in (root / "t").iterdir())
    _restore_environment(before)
    # A unit test cannot have started one: the guard would have refused.
    left = [] if GUARD.tier == "unit" else _end_processes(f"{root}/", others)
    shutil.rmtree(root, ignore_errors=True)
    if GUARD.broken:
        pytest.fail(GUARD.broken[0])
    if left:
        pytest.fail("the test left these processes behind: " + "; ".join(left))
    if temporary:
        pytest.fail(f"the test left temporary files behind: {', '.join(temporary)}")


def _pids() -> frozenset[int]:
    """Return all processes; none where it is not Linux: nowhere else can the environment of a process be read without a tool."""
    if not Path("/proc/self/environ").exists():
        return frozenset()
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())


def _processes_of(root: str, others: frozenset[int] = frozenset()) -> dict[int, str]:
    """Return the command of every process, daemons included, with `root` in its environment, arguments or directory.

    `others` are not asked.
    """
    found = {}
    needle = root.encode()
    for pid in _pids() - others - {os.getpid()}:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            traces = arguments + b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            inside = needle in traces or f"{os.readlink(f'/proc/{pid}/cwd')}/".startswith(root)
        except OSError:
            continue  # gone meanwhile, or another user's
        if inside and arguments:  # a zombie has no arguments, and holds nothing but its number
            found[pid] = arguments.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return found


def _end_processes(root: str, others: frozenset[int] = frozenset()) -> list[str]:
    """Wait for the processes of a home to end, kill those that do not, and describe the killed.

    Args:
        root: The home.
        others: Who was there before it, and so is none of them: to ask every process takes as long as many a test.
    """
    found = _processes_of(root, others)
    if not found:
        return []  # nearly always, and none of these could start another
    for pid in found:
        _ends(pid, PATIENCE_S)
    left: dict[int, str] = {}
    for _ in range(20):  # a supervisor may start another while its children are killed
        remaining = _processes_of(root, others)
        if not remaining:
            break
        left.update(remaining)
        for pid in remaining:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            _ends(pid, PATIENCE_S)
    return [f"{pid} ({command[:160]})" for pid, command in left.items()]


def _ends(pid: int, patience_s: float) -> bool:
    """Wait until a process has ended; it need not be a child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience_s)[0])
    finally:
        os.close(handle)


# --- providers, ready to be tested ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def harness_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Open the harness of a provider, with other settings where some are given: one emulator of each for the whole run of a process."""
    opened: dict[str, Any] = {}

    def harness_of(name: str, **changed: Any) -> Any:
        key = f"{name} {sorted(changed.items())}"
        if key not in opened:
            path = TESTS / "providers" / name / "harness.py"
            if not path.exists():
                pytest.fail(
                    f"provider {name!r} has no harness: write tests/providers/{name}/harness.py with open_harness()"
                )
            spec = spec_from_file_location(f"harness_of_{name}", path)
            assert spec is not None
            assert spec.loader is not None
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            # Not below pytest's own directory: paths of unix sockets are short.
            opened[key] = module.open_harness(tmp_path_factory.mktemp(name), **changed)
        return opened[key]

    yield harness_of
    for harness in opened.values():
        harness.close()


# --- small trained models, modules of a made-up user, and a client without a network; imported by those who ask for them ---------------


@pytest.fixture(scope="session")
def iris() -> tuple[Any, Any]:
    """Return rows and labels of a small data set."""
    from sklearn.datasets import load_iris

    return load_iris(return_X_y=True)


@pytest.fixture(scope="session")
def forest(iris: tuple[Any, Any]) -> Any:
    """Return a small forest."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(8, random_state=0).fit(*iris)


@pytest.fixture(scope="session")
def regression(iris: tuple[Any, Any]) -> Any:
    """Return a small linear classifier."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=200).fit(*iris)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Write modules into a directory on sys.path, by path without suffix; forget them afterwards."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))

    def write(sources: dict[str, str]) -> Path:
        for name, source in sources.items():
            file = root / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(dedent(source))
        return root

    yield write
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def ask() -> Callable[..., dict[str, Any]]:
    """Send a value to a package as a client would, and return the answer's arrays by name."""
    from polyserve.exchange import encode
    from polyserve.runtime import protocol
    from polyserve.runtime.host import Host
    from polyserve.runtime.messages import Request

    def ask(made: Any, value: object, outputs: Any = None) -> dict[str, Any]:
        host = Host(made.root, sink=lambda line: None)
        host.load()
        body, headers = encode(value, made.signature, outputs)
        response = host.handle(Request(path=f"/v2/models/{made.name}/infer", headers=headers, body=body))
        assert response.status == 200, response.body
        if (golden := made.golden_request()) is not None:
            assert made.difference(host.handle(golden)) is None
        tensors, _ = protocol.parse_response(response.body, response.headers)
        described = {spec.name: spec for spec in made.signature.outputs}
        for tensor in tensors:
            tensor.parameters = described[tensor.name].parameters
            assert tensor.datatype == described[tensor.name].datatype
        return {tensor.name: tensor.numpy() for tensor in tensors}

    return ask
