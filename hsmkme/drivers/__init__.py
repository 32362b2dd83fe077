"""QKD devices, and what stands for them. A driver yields blocks (``intake.Driver``)."""
