"""The estimate on paper of networks that nobody ran here, against arithmetic by hand."""

from __future__ import annotations

import pytest
from on_paper import DECODERS, LAWS, MEASURED, Decoder, hours, memory_gb, rows

FOUND = {**{f"{MEASURED}.seconds_{stage}": 36.0 for stage in LAWS}, f"{MEASURED}.peak_gb": 1.1}


def test_weights_and_products_are_counted() -> None:
    small = Decoder(layers=2, width=3, inner=5, kv_width=1, vocabulary=7)
    assert small.weights == 2 * (3 * 3 + 3 * 3 + 3 + 3 + 15 + 15 + 15) + 21
    assert small.rounding == 2 * (27 + 27 + 9 + 9 + 45 + 45 + 75)
    assert DECODERS["7 B"].weights == pytest.approx(6.6e9, rel=0.01) and DECODERS["70 B"].weights == pytest.approx(68.7e9, rel=0.01)


def test_a_stage_grows_by_its_law_and_only_two_are_divided() -> None:
    network, measured = DECODERS["7 B"], DECODERS[MEASURED]
    alone, many = hours(FOUND, "7 B", 1), hours(FOUND, "7 B", 8)
    assert alone["search"] == pytest.approx(0.01 * network.weights / measured.weights) == many["search"]
    assert alone["scores"] == pytest.approx(alone["search"] * 32 / 12) and alone["weights"] == pytest.approx(8 * many["weights"])
    assert {stage for stage in LAWS if many[stage] < alone[stage]} == {"weights", "scores"}
    assert memory_gb(FOUND, "7 B") == pytest.approx(1.1 * network.weights / measured.weights)
    assert [row[:2] for row in rows(FOUND)] == [[MEASURED, "1"], *([name, str(n)] for name in ("7 B", "70 B") for n in (1, 8, 64))]
