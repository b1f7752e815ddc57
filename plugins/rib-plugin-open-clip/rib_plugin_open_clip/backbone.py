"""The family `open-clip:MODEL/PRETRAINED`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rib_harness import (
    Classifier,
    ConfigError,
    DataError,
    Identity,
    Preprocess,
    TextTower,
    file_digest,
    hub_file,
)
from rib_harness.engine.weights import plain_weights
from rib_harness.errors import nearest
from rib_harness.store import key_of
from rib_plugin_open_clip.head import (
    NAMES,
    TEMPLATES,
    class_embeddings,
    kept_embeddings,
    linear_head,
    prompts_digest,
)
from rib_plugin_open_clip.text import OpenClipText

#: open_clip's own models, before this module adds any: its registry is one for the process.
_BUILT_IN = frozenset(open_clip.list_models())


class OpenClipBackbone:
    """A CLIP image tower with a zero-shot head over ImageNet-1k, made from class names.

    The encoder gives normalised image features. The head's rows are the classes' embeddings
    times CLIP's temperature: plain linear weights, which fine-tuning may change. The text tower
    makes the head and is no part of the classifier; methods that need it are given it.

    Mean, std and interpolation are those that open_clip has for the pretrained weights (OpenAI's
    where it has none), unless given.

    Args:
        tag: model and pretrained weights, as in `ViT-B-32/laion2b_s34b_b79k`; the model alone
            with `weights`.
        weights: a local checkpoint, safetensors or a torch file (loaded with weights_only), as
            open_clip's training writes it; None takes the pretrained one from the hub or its
            local cache. With `MODEL/PRETRAINED` it is that one's, fetched by hand.
        weights_key: which set of weights, of a file with several, e.g. state_dict_ema.
        config: a model configuration in open_clip's JSON, named MODEL.json, for an architecture
            that open_clip does not have.
        templates: the prompts: OpenAI's 80 for ImageNet, the 7 best of them, or one,
            `a photo of a …`.
        mean: of each channel in 0 … 1; one value for all, or three joined by `+`.
        std: likewise.
        interpolation: PIL's filter.
    """

    def __init__(
        self,
        tag: str,
        *,
        weights: Path | None = None,
        weights_key: str | None = None,
        config: Path | None = None,
        templates: Literal["openai-80", "simple-7", "one"] = "openai-80",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        interpolation: str | None = None,
    ):
        self.tag, self.templates = tag, templates
        self.weights, self.weights_key = weights, weights_key
        self.config_file = Path(config) if config is not None else None
        self.given = {"mean": mean, "std": std, "interpolation": interpolation}
        checks = {
            "templates": (templates in TEMPLATES, ", ".join(TEMPLATES)),
            "mean": (mean is None or len(mean) in (1, 3), "one value or three, as 0.5+0.5+0.5"),
            "std": (std is None or (len(std) in (1, 3) and min(std) > 0), "one value or three > 0"),
            "interpolation": (
                interpolation in (None, "nearest", "bilinear", "bicubic", "lanczos"),
                "nearest, bilinear, bicubic or lanczos",
            ),
        }
        problems = [
            f"{self.what}: {name}: expected {expected}, "
            f"got {({'templates': templates} | self.given)[name]!r}."
            for name, (fine, expected) in checks.items()
            if not fine
        ]
        if problems:
            raise ConfigError(problems)
        self.model, _, self.pretrained = tag.partition("/")
        self.published = self._published()
        self.config = self._config()
        self.preprocess = self._preprocess()

    @property
    def what(self) -> str:
        """For messages: `open-clip:ViT-B-32/openai`."""
        return f"open-clip:{self.tag}"

    def identity(self) -> Identity:
        """Digests of the weights' file and of what else decides the numbers; no tower is run."""
        file, notes = self._file(), tuple[str, ...]()
        if self.weights is not None:
            self._clip(file)  # whether it fits is told when planning
            notes = plain_weights(file, self.weights_key)[1]
        # The options have the name of the templates; their words are open_clip's, and the
        # content of the configuration is nowhere else.
        parts = [f"sha256:{file_digest(file)}", f"prompts:{prompts_digest(self.templates)[:16]}"]
        files = [str(file)]
        if self.config_file is not None:
            parts.append(f"config:{key_of(self.config)[:16]}")
            files.append(str(self.config_file))
        has = ("text-tower", *self._has())
        return Identity("+".join(parts), self.preprocess, len(NAMES), tuple(files), has, notes)

    def _has(self) -> tuple[str, ...]:
        """Parts of the image tower; of one that is timm's, its module says."""
        vision = self.config["vision_cfg"]
        if "timm_model_name" in vision:
            return ()
        if isinstance(vision.get("layers"), list):  # a ResNet
            return ("batch-norm",)
        return ("blocks", "projection")

    def text_tower(self) -> TextTower:
        """CLIP's text tower with its pretrained weights, on the CPU."""
        clip = self._clip(self._file())
        return OpenClipText(clip, self._tokenizer(), self.templates)

    def build(self) -> Classifier:
        """Encoder = the image tower up to its normalised features, head = the zero-shot head."""
        file = self._file()
        clip = self._clip(file)
        embeddings = kept_embeddings(
            {
                "weights": file_digest(file),
                **({"weights_key": self.weights_key} if self.weights_key else {}),
                "model": self.model,
                "config": self.config,
                "templates": self.templates,
                "prompts": prompts_digest(self.templates),
                "open_clip": open_clip.__version__,
            },
            (len(NAMES), self.config["embed_dim"]),
            lambda: class_embeddings(clip, self._tokenizer(), self.templates),
        )
        head = linear_head(embeddings, clip.logit_scale.exp(), getattr(clip, "logit_bias", None))
        classifier = Classifier(ImageTower(clip.visual), head, self.preprocess).eval()
        self._check(clip, classifier)
        return classifier

    def _published(self) -> dict[str, Any]:
        """What open_clip knows of the pretrained weights that the tag names."""
        if self.model not in _BUILT_IN and self.config_file is None:
            raise ConfigError(
                [
                    f"open_clip has no model {self.model!r}.{nearest(self.model, _BUILT_IN)} "
                    "See open_clip.list_models(), or give config=FILE for one of your own."
                ]
            )
        known = open_clip.list_pretrained_tags_by_model(self.model)
        listed = f"Those of {self.model}: {', '.join(known) or 'none'}."
        if not self.pretrained:
            if self.weights is None:
                raise ConfigError(
                    [
                        f"{self.what} names no weights: expected {self.model}/PRETRAINED, or "
                        f"weights=FILE. {listed}"
                    ]
                )
            return {}
        if self.pretrained not in known:
            raise ConfigError(
                [
                    f"{self.what}: open_clip has no pretrained weights {self.pretrained!r}."
                    f"{nearest(self.pretrained, known)} {listed}"
                ]
            )
        published: dict[str, Any] = open_clip.get_pretrained_cfg(self.model, self.pretrained)
        return published

    def _config(self) -> dict[str, Any]:
        """The model's configuration, with the activation that its weights were trained with."""
        file = self.config_file
        if file is None:
            config: Any = open_clip.get_model_config(self.model)
        else:
            if file.stem != self.model or file.suffix != ".json":
                raise ConfigError(
                    [f"{self.what}: config: expected a file {self.model}.json, got {file.name}."]
                )
            if self.model in _BUILT_IN:
                raise ConfigError(
                    [f"{self.what}: open_clip has a model of this name; rename {file.name}."]
                )
            try:
                config = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError([f"{file} cannot be read as JSON: {error}"]) from error
            needed = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
            if not isinstance(config, dict) or not all(
                isinstance(config.get(key), kind) for key, kind in needed.items()
            ):
                raise ConfigError(
                    [f"{file}: expected an object with {', '.join(needed)}, as open_clip's own."]
                )
        # open_clip only warns where a tag was trained with QuickGELU and the model of that name
        # has GELU (all of OpenAI's), and then the numbers are wrong by points.
        if self.published.get("quick_gelu"):
            config["quick_gelu"] = True
        return dict(config)

    def _preprocess(self) -> Preprocess:
        own = merge_preprocess_dict(PreprocessCfg(), self.published)
        if own["resize_mode"] != "shortest":
            raise ConfigError(
                [
                    f"{self.what} wants resize mode {own['resize_mode']!r}; only 'shortest', which "
                    "resizes the shorter side, is supported so far."
                ]
            )
        size = self.config["vision_cfg"].get("image_size", 224)
        side = size[0] if isinstance(size, list) and size else size
        if not isinstance(side, int) or size not in (side, [side, side]):
            raise ConfigError([f"{self.what}: expected square input, got {size}."])
        own |= {name: value for name, value in self.given.items() if value is not None}
        return Preprocess(
            size=side,
            resize=side,
            interpolation=own["interpolation"],
            mean=tuple(own["mean"]) * (3 // len(own["mean"])),
            std=tuple(own["std"]) * (3 // len(own["std"])),
        )

    def _file(self) -> Path:
        """The weights' file; from the hub or its cache where no local one is given."""
        if self.weights is not None:
            if not self.weights.exists():
                raise DataError(f"{self.what}: there is no weights file {self.weights}.")
            return self.weights
        repository, _, name = self.published["hf_hub"].rpartition("/")
        names = [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        if name:
            names = [str(Path(name).with_suffix(".safetensors")), name]
        return hub_file(repository, names, self.what)

    def _clip(self, file: Path) -> Any:
        """Both towers with the weights of `file`, in float32, in eval mode."""
        tensors, notes = plain_weights(file, self.weights_key)
        self._register()
        try:
            with torch.random.fork_rng(devices=[]), TemporaryDirectory() as folder:
                # open_clip reads the file once more. What it would read otherwise it is given as a
                # file of these tensors alone; and so it never tries without weights_only, which
                # it does where its first try ends in a TypeError.
                plain = file
                if notes or file.suffix != ".safetensors":
                    plain = Path(folder) / "weights.safetensors"
                    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, plain)
                clip = open_clip.create_model(
                    self.model,
                    pretrained=str(plain),
                    precision="fp32",
                    force_quick_gelu=bool(self.config.get("quick_gelu")),
                )
        # A file of another model, or a configuration that has no such model, or a text tower
        # that is made from files on the hub: open_clip raises what comes.
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise DataError(
                f"open_clip cannot make {self.what} from {file}: {type(error).__name__}: "
                f"{' '.join(lines[:3])[:500]}"
            ) from error
        return clip.eval()

    def _tokenizer(self) -> Callable[[list[str]], Tensor]:
        self._register()
        try:
            tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(self.model)
        except (ImportError, OSError, ValueError) as error:  # those of the hub's tokenizers
            raise DataError(
                f"{self.what}: its tokenizer could not be had ({type(error).__name__}: {error}). "
                "Install what it needs, and download it where there is a network."
            ) from error
        return tokenizer

    def _register(self) -> None:
        """Have open_clip know the configuration; of one name, the last that was added counts."""
        if self.config_file is not None:
            open_clip.add_model_config(self.config_file)

    def _check(self, clip: Any, classifier: Classifier) -> None:
        """On random images: the encoder gives what CLIP's `encode_image` gives."""
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(2, 3, self.preprocess.size, self.preprocess.size, generator=generator)
        with torch.no_grad():
            expected = clip.encode_image(probe, normalize=True)
            if not torch.allclose(classifier.features(probe), expected, rtol=1e-4, atol=1e-5):
                raise ConfigError(
                    [f"{self.what}: its image features change without the text tower."]
                )


class ImageTower(nn.Module):
    """Images (N, 3, S, S) → normalised features (N, D): CLIP without its text tower."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) → (N, D), each of length 1."""
        features = self.visual(images)
        if isinstance(features, tuple):  # CoCa's tower gives its tokens as well
            features = features[0]
        return F.normalize(features, dim=-1)
