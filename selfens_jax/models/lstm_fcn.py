"""LSTM-FCN (Karim et al., 2018, IEEE Access 6)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from selfens_jax.models.layers import batch_norm


class LSTMFCN(nn.Module):
    """An LSTM over the channels beside a fully convolutional network: (B, T, C) -> (B, K).

    The paper's dimension shuffle makes each channel one step of the LSTM whose features are all its
    time steps, so the parameters depend on T and a univariate series is a single step.
    In training the caller provides a "dropout" key.
    """

    num_classes: int
    cells: int = 64
    dropout: float = 0.8

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels_as_steps = jnp.swapaxes(x, 1, 2)
        states = nn.RNN(nn.OptimizedLSTMCell(self.cells))(channels_as_steps)
        assert isinstance(states, jax.Array)  # with return_carry=True it would be a tuple
        lstm = states[:, -1]
        lstm = nn.Dropout(self.dropout, deterministic=not train)(lstm)

        fcn = x
        for filters, kernel in ((128, 8), (256, 5), (128, 3)):
            fcn = nn.Conv(filters, (kernel,), kernel_init=nn.initializers.he_uniform())(fcn)
            fcn = nn.relu(batch_norm(use_running_average=not train)(fcn))
        return nn.Dense(self.num_classes)(jnp.concatenate([lstm, fcn.mean(axis=1)], axis=-1))
