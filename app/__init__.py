"""The application: the kernel and every feature, put together."""
