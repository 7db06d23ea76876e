"""A study that runs on another machine: what it needs there, how it is followed, what of it may come back.

The machine is reached by `execution.ssh`; what it sends is data, and believed in nothing (`returning`).
"""
