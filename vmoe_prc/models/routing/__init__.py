"""Routers decide which experts each token goes to, and report it as a `Routing` record.

A router is a flax module that registers itself in `config.registry.ROUTERS`. The block gives it
`num_experts`, `deterministic`, `dot_general`, `tokens_per_image` and a `name`; its other attributes
are the fields of its options dataclass, which may be a subclass of `RouterOptions`. Called with
tokens (G, S, D) and a mask (G, S) or None, it returns the record and a plan, whose
`apply(tokens, experts)` gives the outputs. Its class attribute `experts_choose` is True where
experts choose tokens. Where each expert has a number of slots for an image, whatever is chosen, a
static method `slots_per_expert(options, tokens, num_experts)` returns it.
"""

from vmoe_prc.models.routing.record import Routing
from vmoe_prc.models.routing.router import DotGeneral, NoisyRouter, RouterOptions

DEFAULT_ROUTER = "NoisyTopExpertsPerItemRouter"

__all__ = ["DEFAULT_ROUTER", "DotGeneral", "NoisyRouter", "RouterOptions", "Routing"]
