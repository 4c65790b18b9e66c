"""The MLP of a transformer block, dense or as a sparse mixture of experts."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from vmoe_prc.arrays import Array, Bool, Float
from vmoe_prc.config import Config
from vmoe_prc.config.registry import ROUTERS
from vmoe_prc.models import float32_gradients
from vmoe_prc.models.dispatch import Experts
from vmoe_prc.models.options import SPLIT_RNGS
from vmoe_prc.models.routing import DEFAULT_ROUTER, DotGeneral, Routing
from vmoe_prc.models.routing.ensemble import EnsembleRouter, from_groups, to_groups


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them.

    Attributes:
      mlp_dim: Hidden width.
      dropout_rate: Dropout after either layer.
      deterministic: Whether dropout is off.
      dtype: Dtype of the computation; the parameters are float32.
      dot_general: Product with the kernels; JAX's own if None.
      gelu: 'tanh' or 'exact'.
    """

    mlp_dim: int
    dropout_rate: float = 0.0
    deterministic: bool = False
    dtype: Any = None
    dot_general: DotGeneral = None
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, inputs: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Applies the MLP to each token."""

        def dense(features, name):
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=nn.initializers.normal(stddev=1e-6),
                dot_general=self.dot_general,
                name=name,
            )

        x = nn.gelu(dense(self.mlp_dim, "Dense_0")(inputs), approximate=self.gelu == "tanh")
        x = nn.Dropout(self.dropout_rate)(x, deterministic=self.deterministic)
        x = dense(inputs.shape[-1], "Dense_1")(x)
        return nn.Dropout(self.dropout_rate)(x, deterministic=self.deterministic)


class MlpMoeBlock(nn.Module):
    """A mixture of MLPs, of which each token uses the few that the router chooses.

    Attributes:
      mlp_dim: Hidden width of an expert.
      num_experts: E.
      group_size: S; tokens of all images are split into groups of this size, which are
        routed independently.
      dropout_rate: Dropout inside the experts.
      deterministic: Whether dropout and routing noise are off.
      router: Options of the router, and its class as `name`.
      dtype: Dtype of the experts' computation; the router's dtype is one of its options.
      split_rngs: Whether each expert has its own initial values and dropout, or which of
        ('params', 'dropout') are its own; otherwise all experts start equal, as in V-MoE.
      ensemble_size: M, the members of an ensemble (E³, arXiv 2110.03360). The images come M times,
        and each member has the tokens of one copy and 1 / M of the experts.
      num_shared_experts: Experts that every token uses, with weight 1, as one MLP that is as
        many times as wide (DeepSeekMoE, arXiv 2401.06066).
      dot_general: Product with the kernels of the router and the shared experts; JAX's own
        if None.
      gelu: GELU of the experts: 'tanh' or 'exact'.
    """

    mlp_dim: int
    num_experts: int
    group_size: int
    dropout_rate: float = 0.0
    deterministic: bool = False
    router: Config | None = None
    dtype: Any = None
    split_rngs: bool | tuple[str, ...] = False
    ensemble_size: int = 1
    num_shared_experts: int = 0
    dot_general: DotGeneral = None
    gelu: str = "tanh"

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "N T D"],
        mask: Bool[Array, " N"] | None = None,
        num_registers: int = 0,
    ) -> tuple[jax.Array, Routing]:
        """Routes the tokens and applies their experts.

        Args:
          inputs: (N, T, D) tokens of N images.
          mask: (N,) bool, False for images whose tokens must not take the place of others;
            None if there are none.
          num_registers: R; the last R tokens of an image are not routed, and use one MLP of
            the mean parameters of the experts.

        Returns:
          (N, T, D) outputs, zero for tokens that were dropped, and the routing record.

        Raises:
          ValueError: If the group size does not divide the number of tokens.
        """
        registers = inputs[:, inputs.shape[1] - num_registers :]
        inputs = inputs[:, : inputs.shape[1] - num_registers]
        num_images, num_tokens, size = inputs.shape
        if num_images * num_tokens % self.group_size:
            raise ValueError(
                f"group_size = {self.group_size} does not divide the number of tokens, "
                f"{num_images} images x {num_tokens} tokens = {num_images * num_tokens}"
            )
        router = self._router(num_tokens)
        split = self.split_rngs
        experts = nn.vmap(
            MlpBlock,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={
                name: split if isinstance(split, bool) else name in split for name in SPLIT_RNGS
            },
            axis_size=self.num_experts,
        )(
            self.mlp_dim,
            self.dropout_rate,
            self.deterministic,
            self.dtype,
            gelu=self.gelu,
            name="Mlp",
        )

        members = self.ensemble_size
        x = to_groups(inputs, members, self.group_size)  # (G, S, D)
        if mask is not None:  # The copies of an image are adjacent.
            mask = jnp.repeat(mask, num_tokens).reshape(-1, self.group_size)  # (G, S)
        with jax.named_scope("route"):
            routing, plan = router(x, mask)
        described = self._experts(experts, size)
        outputs = from_groups(plan.apply(x, described), members, num_tokens)
        if self.num_shared_experts:
            outputs += MlpBlock(
                self.num_shared_experts * self.mlp_dim,
                self.dropout_rate,
                self.deterministic,
                self.dtype,
                self.dot_general,
                self.gelu,
                name="SharedMlp",
            )(inputs)
        outputs = jnp.asarray(outputs, jnp.result_type(inputs))
        if num_registers:
            mean = jax.tree.map(lambda p: jnp.mean(p, axis=0), described.params())
            mlp = MlpBlock(
                self.mlp_dim, deterministic=True, dtype=self.dtype, gelu=self.gelu, parent=None
            )
            registers = cast(jax.Array, mlp.apply({"params": mean}, registers))
            outputs = jnp.concatenate([outputs, registers.astype(outputs.dtype)], axis=1)
        return outputs, routing

    @nn.nowrap
    def _router(self, num_tokens: int) -> nn.Module:
        options = dict(self.router or {})
        router_class = ROUTERS[options.pop("name", DEFAULT_ROUTER)]
        if self.ensemble_size > 1:
            router_class = EnsembleRouter
            options |= {"ensemble_size": self.ensemble_size, "by_image": self.deterministic}
        deterministic = options.pop("deterministic", None)
        return router_class(
            num_experts=self.num_experts,
            deterministic=self.deterministic if deterministic is None else deterministic,
            dot_general=self.dot_general,
            tokens_per_image=num_tokens,
            name="Router",
            **options,
        )

    @nn.nowrap
    def _experts(self, module: nn.Module, size: int) -> Experts:
        """Describes the experts, whose parameters are the same for every dispatch method."""

        def params():
            if self.is_initializing():
                module(jnp.zeros((self.num_experts, 1, size)))  # Makes the parameters.
            return module.variables["params"]

        has_dropout = self.dropout_rate > 0 and not self.deterministic
        return Experts(
            apply=module,
            params=params,
            dtype=self.dtype or jnp.float32,
            dropout_rate=self.dropout_rate if has_dropout else 0.0,
            gelu=self.gelu,
            dropout_key=(lambda: self.make_rng("dropout")) if has_dropout else lambda: None,
            float32_gradients=float32_gradients.in_use(),
        )
