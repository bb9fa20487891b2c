"""What a type checker sees of the public surface: checked by mypy in `test_tools.py`, never run."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, assert_type

import polyserve


def deploying(model: object) -> None:
    package = polyserve.package(model, name="iris", sample=[[1.0, 2.0]])
    assert_type(package, polyserve.ModelPackage)
    assert_type(package.digest, str)

    planned = polyserve.plan(package, provider="local", memory_mb=512)
    assert_type(planned, polyserve.Plan)
    assert_type(planned.refusals, tuple[str, ...])

    deployment = polyserve.deploy(package, name="iris", timeout=timedelta(seconds=5), environment={"A": "b"}, canary=10)
    assert_type(deployment, polyserve.Deployment)
    polyserve.deploy(package, timeout="5")  # type: ignore[arg-type]
    polyserve.deploy(package, "iris")  # type: ignore[call-arg]


def using(deployment: polyserve.Deployment) -> None:
    deployment.invoke([[1.0, 2.0]], timeout=timedelta(seconds=1))
    assert_type(deployment.map([[[1.0, 2.0]]], concurrency=4), Iterator[Any])
    assert_type(deployment.promote(), int)
    assert_type(deployment.rollback(to=1), int)
    deployment.traffic({1: 90, 2: 10})
    deployment.scale(min_instances=1)
    deployment.rollback(1)  # type: ignore[call-arg]


async def using_asynchronously(deployment: polyserve.Deployment) -> None:
    await deployment.ainvoke([[1.0, 2.0]])


def failing(name: str) -> str:
    try:
        return polyserve.connect(name).name
    except polyserve.NotFoundError as error:
        assert_type(error.code, polyserve.ErrorCode)
        assert_type(error.retry_after, timedelta | None)
        raise
    except polyserve.PlanRefused as error:
        return "; ".join(error.refusals)


def storing() -> bytes:
    bucket = polyserve.open_bucket("models")
    assert_type(bucket, polyserve.Bucket)
    bucket.put("a", b"b", if_absent=True)
    return bucket.get("a")
