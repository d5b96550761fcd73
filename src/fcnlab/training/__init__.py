"""The training loop: LightningModule, losses, optimisers, checkpoints, resuming and cost estimates."""
