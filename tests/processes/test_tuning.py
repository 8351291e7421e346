"""The switches of the process: what they promise, and that they can be left off."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor, nn

from segue.processes.tuning import ALL, TOLERANCE, fast_products, slow_layers_in_float32, tune


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


TUNED = """
    import os
    from segue.processes.tuning import tune

    for wanted in ("0", "pow", None):
        child = os.fork()
        if child == 0:
            os.environ.pop("SEGUE_TUNE", None)
            if wanted:
                os.environ["SEGUE_TUNE"] = wanted
            print(wanted, *tune("cpu"), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_the_environment_names_the_switches() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(TUNED)], capture_output=True, text=True, check=True)
    held = {wanted: set(names) for wanted, *names in map(str.split, done.stdout.splitlines())}
    assert held.keys() == {"0", "pow", "None"}
    assert (held["0"], held["pow"]) == (set(), {"pow"})
    assert "pow" in held["None"]
    assert held["None"] <= set(ALL)


LAYERS: dict[str, tuple[nn.Conv2d, bool]] = {
    "depthwise": (nn.Conv2d(8, 8, 3, 1, 1, groups=8), False),
    "depthwise with a stride": (nn.Conv2d(8, 8, 3, 2, 1, groups=8), True),
    "depthwise of 5 x 5": (nn.Conv2d(8, 8, 5, 1, 2, groups=8), True),
    "depthwise and dilated": (nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8), True),
    "groups": (nn.Conv2d(8, 8, 3, 2, 1, groups=2), False),
    "dense": (nn.Conv2d(8, 8, 3, 2, 1), False),
    "one channel": (nn.Conv2d(1, 1, 3, 2, 1), False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_whose_rounded_gradient_is_slow_leave_autocast_and_come_back(name: str) -> None:
    layer, is_slow = LAYERS[name]
    network, image = nn.Sequential(layer), torch.randn(2, layer.in_channels, 9, 7)

    def rounded() -> torch.dtype:
        with torch.autocast("cpu", torch.bfloat16):
            found: Tensor = network(image)
        return found.dtype

    with slow_layers_in_float32(network):
        assert rounded() == (torch.float32 if is_slow else torch.bfloat16)
        assert network(image.bfloat16() if is_slow else image).dtype == torch.float32
    assert rounded() == torch.bfloat16
    assert "forward" not in vars(layer)


def test_an_error_puts_the_layers_back() -> None:
    layer = LAYERS["depthwise with a stride"][0]
    with pytest.raises(ZeroDivisionError), slow_layers_in_float32(layer):
        raise ZeroDivisionError
    assert "forward" not in vars(layer)
