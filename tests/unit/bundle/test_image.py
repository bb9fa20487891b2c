"""An image's identity depends on its layers, its base and its configuration, and on nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from polyserve.bundle.image import Base, Image, ImageConfig, layered, make
from polyserve.bundle.references import parse
from polyserve.errors import InvalidArgumentError, PackageError

CONTENTS = {
    "package": {"package/m.bin": b"m"},
    "runtime": {"polyserve/__init__.py": b""},
    "entrypoint": {"entry.py": b"#"},
    "dependencies": {"numpy/__init__.py": b""},
}
BELOW = "sha256:" + "b" * 64
BASE = Base(
    reference=parse("example.com/python:3.11"),
    digest="sha256:" + "a" * 64,
    config={
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "container": "f00",
        "config": {"Entrypoint": ["/entry.sh"], "Cmd": ["old"], "Env": ["PATH=/bin", "A=0"], "Labels": {"l": "0"}},
        "rootfs": {"type": "layers", "diff_ids": [BELOW]},
    },
    layers=({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": BELOW, "size": 7},),
)


PLAIN = ImageConfig()


def image(config: ImageConfig = PLAIN, **options: Any) -> Image:
    return make(layered(CONTENTS), config, **({"architecture": "x86_64"} | options))


def config_of(made: Image) -> dict[str, Any]:
    return json.loads(made.config)


def test_the_layers_are_ordered_by_how_often_they_change():
    assert [each.name for each in layered(CONTENTS)] == ["dependencies", "runtime and entrypoint", "package"]


def test_what_is_empty_makes_no_layer_and_what_is_unknown_goes_with_the_runtime():
    contents = {"package": {"m": b""}, "runtime": {"r": b""}, "settings": {"host.json": b"{}"}, "dependencies": {}}

    assert [each.name for each in layered(contents)] == ["runtime and settings", "package"]


def test_one_path_in_two_parts_is_refused():
    with pytest.raises(PackageError, match=r"'a\.py' is in two parts"):
        layered({"dependencies": {"a.py": b"1"}, "package": {"a.py": b"2"}})


def test_the_same_input_is_the_same_image_and_any_other_is_another():
    different = [
        image(),
        image(architecture="arm64"),
        image(base=BASE),
        image(ImageConfig(cmd=("a",))),
        image(ImageConfig(environment={"A": "1"})),
        make(layered(CONTENTS)[:2], ImageConfig(), architecture="x86_64"),
    ]

    assert image().digest == different[0].digest
    assert len({each.digest for each in different}) == len(different)


def test_an_image_of_nothing_but_layers_is_complete():
    made = image(ImageConfig(entrypoint=("/bin/run",), user="1000", working_dir="/app", labels={"a": "b"}))
    manifest = json.loads(made.manifest.body)

    assert config_of(made)["config"] == {
        "Entrypoint": ["/bin/run"],
        "User": "1000",
        "WorkingDir": "/app",
        "Labels": {"a": "b"},
    }
    assert (config_of(made)["architecture"], config_of(made)["os"]) == ("amd64", "linux")
    assert config_of(made)["rootfs"]["diff_ids"] == [each.diff_id for each in made.layers]
    assert [each["digest"] for each in manifest["layers"]] == [each.digest for each in made.layers]
    assert manifest["config"]["size"] == len(made.config)
    assert made.size == sum(each.size for each in made.layers) + len(made.config)


def test_upon_a_base_what_is_not_said_stays_and_what_is_said_comes_over_it():
    said = ImageConfig(cmd=("new",), environment={"A": "1", "B": "2"}, labels={"m": "1"})
    made = config_of(image(said, base=BASE))

    assert made["config"] == {
        "Entrypoint": ["/entry.sh"],
        "Cmd": ["new"],
        "Env": ["PATH=/bin", "A=1", "B=2"],
        "Labels": {"l": "0", "m": "1"},
    }
    assert made["rootfs"]["diff_ids"][0] == BELOW
    assert len(made["history"]) == 4
    assert "container" not in made
    assert made["created"] == "1970-01-01T00:00:00Z"


def test_the_arguments_of_the_base_go_with_its_program():
    assert "Cmd" not in config_of(image(ImageConfig(entrypoint=("/mine",)), base=BASE))["config"]


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_a_variable_without_a_proper_name_is_refused(name):
    with pytest.raises(InvalidArgumentError, match="environment variable"):
        image(ImageConfig(environment={name: "1"}))


def test_an_architecture_that_there_is_none_of_is_refused_with_those_there_are():
    with pytest.raises(InvalidArgumentError, match="x86_64 and arm64"):
        image(architecture="sparc")
