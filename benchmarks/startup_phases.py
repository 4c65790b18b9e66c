"""Prints as JSON the seconds of each phase up to the first step; `benchmarks.startup` runs it."""

import json
import sys
import time


def main(model: str, method: str, image_size: str, batch_size: str) -> None:
    """Imports, builds, compiles and takes one step."""
    clock = Clock()
    from benchmarks.programs import make_state, make_training, model_config

    clock.stop("import")
    config = model_config(model, int(image_size), method)
    state = make_state(config, int(image_size))
    clock.stop("parameters")
    training = make_training(config, int(image_size), int(batch_size), state)
    clock.stop("compile the step")
    import jax

    jax.block_until_ready(training.step.run())
    clock.stop("first step")
    print(json.dumps(clock.seconds))


class Clock:
    """Seconds since the last stop, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, phase: str) -> None:
        """Ends a phase."""
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now


if __name__ == "__main__":
    main(*sys.argv[1:])
