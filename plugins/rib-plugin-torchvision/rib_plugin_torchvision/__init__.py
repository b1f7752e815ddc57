"""torchvision's classifiers as backbones."""
