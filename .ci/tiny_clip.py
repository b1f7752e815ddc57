"""Write tiny.json and tiny.safetensors: a CLIP with random weights, for one run of open-clip."""

import json
from pathlib import Path

import open_clip
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}

config = Path("tiny.json")
config.write_text(json.dumps({"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}))
open_clip.add_model_config(config)
state = open_clip.create_model("tiny").state_dict()
save_file({name: tensor.contiguous() for name, tensor in state.items()}, "tiny.safetensors")
