"""The verbs users call: a few lines each over the portable types.

Finds the provider that the settings name and puts the retrying layer around it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyserve import emulation, registry
from polyserve.bucket import Bucket
from polyserve.comparison import Comparison, compare
from polyserve.deployment import Deployment
from polyserve.driver import Scaling
from polyserve.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from polyserve.grouping import deploying, roll_out_group
from polyserve.layers.fronting import fronted
from polyserve.layers.retrying import retrying
from polyserve.model import ModelPackage, package
from polyserve.model.compress import compress
from polyserve.model.partition import partition, parts_of
from polyserve.planner import Desired, Plan
from polyserve.planner import plan as _plan
from polyserve.records import load, names
from polyserve.rollout import Event, Target, desire, observe, roll_out
from polyserve.settings import Settings, resolve
from polyserve.standing import DeploymentStatus, status_of
from polyserve.teardown import destroy as _destroy

if TYPE_CHECKING:
    from polyserve.bundle import Bundle

LOCAL = "local"
"""The provider that runs on this machine anyway, so that there is nothing to emulate."""

_ASKED = ("memory_mb", "min_instances", "max_instances", "environment", "slim", "architecture", "python")
"""Portable settings that are arguments of `deploy` under their own name."""

__all__ = [
    "compress",
    "connect",
    "deploy",
    "destroy",
    "diff",
    "list_deployments",
    "open_bucket",
    "package",
    "partition",
    "plan",
]


def plan(
    model: object,
    *,
    name: str | None = None,
    provider: str | None = None,
    profile: str | None = None,
    emulate: bool | None = None,
    on_event: Callable[[Event], None] | None = None,
    **asked: Any,
) -> Plan:
    """Return what `deploy` with the same arguments would do. Changes nothing.

    Args:
        model: As `deploy`.
        name: As `deploy`.
        provider: As `deploy`.
        profile: As `deploy`.
        emulate: As `deploy`.
        on_event: Called while the bundle is built, where that takes long.
        **asked: Everything else that `deploy` takes.

    Raises:
        PackageError: The model cannot become a package.
        SettingsError: A setting does not validate.
        PolyserveError: The provider does not answer.
    """
    settings = _settings(provider, profile, asked, emulate)
    target = _target(settings)
    try:
        packaged = _packaged(model, name, asked)
        if parts := parts_of(packaged):
            message = f"{packaged.name!r} is deployed as a group of {len(parts)} parts: plan a part, such as {str(parts[0].root)!r}"
            raise UnsupportedError(message, operation="plan", resource=packaged.name)
        desired, _ = _desired(packaged, name, settings, target, asked, on_event=on_event)
        permissions = target.provider.functions.permissions(desired.spec(1))
        return _plan(desired, observe(target, desired), permissions=permissions)
    finally:
        target.provider.close()


def policy(
    model: object, *, name: str | None = None, provider: str | None = None, profile: str | None = None, **asked: Any
) -> Mapping[str, Any]:
    """Return what `deploy` with the same arguments must be allowed to do, as the provider's own policy document. Calls nobody.

    Args:
        model: As `deploy`.
        name: As `deploy`.
        provider: As `deploy`.
        profile: As `deploy`.
        **asked: Everything else that `deploy` takes.

    Raises:
        PackageError: The model cannot become a package.
        SettingsError: A setting does not validate.
        UnsupportedError: The provider has no such documents.
    """
    settings = _settings(provider, profile, asked, False)
    target = _target(settings)
    try:
        packaged = _packaged(model, name, asked)
        # Not what a deploy would find there: who asks this may not be allowed to look yet.
        desired, _ = desire(
            packaged,
            target,
            name=name or packaged.name,
            model_in_bucket_mb=settings.model_in_bucket_mb,
            architecture=settings.architecture,
            slim=settings.slim,
        )
        document = target.provider.functions.policy(desired.spec(1))
    finally:
        target.provider.close()
    if not document:
        info = target.provider.info
        message = f"{info.title} has no policy documents: `polyserve plan` lists the permissions that it takes"
        raise UnsupportedError(message, provider=info.name, operation="policy", resource=desired.name)
    return document


def deploy(
    model: object,
    *,
    name: str | None = None,
    provider: str | None = None,
    profile: str | None = None,
    emulate: bool | None = None,
    sample: object = None,
    compile: str = "auto",  # noqa: A002 - the word that the command line has for it
    memory_mb: int | None = None,
    timeout: timedelta | float | None = None,
    min_instances: int | None = None,
    max_instances: int | None = None,
    environment: Mapping[str, str] | None = None,
    canary: int | None = None,
    slim: str | None = None,
    architecture: str | None = None,
    python: str | None = None,
    options: Mapping[str, object] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Deployment:
    """Make a deployment serve a model, and return it once the model answers there as it does here.

    The same call again changes nothing; after a failure or a kill it goes on from where it was.

    Args:
        model: A fitted estimator, a callable, a predictor class, a `ModelPackage`, a path to any of them, or `"module:attribute"`. What
            `partition` made becomes a group: a deployment for each part, `NAME-part-1` and so on, and one by this name that is
            invoked and destroyed as one.
        name: The deployment's name; by default the package's.
        provider: The provider, by default the profile's, else `local`.
        profile: The profile of the settings.
        emulate: Rehearse it: the provider's emulator on this machine instead of an account. It is started where it does not run, and keeps
            what is deployed until it is stopped (`polyserve emulate NAME --stop`). `local` has no use for one.
        sample: Inputs for the golden sample, where `model` is not a package yet.
        compile: Whether to serve the model as ONNX, as for `package`: `"auto"`, `"onnx"` or `"off"`.
        memory_mb: Memory of one instance, in MiB.
        timeout: Longest time one request may take; a number is seconds.
        min_instances: Instances kept warm.
        max_instances: Most instances.
        environment: Environment variables of the function. Values never reach the record.
        canary: Percent of the traffic for the new revision; the stable one keeps the rest.
        slim: What of the dependencies is left out of the bundle: `"standard"` (what no function can use), `"off"`, or `"traced"` (also what
            the sample never touches).
        architecture: `"x86_64"` or `"arm64"`; by default this machine's where the platform has it.
        python: Python minor version of the functions, for a model that is bound to none (ONNX, TFLite, XGBoost's and LightGBM's own
            formats): by default the package's, or the next newer one that its dependencies have wheels for.
        options: Options of the provider, over those of the profile.
        on_event: Called when a step begins and when it ends.

    Raises:
        PackageError: The model cannot become a package.
        PlanRefused: The provider cannot do what is asked; nothing was changed.
        ConflictError: Somebody else is changing the deployment.
        VerificationError: The revision answers differently from the package; it got no traffic.
        PolyserveError: A step failed; the same call goes on from there.
    """
    asked = {
        "sample": sample,
        "compile": compile,
        "memory_mb": memory_mb,
        "timeout": timeout,
        "min_instances": min_instances,
        "max_instances": max_instances,
        "environment": environment,
        "canary": canary,
        "slim": slim,
        "architecture": architecture,
        "python": python,
        "options": options,
    }
    settings = _settings(provider, profile, asked, emulate)
    target = _target(settings)
    try:
        packaged = _packaged(model, name, asked)
        if parts_of(packaged):
            again = asked | {"provider": provider, "profile": profile, "emulate": emulate}
            record = roll_out_group(
                target,
                packaged,
                name=name or packaged.name,
                timeout_s=settings.timeout_s,
                canary=canary,
                deploy_part=deploying(deploy, again, on_event),
            )
            return Deployment(target, record)
        desired, bundle = _desired(packaged, name, settings, target, asked, on_event=on_event)
        roll_out(target, desired, packaged, bundle, listener=on_event)
        return Deployment(target, load(target.bucket, desired.name)[0])
    except BaseException:
        target.provider.close()
        raise


def bundle(
    model: object,
    path: Path | str,
    *,
    name: str | None = None,
    provider: str | None = None,
    profile: str | None = None,
    emulate: bool | None = None,
    on_event: Callable[[Event], None] | None = None,
    **asked: Any,
) -> Bundle:
    """Build what `deploy` with the same arguments would upload, and save it. The provider is not asked anything.

    Args:
        model: As `deploy`.
        path: Where the archive goes; replaced if it is there.
        name: As `deploy`.
        provider: As `deploy`.
        profile: As `deploy`.
        emulate: As `deploy`.
        on_event: Called while the bundle is built, where that takes long.
        **asked: `sample`, `compile`, `slim`, `architecture` and `python`, as `deploy` takes them.

    Returns:
        What the archive is made of.

    Raises:
        PackageError: The model cannot become a package, or its dependencies cannot be brought together for the provider.
        UnavailableError: The package index cannot be reached.
        InvalidArgumentError: The archive cannot be written there.
    """
    settings = _settings(provider, profile, asked, emulate)
    target = _target(settings)
    try:
        packaged = _packaged(model, name, asked)
        built = desire(
            packaged,
            target,
            name=name or packaged.name,
            model_in_bucket_mb=settings.model_in_bucket_mb,
            architecture=settings.architecture,
            python=settings.python,
            slim=settings.slim,
            listener=on_event,
        )[1]
        shutil.copyfile(built.path, path)
    except OSError as error:
        message = f"{str(path)!r} cannot be written ({error.strerror}): give another place for the archive"
        raise InvalidArgumentError(message, operation="bundle", resource=str(path)) from error
    finally:
        target.provider.close()
    return built


def connect(
    name: str, *, provider: str | None = None, profile: str | None = None, emulate: bool | None = None
) -> Deployment:
    """Return a deployment that exists, from any process, any day.

    Raises:
        NotFoundError: No such deployment on that provider; the message lists those there are.
        SettingsError: A setting does not validate.
    """
    target = _target(_settings(provider, profile, {}, emulate))
    try:
        return Deployment(target, load(target.bucket, name)[0])
    except NotFoundError as error:
        raise _unknown(target, name) from error


def diff(name: str, *, providers: Sequence[str], profile: str | None = None, emulate: bool | None = None) -> Comparison:
    """Compare the deployments of one name on several providers: the same package, the same bytes, the same errors. Changes nothing.

    Args:
        name: The deployment's name on all of them.
        providers: The providers, two at least.
        profile: The profile of the settings.
        emulate: As `deploy`; `local` has no use for it.

    Raises:
        InvalidArgumentError: There are fewer than two providers.
        NotFoundError: One of them has no such deployment.
        FailedPreconditionError: One has no revision with traffic, or its package has no golden sample.
    """
    if len(set(providers)) < 2:
        message = f"there is nothing to compare {', '.join(providers) or 'nothing'} with: name two providers or more"
        raise InvalidArgumentError(message, operation="diff", resource=name)
    with ExitStack() as stack:
        found = [
            stack.enter_context(connect(name, provider=provider, profile=profile, emulate=emulate))
            for provider in dict.fromkeys(providers)
        ]
        return compare(found)


def destroy(name: str, *, provider: str | None = None, profile: str | None = None, emulate: bool | None = None) -> None:
    """Delete a deployment and all that was made for it, also one that was left half-made.

    Raises:
        NotFoundError: Nothing of that name; the message lists the deployments there are.
        ConflictError: Somebody else is changing it.
    """
    target = _target(_settings(provider, profile, {}, emulate))
    try:
        _destroy(target, name)
    except NotFoundError as error:
        raise _unknown(target, name) from error
    finally:
        target.provider.close()


def list_deployments(
    *, provider: str | None = None, profile: str | None = None, emulate: bool | None = None
) -> list[DeploymentStatus]:
    """Return every deployment of a provider's bucket, by name."""
    target = _target(_settings(provider, profile, {}, emulate))
    try:
        return [status_of(target, load(target.bucket, name)[0]) for name in _names(target)]
    finally:
        target.provider.close()


def open_bucket(
    name: str | None = None, *, provider: str | None = None, profile: str | None = None, emulate: bool | None = None
) -> Bucket:
    """Return a bucket of a provider, by default the one of the profile. Does not make one."""
    settings = _settings(provider, profile, {}, emulate)
    return Bucket(_target(settings).provider, name or settings.bucket)


def _settings(
    provider: str | None, profile: str | None, asked: Mapping[str, Any], emulate: bool | None = None
) -> Settings:
    timeout = asked.get("timeout")
    options = dict(asked.get("options") or {})
    portable: dict[str, Any] = {key: asked.get(key) for key in _ASKED}
    portable["timeout_s"] = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    portable["emulate"] = emulate
    settings = resolve(provider, profile, options=options, **portable)
    if not settings.emulate or settings.provider == LOCAL:
        return settings
    running = emulation.start(registry.info(settings.provider))
    return resolve(provider, profile, options=options | dict(running.options), **portable)


def _target(settings: Settings) -> Target:
    provider = retrying(fronted(registry.load(settings.provider, settings.options)))
    return Target(provider=provider, bucket=Bucket(provider, settings.bucket))


def _packaged(model: object, name: str | None, asked: Mapping[str, Any]) -> ModelPackage:
    return package(
        model,
        name=None if isinstance(model, ModelPackage) else name,
        sample=asked.get("sample"),
        compile=asked.get("compile", "auto"),
    )


def _desired(
    packaged: ModelPackage,
    name: str | None,
    settings: Settings,
    target: Target,
    asked: Mapping[str, Any],
    *,
    on_event: Callable[[Event], None] | None,
) -> tuple[Desired, Bundle]:
    deployment = name or packaged.name
    desired, bundle = desire(
        packaged,
        target,
        name=deployment,
        memory_mb=settings.memory_mb,
        timeout=timedelta(seconds=settings.timeout_s),
        environment=settings.environment,
        request_bytes=settings.request_bytes,
        scaling=_scaling(settings, target, deployment),
        canary=asked.get("canary"),
        model_in_bucket_mb=settings.model_in_bucket_mb,
        architecture=settings.architecture,
        python=settings.python,
        slim=settings.slim,
        emulated=settings.emulate and settings.provider != LOCAL,
        options=registry.versioned(registry.info(settings.provider), settings.options),
        listener=on_event,
    )
    return desired, bundle


def _scaling(settings: Settings, target: Target, name: str) -> Scaling:
    """Return the bounds asked for; what is left out stays as the deployment has it."""
    try:
        scaling = load(target.bucket, name)[0].scaling
    except NotFoundError:
        scaling = Scaling()
    if settings.sources["min_instances"] != "default":
        scaling = replace(scaling, min_instances=settings.min_instances)
    if settings.sources["max_instances"] != "default":
        scaling = replace(scaling, max_instances=settings.max_instances)
    return scaling


def _names(target: Target) -> list[str]:
    try:
        return names(target.bucket)
    except NotFoundError:
        return []  # no bucket yet: nothing was ever deployed


def _unknown(target: Target, name: str) -> NotFoundError:
    known = ", ".join(_names(target)) or "none"
    title = target.provider.info.name
    message = f"no deployment {name!r} on {title}: there are {known} (`polyserve list`)"
    return NotFoundError(message, provider=title, operation="connect", resource=name)
