"""Models written by earlier versions load and say what they said."""

from pathlib import Path

import numpy as np
import pytest
from golden.make import said

from segue.weights import FORMAT, KINDS, load_saved

GOLDEN = sorted((Path(__file__).parent / "golden").glob("format_*"))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_an_old_model_loads_and_says_what_it_said(folder: Path) -> None:
    known = np.load(folder / "said.npy").astype(np.float32)
    np.testing.assert_allclose(said(load_saved(str(folder))), known, rtol=2e-3, atol=2e-3 * float(np.abs(known).max()))


def test_there_is_a_model_of_each_kind_in_each_format() -> None:
    assert {folder.name for folder in GOLDEN} == {f"format_{n}_{kind}" for n in range(1, FORMAT + 1) for kind in KINDS}
