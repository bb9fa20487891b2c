"""A target's names for installers and markers."""

import dataclasses

import pytest
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from polyserve import registry
from polyserve.bundle import Target, machine
from polyserve.driver import BundleForm


def target(**changes):
    return Target(**({"provider": "A cloud", "python": "3.12", "architecture": "x86_64", "glibc": (2, 34)} | changes))


def takes(there: Target, wheel: str) -> bool:
    version = (3, int(there.python.partition(".")[2]))
    tags = {*cpython_tags(version, platforms=there.tags), *compatible_tags(version, "cp", there.tags)}
    return bool(tags & parse_wheel_filename(wheel)[3])


@pytest.mark.parametrize(
    ("wheel", "taken"),
    [
        ("a-1-cp312-cp312-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp312-cp312-manylinux2014_x86_64.whl", True),
        ("a-1-cp38-abi3-manylinux1_x86_64.whl", True),
        ("a-1-py3-none-any.whl", True),
        ("a-1-cp312-cp312-manylinux_2_35_x86_64.whl", False),
        ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", False),
        ("a-1-cp312-cp312-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp312-cp312-macosx_11_0_arm64.whl", False),
    ],
)
def test_the_tags_are_those_of_wheels_that_load_there(wheel, taken):
    assert takes(target(), wheel) is taken


def test_uv_is_asked_for_no_newer_library_than_there_is():
    assert target(glibc=(2, 26)).uv_platform == "x86_64-manylinux_2_17"
    assert target(glibc=(2, 28), architecture="arm64").uv_platform == "aarch64-manylinux_2_28"
    assert target(glibc=(2, 41)).uv_platform == "x86_64-manylinux_2_40"


def test_markers_are_evaluated_for_the_target():
    there = dict(target(architecture="arm64", python="3.14").markers)

    assert Requirement("a ; platform_machine == 'aarch64' and sys_platform == 'linux'").marker.evaluate(there)
    assert Requirement("a ; python_version >= '3.14'").marker.evaluate(there)
    assert not Requirement("a ; sys_platform == 'darwin' or os_name == 'nt'").marker.evaluate(there)


def test_the_c_library_is_the_platforms_for_that_python():
    info = dataclasses.replace(registry.info("local"), bundle=BundleForm(glibc={"3.11": (2, 26)}))

    assert Target.of(info, python="3.11", architecture="x86_64").glibc == (2, 26)
    assert Target.of(info, python="3.12", architecture="x86_64").glibc == (2, 28)


def test_only_a_target_like_this_machine_is_here():
    import sys

    here = target(python=f"{sys.version_info.major}.{sys.version_info.minor}", architecture=machine())

    assert here.is_here is (sys.platform == "linux")
    assert not dataclasses.replace(here, python="3.99").is_here
