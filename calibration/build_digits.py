"""The tiny set that is committed here: scikit-learn's 1,797 handwritten digits of 8x8 pixels, as `digits.npz`.

    python calibration/build_digits.py

Input `image` of shape [1797, 1, 8, 8] between 0 and 1; labels 0..9. Source: E. Alpaydin and C. Kaynak, Optical Recognition of
Handwritten Digits, UCI Machine Learning Repository (1998), CC BY 4.0, as scikit-learn (BSD-3-Clause) ships it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from quantkit.data import Arrays, Preprocessing, write_shard

HERE = Path(__file__).resolve().parent


def digits() -> Arrays:
    """The images and labels. Raises ImportError where scikit-learn is not installed."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    values = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    return Arrays({"image": values}, torch.from_numpy(labels), Preprocessing())


def main(given: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where scikit-learn is not installed."""
    path = Path(given[0]) if given else HERE / "digits.npz"
    try:
        dataset = digits()
    except ImportError:
        print("scikit-learn is not installed; next: pip install quantkit[demo]", file=sys.stderr)
        return 2
    write_shard(dataset, path)
    print(f"{len(dataset)} items in {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
