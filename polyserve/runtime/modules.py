"""The user's own modules: imported from the source that travels in a package, and from nothing else there.

Byte-code beside the source is neither read nor written: it is not among the digested files, so it could be anybody's, and a
package directory that changes is a package that no longer verifies.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType

CODE = "code"
"""Directory of the user's modules within a package."""


class _SourceOnlyLoader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def add(root: Path) -> None:
    """Make the modules of a package importable, before any other; nothing where it brings none. Idempotent."""
    code = os.path.realpath(root / CODE)
    if not os.path.isdir(code) or code in sys.path:
        return
    below = code + os.sep

    def finder(path: str) -> FileFinder:
        if path != code and not path.startswith(below):
            raise ImportError("not of this package", path=path)
        return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_SourceOnlyLoader, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, finder)
    sys.path_importer_cache.pop(code, None)
    sys.path.insert(0, code)
    importlib.invalidate_caches()
