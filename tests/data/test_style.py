"""Style transfer: against a whole Fourier transform, by hand, and what must hold at any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from segue.data.sample import Array
from segue.data.style import Style, covariance, fourier, from_lab, lab, rounded, styled, to_lab

SIZES = [(31, 45), (32, 48), (33, 32), (17, 17)]
STYLES: tuple[Style, ...] = ("none", "fourier", "lab", "covariance")


def picture(seed: int, height: int, width: int) -> Array:
    """Blobs of colour with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return (np.asarray(coarse) + rng.normal(0, 6, (height, width, 3))).clip(0, 255).astype(np.uint8)


def whole_transform(image: Array, other: Array, band: float) -> Array:
    """Eq. 1 as it is written: both spectra, a window about the centre, and back."""
    size = image.shape[:2]
    reach = int(band * min(size))
    ours, theirs = (
        torch.fft.fftshift(torch.fft.fft2(torch.from_numpy(x).double().permute(2, 0, 1)), dim=(1, 2))
        for x in (image, other)
    )
    amplitude = ours.abs()
    rows, columns = (slice(n // 2 - reach, n // 2 + reach + 1) for n in size)
    amplitude[:, rows, columns] = theirs.abs()[:, rows, columns]
    back = torch.fft.ifft2(torch.fft.ifftshift(torch.polar(amplitude, ours.angle()), dim=(1, 2)))
    assert float(back.imag.abs().max()) < 1e-9
    return back.real.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("band", [0.0, 0.01, 0.05, 0.09, 0.4])
def test_fourier_matches_the_whole_transform(size: tuple[int, int], band: float) -> None:
    image, other = picture(1, *size), picture(2, *size)
    np.testing.assert_allclose(fourier(image, other, band=band), whole_transform(image, other, band), atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_fourier_swaps_low_amplitudes_and_leaves_every_phase(size: tuple[int, int]) -> None:
    image, other = picture(3, *size), picture(4, *size)
    before, after, wanted = (np.fft.fft2(x, axes=(0, 1)) for x in (image, fourier(image, other, band=0.1), other))
    large = np.abs(before) > 50
    turned = np.angle(after * before.conj())[large & (np.abs(after) > 50)]
    assert np.abs(turned).max() < 1e-3
    reach = int(0.1 * min(size))
    down, across = (np.abs(np.fft.fftfreq(n, 1 / n)).round() <= reach for n in size)
    inside = down[:, None] & across[None]
    np.testing.assert_allclose(np.abs(after)[inside], np.abs(wanted)[inside], rtol=1e-3, atol=1)
    np.testing.assert_allclose(np.abs(after)[~inside], np.abs(before)[~inside], rtol=1e-3, atol=1)


def test_fourier_of_flat_pictures_by_hand() -> None:
    """Only the mean differs: it is the coefficient at 0, and its phase is that of a positive number."""
    grey, bright = np.full((8, 9, 3), 40, np.uint8), np.full((8, 9, 3), 200, np.uint8)
    np.testing.assert_array_equal(rounded(fourier(grey, bright, band=0.0)), bright)
    black = np.zeros((8, 9, 3), np.uint8)  # no amplitude and so no phase
    np.testing.assert_array_equal(rounded(fourier(black, bright, band=0.3)), bright)
    np.testing.assert_allclose(fourier(grey, picture(0, 8, 9), band=0.3).std((0, 1)), 0, atol=1e-3)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", SIZES)
def test_a_picture_in_its_own_style_is_itself(style: Style, size: tuple[int, int]) -> None:
    image = picture(5, *size)
    np.testing.assert_array_equal(styled(image, image, style, band=0.09), image)


@pytest.mark.parametrize("style", STYLES)
def test_styles_keep_size_type_and_range(style: Style) -> None:
    image, other = picture(6, 31, 45), (picture(7, 31, 45) // 8).astype(np.uint8)  # a dark target overshoots below 0
    found = styled(image, other, style, band=0.05)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    if style == "fourier":
        assert fourier(image, other, band=0.05).min() < 0
        assert found.min() == 0
    if style != "none":
        assert abs(found.mean() - other.mean()) < abs(image.mean() - other.mean()) / 4


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_pictures_do_not_break_a_style(style: Style, value: int) -> None:
    flat, other = np.full((16, 16, 3), value, np.uint8), picture(8, 16, 16)
    for a, b in ((flat, other), (other, flat)):
        found = styled(a, b, style, band=0.05)
        assert found.dtype == np.uint8
    assert np.ptp(styled(flat, flat, style, band=0.05)) == 0


def test_lab_of_known_colours() -> None:
    """White, mid grey and the primaries, as CIE gives them for sRGB under D65; L* is kept 16 too high."""
    colors = np.array([[[255, 255, 255], [0, 0, 0], [119, 119, 119], [255, 0, 0], [0, 0, 255]]], np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [50.03, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(to_lab(colors)[0] - [16, 0, 0], expected, atol=0.05)


def test_lab_there_and_back_is_exact() -> None:
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    np.testing.assert_array_equal(from_lab(to_lab(colors)), colors)


def test_lab_takes_over_mean_and_deviation() -> None:
    image, other = picture(9, 40, 40) // 2 + 60, picture(10, 33, 51) // 3 + 80  # inside the range: nothing is clipped
    found, wanted = to_lab(lab(image, other)), to_lab(other)
    np.testing.assert_allclose(found.mean((0, 1)), wanted.mean((0, 1)), atol=0.6)
    np.testing.assert_allclose(found.std((0, 1)), wanted.std((0, 1)), rtol=0.06)


def test_covariance_takes_over_mean_and_covariance() -> None:
    image, other = picture(11, 40, 40), picture(12, 33, 51)
    found = covariance(image, other).reshape(-1, 3)
    np.testing.assert_allclose(found.mean(0), other.reshape(-1, 3).mean(0), atol=0.1)
    expected = np.cov(other.reshape(-1, 3).T)
    np.testing.assert_allclose(np.cov(found.T), expected, atol=0.01 * np.abs(expected).max())


def test_fourier_refuses_other_sizes_and_bands() -> None:
    with pytest.raises(ValueError, match="one size"):
        fourier(picture(0, 16, 16), picture(0, 16, 17), band=0.1)
    with pytest.raises(ValueError, match=r"band 0\.5"):
        fourier(picture(0, 16, 16), picture(0, 16, 16), band=0.5)
