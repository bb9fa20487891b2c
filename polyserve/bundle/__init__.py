"""The bundle: what one platform takes.

A model package with the runtime and the platform's entrypoint, as a zip that is the same bytes every time.
"""

from polyserve.bundle.build import ENTRYPOINT, PACKAGE, Bundle, build
from polyserve.bundle.compiling import find_python
from polyserve.bundle.placement import Fitted, fit
from polyserve.bundle.target import Target, machine

__all__ = ["ENTRYPOINT", "PACKAGE", "Bundle", "Fitted", "Target", "build", "find_python", "fit", "machine"]
