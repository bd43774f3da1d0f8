"""Stand-ins for A1111's and Forge's own modules, with the traps that were measured on the real ones.

Each world holds a model of real tensors and the modules that our hosts import. `generate` changes the weights as a
generation does and returns a hash of the weights used for the image: equal hashes mean equal images.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lib_lora_train.hosts.webui.a1111 import A1111
from lib_lora_train.hosts.webui.forge import Forge
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.hosts.webui.reforge import ForgeClassic, LdmPatched
from lib_lora_train.models.architecture import UNET_PREFIX, VAE_PREFIX
from tests.stand_ins.tiny_models import tiny_tensors

TEXT_PREFIX = "cond_stage_model."
LORA_LAYERS = ("attn1.to_q.weight", "attn2.to_v.weight", "fc1.weight")  # the layers that the webui's LoRAs change


class QueueLock:
    """First come, first served, but a thread that acquires it right after a release may overtake the next in line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard = threading.Lock()
        self._pending_threads: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if self._lock.acquire(blocking=False):
                return
            woken = threading.Event()
            self._pending_threads.append(woken)
        woken.wait()
        self._lock.acquire()

    @property
    def is_held(self) -> bool:
        return self._lock.locked()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()


class Node(nn.Module):
    """A module with the given parameters, nested by their dotted names."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_parameter(first, nn.Parameter(tensor))
        for first, below in inner.items():
            self.add_module(first, Node(below))


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor.clone() for name, tensor in tensors.items() if name.startswith(prefix)}


def text_heads(encoder: Any) -> None:
    """Give the encoder a config as transformers' text encoders have."""
    encoder.transformer.config = SimpleNamespace(num_attention_heads=4)


def fingerprint(modules: Iterable[nn.Module]) -> str:
    """A hash of all weights, which stands for the image."""
    digest = hashlib.sha256()
    for module in modules:
        for parameter in module.parameters():
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def delta(name: str, weight: Tensor) -> Tensor:
    """What the LoRA woken `name` adds to a weight."""
    return torch.full_like(weight, 0.01 * (1 + sum(map(ord, name)) % 7))


def alphas() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.cumprod(1 - betas, 0)


def module_of(name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(values)
    return module


class State(SimpleNamespace):
    """`shared.state`: the running job, and which buttons the user pressed meanwhile."""

    def __init__(self) -> None:
        super().__init__(job="", interrupted=False, stopping_generation=False, skipped=False)

    def begin(self, job: str) -> None:
        self.job, self.interrupted, self.stopping_generation, self.skipped = job, False, False, False

    def end(self) -> None:
        self.job = ""


class Processing(SimpleNamespace):
    """`StableDiffusionProcessingTxt2Img`: all images share one cache of encoded prompts."""

    is_closed = False
    cached_c: ClassVar[list[Any]] = [None, None]
    cached_uc: ClassVar[list[Any]] = [None, None]

    def __init__(self, **values: Any) -> None:
        super().__init__(cached_c=Processing.cached_c, cached_uc=Processing.cached_uc, override_settings={})
        self.__dict__.update(values)

    def close(self) -> None:
        self.is_closed = True


class Txt2Img:
    """The webui's txt2img, with its traps: it may load another checkpoint first, replaces an unknown sampler by its
    default one, ignores a LoRA that it does not find, returns an unfinished image when interrupted, and fails without
    a script runner, which may be empty. It seeds the global random numbers, keeps the prompt in `params.txt`, and
    leaves overridden options as they are unless its saved settings contain them.

    `during_image` is called during each image; `clip_skips` lists the setting that each image was made with.
    """

    names: tuple[str, ...] = ("DPM++ 2M", "Euler", "Euler a")

    def __init__(self, world: Any) -> None:
        self.world = world
        self.jobs: list[Processing] = []
        self.clip_skips: list[int] = []
        self.last_prompt = ""
        self.during_image: Any = lambda: None
        self.state = State()
        self.available: dict[str, object] = {}

    def modules(self) -> list[ModuleType]:
        names = self.names
        schedules = [("Automatic", "automatic", None), ("Karras", "karras", None), ("SGM Uniform", "sgm", ["SGM"])]
        schedulers = [SimpleNamespace(label=label, name=name, aliases=also) for label, name, also in schedules]
        return [
            module_of("modules.processing", StableDiffusionProcessingTxt2Img=Processing, process_images=self.process),
            module_of("modules.scripts", ScriptRunner=lambda: SimpleNamespace(alwayson_scripts=[])),
            module_of("modules.rng"),
            module_of(
                "modules.sd_samplers",
                all_samplers_map=dict.fromkeys(names),
                visible_sampler_names=lambda: list(names),
            ),
            module_of("modules.sd_schedulers", schedulers=schedulers),
        ]

    def process(self, job: Processing) -> Any:
        assert self.world.queue_lock.is_held, "the webui generates under its lock"
        assert self.state.job and not job.is_closed
        assert not list(job.scripts.alwayson_scripts), "the user's scripts are only for the user's own images"
        self.jobs.append(job)
        shared: Any = sys.modules["modules.shared"]
        stored = {name: shared.opts.data[name] for name in job.override_settings if name in shared.opts.data}
        shared.opts.data.update(job.override_settings)
        try:
            return self._image(job, shared)
        finally:
            shared.opts.data.update(stored)

    def _image(self, job: Processing, shared: Any) -> Any:
        self.clip_skips.append(shared.opts.CLIP_stop_at_last_layers)
        random.seed()
        np.random.seed(job.seed)
        torch.manual_seed(job.seed)
        sys.modules["modules.rng"].nv_rng = f"philox of {job.seed}"  # type: ignore[attr-defined]
        if not shared.cmd_opts.no_prompt_history:
            self.last_prompt = job.prompt
        job.cached_c[:] = job.cached_uc[:] = [job.prompt, "encoded"]
        loras = [name for name in re.findall(r"<lora:(.+?):1>", job.prompt) if name in self.available]
        image_hash = self.world.generate_unlocked(loras[0] if loras else "")
        self.during_image()
        colour = tuple(bytes.fromhex(image_hash[:6]))
        image = Image.new("RGB", (job.width, job.height), (0, 0, 0) if self.state.interrupted else colour)
        return SimpleNamespace(images=[image], infotexts=[f"{job.prompt}\nSampler: {job.sampler_name}"])


class Options:
    """The webui's settings: `data` has those that were ever saved or set, and an option has its default until then."""

    def __init__(self) -> None:
        self.__dict__.update(data={}, data_labels={"CLIP_stop_at_last_layers": SimpleNamespace(default=1)})

    def __getattr__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key].default
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def add_option(self, key: str, info: Any) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def save(self, filename: str) -> None:
        Path(filename).write_text(json.dumps(self.data))


def shared_module(lora_dir: Path, **values: Any) -> ModuleType:
    """`modules.shared`."""

    def option_info(default: Any, label: str, section: tuple[str, str]) -> SimpleNamespace:
        return SimpleNamespace(default=default, label=label, section=section)

    options = SimpleNamespace(lora_dir=str(lora_dir), no_prompt_history=False)
    values.setdefault("config_filename", str(lora_dir.parent / "config.json"))
    values.setdefault("total_tqdm", SimpleNamespace(clear=lambda: None))
    return module_of("modules.shared", cmd_opts=options, opts=Options(), OptionInfo=option_info, **values)


def install(monkeypatch: pytest.MonkeyPatch, *found: ModuleType) -> None:
    for module in found:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, child = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def checkpoint(seed: int) -> SimpleNamespace:
    return SimpleNamespace(filename=f"/models/checkpoint-{seed}.safetensors", sha256=f"{seed:064}")


# --- A1111 ---------------------------------------------------------------------------------------


class A1111World:
    """`modules` and the built-in LoRA extension `networks` of A1111 1.10."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lora_dir: Path) -> None:
        self.queue_lock = QueueLock()
        self.lora_dir = lora_dir
        self.loaded: list[str] = []
        self.listed = 0
        self.model_data = SimpleNamespace(sd_model=None)
        self.txt2img = Txt2Img(self)
        self.selected = 0
        self.switch_to(0)
        install(
            monkeypatch,
            module_of("modules"),
            module_of("modules.call_queue", queue_lock=self.queue_lock),
            module_of("modules.devices", device=torch.device("cpu")),
            module_of(
                "modules.sd_models",
                model_data=self.model_data,
                send_model_to_device=self._send_to_device,
                select_checkpoint=lambda: checkpoint(self.selected),
            ),
            *self.txt2img.modules(),
            shared_module(lora_dir, sd_model=self.model, state=self.txt2img.state),
            module_of(
                "networks",
                load_networks=self._load_networks,
                network_apply_weights=self._apply_weights,
                list_available_networks=self._list,
                available_networks=self.txt2img.available,
            ),
        )

    @property
    def model(self) -> Any:
        return self.model_data.sd_model

    def select(self, seed: int) -> None:
        """Select it in the drop-down; the next generation loads it."""
        self.selected = seed

    def switch_to(self, seed: int, *, in_place: bool = False) -> None:
        """Load another checkpoint, into new objects while the old ones go to meta, or into the same storage."""
        self.selected = seed
        tensors = tiny_tensors("sd1", seed=seed)
        if in_place:
            with torch.no_grad():
                for name, parameter in self._by_ldm_name().items():
                    parameter.copy_(tensors[name])
            self.model.sd_checkpoint_info = checkpoint(seed)
            return
        if self.model is not None:
            self.model.to("meta")
        self.model_data.sd_model = self._build(tensors, seed)

    def _build(self, tensors: Mapping[str, Tensor], seed: int) -> Any:
        model: Any = Node({self._name(name): tensor.clone() for name, tensor in tensors.items()})
        model.sd_checkpoint_info = checkpoint(seed)
        model.loaded_vae_file = None
        model.parameterization, model.scale_factor, model.lowvram = "eps", 0.18215, False
        model.alphas_cumprod_original = alphas()
        model.model.diffusion_model.num_heads, model.model.diffusion_model.num_head_channels = 8, -1
        text_heads(model.cond_stage_model.wrapped)
        for name, module in model.named_modules():
            if any(f"{name}.weight".endswith(ending) for ending in LORA_LAYERS):
                module.network_layer_name, module.network_current_names = name, ()
        return model

    def store(self, dtype: torch.dtype | None) -> None:
        """The setting *FP8 weight*: the matrices are converted in place, or loaded from the file again."""
        from_file = tiny_tensors("sd1", seed=self.selected)
        for name, parameter in self._by_ldm_name().items():
            if dtype and parameter.ndim > 1 and name.startswith(UNET_PREFIX):
                parameter.data = parameter.data.to(dtype)
            elif dtype is None:
                parameter.data = from_file[name].clone()

    def use_vae(self, vae: str) -> None:
        """Select another VAE, which is loaded at once."""
        self.model.loaded_vae_file = vae or None

    def _name(self, ldm: str) -> str:
        """The webui wraps the text encoder and its token embedding."""
        inner = ldm.replace(TEXT_PREFIX, f"{TEXT_PREFIX}wrapped.")
        return inner.replace("token_embedding.", "token_embedding.wrapped.")

    def _by_ldm_name(self) -> dict[str, Tensor]:
        return {name.replace(".wrapped", ""): p for name, p in self.model.named_parameters()}

    def weights(self) -> str:
        return fingerprint([self.model])

    def generate(self, lora: str = "") -> str:
        """An image; LoRAs are merged into the layers and stay there afterwards."""
        with self.queue_lock:
            return self.generate_unlocked(lora)

    def generate_unlocked(self, lora: str) -> str:
        if Path(self.model.sd_checkpoint_info.filename) != Path(checkpoint(self.selected).filename):
            self.switch_to(self.selected)
        self._load_networks([lora] if lora else [])
        for module in self.model.modules():
            if hasattr(module, "network_layer_name"):
                self._apply_weights(module)
        return self.weights()

    def unload(self) -> None:
        """Move all weights, without the lock, so possibly during a training step."""
        for parameter in self.model.parameters():
            moved = parameter.data.clone()
            parameter.data = moved

    def _send_to_device(self, model: Any) -> None:
        assert model is self.model

    def _load_networks(self, names: list[str]) -> None:
        self.loaded = list(names)

    def _apply_weights(self, module: Any) -> None:
        """Restore weights from the backup into the same storage, then merge the LoRAs; each layer records its LoRAs."""
        if module.network_current_names == tuple(self.loaded):
            return
        with torch.no_grad():
            if not hasattr(module, "network_weights_backup"):
                module.network_weights_backup = module.weight.detach().clone()
            module.weight.copy_(module.network_weights_backup)
            for name in self.loaded:
                module.weight.add_(delta(name, module.weight))
        module.network_current_names = tuple(self.loaded)

    def _list(self) -> None:
        self.listed += 1
        self.txt2img.available.update(dict.fromkeys(path.stem for path in self.lora_dir.rglob("*.safetensors")))


# --- Forge ---------------------------------------------------------------------------------------


class ForgeObjects(SimpleNamespace):
    """Patchers of UNet, VAE and text encoder."""

    def shallow_copy(self) -> ForgeObjects:
        return ForgeObjects(**vars(self))


class ForgeWorld:
    """`modules` and `backend` of Forge: nothing is loaded at first; every parameter is an inference tensor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lora_dir: Path) -> None:
        self.queue_lock = QueueLock()
        self.listed = 0
        self.lora_dir = lora_dir
        self.txt2img = self._make_txt2img()
        self.backups: dict[tuple[nn.Module, str], Tensor] = {}
        self.model_data = SimpleNamespace(sd_model=SimpleNamespace(cond_stage_model=None), forge_hash="")
        self.select(0)
        self.shared: Any = shared_module(lora_dir, sd_model=None, state=self.txt2img.state)
        install(
            monkeypatch,
            module_of("modules"),
            module_of("modules.call_queue", queue_lock=self.queue_lock),
            self._sd_models(),
            module_of("modules.devices"),
            *self.txt2img.modules(),
            self.shared,
            module_of("networks", list_available_networks=self._list, available_networks=self.txt2img.available),
            *self._memory(),
        )

    @property
    def model(self) -> Any:
        return self.model_data.sd_model

    def _make_txt2img(self) -> Txt2Img:
        return Txt2Img(self)

    def _sd_models(self) -> ModuleType:
        return module_of("modules.sd_models", model_data=self.model_data, forge_model_reload=self._reload)

    def _memory(self) -> list[ModuleType]:
        memory = {"get_torch_device": lambda: torch.device("cpu"), "load_models_gpu": self._load_models}
        return [module_of("backend"), module_of("backend.memory_management", **memory)]

    @property
    def parts(self) -> list[nn.Module]:
        objects = self.model.forge_objects_original
        return [objects.unet.model.diffusion_model, objects.clip.cond_stage_model.clip_l, objects.vae.first_stage_model]

    def select(self, seed: int, *, vae: str = "") -> None:
        """Select it in the drop-downs; the next generation loads it."""
        self.selected = seed
        modules = [vae] if vae else []
        selected = {"checkpoint_info": seed, "additional_modules": modules, "unet_storage_dtype": None}
        self.model_data.forge_loading_parameters = selected

    def store(self, dtype: torch.dtype | None) -> None:
        """*Diffusion in Low Bits*: the next generation loads the model again, with matrices of this dtype."""
        self.model_data.forge_loading_parameters = {
            **self.model_data.forge_loading_parameters, "unet_storage_dtype": dtype
        }  # fmt: skip
        self.generate()

    def use_vae(self, vae: str) -> None:
        """Select another VAE; the next generation loads it."""
        self.select(self.selected, vae=vae)
        self.generate()

    def switch_to(self, seed: int, *, in_place: bool = False) -> None:
        """Load another checkpoint, as a new model; Forge never overwrites the old one."""
        assert not in_place
        self.select(seed)
        if hasattr(self.model, "forge_objects_original"):
            self.generate()

    def _reload(self) -> None:
        if self.model_data.forge_hash == str(self.model_data.forge_loading_parameters):
            return
        self.model_data.forge_hash = str(self.model_data.forge_loading_parameters)
        tensors = tiny_tensors("sd1", seed=self.selected)
        with torch.inference_mode():
            unet: Any = Node(self._unet_tensors(tensors))
            clip: Any = Node(under(tensors, TEXT_PREFIX))
            vae: Any = Node(under(tensors, VAE_PREFIX))
        self._set_up(tensors, unet, clip, vae)

    def _unet_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.model_data.forge_loading_parameters["unet_storage_dtype"]
        unet = under(tensors, UNET_PREFIX)
        return {name: tensor.to(dtype) if dtype and tensor.ndim > 1 else tensor for name, tensor in unet.items()}

    def _set_up(self, tensors: Mapping[str, Tensor], unet: Any, clip: Any, vae: Any) -> None:
        unet.config = {"num_heads": 8, "num_head_channels": -1}
        text_heads(clip)
        vae.config = SimpleNamespace(scaling_factor=0.18215)
        objects = ForgeObjects(
            unet=SimpleNamespace(model=self._network(unet)),
            clip=SimpleNamespace(cond_stage_model=SimpleNamespace(clip_l=clip), patcher=object()),
            vae=SimpleNamespace(first_stage_model=vae, patcher=object()),
        )
        self.backups.clear()
        self.model_data.sd_model = SimpleNamespace(
            seed=self.selected,
            sd_checkpoint_info=checkpoint(self.selected),
            model_config=SimpleNamespace(),
            forge_objects_original=objects,
            forge_objects=objects.shallow_copy(),
            forge_objects_after_applying_lora=objects.shallow_copy(),
            current_lora_hash=str([]),
        )

    def _network(self, unet: Any) -> Any:
        predictor = SimpleNamespace(prediction_type="epsilon", alphas_cumprod=alphas())
        return SimpleNamespace(diffusion_model=unet, predictor=predictor)

    def weights(self) -> str:
        return fingerprint(self.parts)

    def generate(self, lora: str = "") -> str:
        """An image; LoRAs are merged as new inference-mode parameters and stay until other LoRAs are requested."""
        with self.queue_lock:
            return self.generate_unlocked(lora)

    def generate_unlocked(self, lora: str) -> str:
        with torch.inference_mode():
            self._reload()
            wanted = str([lora]) if lora else str([])
            if self.model.current_lora_hash != wanted:
                self._load_models([])
                self._merge_lora(lora)
                self.model.current_lora_hash = wanted
            return self.weights()

    def _merge_lora(self, lora: str) -> None:
        for part in self.parts if lora else ():
            for name, module in part.named_modules():
                if any(f"{name}.weight".endswith(ending) for ending in LORA_LAYERS):
                    weight: Tensor = module.weight
                    self.backups[module, "weight"] = weight.data.clone()
                    module.weight = nn.Parameter(weight + delta(lora, weight), requires_grad=False)

    def _load_models(self, patchers: list[Any]) -> None:
        """Load the original patchers, which removes LoRAs, as new inference tensors."""
        with torch.inference_mode():
            for (module, name), backup in self.backups.items():
                setattr(module, name, nn.Parameter(backup.clone(), requires_grad=False))
        self.backups.clear()

    def unload(self) -> None:
        """Move all weights, as memory management does."""
        with torch.inference_mode():
            for part in self.parts:
                for module in part.modules():
                    for name, parameter in list(module._parameters.items()):
                        if parameter is not None:
                            module._parameters[name] = nn.Parameter(parameter.data.clone(), requires_grad=False)

    def _list(self) -> None:
        self.listed += 1
        self.txt2img.available.update(dict.fromkeys(path.stem for path in self.lora_dir.rglob("*.safetensors")))


# --- reForge -------------------------------------------------------------------------------------


class EPS:
    """`ldm_patched.modules.model_sampling.EPS`."""


class V_PREDICTION(EPS):
    """Derived from EPS, as in the original."""


class EDM(V_PREDICTION):
    """Derived from both, as in the original."""


class LoadingShared(ModuleType):
    """`modules.shared`, where reading an attribute loads the checkpoint."""

    load: Any

    @property
    def sd_model(self) -> None:
        self.load()


class ReforgeWorld(ForgeWorld):
    """`modules` and `ldm_patched` of reForge: Forge's patchers, loaded without inference mode, σ instead of ᾱ.

    `prediction` is the schedule's class; `model_type` stays as detected from the file.
    """

    prediction: type = EPS

    def _sd_models(self) -> ModuleType:
        selected = lambda: checkpoint(self.selected)  # noqa: E731
        return module_of("modules.sd_models", model_data=self.model_data, select_checkpoint=selected)

    def _memory(self) -> list[ModuleType]:
        memory = {"get_torch_device": lambda: torch.device("cpu"), "load_models_gpu": self._load_models}
        names = ("ldm_patched", "ldm_patched.modules")
        self.shared.load = self._reload
        del self.shared.sd_model
        self.shared.__class__ = LoadingShared
        return [*map(module_of, names), module_of("ldm_patched.modules.model_management", **memory)]

    def _network(self, unet: Any) -> Any:
        unet.num_heads, unet.num_head_channels = 8, -1
        sampling = type("ModelSampling", (self.prediction,), {})()
        sampling.sigmas = (1 / alphas() - 1) ** 0.5
        return SimpleNamespace(
            diffusion_model=unet,
            model_sampling=sampling,
            model_type=SimpleNamespace(name="EPS"),
            latent_format=SimpleNamespace(scale_factor=0.18215),
        )

    def _set_up(self, tensors: Mapping[str, Tensor], unet: Any, clip: Any, vae: Any) -> None:
        plain = {name.replace("embedding.weight", "embedding.wrapped.weight") if "token" in name else name: tensor
                 for name, tensor in under(tensors, TEXT_PREFIX).items()}  # fmt: skip
        super()._set_up(tensors, Node(self._unet_tensors(tensors)), Node(plain), Node(under(tensors, VAE_PREFIX)))
        self.model.loaded_vae_file = next(iter(self.model_data.forge_loading_parameters["additional_modules"]), None)


class OldProcessing(Processing):
    """As in Forge Classic, without a scheduler."""

    def __init__(self, **values: Any) -> None:
        if "scheduler" in values:
            raise TypeError("unexpected keyword argument 'scheduler'")
        super().__init__(**values)


class ClassicTxt2Img(Txt2Img):
    """Forge Classic's: no `modules.sd_schedulers`, every pair of sampler and schedule is a separate sampler."""

    names = ("DPM++ 2M Karras", "Euler a", "Euler")

    def modules(self) -> list[ModuleType]:
        names = self.names
        scripts = [one for one in super().modules() if one.__name__ in ("modules.scripts", "modules.rng")]
        samplers = {"all_samplers_map": dict.fromkeys(names), "visible_sampler_names": lambda: list(names)}
        processing = {"StableDiffusionProcessingTxt2Img": OldProcessing, "process_images": self.process}
        return [
            *scripts,
            module_of("modules.processing", **processing),
            module_of("modules.sd_samplers", **samplers),
        ]


class ClassicWorld(ReforgeWorld):
    """Forge Classic, which is derived from reForge."""

    def _make_txt2img(self) -> Txt2Img:
        return ClassicTxt2Img(self)


World: TypeAlias = "A1111World | ForgeWorld"
WORLDS: dict[str, type[World]] = {
    "a1111": A1111World,
    "forge": ForgeWorld,
    "reforge": ReforgeWorld,
    "classic": ClassicWorld,
}


def host_in(world: World) -> WebuiHost:
    """Our host for this world."""
    kinds: dict[type, type] = {
        A1111World: A1111,
        ForgeWorld: Forge,
        ReforgeWorld: LdmPatched,
        ClassicWorld: ForgeClassic,
    }
    return WebuiHost(kinds[type(world)]())
