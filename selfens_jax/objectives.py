"""What training lowers: losses of k noised, masked views of each series.

    cross_entropy   one view, the paper's (Algorithm 1)
    two_views       the same of two: what the others, which see two or more, have to beat
    consistency     two views must also agree, and be sure (Jeong & Shin, NeurIPS 2020)
    ensemble        two masks of one noisy series; the cross-entropy of their mean logits, which is
                    what a self-ensemble answers
    smoothmix       two views, and two between the series and one that the mean of its views gets
                    wrong, labelled less surely (Jeong et al., NeurIPS 2021)

Functions are pure. `logits` are (k, B, K), views first; `labels` (B,) class indices; `weights` (B,)
those of the labels' classes. Every term is a mean over views and the weighted mean over series.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

CONSISTENCY, ENTROPY = 5.0, 0.5  # lambda and eta of `consistency`
WARM_UP = {"consistency": 50, "smoothmix": 10}  # epochs; smoothmix's is its authors'
ASCENT = 8.0  # sigmas between a series and the one that `smoothmix` mixes it with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What an objective asks of a step of training.

    Attributes:
      views: k, of each series.
      passes: of each series through the network and back: what a step costs.
      shares_noise: whether the views of a series differ in their masks only.
    """

    views: int
    passes: int
    shares_noise: bool = False


OBJECTIVES = {
    "cross_entropy": Objective(views=1, passes=1),
    "two_views": Objective(views=2, passes=2),
    "consistency": Objective(views=2, passes=2),
    "ensemble": Objective(views=2, passes=2, shares_noise=True),
    "smoothmix": Objective(views=2, passes=6),  # the views, the ascent, the mixed views
}


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """() the mean over views of -log p_i(y)."""
    of_view = jax.vmap(optax.softmax_cross_entropy_with_integer_labels, in_axes=(0, None))
    return jnp.average(of_view(logits, labels).mean(axis=0), weights=weights)


def consistency(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    agreement: float | jax.Array = CONSISTENCY,
    certainty: float | jax.Array = ENTROPY,
) -> jax.Array:
    """() cross-entropy + lambda mean_i KL(p || p_i) + eta H(p), p the mean of the views' p_i.

    Args:
      logits, labels, weights: see the module.
      agreement: lambda, at least 0.
      certainty: eta, at least 0.
    """
    log_p_i = jax.nn.log_softmax(logits)
    log_p = _log_mean(log_p_i)
    p = jnp.exp(log_p)
    divergence = (p * (log_p - log_p_i)).sum(axis=-1).mean(axis=0)
    entropy = -(p * log_p).sum(axis=-1)
    more = jnp.average(agreement * divergence + certainty * entropy, weights=weights)
    return cross_entropy(logits, labels, weights) + more


def ensemble(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """() the cross-entropy of the views' mean logits."""
    return cross_entropy(logits.mean(axis=0, keepdims=True), labels, weights)


def smoothmix(
    logits: jax.Array,
    mixed_logits: jax.Array,
    shares: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    strength: float | jax.Array = 1.0,
) -> jax.Array:
    """() cross-entropy + eta mean_i KL((1 - share) p + share / K || q_i), where argmax p is right.

    p is the mean of the views' p_i, and q_i are those of the mixed views. As in the authors'
    program, the target is not held fixed: it is differentiated too.

    Args:
      logits, labels, weights: see the module.
      mixed_logits: (k, B, K), of the views of (1 - share) x + share x'.
      shares: (B,) in [0, 1/2].
      strength: eta, at least 0.
    """
    log_p = _log_mean(jax.nn.log_softmax(logits))
    right = log_p.argmax(axis=-1) == labels
    log_q_i = jax.nn.log_softmax(mixed_logits)
    share = shares[:, None]
    # In logarithms, so that no p of 0 makes a gradient infinite.
    log_target = jnp.logaddexp(jnp.log1p(-share) + log_p, jnp.log(share / logits.shape[-1]))
    divergence = (jnp.exp(log_target) * (log_target - log_q_i)).sum(axis=-1).mean(axis=0)
    mixed = jnp.average(jnp.where(right, divergence, 0.0), weights=weights)
    return cross_entropy(logits, labels, weights) + strength * mixed


def warm_up(epoch: jax.Array, epochs: int) -> jax.Array:
    """() the share of a term's weight in an epoch, counted from 0: all of it from `epochs` on."""
    return jnp.minimum(1.0, (epoch + 1) / epochs)


def _log_mean(log_p_i: jax.Array) -> jax.Array:
    """log mean_i p_i, (B, K), of (k, B, K)."""
    return jax.nn.logsumexp(log_p_i, axis=0) - jnp.log(len(log_p_i))
