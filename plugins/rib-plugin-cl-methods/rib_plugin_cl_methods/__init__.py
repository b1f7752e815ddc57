"""Fine-tuning and continual-learning methods, one file each, written from their papers."""
