"""The switches of the process: what they promise, and that they can be left off."""

import subprocess
import sys

import pytest
import torch

from segue.tuning import ALL, TOLERANCE, fast_products, tune


def test_products_stay_float32() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        fast_products()
        torch.manual_seed(1)
        left, right = torch.randn(300, 200), torch.randn(200, 100)
        exact = left.double() @ right.double()
        assert float(((left @ right).double() - exact).abs().max() / exact.abs().max()) < TOLERANCE
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_gpu_is_left_as_it_is() -> None:
    assert tune("cuda:0") == []


@pytest.mark.parametrize(("wanted", "expected"), [("0", []), ("pow", ["pow"]), (None, list(ALL))])
def test_the_environment_names_the_switches(wanted: str | None, expected: list[str]) -> None:
    import os

    environment = {k: v for k, v in os.environ.items() if k != "SEGUE_TUNE"} | (
        {"SEGUE_TUNE": wanted} if wanted else {}
    )
    code = "from segue.tuning import tune; print(','.join(tune('cpu')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    held = [name for name in found.stdout.strip().split(",") if name]
    assert set(held) <= set(expected)
    assert ("pow" in held) == ("pow" in expected)
