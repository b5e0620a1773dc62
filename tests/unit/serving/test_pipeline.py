import socket

import pytest

from chuxin.errors import InputError
from chuxin.serving.config import ServeConfig, ServeExecution
from chuxin.serving.pipeline import free_port


def test_a_taken_port_is_the_user_s_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port}: the port is taken. Give another"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match="cannot listen there"):
        free_port("203.0.113.7", 0)


def test_the_runner_learns_the_cpus_of_all_replicas() -> None:
    config = ServeConfig(model="release", max_length=64, execution=ServeExecution(num_replicas=3, num_cpus=2))
    assert config.execution.required_cpus() == 6
