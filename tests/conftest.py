"""Eight CPU devices stand in for a machine with several, in every test."""

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything starts the backend
