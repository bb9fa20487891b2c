"""How a deployment ends: everything that was made for it goes, the record last, so that a destroy that was killed can be repeated."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from polyserve.errors import FailedPreconditionError, NotFoundError, translating
from polyserve.records import DeploymentRecord, leased, load, prefix, record_key
from polyserve.rollout import Target, describe


def destroy(target: Target, name: str) -> None:
    """Delete a deployment and all that was made for it; the record goes last, so that a destroy that was killed can be repeated.

    Raises:
        NotFoundError: There is nothing of that name.
        ConflictError: Somebody else is changing it.
    """
    provider, bucket = target.provider, target.bucket
    try:
        load(bucket, name)
    except NotFoundError:
        if not _remains(target, name):
            raise
    new = DeploymentRecord(name=name, provider=provider.info.name)
    with leased(bucket, name, "destroy", new=new) as ledger:
        ledger.save(replace(ledger.record, phase="deleting"))
        for part in ledger.record.parts:
            # It may never have been made, or been destroyed by itself.
            with suppress(NotFoundError):
                destroy(target, part)
            ledger.renew()
        try:
            with translating(provider, "delete", name):
                provider.functions.delete(name)
        except NotFoundError:
            pass  # never made, or deleted by a destroy before this one
        for meta in list(bucket.list(prefix(name))):
            if meta.key != record_key(name):
                bucket.delete(meta.key, missing_ok=True)
            ledger.renew()
        ledger.delete()
    _remove_bucket_if_empty(target)


def _remains(target: Target, name: str) -> bool:
    """Return whether a deployment without a record left anything; removes the empty bucket of a destroy that was killed at its very end."""
    if describe(target.provider, name) is not None:
        return True
    try:
        if next(iter(target.bucket.list(prefix(name))), None) is not None:
            return True
    except NotFoundError:
        return False
    _remove_bucket_if_empty(target)
    return False


def _remove_bucket_if_empty(target: Target) -> None:
    try:
        with translating(target.provider, "remove bucket", target.bucket.name):
            target.provider.remove_bucket(target.bucket.name)
    except (FailedPreconditionError, NotFoundError):
        return  # other deployments live in it, or it is gone
