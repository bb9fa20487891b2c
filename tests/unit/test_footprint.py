"""What a bundle is made of, beside every platform's limits, and the way out."""

import dataclasses

import pytest

from polyserve import registry
from polyserve.footprint import Footprint, fits, way_out

MADE = Footprint(parts={"package": 10, "dependencies": 90}, distributions={"scipy": 60_000_000, "numpy": 30_000_000})


def platform(**limits: object):
    local = registry.info("local")
    return dataclasses.replace(local, limits=dataclasses.replace(local.limits, **limits))


def test_a_bundle_is_held_against_every_platform():
    tight, loose = fits(MADE, [platform(bundle_bytes=50, bundle_unpacked_bytes=80), platform()], size=40, unpacked=100)

    assert (tight.bundle_left, tight.unpacked_left, tight.held) == (10, -20, False)
    assert (loose.bundle_left, loose.unpacked_left, loose.held) == (None, None, True)
    assert tight.to_dict()["unpacked_left"] == -20


def test_without_its_dependencies_a_bundle_says_nothing_about_other_platforms():
    assert fits(Footprint(parts={"package": 10}), [platform()], size=1, unpacked=1) == ()


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"slim": "off"}, "leave out what no function can use with --slim standard"),
        ({"flavor": "sklearn"}, "compile the model with --compile onnx"),
        ({"flavor": "python", "traceable": True}, "keep only what the sample touches with --slim traced"),
        ({"flavor": "onnx"}, "do with fewer requirements (largest: scipy 60 MB, numpy 30 MB)"),
        ({"flavor": "onnx", "distributions": {}}, "take a smaller model or fewer requirements"),
    ],
)
def test_the_cheapest_way_out_comes_first(changes, first):
    assert way_out(dataclasses.replace(MADE, **changes), "A cloud").startswith(first)


def test_what_was_traced_already_is_not_advised_to_be():
    made = dataclasses.replace(MADE, slim="traced", traceable=True)

    assert "--slim traced" not in way_out(made, "A cloud")
