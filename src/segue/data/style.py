"""Pictures of one domain in the style of another, with every object where it was, so that labels still hold.

    (1)  fourier     F(x')  =  |F(y)| e^{i arg F(x)}  at frequencies up to b = floor(L min(H, W)),  F(x) at the others
    (2)  lab         x'  =  (x - mean x) / std x * std y + mean y,                per channel of CIE L*a*b*
    (3)  covariance  x'  =  cov(y)^{1/2} cov(x)^{-1/2} (x - mean x) + mean y,     in RGB

(1) is Fourier domain adaptation (Yang and Soatto, CVPR 2020, arXiv:2004.05498). Only (2b + 1)^2 of the H W coefficients
change, so only those are computed, as products with 2b + 1 rows of the Fourier matrix, and only their change is
transformed back: exact, at any size, and a fraction of a whole transform. A wave that x lacks has no phase, and stays
away. (2) is after Reinhard et al. (2001).

Pictures are uint8 (H, W, 3) RGB; what leaves [0, 255] is clipped.
"""

from functools import lru_cache
from typing import Literal

import numpy as np

from segue.data.sample import Array

Style = Literal["none", "fourier", "lab", "covariance"]
LEAST = 1e-4  # grey levels; a wave as low as that is round-off, and its phase means nothing
DIM = 1.0  # grey levels squared, added to variances: a flat picture has none to divide by

# Linear light of sRGB (IEC 61966-2-1) to CIE XYZ over its white D65.
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
TO_XYZ = (XYZ / XYZ.sum(1, keepdims=True)).astype(np.float32)
FROM_XYZ = np.linalg.inv(TO_XYZ).astype(np.float32)
TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]], np.float32)  # L* is short of its constant, -16
FROM_LAB = np.linalg.inv(TO_LAB).astype(np.float32)
STEPS = (1 << 16) - 1  # of the tables that stand for powers
KNEE = 6 / 29  # below it L*a*b* is linear


def styled(image: Array, other: Array, style: Style, *, band: float) -> Array:
    """``image`` in the style of ``other``.

    Args:
        image: uint8 (H, W, 3).
        other: uint8, of the same size for eq. 1 and of any for the others.
        style: which equation; ``none`` gives ``image``.
        band: L of eq. 1.
    """
    if style == "fourier":
        return rounded(fourier(image, other, band=band))
    if style == "lab":
        return lab(image, other)
    return rounded(covariance(image, other)) if style == "covariance" else image


def rounded(pixels: Array) -> Array:
    """The nearest 8-bit picture."""
    nearest: Array = (pixels + 0.5).clip(0, 255).astype(np.uint8)
    return nearest


def fourier(image: Array, other: Array, *, band: float) -> Array:
    """Eq. 1, not yet clipped: float32 (H, W, 3).

    Args:
        image: x, uint8 (H, W, 3).
        other: y, of the same size.
        band: L in [0, 0.5).

    Raises:
        ValueError: the sizes differ, or L is out of its range.
    """
    if image.shape != other.shape:
        raise ValueError(f"pictures of {image.shape} and {other.shape}; the spectra of one size are needed")
    if not 0 <= band < 0.5:
        raise ValueError(f"band {band} is not in [0, 0.5)")
    height, width = image.shape[:2]
    reach = int(band * min(height, width))
    down, across = _rows(height, reach, False), _rows(width, reach, True)
    pixels = image.astype(np.float32).transpose(2, 0, 1)
    own = down @ (pixels @ across.T)
    wanted = np.abs(down @ (other.astype(np.float32).transpose(2, 0, 1) @ across.T))
    size = np.abs(own)
    has_phase = size > LEAST * height * width
    change = np.where(has_phase, own * (wanted / np.where(has_phase, size, 1) - 1), 0)
    constant = (slice(None), reach, 0)  # its phase is always 0: the mean of a picture is not negative
    change[constant] = wanted[constant] - own[constant]
    # Of a real picture the coefficient at (-k, -l) is the conjugate of that at (k, l): columns above 0 count twice.
    change[:, :, 1:] *= 2
    back = (down.conj().T @ change).astype(np.complex64)
    added = back.real @ across.real + back.imag @ across.imag
    result: Array = (pixels + added / (height * width)).transpose(1, 2, 0)
    return result


@lru_cache(maxsize=64)
def _rows(length: int, reach: int, is_half: bool) -> Array:
    """Rows of the Fourier matrix for frequencies -reach..reach, or 0..reach: complex64 (rows, length)."""
    frequencies = np.arange(0 if is_half else -reach, reach + 1)
    turns = frequencies[:, None] * np.arange(length)[None] % length / length
    rows: Array = np.exp(-2j * np.pi * turns).astype(np.complex64)
    return rows


def lab(image: Array, other: Array) -> Array:
    """Eq. 2 for two pictures uint8 (H, W, 3) of any sizes: uint8 (H, W, 3)."""
    ours, theirs = to_lab(image), to_lab(other)
    means, target = ours.mean((0, 1)), theirs.mean((0, 1))
    # A variance of 0.01, a fifth of a step that the eye can see, so that a flat picture is shifted and not torn apart.
    scale = np.sqrt((theirs.var((0, 1)) + 0.01) / (ours.var((0, 1)) + 0.01))
    return from_lab((ours - means) * scale + target)


@lru_cache(maxsize=1)
def _tables() -> tuple[Array, Array, Array]:
    """sRGB's 8-bit values to linear light; linear light in `STEPS` to the curve of L*a*b*; the same to 8-bit sRGB."""
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = np.arange(STEPS + 1) / STEPS
    curve = np.where(light > KNEE**3, np.cbrt(light), light / (3 * KNEE**2) + 4 / 29)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return linear.astype(np.float32), curve.astype(np.float32), rounded(255 * encoded)


def to_lab(image: Array) -> Array:
    """uint8 sRGB (H, W, 3) to float32 (H, W, 3): L* + 16, a*, b*."""
    linear, curve, _ = _tables()
    light = linear[image] @ TO_XYZ.T
    result: Array = curve[(light * STEPS + 0.5).astype(np.uint16)] @ TO_LAB.T
    return result


def from_lab(pixels: Array) -> Array:
    """The inverse of `to_lab`; colours outside of sRGB are clipped."""
    curve = pixels @ FROM_LAB.T
    light = np.where(curve > KNEE, curve**3, 3 * KNEE**2 * (curve - 4 / 29)) @ FROM_XYZ.T
    result: Array = _tables()[2][(light.clip(0, 1) * STEPS + 0.5).astype(np.uint16)]
    return result


def covariance(image: Array, other: Array) -> Array:
    """Eq. 3, not yet clipped, for two pictures uint8 (H, W, 3) of any sizes: float32 (H, W, 3)."""
    moved, (mean, spread), (target, wanted) = image.astype(np.float32), _moments(image), _moments(other)
    matrix = _power(wanted, 0.5) @ _power(spread, -0.5)
    result: Array = (moved - mean.astype(np.float32)) @ matrix.T.astype(np.float32) + target.astype(np.float32)
    return result


def _moments(image: Array) -> tuple[Array, Array]:
    """Mean (3,) and covariance (3, 3) of the colours."""
    pixels = image.reshape(-1, 3).astype(np.float32)
    mean = pixels.mean(0, dtype=np.float64)
    pixels = pixels - mean.astype(np.float32)
    return mean, (pixels.T @ pixels).astype(np.float64) / len(pixels) + DIM * np.eye(3)


def _power(symmetric: Array, exponent: float) -> Array:
    """A power of a positive definite matrix."""
    values, vectors = np.linalg.eigh(symmetric)
    power: Array = (vectors * values**exponent) @ vectors.T
    return power
