"""What the UNet predicts: .yaml, then tensors, then metadata, in every spelling; contradictions are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import Architecture, CheckpointHints, ModelSpec
from lib_lora_train.models.checkpoint_hints import read_hints
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.models.model_files import describe_model
from tests.stand_ins.tiny_models import full_shapes

MARKERS: dict[str, tuple[int, ...]] = {"v_pred": (0,), "ztsnr": (0,)}
XL_YAML = (
    "model: {params: {denoiser_config: {params: {scaling_config: "
    "{target: sgm.modules.diffusionmodules.denoiser_scaling.%s}}}}}"
)


def spec_of(
    folder: Path, *, metadata: dict[str, str] | None = None, yaml: str = "", is_marked: bool = False
) -> ModelSpec:
    if yaml:
        (folder / "model.yaml").write_text(yaml)
    hints = read_hints(folder / "model.safetensors", metadata or {})
    return infer_spec({**full_shapes("sdxl"), **(MARKERS if is_marked else {})}, hints=hints)


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
@pytest.mark.parametrize("word", ["v", "V", "v_prediction", "v-prediction", "vprediction", "v_pred", "vpred", "v-pred"])
def test_every_spelling_of_v_prediction_in_metadata_is_known(key: str, word: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metadata={key: word})
    assert (spec.prediction_type, spec.notes) == ("v_prediction", ())


@pytest.mark.parametrize("word", ["v", "v_prediction", "v-prediction", "vpred"])
def test_every_spelling_of_v_prediction_in_a_yaml_is_known(word: str, tmp_path: Path) -> None:
    assert (
        spec_of(tmp_path, yaml=f"model: {{params: {{parameterization: {word!r}}}}}").prediction_type == "v_prediction"
    )


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [("VScaling", "v_prediction"), ("VScalingWithEDMcNoise", "v_prediction"), ("EpsScaling", "epsilon")],
)
def test_sgm_scalings_are_known(scaling: str, expected: str, tmp_path: Path) -> None:
    assert spec_of(tmp_path, yaml=XL_YAML % scaling).prediction_type == expected


def test_marker_tensors_override_metadata_and_the_contradiction_is_reported(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metadata={"modelspec.prediction_type": "epsilon"}, is_marked=True)
    assert (spec.prediction_type, spec.zero_terminal_snr) == ("v_prediction", True)
    (note,) = spec.notes
    assert "v_pred says v_prediction, but its metadata says epsilon. v_prediction is used" in note


def test_a_yaml_overrides_marker_tensors_and_the_contradiction_is_reported(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, yaml="model: {params: {parameterization: eps, zero_terminal_snr: false}}", is_marked=True)
    assert (spec.prediction_type, spec.zero_terminal_snr) == ("epsilon", False)
    assert ".yaml beside the checkpoint says epsilon, but its marker tensor" in spec.notes[0]


def test_agreeing_sources_are_not_reported(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metadata={"modelspec.predict_key": "v"}, yaml=XL_YAML % "VScaling", is_marked=True)
    assert (spec.prediction_type, spec.notes) == ("v_prediction", ())


@pytest.mark.parametrize("word", ["edm", "sample"])
def test_an_unknown_prediction_type_is_reported(word: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metadata={"modelspec.prediction_type": word})
    assert word in spec.notes[0] and "set prediction_type" in spec.notes[0]


def test_resolution_and_zero_terminal_snr_are_read_from_metadata(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metadata={"modelspec.resolution": "768x768", "ss_zero_terminal_snr": "True"})
    assert (spec.own_resolution, spec.zero_terminal_snr) == (768, True)
    assert [infer_spec(full_shapes(a)).own_resolution for a in ("sd1", "sd2", "sdxl")] == [512, 768, 1024]
    epsilon = CheckpointHints(prediction_type="epsilon")
    assert infer_spec(full_shapes("sd2"), hints=epsilon).own_resolution == 512


# --- text encoders ---------------------------------------------------------------------------------


def test_sd2_runs_23_layers_whether_or_not_the_last_one_is_in_the_file() -> None:
    """diffusers' converter leaves out the 24th, which never runs."""
    whole = full_shapes("sd2")
    short = {name: shape for name, shape in whole.items() if ".resblocks.23." not in name}
    assert infer_spec(whole) == infer_spec(short)
    assert infer_spec(short).text_encoders[0].config["num_hidden_layers"] == 23


@pytest.mark.parametrize(
    ("architecture", "layer"), [("sd1", ".layers.11."), ("sd2", ".resblocks.22."), ("sdxl", ".resblocks.31.")]
)
def test_a_text_encoder_with_too_few_layers_is_refused(architecture: str, layer: str) -> None:
    whole = full_shapes(architecture)  # type: ignore[arg-type]
    cut = {name: shape for name, shape in whole.items() if layer not in name and ".resblocks.23." not in name}
    if architecture == "sdxl":
        cut = {name: shape for name, shape in whole.items() if layer not in name}
    with pytest.raises(ModelError, match=r"of its .* layers"):
        infer_spec(cut)


def test_a_text_projection_stored_as_a_linear_layer_gives_the_same_model() -> None:
    """Some mergers write `text_projection.weight`, the transpose of OpenCLIP's `text_projection`."""
    import torch

    from lib_lora_train.models.graft import graft
    from tests.stand_ins.tiny_models import tiny_spec, tiny_tensors

    usual = tiny_tensors("sdxl", shallow=True)
    matrix = "conditioner.embedders.1.model.text_projection"
    linear = {name: tensor for name, tensor in usual.items() if name != matrix}
    linear[f"{matrix}.weight"] = usual[matrix].t().contiguous()
    encoders = [graft(t, tiny_spec(t)).text_encoders[1] for t in (usual, linear)]
    ours, theirs = (encoder.get_parameter("text_projection.weight") for encoder in encoders)
    assert torch.equal(ours, theirs)


# --- rectified flow -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["rectified_flow", "Rectified Flow", "rf", "flow", "flow_matching", "const"])
def test_every_spelling_of_rectified_flow_in_metadata_is_known(word: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, metadata={"modelspec.prediction_type": word})
    assert (spec.prediction_type, spec.is_named_rectified, spec.notes) == ("rectified_flow", False, ())


@pytest.mark.parametrize("name", ["NoobAI-Rectified-Flow.safetensors", "rectified/noob.safetensors"])
@pytest.mark.parametrize("is_marked", [False, True], ids=["plain", "v-pred markers left"])
def test_rectified_in_the_path_of_an_sdxl_model_means_rectified_flow(
    name: str, is_marked: bool, tmp_path: Path
) -> None:
    """Forge Neo's rule, whatever else the file says: models made from v-prediction ones keep their markers."""
    hints = read_hints(tmp_path / name, {"modelspec.prediction_type": "epsilon"})
    spec = infer_spec({**full_shapes("sdxl"), **(MARKERS if is_marked else {})}, hints=hints)
    assert (spec.prediction_type, spec.zero_terminal_snr, spec.is_named_rectified) == ("rectified_flow", False, True)
    assert "rectified flow (“rectified” in its path)" in describe_model(spec)


@pytest.mark.parametrize("architecture", ["sd1", "sd2"])
def test_rectified_in_the_path_of_other_models_means_nothing(architecture: Architecture, tmp_path: Path) -> None:
    spec = infer_spec(full_shapes(architecture), hints=read_hints(tmp_path / "rectified.safetensors", {}))
    assert spec.prediction_type != "rectified_flow" and not spec.is_named_rectified
