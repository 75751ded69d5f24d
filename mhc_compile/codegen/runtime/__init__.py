"""From a text to a running kernel: build, cache, dispatch, tuning."""
