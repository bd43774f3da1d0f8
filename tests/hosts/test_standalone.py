"""The stand-alone host: it reads files and leases the model in the order of requests."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError, ModelError
from lib_lora_train.hosts.fair_lock import FairLock
from lib_lora_train.hosts.gpu import device_name, find_gpu
from lib_lora_train.hosts.host import Gpu, Host
from lib_lora_train.hosts.standalone import StandaloneHost, default_device
from lib_lora_train.models.diffusion_model import ModelOverrides, with_overrides
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.loading import ModelChoice, load_model
from tests.stand_ins.tiny_models import alphas_of, tiny_model, tiny_tensors, write_tiny_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_tiny_checkpoint(folder / "a.safetensors", "sd1")
    write_tiny_checkpoint(folder / "b.safetensors", "sd1", seed=1)
    write_tiny_checkpoint(folder / "sd2.safetensors", "sd2")
    front = "first_stage_model."
    vae = {name: t for name, t in tiny_tensors("sd1", seed=9).items() if name.startswith(front)}
    save_file({name.removeprefix(front): tensor for name, tensor in vae.items()}, folder / "vae.safetensors")
    save_file(
        {n: t for n, t in tiny_tensors("sd1").items() if n not in vae}, folder / "bare.safetensors", {"text_heads": "4"}
    )
    return folder


def host_on(files: Path, name: str = "a", vae: str | None = None) -> StandaloneHost:
    other = None if vae is None else files / f"{vae}.safetensors"
    return StandaloneHost(files / f"{name}.safetensors", other, files / "Lora", CPU)


def test_standalone_host_implements_the_host_protocol(files: Path) -> None:
    host: Host = host_on(files)
    assert (host.name, host.lora_dir) == ("stand-alone", files / "Lora")


def test_lease_releases_a_model_ready_to_train(files: Path) -> None:
    with host_on(files).lease() as model:
        assert (model.name, model.dtype, model.device) == ("a", torch.float32, CPU)
        assert model.path == files / "a.safetensors" and len(model.file_hash) == 64
        assert not any(p.requires_grad for p in model.unet.parameters())
        assert "copied" not in {row.status for row in model.report}


def test_every_lease_releases_the_same_model(files: Path) -> None:
    host = host_on(files)
    with host.lease() as first:
        pass
    with host.lease() as second:
        pass
    assert first is second is host.load_model(TrainConfig())


def test_config_selects_another_checkpoint(files: Path) -> None:
    host = host_on(files)
    other = host.load_model(TrainConfig(checkpoint=str(files / "b.safetensors")))
    assert other.name == "b"
    with host.lease() as leased:
        assert leased is other
    assert host.load_model(TrainConfig()).name == "a"


def test_config_selects_the_precision(files: Path) -> None:
    model = host_on(files).load_model(TrainConfig(precision="bf16"))
    assert model.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.vae.parameters()} == {
        torch.float32
    }  # in bf16 images would be visibly worse


def test_model_settings_override_what_the_file_says(files: Path) -> None:
    """The zero-terminal schedule is compared with diffusers', which is float32."""
    host = host_on(files)
    overridden = host.load_model(TrainConfig(prediction_type="v_prediction", zero_terminal_snr="on"))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    assert overridden.schedule.prediction_type == overridden.spec.prediction_type == "v_prediction"
    assert overridden.spec.zero_terminal_snr
    assert torch.allclose(alphas_of(overridden), expected, rtol=0, atol=1e-12)
    plain = host.load_model(TrainConfig())
    assert (plain.spec.prediction_type, plain.spec.zero_terminal_snr) == ("epsilon", False)
    assert float(alphas_of(plain)[-1]) > 0


def test_zero_terminal_snr_off_restores_the_usual_schedule() -> None:
    model = tiny_model("sdxl")
    assert with_overrides(model, ModelOverrides()) is model
    off = with_overrides(model, ModelOverrides(zero_terminal_snr="off"))
    assert (off.spec.zero_terminal_snr, off.spec.prediction_type) == (False, "v_prediction")
    assert float(alphas_of(off)[-1]) == pytest.approx(0.0047, rel=0.01)  # Stable Diffusion's ᾱ at 999
    assert off.unet is model.unet


def test_vae_file_replaces_the_checkpoints_vae(files: Path) -> None:
    expected = tiny_tensors("sd1", seed=9)["first_stage_model.quant_conv.weight"]
    for model in (
        host_on(files, vae="vae").load_model(TrainConfig()),
        host_on(files).load_model(TrainConfig(vae=str(files / "vae.safetensors"))),
        host_on(files, "bare", "vae").load_model(TrainConfig()),
    ):
        assert torch.equal(model.vae.quant_conv.weight, expected)


def test_default_vae_is_not_used_for_another_checkpoint(files: Path) -> None:
    host = host_on(files, vae="vae")
    model = host.load_model(TrainConfig(checkpoint=str(files / "b.safetensors")))
    expected = tiny_tensors("sd1", seed=1)["first_stage_model.quant_conv.weight"].half().float()
    assert torch.equal(model.vae.quant_conv.weight, expected)


def test_checkpoint_without_vae_is_refused_with_the_remedy(files: Path) -> None:
    with pytest.raises(ModelError, match=r"bare\.safetensors: .*no VAE"):
        host_on(files, "bare").load_model(TrainConfig())


def test_failed_load_names_the_file_and_leaves_the_host_usable(files: Path) -> None:
    host = host_on(files)
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        host.load_model(TrainConfig(checkpoint=str(files / "none.safetensors")))
    with host.lease() as model:
        assert model.name == "a"


def test_sd2_prediction_type_is_measured_if_unknown(files: Path) -> None:
    """Random weights predict values near 0, far from the −1 of a v model: epsilon. Below, a bias forces −1."""
    assert load_model(ModelChoice(files / "sd2.safetensors"), CPU).spec.prediction_type == "epsilon"
    tensors = {name: tensor.clone() for name, tensor in tiny_tensors("sd2").items()}
    tensors["model.diffusion_model.out.2.bias"] -= 3.0
    save_file(tensors, files / "v.safetensors", {"text_heads": "4"})
    model = load_model(ModelChoice(files / "v.safetensors"), CPU)
    assert model.spec.prediction_type == model.schedule.prediction_type == "v_prediction"


def test_prediction_type_in_metadata_is_used_instead_of_measuring(files: Path) -> None:
    metadata = {"text_heads": "4", "modelspec.prediction_type": "v"}
    save_file(tiny_tensors("sd2"), files / "metadata.safetensors", metadata)
    assert load_model(ModelChoice(files / "metadata.safetensors"), CPU).spec.prediction_type == "v_prediction"


def test_fair_lock_is_exclusive_and_first_come_first_served() -> None:
    lock, order = FairLock(), []

    def acquire(number: int) -> None:
        lock.acquire()
        order.append(number)
        lock.release()

    lock.acquire()
    assert not lock.has_waiters()
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=acquire, args=(number,)))
        threads[-1].start()
        _wait_until(lambda number=number: len(lock._queue) == number + 1)
    assert lock.has_waiters() and order == []
    lock.release()
    for thread in threads:
        thread.join(timeout=5)
    assert order == [0, 1, 2, 3, 4] and not lock.has_waiters()


def test_waiting_thread_gets_the_next_lease(files: Path) -> None:
    host = host_on(files)
    host.load_model(TrainConfig())
    leases: list[str] = []

    def sampler() -> None:
        with host.lease():
            leases.append("sampler")

    thread = threading.Thread(target=sampler)
    with host.lease():
        thread.start()
        _wait_until(host.has_waiters)
        leases.append("trainer")
    with host.lease():  # requested at once, but the waiting thread goes first
        leases.append("trainer")
    thread.join(timeout=5)
    assert leases == ["trainer", "sampler", "trainer"]


def test_interrupted_thread_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FairLock()
    owner = threading.Thread(target=lock.acquire)
    owner.start()
    owner.join(timeout=5)

    def interrupted(*_arguments: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    assert not lock.has_waiters()
    lock.release()
    lock.acquire()  # free, not owned by the interrupted thread


def test_nested_lease_raises_instead_of_deadlocking(files: Path) -> None:
    host = host_on(files)
    with host.lease(), pytest.raises(HostError, match="cannot be nested"), host.lease():
        pass
    with host.lease():
        pass


def test_lease_ends_when_its_body_raises(files: Path) -> None:
    host = host_on(files)
    with pytest.raises(ValueError, match="in the lease"), host.lease():
        raise ValueError("in the lease")
    with host.lease():
        pass


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_default_device_prefers_cuda_then_mps_then_cpu(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert default_device().type == expected


def _wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_run_target_names_the_file_and_whether_it_is_loaded(tmp_path: Path) -> None:
    host = StandaloneHost(None, None, tmp_path, "cpu")
    run_target = host.run_target(TrainConfig())
    assert (run_target.checkpoint, run_target.is_loaded, run_target.dtype_bytes) == (EMBEDDED_CHECKPOINT, False, 4)
    host.load_model(TrainConfig())
    assert host.run_target(TrainConfig()).is_loaded
    assert not host.run_target(TrainConfig(precision="bf16")).is_loaded
    assert host.run_target(TrainConfig(checkpoint="~/x.safetensors")).checkpoint == Path.home() / "x.safetensors"


def test_gpu_memory_is_read_by_device_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.1 refuses plain `cuda`, which is what A1111 and the stand-alone app compute on."""

    def free_and_total(device: torch.device | int) -> tuple[int, int]:
        if isinstance(device, torch.device) and device.index is None:
            raise ValueError("Expected a torch.device with a specified index")
        return 6, 24

    stand_ins = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "mem_get_info": free_and_total,
        "memory_reserved": lambda _device: 5,
        "memory_allocated": lambda _device: 2,
        "get_device_name": lambda _device: "Gpu",
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    assert find_gpu(torch.device("cuda")) == find_gpu(torch.device("cuda", 0)) == Gpu("Gpu", total=24, free=9)
    assert find_gpu(CPU) is None


def test_gpu_that_raises_is_reported_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """If other programs fill the card, its first use fails; the plan is then shown without its memory."""

    def full() -> int:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", full)
    assert find_gpu(torch.device("cuda")) is None
    assert device_name(torch.device("cuda"), find_gpu(torch.device("cuda"))) == "cuda"
