"""`python -m qwen3vl_core.training.torchrun …`: torchrun, whose store listens on the loopback address alone when the job has one node.

The store has no access control: whoever reaches its port can read and change what the ranks agree on. torch makes it listen on
every address of the machine, whatever --master-addr says.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import static_tcp_rendezvous
from torch.distributed.run import get_args_parser, main

LOOPBACK = "127.0.0.1"


def _local_store(host: str, port: int, world_size: int, is_master: bool, timeout: Any, **more: Any) -> TCPStore:
    """A store that listens on the loopback address; takes the arguments that torchrun's static rendezvous gives. Raises OSError where the
    port is taken."""
    if is_master:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((LOOPBACK, port))
            listening.listen()
            more["master_listen_fd"] = listening.detach()
    return TCPStore(LOOPBACK, port, world_size, is_master, timeout, **more)


def run(arguments: list[str]) -> None:
    """torchrun with these arguments."""
    if get_args_parser().parse_args(arguments).nnodes == "1":
        static_tcp_rendezvous.TCPStore = _local_store  # type: ignore[assignment,misc]
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
