"""The kernel: what every feature stands on, and no feature itself."""
