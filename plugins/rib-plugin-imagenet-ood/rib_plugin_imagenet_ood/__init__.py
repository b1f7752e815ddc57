"""ImageNet and its shifted variants."""
