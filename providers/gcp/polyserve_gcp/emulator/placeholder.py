"""What runs in a placeholder: Python, with what functions-framework imports before it comes to the function.

This is not imported but run, by the function's own interpreter and with the function's search path, of which it is no part. Each
copy of it becomes an instance: a process that cannot tell that `functions-framework` was not started in it just now. So nothing
of functions-framework or gunicorn is imported here, which read the environment when they are. `polyserve.emulation.copies` runs it and
makes the copies; the argument names the script.

All copies have the seed of `hash` in common, as the workers of one instance do; `random` seeds itself anew in each.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import logging
import os
import site
import sys
import time
from typing import Any

PRELOADED = """
logging.config random string cloudevents.exceptions flask werkzeug cloudevents.http cloudevents.http.event werkzeug.local click
"""
"""What functions-framework itself imports, in its order, and is not its own: nothing that an instance would not import."""


def _become(plan: int, *outputs: int) -> None:
    """Become the instance that the plan says."""
    with open(plan, encoding="utf-8") as file:
        told: dict[str, Any] = json.load(file)
    for number, output in enumerate(outputs, start=1):
        os.dup2(output, number)
        os.close(output)
    os.chdir(told["root"])
    os.environ.clear()
    os.environ.update(told["variables"])
    time.tzset()
    # What Python looks up when it starts, and what is counted from then on.
    site.USER_BASE = site.USER_SITE = None
    site.getusersitepackages()
    logging._startTime = time.time_ns() if sys.version_info >= (3, 13) else time.time()  # type: ignore[attr-defined]
    sys.orig_argv = told["command"]
    sys.argv = told["command"][1:]


def _run(script: str) -> None:
    """Run the script as `__main__`, as the interpreter would have."""
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec", dont_inherit=True)
    names = sys.modules["__main__"].__dict__
    for name in [name for name in names if not name.startswith("__")]:
        del names[name]
    names.update(__file__=script, __cached__=None, __loader__=importlib.machinery.SourceFileLoader("__main__", script))
    try:
        exec(code, names)  # noqa: S102 - as the interpreter does
        return
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        # What is printed begins with the script.
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
    sys.exit(1)


def prepare(script: str) -> None:
    """Import what functions-framework will, with the search path that its script has."""
    sys.path.insert(0, script.rpartition("/")[0])
    # What cannot be imported is said by an instance that starts from nothing.
    for name in PRELOADED.split():
        importlib.import_module(name)


def become(descriptors: list[int], script: str) -> None:
    """Become an instance: run the script as the plan says."""
    _become(*descriptors)
    _run(script)
