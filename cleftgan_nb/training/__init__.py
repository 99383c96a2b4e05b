"Training: augmentation, losses, state, loop"
