"""Images that a set holds twice, and images of one split that another split has seen: equal, near, or of one video."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np

from segue.data.finding import Finding
from segue.data.listing import Pair
from segue.data.sample import Array

NEAR = 4  # of 64 bits: near-identical pictures differ in at most so many
FLAT = 6  # a difference hash with fewer set or unset bits says nothing of the picture
VIDEO = 20  # frames with one prefix and consecutive numbers from which on a set is taken to be cut from videos


def equal_images(digests: Mapping[str, bytes], split_of: Mapping[str, str], mend: str) -> list[Finding]:
    """W119 across splits and W118 within one: images whose bytes are the same; by path. ``mend`` writes a copy."""
    groups: dict[bytes, list[str]] = {}
    for path, digest in digests.items():
        groups.setdefault(digest, []).append(path)
    within: list[str] = []
    across: list[str] = []
    for paths in groups.values():
        if len(paths) > 1:
            shared = len({split_of[path] for path in paths}) == 1
            (within if shared else across).append(" = ".join(paths))
    found = []
    if across:
        found.append(
            Finding("W119", "the same image is in two splits", tuple(across), "Scores on it say nothing.",
                    f"A mended copy takes it out of the training split: {mend}")
        )  # fmt: skip
    if within:
        found.append(
            Finding("W118", "the same image is there more than once", tuple(within), "It counts more than others.",
                    "Take the copies out, if that is not meant.")
        )  # fmt: skip
    return found


def near_images(looks: Mapping[str, int], split_of: Mapping[str, str]) -> list[Finding]:
    """W119: images of different splits whose difference hashes differ in at most `NEAR` bits."""
    paths = [path for path, look in looks.items() if FLAT <= look.bit_count() <= 64 - FLAT]
    where: list[str] = []
    by_split: dict[str, list[str]] = {}
    for path in paths:
        by_split.setdefault(split_of[path], []).append(path)
    for one, other in combinations(by_split, 2):
        hashes = np.array([looks[path] for path in by_split[other]], np.uint64)
        for path in by_split[one]:
            for place in np.flatnonzero(bits_apart(hashes, looks[path]) <= NEAR)[:1]:
                where.append(f"{path} ~ {by_split[other][int(place)]}")
    if not where:
        return []
    return [
        Finding("W119", "almost the same image is in two splits", tuple(where), "Scores on it are too good.",
                "Divide the set by scene or video: list the names in splits/train.txt and splits/val.txt.")
    ]  # fmt: skip


def bits_apart(hashes: Array, other: int) -> Array:
    """How many bits of each hash differ from ``other``."""
    different = np.bitwise_xor(hashes, np.uint64(other))
    apart: Array = np.bitwise_count(different)
    return apart


def shared_videos(splits: Mapping[str, Sequence[Pair]]) -> list[Finding]:
    """W119: neighbouring frames of one video, by name, in different splits.

    A name is a frame where it ends in a number; the rest is its video. A video counts with `VIDEO` frames and more, and
    two splits share it where a frame of one is followed by a frame of the other. Splits that name an image in common
    are alternatives, not parts; `named_twice` says so.
    """
    names = {split: {pair.name for pair in pairs} for split, pairs in splits.items()}
    owners: dict[str, list[str]] = {}
    videos: dict[str, dict[str, int]] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            owners.setdefault(pair.name, []).append(split)
            match = re.fullmatch(r"(.*?)(\d+)", pair.name.rpartition("/")[2])
            if match:
                videos.setdefault(match[1], {})[pair.name] = int(match[2])
    where = []
    for video, frames in videos.items():
        ordered = sorted(frames, key=lambda name: frames[name])
        sides = {(tuple(owners[a]), tuple(owners[b])) for a, b in pairwise(ordered)}
        meetings = {tuple(sorted((a, b))) for before, after in sides for a in before for b in after if a != b}
        shared = sorted(" and ".join(pair) for pair in meetings if names[pair[0]].isdisjoint(names[pair[1]]))
        if len(ordered) >= VIDEO and video and shared:
            where.append(f"{video}* ({len(ordered)} frames in {'; '.join(shared)})")
    if not where:
        return []
    return [
        Finding("W119", "frames of one video, by name, are in different splits", tuple(where),
                "Neighbouring frames look alike, so scores may be too good.",
                "Keep each video in one split, or say in your report that scores are within videos.")
    ]  # fmt: skip


def named_twice(splits: Mapping[str, Sequence[Pair]]) -> list[Finding]:
    """W119: an image that two splits name."""
    owner: dict[str, list[str]] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            owner.setdefault(str(pair.image), []).append(split)
    where = [f"{path} (in {' and '.join(names)})" for path, names in owner.items() if len(names) > 1]
    if not where:
        return []
    return [
        Finding("W119", "an image is listed in two splits", tuple(where), "Training on both is no measure of either.",
                "Fine where the lists are alternatives (a subset, a domain); never train on one and test on the other.")
    ]  # fmt: skip
