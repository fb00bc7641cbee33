"""The command of each node, from the environment variables that a cluster sets."""

from __future__ import annotations

import socket

import pytest

from qwen3vl_core.errors import RequestError
from qwen3vl_core.layout import torchrun_command
from qwen3vl_core.layout.torchrun_command import Cluster, free_port, process_count, training_command
from qwen3vl_core.options import FinetuneOptions
from qwen3vl_core.run_record import TORCHRUN

NODE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "23456", "KUBERNETES_CONTAINER_RESOURCE_GPU": "8"}


@pytest.fixture
def cluster(monkeypatch):
    for name, value in NODE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_every_node_runs_torchrun_with_its_own_rank(cluster, tmp_path):
    options = FinetuneOptions(env="dlc", tp=4)
    assert process_count(options) == 16
    for rank in ("0", "1"):
        cluster.setenv("RANK", rank)
        words = training_command(options, tmp_path)
        given = dict(zip(words[3:-3:2], words[4:-3:2], strict=True))
        assert given == {
            "--nnodes": "2", "--nproc-per-node": "8", "--max-restarts": "0", "--node-rank": rank, "--rdzv-backend": "static",
            "--rdzv-endpoint": "node0:23456",
        }  # fmt: skip
        assert words[-3:] == ["-m", "qwen3vl_core.training", str(tmp_path)]


def test_torchrun_takes_the_command(cluster, tmp_path):
    from torch.distributed.run import config_from_args, get_args_parser

    cluster.setenv("RANK", "0")
    words = training_command(FinetuneOptions(env="dlc"), tmp_path)
    config, _, arguments = config_from_args(get_args_parser().parse_args(words[3:]))
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (2, 2, 8, 0)
    assert config.rdzv_endpoint == "node0:23456" and config.rdzv_configs["rank"] == 0 and arguments[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR not set"),
        ({"RANK": "2"}, "RANK=2: must be below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: must be a port"),
        ({"KUBERNETES_CONTAINER_RESOURCE_GPU": "0"}, "a node needs a GPU"),
    ],
)
def test_missing_cluster_variables_are_named(changes, line):
    with pytest.raises(RequestError, match=line):
        Cluster.read(NODE | changes)


def test_a_layout_that_does_not_fit_the_nodes_is_refused(cluster):
    with pytest.raises(RequestError, match=r"16 processes: must be a multiple of tp x pp x cp = 3 x 1 x 1 = 3"):
        process_count(FinetuneOptions(env="dlc", tp=3))


def test_restarts_are_left_to_the_supervisor(tmp_path):
    assert TORCHRUN not in training_command(FinetuneOptions(nproc=1, max_restarts=3), tmp_path)
    words = training_command(FinetuneOptions(nproc=2, max_restarts=3), tmp_path)
    assert words[words.index("--max-restarts") + 1] == "0" and words[words.index("--nproc-per-node") + 1] == "2"


def test_used_and_ephemeral_ports_are_avoided(tmp_path, monkeypatch):
    taken = free_port()
    assert torchrun_command.FIRST_PORT <= taken < int(torchrun_command.EPHEMERAL_PORTS.read_text().split()[0])
    monkeypatch.setattr(torchrun_command, "FIRST_PORT", taken)
    (tmp_path / "range").write_text(f"{taken + 1}\t60999\n")
    monkeypatch.setattr(torchrun_command, "EPHEMERAL_PORTS", tmp_path / "range")
    assert free_port() == taken
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        assert free_port() > taken
    # a machine whose kernel deals out every port
    (tmp_path / "range").write_text("1024\t65535\n")
    assert free_port() > 1023
