"""Emulators of providers on this machine: what finds, starts and stops them, and what they are made of.

`control` is the side of polyserve. `http`, `lifeline`, `placeholders` (with `copies`) and `process` are the side of the emulators, which
take these of polyserve and nothing else: one that mirrors our own client would prove nothing.
"""

from polyserve.emulation.control import Emulator, home_directory, running, start, stop

__all__ = ["Emulator", "home_directory", "running", "start", "stop"]
