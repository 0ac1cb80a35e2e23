#!/usr/bin/env python3
"""Asks a tier volume through its control socket: tier-ask.py UUID '{"command":...}'. Prints the last
answer; the exit status is 0 if it is done, 1 if it was refused, 2 if nobody answers any more."""

import json
import socket
import sys


def main():
    """One request, all replies."""
    request = {"version": 1, **json.loads(sys.argv[2])}
    last = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.connect(f"/run/swapfs/{sys.argv[1]}.control")
            stream.sendall(json.dumps(request).encode() + b"\n")
            for line in stream.makefile("r", encoding="utf-8"):
                last = json.loads(line)
                print(line.strip(), flush=True)
    except (OSError, ValueError) as error:
        print(f"tier-ask: {error}")
        return 2
    if last is None or last["kind"] == "progress":
        return 2
    return 0 if last["kind"] == "done" else 1


sys.exit(main())
