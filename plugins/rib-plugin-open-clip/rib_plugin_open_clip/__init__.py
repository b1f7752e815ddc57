"""CLIP image towers with a zero-shot head as backbones."""
