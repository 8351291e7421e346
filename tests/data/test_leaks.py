"""What two splits share: frames of one video by name, and near images; and that the check of the real sets is true."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import draw

from segue.data.check.leaks import NEAR, bits_apart, named_twice, shared_videos
from segue.data.listing import Pair

REAL = Path(__file__).parents[3] / "shared" / "data"


def frames(video: str, numbers: range) -> tuple[Pair, ...]:
    return tuple(Pair(f"{video}{i:04d}", Path(f"{video}{i:04d}.png")) for i in numbers)


def test_a_video_is_shared_where_a_frame_of_one_split_follows_one_of_another() -> None:
    splits = {"train": frames("a_", range(15)) + frames("b_", range(30)), "val": frames("a_", range(15, 24))}
    (found,) = shared_videos(splits)
    assert found.where == ("a_* (24 frames in train and val)",)
    assert shared_videos({"train": frames("a_", range(9)), "val": frames("a_", range(9, 19))}) == []  # too few


def test_lists_that_overlap_are_alternatives_and_their_frames_count_once() -> None:
    whole, day = frames("a_", range(30)), frames("a_", range(20))
    assert shared_videos({"train": whole, "day_train": day}) == []
    (twice,) = named_twice({"train": whole, "day_train": day})
    assert len(twice.where) == 20
    (found,) = shared_videos({"train": whole[:25], "day_train": day, "test": whole[25:]})
    assert found.where == ("a_* (30 frames in test and train)",)


def test_bits_by_hand() -> None:
    hashes = np.array([0b1011, 0, (1 << 64) - 1], np.uint64)
    assert bits_apart(hashes, 0b1000).tolist() == [2, 1, 63]
    assert NEAR < 64


def codes(told: dict[str, Any]) -> Counter[str]:
    return Counter(finding["code"] for finding in told["findings"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real sets in {REAL}")
def test_the_check_tells_the_truth_about_the_real_sets(segue: Any) -> None:
    import json

    def told(name: str) -> dict[str, Any]:
        status, output, _ = segue("check", REAL / name, "--json")
        assert status == 0
        found: dict[str, Any] = json.loads(output)["sets"][0]
        return found

    camvid = told("camvid")
    assert (camvid["found"], camvid["used"], camvid["masks_read"]) == (701, 701, 701)
    assert camvid["sizes"] == {"480x360": 701}
    assert codes(camvid) == {"W119": 2}
    videos = next(f["where"] for f in camvid["findings"] if "video" in f["what"])
    # Its README: 124, 101, 305 and 171 frames; dusk train and test are the halves of 0001TP.
    assert {text.split("(")[0]: int(text.split("(")[1].split()[0]) for text in videos}.items() >= {
        "0001TP_* ": 124, "0016E5_* ": 305
    }.items()  # fmt: skip
    assert any("0001TP_" in text and "da_target_dusk_test and da_target_dusk_train" in text for text in videos)
    dsb = told("dsb2018")
    assert (dsb["found"], dsb["modes"]) == (664, {"L": 557, "RGB": 107})
    assert codes(dsb) == {"W114": 1, "W119": 1}
    coco = told("coco_panoptic_sample")
    assert (coco["found"], len(coco["classes"]), codes(coco)) == (2, 133, {"W115": 1})


def test_drawn_pictures_of_different_scenes_are_not_near() -> None:
    from PIL import Image

    from segue.data.check.inspection import difference_hash

    looks = [difference_hash(Image.fromarray(draw(i)[0])) for i in range(6)]
    same = difference_hash(Image.fromarray(draw(0)[0]).resize((96, 96)))
    assert (looks[0] ^ same).bit_count() <= NEAR
    assert all((looks[0] ^ other).bit_count() > NEAR for other in looks[1:])
