"""The slices. Each folder is a capability; the kernel finds them by looking."""
