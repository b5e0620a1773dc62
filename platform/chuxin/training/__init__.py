"""Training: objectives, the step over ranks, checkpoints, and the Ray Train worker that runs them."""
