"""What runs inside Modal: images, builder, GPU snapshot server. Knows nothing of flows and tasks."""
