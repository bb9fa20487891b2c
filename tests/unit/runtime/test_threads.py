"""How many threads a model may use is one variable's to say."""

import pytest

from polyserve.runtime.threads import VARIABLE, threads


@pytest.mark.parametrize(("told", "expected"), [(None, 1), ("", 1), ("4", 4), (" 2 ", 2), ("3,2", 3)])
def test_it_is_one_unless_the_environment_allows_more(monkeypatch, told, expected):
    monkeypatch.delenv(VARIABLE, raising=False)
    if told is not None:
        monkeypatch.setenv(VARIABLE, told)

    assert threads() == expected


@pytest.mark.parametrize("told", ["0", "-1", "many", "1.5", ",2"])
def test_what_is_no_number_is_refused_with_the_way_out(monkeypatch, told):
    monkeypatch.setenv(VARIABLE, told)

    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS='{told}' is no number of threads: set it to 1 or more"):
        threads()
