"""Random streams: no two uses of randomness share a key, and their numbers do not correlate."""

import itertools

import jax
import numpy as np
from helpers import Recorder, assert_uncorrelated

from selfens_jax import smoothing, training
from selfens_jax.streams import stream

NAMES = ("initialization", "training", "recalibration", "masks", "certification", "attack")


def test_no_two_streams_share_a_key():
    grid = itertools.product((0, 1, 2, 12345, 2**31, 2**32 - 1), NAMES, range(6))
    keys = [tuple(jax.random.key_data(stream(*use)).tolist()) for use in grid]
    # Nor with the keys that a stream is most likely to be split into.
    keys += [
        tuple(jax.random.key_data(jax.random.fold_in(stream(0, name), i)).tolist())
        for name in NAMES
        for i in range(6)
    ]
    assert len(set(keys)) == len(keys)


def test_a_stream_is_always_the_same():
    first, again = stream(3, "masks", 1), stream(3, "masks", 1)
    assert (jax.random.key_data(first) == jax.random.key_data(again)).all()
    assert (
        jax.random.key_data(stream(3, "masks")) == jax.random.key_data(stream(3, "masks", 0))
    ).all()


def test_noise_of_every_use_member_and_seed_is_uncorrelated():
    uses = itertools.product((0, 1), NAMES, (0, 1))
    rows = [jax.random.normal(stream(*use), (2000,)) for use in uses]
    assert_uncorrelated(np.stack(rows), error=1e-9)


def certification_noise(examples: int, length: int, key: jax.Array) -> np.ndarray:
    """The noised series that `count_votes` shows the network for series of zeros, (E, n, T).

    The last that it is shown for an example: before, its rows are looked at.
    """
    seen, blocks = [], []

    def predict(x):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x)
        return x[:, 0]

    for example in range(examples):
        series = np.zeros((1, length, 2), np.float32)
        smoothing.count_votes(
            jax.tree_util.Partial(predict),
            series,
            sigma=1.0,
            num_draws=100,
            key=key,
            indices=[example],
            draws_per_block=100,
        )
        jax.effects_barrier()
        blocks.append(seen[-1])
    return np.stack(blocks)[..., 0]


def test_noise_of_training_and_certification_is_uncorrelated():
    """With one seed: noise of examples and draws, of steps, series and members, and of masks."""
    length = 2000
    certification = certification_noise(3, length, stream(0, "certification"))[:, :6]
    assert certification.std() > 0.9

    config = training.TrainConfig(
        ensemble="de", num_members=2, sigma=1.0, epochs=3, batch_size=4, recalibration_passes=1
    )
    trainer = training.Trainer(Recorder(batch_size=4), config, num_examples=4)
    x, y = np.zeros((4, length, 1), np.float32), np.array([0, 1, 0, 1])
    initial, used = training.init_states(trainer, x), []
    for states, _ in training.train(trainer, x, y, initial, epochs_per_report=1):
        used += [np.array(state.batch_stats["seen"])[..., 0] for state in states]
    for variables in training.recalibrated(trainer, x, states):
        used.append(np.array(variables["batch_stats"]["seen"])[..., 0])  # scaled

    masks = jax.random.normal(stream(0, "masks"), (1, length))
    rows = np.concatenate([certification.reshape(-1, length), *used, masks])
    assert len(rows) == 18 + 24 + 8 + 1
    assert_uncorrelated(rows, error=1e-9)
