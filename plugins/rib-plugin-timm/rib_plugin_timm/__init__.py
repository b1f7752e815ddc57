"""timm's classifiers as backbones."""
