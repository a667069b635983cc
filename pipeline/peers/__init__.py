"""Other people's runtimes and converters, each in an environment of its own under `build/peers/`."""
