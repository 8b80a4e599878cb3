"""Eight CPU devices stand in for a machine with several, in every test.

XLA has a thread for each device or core, whichever are more, and adds up in as many parts. So that
a command, which has one device, gives a test the bits of the test's own process on every machine,
it has eight threads, too.
"""

import os

import jax

os.environ["NPROC"] = "8"
jax.config.update("jax_num_cpu_devices", 8)  # before anything starts the backend
