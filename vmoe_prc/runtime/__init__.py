"""The machine that a program runs on: mesh, processes, preemption, caches."""
