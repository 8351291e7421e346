"""Pixel contrast.

A bag of anchor pixels p, embeddings f_p and classes y_p, is compared with key pixels k, embeddings g_k,
by z_pk = f_p . g_k / t. A key is positive if its class is y_p, negative if it is another. For one anchor:

    (1)  pixel_contrast            l_p  =  LSE_{k positive or negative} z_pk  -  mean_{q positive} z_pq
    (2)  pixel_contrast_negatives  l_p  =  mean_{q positive} softplus( LSE_{k negative} z_pk  -  z_pq )

LSE is log sum exp. The loss is the mean of l_p over the anchors that have a positive. Written down directly, either
holds several (N, M) matrices. Here both are as exact and hold a few blocks of ``tile`` rows: memory grows with N + M.

- loss and gradients are taken from the same block while it is there; backward only multiplies by the upstream gradient;
- the mean over positives in eq. 1 is linear in z, so class sums of embeddings stand for a mask;
- where the keys are the anchors, exp(z) is symmetric: only tiles on and above the diagonal are computed.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from segue.losses.once import once

# While |z| is below this, exp(z), sums of a million of them and the reciprocals of both are normal float32 numbers.
_LARGEST_EXPONENT = 40.0
# Tiles of the triangle are this many times as wide as high: products of wide tiles run faster, above all in bfloat16.
_TILES_ACROSS = 4


def pixel_contrast(
    anchors: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    anchor_images: Tensor | None = None,
    key_images: Tensor | None = None,
    temperature: float = 0.07,
    ignore: int = 255,
    exclude_self: bool = False,
    tile: int = 256,
    low_precision: bool = False,
) -> Tensor:
    """Eq. 1: supervised contrast of a bag of pixels; positives and negatives share the denominator.

    Takes the time, gradients included, of 2 matrix products of (N, D) by (D, N) where the keys are the anchors and no
    images are given, else of 3 products of (N, D) by (D, M). Embeddings all alike give log M; most others, more.

    Args:
        anchors: (N, D) embeddings, meant to be of length 1. In float64 if they are, else computed in float32, always.
        labels: (N,) class ids, any integers.
        keys: (M, D) embeddings of another view or of more images. Default: the anchors.
        key_labels: (M,) class ids; given if and only if keys are.
        anchor_images: (N,) image ids, any integers. Positives then come from every image and negatives from the
            anchor's own. Default: the whole bag counts as one image.
        key_images: (M,) image ids; given if and only if keys and anchor_images are.
        temperature: t > 0; the smaller, the more the nearest keys count.
        ignore: class id of pixels that are neither anchors nor keys.
        exclude_self: a pixel is not its own key; only where the keys are the anchors.
        tile: anchors that are compared at a time; memory beside embeddings and gradients is about ``tile * M`` floats.
        low_precision: matrix products in bfloat16, sums in float32; the gradient is then good to 1 or 2 %.

    Returns:
        A scalar in nats; 0, with gradient, if no anchor has a positive. It can be differentiated once.

    Raises:
        ValueError: If shapes do not match, or one of several arguments that belong together is missing.
    """
    pairs = _pairs((anchors, labels, anchor_images), (keys, key_labels, key_images), ignore, exclude_self)
    how = _How(temperature, tile, low_precision)
    with torch.autocast(anchors.device.type, enabled=False):
        sources, targets = _gathered(anchors, keys, pairs)
        if len(sources) == 0:
            return sources.sum() + targets[:0].sum()
        positive = _mean_positive(sources, targets, pairs) / temperature
        if pairs.own is not None and pairs.images is None and _is_bounded(targets, targets, temperature):
            return _by_triangle(targets, pairs.own, pairs.exclude_self, how) - positive
        return _by_rows(_log_denominator, sources, targets, pairs, how) - positive


def pixel_contrast_negatives(
    anchors: Tensor,
    labels: Tensor,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    *,
    anchor_images: Tensor | None = None,
    key_images: Tensor | None = None,
    temperature: float = 0.07,
    ignore: int = 255,
    exclude_self: bool = False,
    tile: int = 256,
    low_precision: bool = False,
) -> Tensor:
    """Eq. 2: supervised contrast of a bag of pixels; each positive stands against the negatives alone.

    Positives do not compete with each other, and an anchor that has no negatives costs nothing. Arguments are those of
    ``pixel_contrast``. Takes the time, gradients included, of 3 matrix products of (N, D) by (D, M).

    Returns:
        A scalar in nats, at least 0; 0, with gradient, if no anchor has a positive. It can be differentiated once.
    """
    pairs = _pairs((anchors, labels, anchor_images), (keys, key_labels, key_images), ignore, exclude_self)
    with torch.autocast(anchors.device.type, enabled=False):
        sources, targets = _gathered(anchors, keys, pairs)
        if len(sources) == 0:
            return sources.sum() + targets[:0].sum()
        return _by_rows(_softplus_of_margins, sources, targets, pairs, _How(temperature, tile, low_precision))


_Anchors = tuple[Tensor, Tensor, Tensor | None]  # embeddings, labels, images
_Keys = tuple[Tensor | None, Tensor | None, Tensor | None]


class _How(NamedTuple):
    temperature: float
    tile: int
    low_precision: bool


class _Pairs(NamedTuple):
    """Which pixels are compared: A anchors that have a positive, M keys; both sorted by class, ids counted from 0."""

    rows: Tensor  # (A,) where the anchors are in the caller's tensor
    key_rows: Tensor  # (M,)
    labels: Tensor  # (A,)
    key_labels: Tensor  # (M,)
    images: Tensor | None  # (A,)
    key_images: Tensor | None  # (M,)
    own: Tensor | None  # (A,) which key is the anchor itself; None where the keys are other pixels
    exclude_self: bool
    class_sizes: Tensor  # (K,) keys of each class
    positives: Tensor  # (A,) keys that are positive for the anchor


class _Block(NamedTuple):
    """Some anchors and the keys that any of them may be compared with; all their positives are in ``near``."""

    rows: slice
    columns: Tensor | slice
    near: slice  # of the columns: keys of the anchors' classes
    near_keys: slice  # the same, counted in all keys


# (z (rows, columns), may be overwritten; pairs; block; is |z| bounded) -> the sum of the losses of the rows, and their
# gradient by z as weights (rows, columns), of the type of z, times a scale (rows,).
_BlockLoss = Callable[[Tensor, _Pairs, _Block, bool], tuple[Tensor, Tensor, Tensor]]


def _check(anchor_pixels: _Anchors, key_pixels: _Keys, exclude_self: bool) -> None:
    anchors, labels, images = anchor_pixels
    keys, key_labels, key_images = key_pixels
    if (keys is None) != (key_labels is None):
        raise ValueError("keys and key_labels go together: give both or neither")
    if (key_images is None) == (keys is not None and images is not None):
        raise ValueError("key_images are needed with keys and anchor_images, and only then")
    if keys is not None and exclude_self:
        raise ValueError("exclude_self is for keys that are the anchors, but keys are given")
    for name, ids, embeddings in (
        ("labels", labels, anchors),
        ("anchor_images", images, anchors),
        ("key_labels", key_labels, keys),
        ("key_images", key_images, keys),
    ):
        if embeddings is not None and (embeddings.ndim != 2 or embeddings.shape[1] != anchors.shape[1]):
            raise ValueError(f"embeddings are {tuple(embeddings.shape)}, expected (pixels, {anchors.shape[-1]})")
        if embeddings is not None and ids is not None and ids.shape != embeddings.shape[:1]:
            raise ValueError(f"{name} are {tuple(ids.shape)} for {len(embeddings)} embeddings")


def _pairs(anchor_pixels: _Anchors, key_pixels: _Keys, ignore: int, exclude_self: bool) -> _Pairs:
    _check(anchor_pixels, key_pixels, exclude_self)
    _, labels, images = anchor_pixels
    _, key_labels, key_images = key_pixels
    count = len(labels)
    classes, ids = torch.unique(torch.cat([labels, labels if key_labels is None else key_labels]), return_inverse=True)
    key_order = ids[count:].argsort(stable=True)
    key_rows = key_order[(classes[ids] != ignore)[count:][key_order]]  # so an ignored class has no keys, nor anchors
    class_sizes = ids[count:][key_rows].bincount(minlength=len(classes))
    positives, sort_by = class_sizes[ids[:count]] - int(exclude_self), ids[:count]
    if images is not None:
        every = torch.cat([images, images if key_images is None else key_images])
        names, image_ids = torch.unique(every, return_inverse=True)
        images, key_images = image_ids[:count], image_ids[count:]
        sort_by = sort_by * len(names) + images  # so that a block spans few images
    order = sort_by.argsort(stable=True)
    rows = order[positives[order] > 0]
    own = None
    if key_labels is None:
        column = torch.zeros_like(key_order).index_copy_(0, key_rows, torch.arange(len(key_rows), device=rows.device))
        own = column[rows]
    return _Pairs(
        rows=rows,
        key_rows=key_rows,
        labels=ids[rows],
        key_labels=ids[count:][key_rows],
        images=None if images is None else images[rows],
        key_images=None if key_images is None else key_images[key_rows],
        own=own,
        exclude_self=exclude_self,
        class_sizes=class_sizes,
        positives=positives[rows],
    )


def _gathered(anchors: Tensor, keys: Tensor | None, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Embeddings of the anchors (A, D) and of the keys (M, D) that take part, in float32 or float64."""
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    targets = (anchors if keys is None else keys).contiguous().index_select(0, pairs.key_rows).to(dtype)
    if pairs.own is not None:
        is_same = pairs.images is None and len(pairs.own) == len(targets)  # then in the same order, too
        return targets if is_same else targets.index_select(0, pairs.own), targets
    return anchors.contiguous().index_select(0, pairs.rows).to(dtype), targets


def _is_bounded(anchors: Tensor, keys: Tensor, temperature: float) -> bool:
    """Whether |z| is small enough to do without the largest z of each row."""
    longest = [torch.linalg.vector_norm(each.detach(), dim=1).amax() for each in (anchors, keys)]
    return float(longest[0] * longest[1]) <= _LARGEST_EXPONENT * temperature


def _mean_positive(anchors: Tensor, keys: Tensor, pairs: _Pairs) -> Tensor:
    """Mean over anchors of the mean over their positives of f_p . g_q, a scalar."""
    classes = len(pairs.class_sizes)
    anchor_sums = anchors.new_zeros(classes, anchors.shape[1]).index_add(0, pairs.labels, anchors)
    key_sums = anchors.new_zeros(classes, anchors.shape[1]).index_add(0, pairs.key_labels, keys)
    total = (anchor_sums * key_sums / (pairs.class_sizes - int(pairs.exclude_self)).clamp(min=1)[:, None]).sum()
    if pairs.exclude_self:
        total = total - (anchors.square().sum(1) / pairs.positives).sum()
    return total / len(anchors)


def _by_rows(block_loss: _BlockLoss, anchors: Tensor, keys: Tensor, pairs: _Pairs, how: _How) -> Tensor:
    """Mean of ``block_loss`` over the anchors, found a block of anchors against all keys at a time."""
    is_bounded = _is_bounded(anchors, keys, how.temperature)
    product_dtype = torch.bfloat16 if how.low_precision else anchors.dtype
    tile = 2 * how.tile if how.low_precision else how.tile  # no larger in memory, and faster

    def find(wanted: tuple[bool, bool], anchors: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        scaled = anchors / how.temperature
        left, right = scaled.to(product_dtype), keys.to(product_dtype)
        loss, of_anchors, of_keys = anchors.new_zeros(()), torch.zeros_like(anchors), torch.zeros_like(keys)
        for block in _blocks(pairs, tile):
            compared = right[block.columns]
            value, weights, scale = block_loss(left[block.rows] @ compared.T, pairs, block, is_bounded)
            loss += value / len(anchors)
            if any(wanted):
                scale = scale[:, None] / len(anchors)
                of_anchors[block.rows] = (weights @ compared) * (scale / how.temperature)
                pulling = (scaled[block.rows] * scale).to(product_dtype)
                if wanted[1] and isinstance(block.columns, slice):
                    _add_product(of_keys, weights.T, pulling)
                elif wanted[1] and isinstance(block.columns, Tensor):
                    of_keys.index_add_(0, block.columns, (weights.T @ pulling).to(of_keys.dtype))
        return (loss, of_anchors, of_keys) if any(wanted) else (loss,)

    return once(find, anchors, keys)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, without the product as a tensor of its own where types allow."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _blocks(pairs: _Pairs, tile: int) -> Iterator[_Block]:
    """The anchors, ``tile`` at a time. They and the keys are sorted by class, so a block's positives lie together."""
    starts = torch.arange(0, len(pairs.labels), tile, device=pairs.labels.device)
    ends = (starts + tile).clamp(max=len(pairs.labels))
    lows = torch.searchsorted(pairs.key_labels, pairs.labels[starts]).tolist()
    highs = torch.searchsorted(pairs.key_labels, pairs.labels[ends - 1], right=True).tolist()
    for start, low, high in zip(range(0, len(pairs.labels), tile), lows, highs, strict=True):
        rows, near_keys = slice(start, start + tile), slice(low, high)
        if pairs.images is None or pairs.key_images is None:
            yield _Block(rows, slice(None), near_keys, near_keys)
        else:  # most keys of other images are of no use to this block
            is_useful = torch.isin(pairs.key_images, pairs.images[rows])
            is_useful[near_keys] = True
            first = int(is_useful[:low].sum())
            yield _Block(rows, is_useful.nonzero().squeeze(1), slice(first, first + high - low), near_keys)


def _is_same_class(pairs: _Pairs, block: _Block) -> Tensor:
    """(rows, near)."""
    return pairs.labels[block.rows, None] == pairs.key_labels[block.near_keys]


def _is_own(pairs: _Pairs, block: _Block) -> Tensor:
    """(rows, near), the key is the anchor itself."""
    assert pairs.own is not None
    near = torch.arange(block.near_keys.start, block.near_keys.stop, device=pairs.own.device)
    return pairs.own[block.rows, None] == near


def _is_foreign(pairs: _Pairs, block: _Block) -> Tensor:
    """(rows, columns), the key is in another image than the anchor."""
    assert pairs.images is not None and pairs.key_images is not None
    return pairs.images[block.rows, None] != pairs.key_images[block.columns]


def _exponentials(z: Tensor, is_bounded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """exp(z - c) in place of z, its sums over the columns (rows,), and LSE z (rows,): -inf where all of z is."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    offset: Tensor | float = 0.0
    if not is_bounded:
        largest = z.amax(1, keepdim=True).clamp(min=torch.finfo(z.dtype).min)
        z.sub_(largest)
        offset = largest.squeeze(1).to(dtype)
    # In parts, because a sum in another type first copies what it sums.
    sums = torch.stack([part.sum(1, dtype=dtype) for part in z.exp_().chunk(1 + z.shape[1] // 1024, 1)]).sum(0)
    return z, sums, offset + sums.log()


def _log_denominator(z: Tensor, pairs: _Pairs, block: _Block, is_bounded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The first term of eq. 1, a ``_BlockLoss``."""
    if pairs.images is not None:
        is_out = _is_foreign(pairs, block)
        is_out[:, block.near] &= ~_is_same_class(pairs, block)
        z.masked_fill_(is_out, -torch.inf)
    if pairs.exclude_self:
        z[:, block.near].masked_fill_(_is_own(pairs, block), -torch.inf)
    exponentials, sums, lse = _exponentials(z, is_bounded)
    return lse.sum(), exponentials, 1 / sums


def _softplus_of_margins(z: Tensor, pairs: _Pairs, block: _Block, is_bounded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 2, a ``_BlockLoss``."""
    is_positive = _is_same_class(pairs, block)
    z_near = z[:, block.near].to(torch.promote_types(z.dtype, torch.float32), copy=True)
    z[:, block.near].masked_fill_(is_positive, -torch.inf)
    if pairs.images is not None:
        z.masked_fill_(_is_foreign(pairs, block), -torch.inf)
    if pairs.exclude_self:
        is_positive &= ~_is_own(pairs, block)
    exponentials, sums, lse = _exponentials(z, is_bounded)
    margin = lse[:, None] - z_near
    slope = margin.sigmoid() * is_positive
    softplus = margin.relu() + margin.abs_().neg_().exp_().log1p_()
    exponentials *= (slope.sum(1) / sums.clamp(min=torch.finfo(sums.dtype).tiny))[:, None]
    exponentials[:, block.near] -= slope
    scale = 1 / pairs.positives[block.rows].to(sums.dtype)
    return ((softplus * is_positive).sum(1) * scale).sum(), exponentials, scale


def _by_triangle(both: Tensor, own: Tensor, exclude_self: bool, how: _How) -> Tensor:
    """Mean over the anchors ``own`` of LSE_k z_pk, where they are among the keys ``both``, (M, D), and |z| is bounded.

    With w_p = 1/A for an anchor, 0 for another key, and S_p = sum_k exp(z_pk), the gradient is G F / t for
    G_ik = exp(z_ik) (w_i / S_i + w_k / S_k). exp(z) and G are symmetric, so half of either is enough.
    """
    weights = both.new_zeros(len(both)).index_fill_(0, own, 1 / len(own))
    product_dtype = torch.bfloat16 if how.low_precision else both.dtype

    def find(wanted: tuple[bool], both: Tensor) -> tuple[Tensor, ...]:
        left, right = (both / how.temperature).to(product_dtype), both.to(product_dtype)

        def tiles() -> Iterator[tuple[slice, slice, int, Tensor]]:
            """Rows, columns, how many of the columns are the rows (whose mirror image is in the tile), and exp(z)."""
            for start in range(0, len(both), how.tile):
                rows = slice(start, min(start + how.tile, len(both)))
                for first in range(start, len(both), _TILES_ACROSS * how.tile):
                    columns = slice(first, min(first + _TILES_ACROSS * how.tile, len(both)))
                    exponentials = (left[rows] @ right[columns].T).to(both.dtype).exp_()
                    if first == start and exclude_self:
                        exponentials.diagonal().zero_()
                    yield rows, columns, max(0, rows.stop - first), exponentials

        sums = both.new_zeros(len(both))
        for rows, columns, square, exponentials in tiles():
            sums[rows] += exponentials.sum(1)
            sums[columns][square:] += exponentials[:, square:].sum(0)
        loss = (weights * sums.log()).sum()
        if not any(wanted):
            return (loss,)
        shares, gradient = weights / sums, torch.zeros_like(both)
        for rows, columns, square, exponentials in tiles():
            mutual = exponentials.mul_(shares[rows, None] + shares[columns]).to(product_dtype)
            _add_product(gradient[rows], mutual, right[columns])
            _add_product(gradient[columns][square:], mutual[:, square:].T, right[rows])
        return loss, gradient.div_(how.temperature)

    return once(find, both)
