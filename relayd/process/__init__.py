"""Life as a Unix process: signals, limits, standard descriptors.  Nobody else touches them."""
