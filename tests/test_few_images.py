"""What mutual information sees with few images per class: the simulation, and the sentences that tell it."""

import math
import sys

import pytest
from conftest import ROOT

from csgbook import measured
from csgbook.pages import few_images
from csglib.analysis.information import entropy

sys.path.insert(0, str(ROOT / "tools"))
import few_images as tool  # noqa: E402


def test_the_information_of_a_shifted_filter_lies_between_none_and_the_entropy():
    assert tool.information(0.0, 0.1) == pytest.approx(0, abs=1e-9)
    assert tool.information(30.0, 0.1) == pytest.approx(entropy(0.1), abs=1e-6)
    assert 0 < tool.information(1.0, 0.1) < tool.information(3.0, 0.1) < entropy(0.1)


def test_a_point_of_the_file_is_simulated_again():
    row = next(r for r in few_images.rows("mis_balanced", 10) if r["images"] == 10)
    for name, shift in tool.SHIFTS.items():
        assert tool.estimates(10, 10, shift)["mis_balanced"] == pytest.approx(row[name], abs=1e-5)
    assert row["truth"] == pytest.approx(tool.information(3.0, 0.5), abs=1e-6) and row["bound"] == pytest.approx(
        math.log(2), abs=1e-6
    )


def test_more_images_lower_the_null_of_every_score():
    for metric in few_images.TITLES:
        for C in few_images.sizes():
            null = [r["null"] for r in few_images.rows(metric, C)]
            assert null == sorted(null, reverse=True) and len(null) == len(tool.IMAGES)


def test_the_sentences_say_the_numbers_or_that_there_are_none(monkeypatch):
    row = next(r for r in few_images.rows("mis_balanced", 1000) if r["images"] == 50)
    assert f"chance level is {row['null']:.2f} nats" in few_images.sentences().data
    monkeypatch.setattr(measured, "read", lambda kind: {})
    assert few_images.sentences().data.startswith("This has not been simulated yet")
