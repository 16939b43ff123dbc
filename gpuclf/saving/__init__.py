"""Files of models and checkpoints: safetensors with a JSON header, nothing that runs when read."""
