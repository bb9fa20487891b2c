"""scikit-learn: the pickle, packed tighter. Nothing in it is rounded, so every answer stays the same to the bit."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

from polyserve.errors import PackageError
from polyserve.model.compress.method import Method
from polyserve.model.deriving import Change
from polyserve.model.storage import ModelPackage
from polyserve.runtime.tensors import Tensor


def _lossless(original: ModelPackage, root: Path, rows: Sequence[Tensor]) -> Change:
    del rows
    loader = original.manifest.loader
    if loader["format"] != "pickle" or "compression" in loader:
        message = f"package {original.name!r} holds a compressed file already, so there is nothing to pack tighter"
        raise PackageError(message, operation="compress", resource=original.name)
    path = root / str(loader["path"])
    packed = path.with_name(f"{path.name}.xz")
    # xz and not gzip: its bytes depend on no machine's build of zlib, and it packs the nodes of trees twice as tight.
    packed.write_bytes(lzma.compress(path.read_bytes(), check=lzma.CHECK_CRC32, preset=6))
    path.unlink()
    return Change(loader={**loader, "path": f"{loader['path']}.xz", "compression": "xz"})


METHODS = {
    "lossless": Method(title="the pickle packed with xz: same answers, smaller file", shrink=_lossless, lossless=True)
}
