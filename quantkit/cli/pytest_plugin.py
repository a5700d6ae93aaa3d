"""The fixture `assert_keeps`, in every pytest of an environment where quantkit is installed: a promise as a test beside the others.

def test_the_file_that_ships(assert_keeps):
    assert_keeps("model.int8.onnx", float_file="model.onnx", data="val.npz", max_drop=0.5)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Unpack

    from quantkit.gating import Gated
    from quantkit.settings.arguments import Gating


class AssertKeeps(Protocol):
    """What the fixture is: `quantkit.gate`, whose answer must be kept."""

    def __call__(
        self, file: str | Path, *, float_file: str | Path | None = None, against: str | Path | None = None, lock: str | Path | None = None,
        **options: Unpack[Gating],
    ) -> Gated:  # fmt: skip
        """The answer, where it is kept; else the test fails and names each condition."""
        ...


@pytest.fixture
def assert_keeps() -> AssertKeeps:
    """Fails the test unless the file keeps the conditions, or those of the lock file beside it."""

    def check(
        file: str | Path, *, float_file: str | Path | None = None, against: str | Path | None = None, lock: str | Path | None = None,
        **options: Unpack[Gating],
    ) -> Gated:  # fmt: skip
        __tracebackhide__ = True
        from quantkit import api

        gated = api.gate(file, float_file=float_file, against=against, lock=lock, **options)
        if not gated.kept:
            lines = [finding.line() for finding in gated.findings if not finding.stands]
            pytest.fail("\n".join([f"{gated.file} does not meet its conditions", *lines, *gated.changes]), pytrace=False)
        return gated

    return check
